"""Trackers that metrics go to besides metrics.jsonl. Each is one class with `log` and `close`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from inlay.config import Config
from inlay.errors import ConfigError


class Tracker(Protocol):
    """A place that metrics are sent to, besides metrics.jsonl."""

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Adds the metrics of a step."""

    def close(self) -> None:
        """Sends the rest."""


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, config: Config, folder: Path, name: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run; offline unless a key is in the environment, so that it never asks for a login."""

    def __init__(self, config: Config, folder: Path, name: str, step: int) -> None:
        import wandb

        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._run = wandb.init(
            project=config.track.project, name=name, dir=str(folder), mode=mode, config=config.model_dump()
        )

    def log(self, step: int, values: Mapping[str, object]) -> None:
        self._run.log({k: v for k, v in values.items() if k != "step"}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run in the run folder, or at MLFLOW_TRACKING_URI."""

    def __init__(self, config: Config, folder: Path, name: str, step: int) -> None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').absolute()}")
        mlflow.set_experiment(config.track.project)
        self._mlflow = mlflow
        mlflow.start_run(run_name=name)

    def log(self, step: int, values: Mapping[str, object]) -> None:
        figures = {k: float(v) for k, v in values.items() if k != "step" and isinstance(v, (int, float))}
        self._mlflow.log_metrics(figures, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, tuple[Callable[[Config, Path, str, int], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb", "wandb"),
    "mlflow": (MLflow, "mlflow", "mlflow"),
}
"""Name to class, the module that it needs, and the extra that installs it."""


def chosen(config: Config) -> list[str]:
    """The trackers that this run uses. Raises: ConfigError when a requested one is not installed."""
    wanted = config.track.trackers
    if wanted == "auto":
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    for name in wanted:
        _, module, extra = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f'track.trackers: {name} is not installed: pip install "inlay[{extra}]".')
    return list(wanted)


def open_trackers(config: Config, folder: Path, name: str, step: int) -> list[Tracker]:
    """The chosen trackers, going on after `step`. None of them reports home about itself."""
    for name_of_switch, off in (("MLFLOW_DISABLE_TELEMETRY", "true"), ("WANDB_ERROR_REPORTING", "false")):
        os.environ.setdefault(name_of_switch, off)
    return [TRACKERS[tracker][0](config, folder, name, step) for tracker in chosen(config)]
