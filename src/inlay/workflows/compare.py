"""What was measured, compared: the further models against the first, their costs, and the reports that are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.reference import BASE, Reference, device_for
from inlay.config.identity import settings_hash
from inlay.errors import DataError
from inlay.evaluation.costs import Bill, Prices
from inlay.runs import folder as runs
from inlay.runs.guard_events import incidents
from inlay.workflows.measure import EvaluationResult

if TYPE_CHECKING:
    from inlay.evaluation.compare import Comparison
    from inlay.evaluation.custom import MetricSpecs
    from inlay.evaluation.metrics import TextMetric
    from inlay.evaluation.seeds import SeedLevel


def reported(found: EvaluationResult, wanted: MetricSpecs, where: Path, prices: Prices | None = None) -> Comparison:
    """The comparison, with all its reports written to the folder; with `prices` it says what the models cost."""
    from inlay.evaluation.report import write_reports

    comparison = comparisons(found, wanted, where)
    if prices is not None:
        first, *others = bills(found, prices)
        every = [replace(c, bills=(first, b)) for c, b in zip((comparison, *comparison.also), others, strict=True)]
        comparison = replace(every[0], also=tuple(every[1:]))
    trained = {one.run.name: one.run for one in found.models if one.run is not None}
    met = {name: incidents(run) for name, run in trained.items()}
    write_reports(comparison, where, {name: run.metrics for name, run in trained.items()}, met)
    write_evaluation(found, comparison, where, wanted)
    return comparison


def comparisons(found: EvaluationResult, wanted: MetricSpecs, where: Path) -> Comparison:
    """The second model against the first, with those of the further models in `also`.

    What was said of these answers in a blind comparison is read from `where`, the folder of the reports.
    """
    from inlay.evaluation.blind import preference
    from inlay.evaluation.compare import compare_pair
    from inlay.evaluation.retention import retention

    config, notes = found.config, _notes(found)
    primary = config.eval.metric
    if not found.one_tokenizer and primary in ("auto", "loss", "perplexity"):
        primary = "bits_per_byte"
    pairs = [
        replace(
            compare_pair(
                found.rows[0], found.scores[0], scored, primary=primary, resamples=config.eval.resamples,
                seed=config.train.seed, available=found.available, wanted=wanted, per_token=found.one_tokenizer,
                meaning=meaning,
            ),
            reports=str(where),
            notes=(*notes, *_chosen_on_these_rows(model, found)),
        )
        for model, scored, meaning in zip(found.models[1:], found.scores[1:], found.meaning[1:], strict=True)
    ]  # fmt: skip
    drawn = {"resamples": config.eval.resamples, "seed": config.train.seed}
    pairs = [replace(one, preference=preference(one, where, **drawn)) for one in pairs]
    if found.other:
        rows, (first, *others) = found.other_rows[0], found.other_scores
        pairs = [
            replace(one, retention=retention(found.other, rows, first, other, **drawn, per_token=found.one_tokenizer))
            for one, other in zip(pairs, others, strict=True)
        ]
    return replace(pairs[0], also=tuple(pairs[1:]), seeds=_seeds(found, wanted))


def _seeds(found: EvaluationResult, wanted: MetricSpecs) -> tuple[SeedLevel, ...]:
    """Those of the further models that are one config with several seeds, against the first."""
    from inlay.evaluation.seeds import by_seed, seed_level

    config, further = found.config, found.models[1:]
    levels = []
    for places in by_seed([_config_and_seed(one) for one in further]):
        trained = {_seed(further[n]): found.scores[n + 1] for n in places}
        levels.append(
            seed_level(
                found.rows[0], found.scores[0], trained, resamples=config.eval.resamples, seed=config.train.seed,
                wanted=wanted, per_token=found.one_tokenizer,
            )
        )  # fmt: skip
    return tuple(levels)


def _config_and_seed(one: Reference) -> tuple[str, int] | None:
    """What two trainings of one config have in common, and the seed; None for what is no finished run."""
    if one.kind != "run" or one.run is None:
        return None
    config, record = one.run.config, one.run.record
    unseeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": 0})})
    given = (settings_hash(unseeded), record.base_digest, record.data_hash)
    return repr(given), config.train.seed


def _seed(one: Reference) -> int:
    assert one.run is not None, "only a run has a seed"
    return one.run.config.train.seed


def _notes(found: EvaluationResult) -> tuple[str, ...]:
    from inlay.evaluation.seeds import by_seed

    notes = [one.caution for one in found.models if one.caution]
    if found.set_here:
        notes.append(f"set for this comparison: {', '.join(found.set_here)}.")
    if found.left_out:
        notes.append(f"{found.left_out} rows longer than data.max_length, or than the context, are left out.")
    if not found.one_tokenizer:
        notes.append("the models have different tokenizers, so loss per token is not comparable: see bits_per_byte.")
    if (count := len(found.models) - 1) > 1:
        notes.append(
            f"{count} models are compared on the same rows: the best of them looks better here than it is. "
            "Confirm it on other rows: --data FILE."
        )
    keys = [_config_and_seed(one) for one in found.models]
    first = next((places for places in by_seed(keys) if 0 in places), [])
    if first:
        names = [found.models[n].name for n in first]
        notes.append(
            f"{', '.join(names)} are one config with several seeds. To judge them as one: "
            f"inlay compare {BASE} {' '.join(names)}."
        )
    return tuple(notes)


def _chosen_on_these_rows(model: Reference, found: EvaluationResult) -> tuple[str, ...]:
    if model.kind != "run" or model.run is None or found.data != str(model.run.heldout):
        return ()
    evaluations = sum("eval_loss" in line for line in model.run.metrics)
    result = model.run.record.result
    best = None if result is None else result.best_step
    if evaluations < 2 or model.run.config.train.export != "best" or best is None:
        return ()
    return (
        f"{model.name} is the best of {evaluations} checkpoints by the loss on these rows, which flatters it a little. "
        "Rows that no choice was made on: --data FILE.",
    )


def bills(found: EvaluationResult, prices: Prices) -> list[Bill]:
    """What each model costs to train, keep and serve, as far as it was seen."""
    costs = prices.on(device_for(found.config))
    return [
        Bill(
            one.name, costs, None if scored.speed is None else scored.speed.time_s / scored.speed.answers,
            _training_s(one), _stored_bytes(one),
        )
        for one, scored in zip(found.models, found.scores, strict=True)
    ]  # fmt: skip


def _training_s(one: Reference) -> float | None:
    if one.run is None or one.kind not in ("run", "adapter"):
        return None
    result = one.run.record.result
    return None if result is None else result.train_time_s


def _stored_bytes(one: Reference) -> int:
    """Of the adapter's weights, or of all weights of a whole model."""
    from inlay.models.base import find_base, weight_files

    if one.folder is not None:
        return sum(path.stat().st_size for path in one.folder.glob("*.safetensors"))
    return sum(path.stat().st_size for path in weight_files(find_base(one.base, one.revision).folder))


def python_tests(found: EvaluationResult, tests: Mapping[str, str]) -> TextMetric:
    """The metric of Python that passes the tests of its question. Raises: DataError where no question has any."""
    from inlay.evaluation.compare import shown_question
    from inlay.evaluation.python_tests import python_tests_metric

    rows = found.rows[0]
    here: dict[str, str] = {}
    for n in rows.asked:
        said = tests.get(shown_question(rows.examples[n]))
        if said is not None and here.setdefault(rows.references[n], said) != said:
            raise DataError(
                f"--python-tests: {rows.examples[n].source}: its answer is also that of a row of other tests."
            )
    if not here:
        raise DataError(
            "--python-tests: no question of the file is among the rows. It must be the row's last question."
        )
    return python_tests_metric(here)


def reports_folder(found: EvaluationResult, folder: str) -> Path:
    """Where the reports go: to the first run among the models, else to the next number under `comparisons`."""
    lead = next((one.run for one in found.models if one.run is not None), None)
    there = Path(folder) / "comparisons"
    return lead.reports if lead else there / runs.next_named(there, "comparison")


def write_evaluation(found: EvaluationResult, comparison: Comparison, folder: Path, wanted: MetricSpecs) -> None:
    """`evaluation.json` and its rows; see `inlay.evaluation.document`."""
    from inlay.evaluation.document import write_document

    settings = found.config.eval
    about = {
        "data": {"source": found.data, "available": found.available},
        "settings": {
            "max_rows": settings.max_rows, "batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens,
            "metric": settings.metric, "resamples": settings.resamples, "retention_rows": settings.retention_rows,
            "seed": found.config.train.seed, "greedy": True,
        },
    }  # fmt: skip
    models = [{"name": one.name, "kind": one.kind, "base": one.base} for one in found.models]
    write_document(folder, models, found.rows, found.scores, comparison, about, wanted)
