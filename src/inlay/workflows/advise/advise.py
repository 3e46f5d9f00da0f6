"""One call of advise: the rule of thumb, then every arm on the same held-out rows, and a recommendation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from inlay.adapters.reference import Reference, open_base, reference
from inlay.config import Config
from inlay.config.measuring import changed
from inlay.data.prepare import data_hash, sides
from inlay.data.splits import draw
from inlay.data.types import Example
from inlay.errors import ConfigError, DataError, Interrupted, RunError, count_shown
from inlay.evaluation.caveats import (
    ArmsOnTheSameRows,
    Caveat,
    FilesPassedOver,
    PromptsOverBudget,
    RepeatedPassages,
    RepeatedTrainingRows,
    TrainedWithoutPassages,
)
from inlay.evaluation.compare import Comparison
from inlay.evaluation.costs import Prices
from inlay.evaluation.report import write_reports
from inlay.evaluation.score import prompt_and_reference, read_held_out
from inlay.evaluation.summary import caveat_text
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter
from inlay.storage import write_json
from inlay.typed_json import JsonObject
from inlay.workflows.advise.arms import Bench, Differences, MeasuredArm, answerable, has_prompt, measure_arms, shots
from inlay.workflows.advise.passages import Index, of_documents, of_rows
from inlay.workflows.advise.recommend import ArmCosts, Recommendation, RuleOfThumb, recommend, rule_of_thumb


@dataclass(frozen=True, slots=True)
class Terms:
    """Budget of every arm, and prices."""

    prompt_tokens: int = 1024
    passages: int = 4
    requests: int = 100_000
    """Number of requests over which training is paid off."""
    prices: Prices = field(default_factory=Prices)

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "passages", "requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be 1 or more (got {getattr(self, name)}).")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every arm on the same rows, and the recommendation."""

    run: Run
    """The run of the adapter."""
    arms: tuple[MeasuredArm, ...]
    metrics: tuple[str, ...]
    """The metric that decides, and the loss."""
    differences: Differences
    recommendation: Recommendation
    costs: ArmCosts
    about: tuple[str, ...]
    """Rows, budget and index, the same for all arms."""
    caveats: tuple[Caveat, ...]

    @property
    def reports(self) -> Path:
        """Folder of the reports."""
        return self.run.reports / "advice"

    def to_json(self) -> dict[str, object]:
        """The value of `advice.json`."""
        return {
            "run": str(self.run.path), "rows": len(self.arms[0].model.rows.examples), "decides": self.metrics[0],
            "about": list(self.about), "arms": [self._arm(one) for one in self.arms],
            "costs": self.costs.machine.to_json() | {"requests": self.costs.requests, "training_s": self.costs.training_s},
            "recommendation": self.recommendation.to_json(), "notes": [caveat_text(one) for one in self.caveats], "reports": str(self.reports),
        }  # fmt: skip

    def _arm(self, one: MeasuredArm) -> dict[str, object]:
        # the base against itself: its values, and differences of 0
        against = self.differences(self.arms[0].arm.name, one.arm.name)
        return {
            "name": one.arm.name, "ceiling": one.arm.is_ceiling,
            "metrics": {name: d.other for name, d in against.items()},
            "against_base": {name: d.to_json() for name, d in against.items()},
            "prompt_tokens": one.prompt_tokens, "answer_tokens": one.answer_tokens, "latency_s": one.latency_s,
            "request_s": one.request_s, "cost_per_1000_requests": self.costs.per_1000(one),
            "cost_once": self.costs.once(one),
            "energy_kwh_per_1000_requests": self.costs.machine.energy_kwh(1000 * one.request_s),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Advice:
    """The rule of thumb and, unless only that was wanted, the measured outcome."""

    thumb: RuleOfThumb
    outcome: Outcome | None = None

    def to_json(self) -> JsonObject:
        """The value that `advise --json` prints."""
        measured = None if self.outcome is None else self.outcome.to_json()
        return {"rule_of_thumb": self.thumb.to_json(), "measured": measured}


def advise(
    config: Config | None,
    run: str | Run | None,
    documents: Path | None,
    quick: bool,
    terms: Terms,
    train: Callable[[Config], Run],
    reporter: Reporter,
    folder: str,
    max_rows: int | None = None,
    over: Mapping[str, object] = MappingProxyType({}),
) -> Advice:
    """See `inlay.api.advise`; `train` makes the run where none is named, `over` overrides the config of one that is."""
    named = None if run is None else reference(run, folder)
    if named is not None:
        if named.run is None:
            raise RunError(f"--run {run}: not a run. Name a run or a checkpoint of one, as RUN@120.")
        _require_same_data(config, named.run)
        config = changed(named.run.config, over)
    if config is None:
        raise ConfigError(
            "advise: no data and no run. Give one: inlay advise DATA --model MODEL, or inlay advise --run RUN."
        )
    most = max_rows or config.eval.max_rows
    reporter.stage(f"reading {config.data.train_name}")
    trained, held = _sides(config)
    if named is not None and named.run is not None:
        held = list(read_held_out(named.run.heldout))
    rows, index, passed_over = _indexes(trained, held, documents)
    thumb = rule_of_thumb(
        len(trained), [held[n] for n in draw(len(held), most, config.train.seed)], index, terms.passages,
        documents=documents is not None,
    )  # fmt: skip
    if quick:
        return Advice(thumb)
    reporter.block("rule of thumb, from the rows alone", [("try", thumb.suggestion), *(("", r) for r in thumb.reasons)])
    if named is None:
        try:
            named = reference(train(config), folder)
        except Interrupted as error:
            error.add_note("When it is finished: inlay advise --run RUN.")
            raise
        assert named.run is not None, "a run has just been trained"
        held = list(read_held_out(named.run.heldout))
    held = [held[n] for n in draw(len(held), most, config.train.seed)]
    assert named.run is not None, "only runs are measured"
    config = changed(named.run.config, over)
    return Advice(thumb, _outcome(named, config, held, rows, index, terms, passed_over, reporter))


def _sides(config: Config) -> tuple[list[Example], list[Example]]:
    """(training rows, held-out rows) with a prompt, as `train` divides them. Raises: DataError."""
    trained, held_out = ([e for e in side if has_prompt(e)] for side in sides(config.data))
    if not trained or not held_out:
        raise DataError(
            f"{config.data.train_name}: no prompts with answers on both sides of the split, so no answers can be "
            "compared. Documents without turns are compared by loss: inlay train, then inlay compare."
        )
    return trained, held_out


def _require_same_data(config: Config | None, run: Run) -> None:
    data = run.config.data if config is None else config.data
    if data_hash(data) != run.record.data_hash:
        raise RunError(
            f"{data.train_name}: not the rows that {run.name} was trained on, so retrieval and adapter "
            "would not have the same rows. Give the file that it was trained on, or leave --run out."
        )


def _indexes(trained: Sequence[Example], held: Sequence[Example], documents: Path | None) -> tuple[Index, Index, int]:
    """(index of the training rows, index to retrieve from, files passed over); none finds a repeated held-out row."""
    pairs = [prompt_and_reference(e) for e in held]
    rows, passed_over = Index(of_rows(trained)), 0
    rows.leave_out_repeated(pairs)
    index = rows
    if documents is not None:
        passages, passed_over = of_documents(documents)
        index = Index(passages)
        index.leave_out_repeated(pairs)
    return rows, index, passed_over


def _outcome(
    named: Reference, config: Config, held: Sequence[Example], rows: Index, index: Index, terms: Terms, passed_over: int,
    reporter: Reporter,
) -> Outcome:  # fmt: skip
    run = named.run
    assert run is not None, "only runs are measured"
    if named.caution:
        reporter.note(named.caution)
    ready = open_base(run)
    adapter = named.adapter(ready.ref)
    assert adapter is not None, f"{named.name} has no adapter"
    examples, budget = answerable(
        held, ready.encoder, ready.context_length, terms.prompt_tokens, config.eval.max_new_tokens,
        terms.passages,
    )  # fmt: skip
    fixed = shots(rows.passages, rows.left_out, terms.passages, config.train.seed)
    arms = measure_arms(Bench(examples, fixed, index, budget, config), ready, adapter, reporter)
    reporter.stage("comparing the arms")
    differ = Differences(arms, config)
    metrics = _metrics(differ.comparison(arms[0].arm.name, arms[1].arm.name), config.eval.metric)
    costs = ArmCosts(
        terms.prices.on(ready.device), terms.requests, result.train_time_s if (result := run.record.result) else 0.0
    )  # fmt: skip
    about = (
        f"{count_shown(len(examples), 'held-out row')}, greedy answers of at most {config.eval.max_new_tokens} tokens",
        f"prompts of at most {budget.prompt_tokens} tokens with at most {budget.passages} rows or passages",
        f"{len(index.passages):,} {'training rows' if index is rows else 'passages of documents'} to retrieve from (BM25)",
    )
    caveats = _caveats(len(held), len(examples), rows, index, passed_over)
    recommended = recommend(arms, differ, metrics, costs)
    outcome = Outcome(run, tuple(arms), metrics, differ, recommended, costs, about, caveats)
    _write(outcome)
    return outcome


def _metrics(comparison: Comparison, wanted: str) -> tuple[str, ...]:
    answers = comparison.answer_metric if wanted == "auto" else wanted
    return tuple(dict.fromkeys((answers or "loss", "loss")))


def _caveats(held: int, examples: int, rows: Index, index: Index, passed_over: int) -> tuple[Caveat, ...]:
    listed: list[Caveat] = [ArmsOnTheSameRows(), TrainedWithoutPassages()]
    if examples < held:
        listed.append(PromptsOverBudget(held - examples))
    if rows.left_out:
        listed.append(RepeatedTrainingRows(len(rows.left_out)))
    if index is not rows and index.left_out:
        listed.append(RepeatedPassages(len(index.left_out)))
    if passed_over:
        listed.append(FilesPassedOver(passed_over))
    return tuple(listed)


def _write(outcome: Outcome) -> None:
    """Writes the comparison of every arm with the base, and `advice.json`."""
    where, run = outcome.reports, outcome.run
    where.mkdir(parents=True, exist_ok=True)
    base, *others = (one.arm.name for one in outcome.arms)
    first, *more = (
        replace(outcome.differences.comparison(base, name), caveats=outcome.caveats, reports=str(where))
        for name in others
    )
    write_reports(replace(first, also=tuple(more)), where, {run.name: run.metrics})
    write_json(where / "advice.json", outcome.to_json())
