"""The section track: experiment trackers."""

from __future__ import annotations

from typing import Literal

from inlay.config.sections.base import Auto, Settings


class TrackConfig(Settings):
    """Trackers that get the metrics of a run."""

    trackers: Auto | list[Literal["tensorboard", "wandb", "mlflow"]] = "auto"
    """Trackers that get the metrics too. `auto` is TensorBoard where it is installed. metrics.jsonl is always written."""
    project: str = "inlay"
    """Project or experiment name at the tracker."""
