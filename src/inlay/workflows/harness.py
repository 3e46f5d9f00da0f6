"""Tasks of lm-evaluation-harness, on a base and on the adapter over it.

The harness asks and scores; here each task's per-document scores are paired, so that a change comes with its interval.
Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from inlay.adapters.reference import Reference, config_of, opened
from inlay.config.measuring import changed
from inlay.data.encoding.encoder import Encoder
from inlay.engine.batch_invariance import BatchGroups, answer_groups, batch_groups
from inlay.errors import ConfigError, nearest
from inlay.evaluation.metrics import Metric
from inlay.evaluation.verdict import MIN_ROWS, Difference, paired_bootstrap
from inlay.runs.reporter import Reporter
from inlay.typed_json import JsonObject

LOCAL = (".yaml", ".yml")


RawScores = Mapping[str, Any]
"""Results of the harness as it gives them: `results`, `samples` and more."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks of the harness."""

    names: tuple[str, ...]
    manager: Any


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    """As the harness prints it, with its filter: `acc,none`."""
    documents: int
    base: float
    adapter: float
    difference: Difference | None
    """None where the metric is no mean over documents, or where they are too few."""

    def to_json(self) -> dict[str, object]:
        """Scores of both models, and the difference with its interval or null."""
        return {
            "task": self.task, "metric": self.metric, "documents": self.documents, "base": self.base,
            "adapter": self.adapter, "difference": None if self.difference is None else self.difference.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """Scores of a base and of the adapter over it, by task and metric."""

    base: str
    adapter: str
    limit: int | None
    """Most documents of each task; None for all."""
    scores: tuple[TaskScore, ...]

    def to_json(self) -> JsonObject:
        """The value that `--json` prints."""
        scores = [one.to_json() for one in self.scores]
        return {"base": self.base, "adapter": self.adapter, "limit": self.limit, "scores": scores}


def measure_on_tasks(
    one: Reference,
    wanted: Sequence[str],
    limit: int | None,
    reporter: Reporter,
    over: Mapping[str, object] = MappingProxyType({}),
) -> HarnessResult:
    """Scores of the base of a reference and of its adapter; see `inlay.api.harness`."""
    with quietly():
        tasks = find_tasks(wanted)
        if one.caution:
            reporter.note(one.caution)
        config = changed(config_of(one), over)
        ready = opened(one, config)
        sides: list[RawScores] = []
        for name, state in ((one.base, None), (one.name, one.adapter(ready.ref))):
            if sides and state is None:
                sides.append(sides[0])
                break
            reporter.stage(f"{name}: {', '.join(tasks.names)}")
            model = ready.with_adapter(state)
            sides.append(
                run_tasks(
                    tasks, model, ready.encoder, device=ready.device, dtype=ready.autocast_dtype,
                    batch_size=config.eval.batch_size, limit=limit,
                )
            )  # fmt: skip
    scores = paired(sides[0], sides[1], config.eval.resamples, config.train.seed)
    return HarnessResult(one.base, one.name, limit, tuple(scores))


def find_tasks(wanted: Sequence[str]) -> Tasks:
    """Tasks by name, group or pattern, or as YAML files. Raises: ConfigError for none, or without the harness."""
    try:
        tasks = importlib.import_module("lm_eval.tasks")
    except ImportError:
        raise ConfigError('harness: lm-evaluation-harness is not installed: pip install "inlay[harness]".') from None
    files = [Path(name) for name in wanted if name.endswith(LOCAL)]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file}: no such task file.")
    folders = sorted({str(file.absolute().parent) for file in files})
    manager = tasks.TaskManager(include_path=folders or None)
    names: list[str] = []
    for name in wanted:
        found = [_name_in(Path(name))] if name.endswith(LOCAL) else manager.match_tasks([name])
        if not found:
            guess = nearest(name, manager.all_tasks)
            hint = f" Did you mean {guess}?" if guess else " A task file ends in .yaml."
            raise ConfigError(f"harness: unknown task {name!r}.{hint}")
        names += found
    if not names:
        raise ConfigError("harness: name a task of lm-evaluation-harness, or a task file (.yaml).")
    return Tasks(tuple(dict.fromkeys(names)), manager)


def _name_in(file: Path) -> str:
    class Lenient(yaml.SafeLoader):
        """Task files may name functions with tags of their own."""

    Lenient.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        value = yaml.load(file.read_text(encoding="utf-8"), Loader=Lenient)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as a task file ({' '.join(str(error).split())}).") from None
    name = value.get("task") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"{file}: is no task file, it has no `task: NAME`.")
    return name


def run_tasks(
    tasks: Tasks, model: Any, encoder: Encoder, *, device: str, dtype: Any, batch_size: int, limit: int | None
) -> RawScores:
    """`results` and `samples` of the harness. Prompts go through the chat template where there is one."""
    lm_eval = importlib.import_module("lm_eval")
    wrapper = importlib.import_module("lm_eval.models.huggingface").HFLM
    was_training = model.training
    model.eval()
    try:
        wrapped = wrapper(
            pretrained=model, tokenizer=encoder.tokenizer, batch_size=_at_once(model, batch_size), device=device,
            mixed_precision_dtype=dtype,
        )  # fmt: skip
        found: RawScores = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks.names), task_manager=tasks.manager, limit=limit, bootstrap_iters=0,
            apply_chat_template=bool(encoder.tokenizer.chat_template),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, AssertionError) as error:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"harness {', '.join(tasks.names)}: the harness stopped: {what}.") from error
    finally:
        model.train(was_training)
    return found


def _at_once(model: Any, batch_size: int) -> int:
    """One row at a time where rows of a batch would not be computed as each alone: the harness makes its own batches."""
    return batch_size if batch_groups(model) == answer_groups(model) == BatchGroups() else 1


def paired(base: RawScores, adapter: RawScores, resamples: int, seed: int) -> list[TaskScore]:
    """Every metric of every task, base beside adapter."""
    scores = []
    for task, before in base["results"].items():
        after, higher = adapter["results"][task], base["higher_is_better"].get(task, {})
        for key, value in before.items():
            metric, comma, _ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            sides = [_per_document(found, task, key) for found in (base, adapter)]
            difference = None
            if all(_is_mean_of(side, total) for side, total in zip(sides, (value, after[key]), strict=True)):
                difference = paired_bootstrap(
                    sides[0], sides[1], _mean(key, higher.get(metric, True)), resamples=resamples, seed=seed
                )
            count = int(base["n-samples"].get(task, {}).get("effective", 0))
            scores.append(TaskScore(task, key, count, float(value), float(after[key]), difference))
    return scores


def _per_document(found: RawScores, task: str, key: str) -> np.ndarray:
    """(N, 2) score of each document and 1, in the order of the documents; empty where a score is no number."""
    metric, _, chosen = key.partition(",")
    rows = [row for row in found["samples"].get(task, []) if row.get("filter", "none") == chosen]
    values = [row.get(metric) for row in sorted(rows, key=lambda row: int(row["doc_id"]))]
    if not all(isinstance(value, (bool, int, float)) for value in values):
        return np.zeros((0, 2))
    return np.array([[float(value), 1.0] for value in values]).reshape(-1, 2)


def _is_mean_of(side_N2: np.ndarray, total: float) -> bool:
    return len(side_N2) >= MIN_ROWS and bool(np.isclose(side_N2[:, 0].mean(), total, rtol=1e-9, atol=1e-12))


def _mean(name: str, higher_is_better: bool) -> Metric:
    return Metric(
        name=name, higher_is_better=higher_is_better, description="mean over documents", size=2,
        value=lambda sums: sums[..., 0] / sums[..., 1],
    )  # fmt: skip


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the harness's own log lines and bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        os.environ.pop("TQDM_DISABLE")
        if bars is not None:
            os.environ["TQDM_DISABLE"] = bars
