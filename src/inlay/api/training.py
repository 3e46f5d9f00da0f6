"""Training: one run, a resumed run, one run per method, one run per fold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay.adapters.names import as_config
from inlay.config.load import ConfigLike
from inlay.runs import folder as runs
from inlay.runs.folder import Run, RunLike
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.training.process import require_alone
from inlay.workflows import escape_plateau
from inlay.workflows import train as training_run
from inlay.workflows.resume import Confirm

if TYPE_CHECKING:
    from inlay.workflows.compare_methods import MethodComparison
    from inlay.workflows.cross_validate import CrossValidation


def train(
    config: ConfigLike,
    *,
    resume: bool = False,
    fresh: bool = False,
    extend: str | None = None,
    profile: bool = False,
    reporter: Reporter | None = None,
    confirm: Confirm | None = None,
) -> Run:
    """The finished run: adapter, reports and a verdict by held-out loss in its folder.

    `resume` continues from the newest valid checkpoint, or starts when there is none. `fresh` moves an earlier run of
    that name aside. When checkpoints exist and neither is given, `confirm` asks whether to resume. `extend` continues
    to a new total length, `600` (steps) or `5epochs`; the learning rate follows the schedule of that length from there
    on. Given again it changes nothing, so a supervisor may repeat the command. `profile` reports where the time of the
    steps went, in seconds in `run.record.profile`.

    Raises: UserError for input that cannot work, before anything is written; TrainingError, StorageError when the
    run fails; Interrupted when a signal stopped it after a checkpoint.
    """
    reporter = reporter or PlainReporter()
    run = training_run.train(as_config(config), resume, fresh, reporter, confirm, extend, profile)
    if run.record.awaits_escape:
        escape_plateau.follow(run, reporter)
    return run


def resume(
    run: RunLike = None, *, extend: str | None = None, reporter: Reporter | None = None, folder: str = "results"
) -> Run:
    """The finished run, resumed from its newest checkpoint with its own config; `extend` as in `train`."""
    found = runs.find(run, folder)
    config = found.config
    here = config.output.model_copy(update={"name": found.name, "folder": str(found.path.parent)})
    config = config.model_copy(update={"output": here})
    return train(config, resume=True, extend=extend, reporter=reporter)


def compare_methods(
    config: ConfigLike, methods: Sequence[str], *, fresh: bool = False, reporter: Reporter | None = None
) -> MethodComparison:
    """One run per method, and a table of what each trained, how long it took, and its result.

    `methods` are some of `lora`, `qlora`, `rslora`, `dora`, `lora+`,
    `ia3`, `prompt`, `full`. Where the config leaves the learning rate at auto, each method takes the default of its
    kind; a number applies to the LoRA methods. A second call resumes where the first stopped; `fresh` moves an earlier
    comparison of that name aside. Raises: ConfigError, RunError for what cannot be compared; Interrupted after a signal.
    """
    from inlay.workflows.compare_methods import compare_methods as compared

    require_alone("compare-methods")
    return compared(as_config(config), methods, fresh, reporter or PlainReporter())


def cross_validate(
    config: ConfigLike, folds: int = 5, *, metrics: Sequence[str] = (), reporter: Reporter | None = None
) -> CrossValidation:
    """One run per fold, and the score of every row by the adapter that did not train on it, against the base.

    The runs lie in one folder; a second call resumes where the first
    stopped. Raises: ConfigError for fewer than two folds or a config with `data.eval`; else as `train`.
    """
    from inlay.workflows.cross_validate import cross_validate as validated

    require_alone("cross-validate")
    return validated(as_config(config), folds, metrics, reporter or PlainReporter())
