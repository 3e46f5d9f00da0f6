"""Two branches of a run that met a plateau with `train.on_plateau: escape`, and the best of the three.

Each branch repeats the steps from an earlier checkpoint over the same rows, with other learning rates.

Both branches are runs of their own under `branches/` in the run's folder. Until run.json has the outcome, going on with
the run goes on with them.
"""

from __future__ import annotations

from dataclasses import replace

from inlay.config import Config
from inlay.errors import RunError, StorageError
from inlay.runs.folder import Run
from inlay.runs.guard_events import escape_summary
from inlay.runs.record import BestEvaluation, DifferenceRecord, EscapeOutcome, Plateau
from inlay.runs.report import report
from inlay.runs.reporter import LoggedReporter, Reporter
from inlay.storage import owned
from inlay.training.process import launched_rank
from inlay.typed_json import decode
from inlay.workflows import train

_PLAIN = "continuation"


def follow(run: Run, reporter: Reporter) -> None:
    """Trains the branches of a run that awaits them and writes the outcome as `escape` into its result.

    Raises: as `inlay.workflows.train.train`; the run itself stays finished.
    """
    result = run.record.result
    assert result is not None
    assert result.plateau is not None, "the run met no plateau"
    plateau = result.plateau
    first = launched_rank()[0] == 0
    if first:
        reporter = LoggedReporter(reporter, run)
    reason = "the run stopped early" if result.stopped_early else _missing(run, plateau.back_to)
    if reason is None:
        for name, config in _configs(run, plateau, result.steps).items():
            if first:
                reporter.note(f"{name}: from step {plateau.back_to} to {result.steps} once more")
            branch = Run(run.path / "branches" / name)
            extended = branch.is_recorded and branch.config.train != config.train  # since it was begun
            train.train(config, resume=not extended, fresh=extended, reporter=reporter, confirm=None)
    if not first:
        return
    outcome = EscapeOutcome(tried=False, reason=reason) if reason else _judged(run, plateau, result.steps, reporter)
    with owned(run.path):
        run.write_record(replace(run.record, result=replace(result, escape=outcome)))
        report(run, run.record)
    reporter.note(escape_summary(outcome))


def _missing(run: Run, step: int) -> str | None:
    """Why the branches cannot start, or None where they can or already have."""
    from inlay.training.checkpoint import checkpoint_at

    if all((run.path / "branches" / name / "run.json").exists() for name in ("escape", "decay")):
        return None
    try:
        checkpoint_at(run, step)
    except (RunError, StorageError) as error:
        return str(error)
    return None


def _configs(run: Run, plateau: Plateau, last: int) -> dict[str, Config]:
    """The config of each branch by its name: that of the run but for the learning rate and the guards that stop."""
    from inlay.training.plateau import escape

    config = run.config
    common = {
        "branch_from": f"{run.path.absolute()}@{plateau.back_to}", "max_steps": last, "on_plateau": "note",
        "on_overfitting": "note", "early_stopping_patience": None,
    }  # fmt: skip
    made = {}
    for name, factors in escape.factors(plateau.back_to, plateau.step, last).items():
        output = config.output.model_copy(update={"folder": str(run.path / "branches"), "name": name})
        train = config.train.model_copy(update={**common, "learning_rate_factors": factors})
        adapter = config.adapter.model_copy(update={"start_from": None})
        made[name] = config.model_copy(update={"train": train, "output": output, "adapter": adapter})
    return made


def _judged(run: Run, plateau: Plateau, last: int, reporter: Reporter) -> EscapeOutcome:
    """The three ways after the last step on the held-out rows; differences are escape minus the other."""
    from inlay.adapters import reference
    from inlay.evaluation.score import held_out, read_held_out, score
    from inlay.evaluation.verdict import loss_difference

    config, ready = run.config, reference.open_base(run)
    rows = held_out(read_held_out(run.heldout), ready.encoder, int(config.data.max_length), config.data.overlong, ())
    paths = {_PLAIN: run.path} | {name: run.path / "branches" / name for name in ("decay", "escape")}
    scores = {}
    for name, path in paths.items():
        adapter = reference.reference(f"{path}@{last}", config.output.folder).adapter(ready.ref)
        assert adapter is not None
        found = score(
            ready.with_adapter(adapter), name, rows, ready.encoder, ready.task, batch_size=config.eval.batch_size,
            max_new_tokens=1, device=ready.device, dtype=ready.autocast_dtype, reporter=reporter, generate=False,
        )  # fmt: skip
        scores[name] = (found.nll, found.weight)
    against = {
        name: loss_difference(scores[name], scores["escape"], config.eval.resamples, config.train.seed)
        for name in (_PLAIN, "decay")
    }
    return EscapeOutcome(
        tried=True,
        plateau=plateau.kind,
        steps=(plateau.back_to + 1, last),
        eval_loss={name: float(nll.sum() / weight.sum()) for name, (nll, weight) in scores.items()},
        best={name: _best(Run(path), plateau.back_to) for name, path in paths.items()},
        against={name: decode(DifferenceRecord, one.to_json()) for name, one in against.items()},
        beat=[name for name, difference in against.items() if difference.verdict == "better"],
    )


def _best(run: Run, after: int) -> BestEvaluation:
    """The evaluation with the lowest held-out loss after a step: a pick among many, which flatters every way alike."""
    evaluated = [line for line in run.metrics if line["step"] > after and "eval_loss" in line]
    best = min(evaluated, key=lambda line: line["eval_loss"])
    return BestEvaluation(step=best["step"], eval_loss=best["eval_loss"])
