"""Models measured on the same rows: the rows, then the facts, losses and answers of each model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from inlay.adapters.reference import Reference, config_of, opened
from inlay.config import Config
from inlay.config.identity import settings_hash
from inlay.config.measuring import changed, overrides_text
from inlay.data.example_tasks import example_tasks
from inlay.data.reading import sources
from inlay.data.reading.read import read_examples
from inlay.data.splits import draw, prompt_key
from inlay.data.types import Example
from inlay.errors import ConfigError, DataError, count_shown
from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.measured_model import MeasuredModel, ModelFacts, RowEmbeddings, text_metrics
from inlay.evaluation.metrics import LOSS_METRICS, Array, TextMetric
from inlay.evaluation.python_tests import python_tests_metric
from inlay.evaluation.score import EvalSet, Score, held_out, prompt_text, read_held_out, score
from inlay.evaluation.style_relevance import text_embeddings
from inlay.evaluation.task_metrics import primary_metric
from inlay.models.base import BaseRef, weight_files
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter, duration_shown
from inlay.storage import path_exists, sha256_of
from inlay.tasks.opened_base import OpenedBase

_NOTED_FROM_S = 10.0
"""Seconds of one model from which the time for the others is estimated."""


GENERAL = "general text"

RetentionSets = Mapping[str, tuple[Example, ...]]
"""Rows that no model was trained for, by the name of their set: general text and the other example tasks."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Rows, metrics and settings that models are measured with."""

    data: str | None = None
    """File of the rows; None for the held-out rows of the first run."""
    metrics: MetricSpecs = ()
    """Metrics in place of those that the references call for."""
    prompts: Sequence[str] = ()
    """Extra prompts without a reference answer."""
    python_tests: Mapping[str, str] = field(default_factory=dict)
    """Tests of the Python in an answer, by the text of the prompt."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings that override those of the first run, by dotted name."""
    show_answers: bool = False
    """Answers are generated even where no metric needs them."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Every model on the same rows. The first is the one that the others are compared with."""

    models: tuple[MeasuredModel, ...]
    config: Config
    runs: Mapping[str, Run]
    """The runs among the models, by name."""
    data: str
    available: int
    """Number of rows before drawing."""
    one_tokenizer: bool
    retention_sets: RetentionSets
    """Rows that none of the models was trained for; empty where one model is measured alone."""
    retention_rows: EvalSet | None
    left_out: int
    """Rows of which `data.max_length` leaves nothing."""
    changed_settings: tuple[str, ...]
    """Each setting that was set for this evaluation and differs from the run's, in words."""

    @property
    def rows(self) -> EvalSet:
        """The rows, as the first model's tokenizer encodes them."""
        return self.models[0].rows

    @property
    def answers_skipped(self) -> bool:
        """True where rows have prompts, but no answers were generated."""
        return bool(self.rows.prompt_ids) and not self.models[0].answered


def measure_models(models: Sequence[Reference], request: EvaluationRequest, reporter: Reporter) -> EvaluationResult:
    """Losses, answers and statistics of every model, each measured once.

    Raises: ConfigError where there are no rows to measure on, or a setting cannot take effect.
    """
    for one in models:
        if one.kind in ("adapter", "library"):
            one.adapter(None)  # an unusable adapter is refused before the models in front of it are measured
    lead = next((one.run for one in models if one.run is not None), None)
    trained = lead.config if lead else config_of(models[0])
    config = changed(trained, request.settings)
    examples, available, data = examples_for(lead, request.data, config, request.settings)
    if "eval.metric" in request.settings:
        primary_metric(config.eval.metric, has_answers=_have_prompts(examples))
    unrelated = _retention_sets(models, examples, config)
    generate = needs_answers(request, config, len(models) > 1)
    if len(models) == 1:  # a comparison has both among its notes
        if models[0].caution:
            reporter.note(models[0].caution)
        if not generate and _have_prompts(examples):
            reporter.note("no answers are generated: none of the metrics needs them")
    measurement = _Measurement(
        config, lead is not None, data, request.prompts, generate, unrelated, len(models) > 1, reporter
    )
    taken: list[_OneModel] = []
    ready = None
    for number, one in enumerate(models, 1):
        began = time.perf_counter()
        ready = opened(one, config, ready)
        taken.append(measurement.measure(one, ready, taken[0].rows.examples if taken else examples, taken[:1]))
        _note_time(one.name, time.perf_counter() - began, len(models) - number, reporter)
    # a prompt that is too long for one of the tokenizers is given to no model
    first = taken[0].rows
    common = [n for n in first.prompt_ids if all(n in one.rows.prompt_ids for one in taken)]
    rows = replace(first, prompt_ids={n: first.prompt_ids[n] for n in common})
    texts = _text_metrics(rows, request, config.eval.metric if len(models) > 1 else "auto")
    return EvaluationResult(
        tuple(MeasuredModel.of(one.facts, rows, one.score, texts, one.embeddings, one.retention) for one in taken),
        config, {one.run.name: one.run for one in models if one.run is not None}, data, available,
        len({one.encoding for one in taken}) == 1, unrelated, taken[0].retention_rows,
        len(examples) - len(rows.examples), tuple(overrides_text(trained, request.settings)),
    )  # fmt: skip


def needs_answers(request: EvaluationRequest, config: Config, compared: bool) -> bool:
    """True where a metric, an extra prompt or the caller needs answers; named metrics of the loss alone need none."""
    only_losses = bool(request.metrics) and all(isinstance(m, str) and m in LOSS_METRICS for m in request.metrics)
    if not only_losses or request.python_tests or request.show_answers:
        return True
    shown = bool(request.prompts or config.eval.prompts) or config.eval.metric not in ("auto", *LOSS_METRICS)
    return compared and shown


def _have_prompts(examples: Sequence[Example]) -> bool:
    return any(e.messages[0].role != "text" for e in examples)


def _text_metrics(rows: EvalSet, request: EvaluationRequest, primary: str) -> dict[str, TextMetric]:
    wanted = list(request.metrics)
    if request.python_tests:
        wanted.append(_python_tests(rows, request.python_tests))
    chosen = primary_metric(primary, has_answers=bool(rows.prompt_ids))
    return text_metrics(rows, [*wanted, *([chosen] if wanted and chosen not in LOSS_METRICS else [])])


def _python_tests(rows: EvalSet, tests: Mapping[str, str]) -> TextMetric:
    """The metric of Python that passes the tests of its prompt. Raises: DataError where no prompt has any."""
    here: dict[str, str] = {}
    for n in rows.prompt_ids:
        test = tests.get(prompt_text(rows.examples[n]))
        if test is not None and here.setdefault(rows.references[n], test) != test:
            raise DataError(
                f"--python-tests: {rows.examples[n].source}: its answer is also that of a row of other tests."
            )
    if not here:
        raise DataError(
            "--python-tests: no question of the file is among the rows. It must be the row's last question."
        )
    return python_tests_metric(here)


def _note_time(name: str, took_s: float, left: int, reporter: Reporter) -> None:
    if left and took_s >= _NOTED_FROM_S:
        expected = f"about {duration_shown(took_s * left)} for the {f'other {left}' if left > 1 else 'other one'}"
        reporter.note(f"{name} took {duration_shown(took_s)}; {expected}")


@dataclass(frozen=True, slots=True)
class _OneModel:
    """Losses and answers of one model, before the prompts that all models share are known."""

    facts: ModelFacts
    rows: EvalSet
    """As its own tokenizer encodes them."""
    score: Score
    encoding: tuple[str, str]
    """Digests of tokenizer and template."""
    base_digest: str
    embeddings: RowEmbeddings | None
    retention_rows: EvalSet | None
    retention: Score | None


@dataclass(frozen=True, slots=True)
class _Measurement:
    """Rows and settings that each model in turn is measured with."""

    config: Config
    of_run: bool
    data: str
    prompts: Sequence[str]
    generate: bool
    unrelated: RetentionSets
    compared: bool
    reporter: Reporter

    def measure(
        self, one: Reference, ready: OpenedBase, examples: Sequence[Example], first: Sequence[_OneModel]
    ) -> _OneModel:
        """Measures a model over its opened base; `first` holds the first model's measurement, once there is one."""
        context = ready.context_length
        rows = self._rows(one, ready, examples, context, later=bool(first))
        model = ready.with_adapter(one.adapter(ready.ref))
        scored = partial(
            score, model, one.name,
            encoder=ready.encoder, task=ready.task, batch_size=self.config.eval.batch_size,
            max_new_tokens=self.config.eval.max_new_tokens, device=ready.device, dtype=ready.autocast_dtype,
            reporter=self.reporter,
        )  # fmt: skip
        result = scored(rows, generate=self.generate)
        other_rows = other = None
        if elsewhere := [example for kept in self.unrelated.values() for example in kept]:
            other_rows = held_out(elsewhere, ready.encoder, context, "drop", ())
            other = scored(other_rows, generate=False)
        digest = ready.ref.digest()
        embeddings = None
        if self.compared and self.generate and (not first or digest == first[0].base_digest):
            embeddings = self._embeddings(model, ready, rows, result, first[0].embeddings if first else None)
        return _OneModel(
            facts_of(one, ready.ref, self.data), rows, result,
            (ready.encoder.tokenizer_hash, ready.encoder.template_hash), digest, embeddings, other_rows, other,
        )  # fmt: skip

    def _rows(
        self, one: Reference, ready: OpenedBase, examples: Sequence[Example], context: int, later: bool
    ) -> EvalSet:
        """The rows for a model. Those of which nothing is left to score are left out for the first model.

        Raises: DataError where that is so of all of them, or for a later model.
        """
        data = self.config.data
        limit = int(data.max_length) if self.of_run else context
        prompts = [*self.config.eval.prompts, *self.prompts]
        encoded = partial(held_out, encoder=ready.encoder, max_length=limit, overlong=data.overlong, prompts=prompts)
        found = encoded(examples)
        kept = set(found.tokens.examples.tolist())
        if len(kept) == len(found.examples):
            return found
        if later or not kept:
            raise DataError(
                f"{self.data}: {count_shown(len(found.examples) - len(kept), 'row is', 'rows are')} longer than {limit} "
                f"tokens for {one.name}, so nothing is left to measure."
            )
        return encoded(tuple(example for n, example in enumerate(found.examples) if n in kept))

    def _embeddings(
        self, model: Any, ready: OpenedBase, rows: EvalSet, result: Score, first: RowEmbeddings | None
    ) -> RowEmbeddings:
        """Embeddings by the base under `model`; those of prompts and references are the first model's."""
        places = list(rows.prompt_ids)

        def embedded(texts: Sequence[str]) -> dict[int, Array]:
            found = text_embeddings(
                model, ready.encoder, texts, batch_size=self.config.eval.batch_size, device=ready.device,
                dtype=ready.autocast_dtype,
            )  # fmt: skip
            return dict(zip(places, found, strict=True))

        if first is None:
            prompts = embedded([prompt_text(rows.examples[n]) for n in places])
            first = RowEmbeddings(prompts, embedded([rows.references[n] for n in places]), {})
        return replace(first, answers=embedded([result.answers[n] or "" for n in places]))


def general_rows() -> tuple[Example, ...]:
    """The documents of general text that come with inlay."""
    return read_examples(str(Path(str(resources.files("inlay") / "builtin" / "general.jsonl")))).examples


def retention_sets(trained_for: Iterable[Example], rows: int, seed: int) -> RetentionSets:
    """At most `rows` rows of general text, and of each example task without a prompt of `trained_for`."""
    prompts = {prompt_key(example) for example in trained_for}
    found = {GENERAL: general_rows()}
    for name, task in example_tasks().items():
        train, heldout = task.read()
        if prompts.isdisjoint(map(prompt_key, (*train, *heldout))):
            found[name] = heldout
    return {name: tuple(kept[n] for n in draw(len(kept), rows, seed)) for name, kept in found.items()}


def _retention_sets(models: Sequence[Reference], examples: Sequence[Example], config: Config) -> RetentionSets:
    if len(models) == 1 or not config.eval.retention_rows:
        return {}
    trained = {one.run.path: one.run for one in models if one.run is not None}.values()
    known = [example for run in trained if path_exists(run.heldout) for example in read_held_out(run.heldout)]
    return retention_sets([*examples, *known], config.eval.retention_rows, config.train.seed)


def examples_for(
    lead: Run | None, data: str | None, config: Config, over: Mapping[str, object]
) -> tuple[tuple[Example, ...], int, str]:
    """(examples, number before drawing, the file they are from)."""
    if data is not None:
        read = _how_read(data, config, over)
        found = read_examples(data, *read, role_weights=config.data.weights_of_roles).examples
        picked = tuple(found[n] for n in draw(len(found), config.eval.max_rows, config.train.seed))
        return picked, len(found), data
    if lead is None:
        raise ConfigError("no run is named, so there are no held-out rows. Give rows to measure on: --data FILE.")
    kept = read_held_out(lead.heldout)
    available, most = lead.record.heldout_available, config.eval.max_rows
    if "eval.max_rows" not in over:
        return kept, available, str(lead.heldout)
    if most > len(kept) and available > len(kept):
        raise ConfigError(
            f"eval.max_rows {most}: {lead.name} kept {len(kept)} of its {count_shown(available, 'held-out row')}, as it was trained "
            "with. Measure on more with --data FILE."
        )
    return tuple(kept[n] for n in draw(len(kept), most, config.train.seed)), available, str(lead.heldout)


def _how_read(data: str, config: Config, over: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """(format, columns) of a file: those that are set for it, else the columns of the run where the file has them."""
    name = config.data.format if "data.format" in over else "auto"
    columns = config.data.columns
    if columns and not any(path.startswith("data.columns") for path in over):
        first = next(iter(sources.rows(data)), None)
        columns = columns if first is not None and set(columns.values()) <= set(first.value) else {}
    return name, columns


def facts_of(one: Reference, base: BaseRef, data: str) -> ModelFacts:
    """The facts of a reference over its base, for an evaluation on the rows of `data`."""
    return ModelFacts(
        one.name, one.kind, one.base, one.caution, _config_key(one),
        0 if one.run is None else one.run.config.train.seed, _training_s(one), _stored_bytes(one, base),
        _selected_from(one, data),
    )  # fmt: skip


def _config_key(one: Reference) -> str | None:
    """Config, base and data without the seed; None for what is no finished run."""
    if one.kind != "run" or one.run is None:
        return None
    config, record = one.run.config, one.run.record
    unseeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": 0})})
    return repr((settings_hash(unseeded), record.base_digest, record.data_hash))


def _training_s(one: Reference) -> float | None:
    if one.run is None or one.kind not in ("run", "adapter", "library"):
        return None
    result = one.run.record.result
    return None if result is None else result.train_time_s


def _stored_bytes(one: Reference, base: BaseRef) -> int:
    """Bytes of the adapter's weights, or of all weights of a complete model."""
    files = weight_files(base.folder) if one.folder is None else one.folder.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def _selected_from(one: Reference, data: str) -> int:
    """Number of checkpoints that the model was selected from by the loss on these rows; 0 if it was not."""
    if one.run is None or one.folder is None or not _selected_on(one.run, data):
        return 0
    result = one.run.record.result
    if result is None or result.best_step is None or one.run.config.train.export != "best":
        return 0
    if one.entry is not None and one.entry.card.step != result.best_step:
        return 0
    if one.kind == "checkpoint" and one.folder.name != f"step-{result.best_step:06d}":
        return 0
    evaluations = sum("eval_loss" in line for line in one.run.metrics)
    return evaluations if evaluations > 1 else 0


def _selected_on(run: Run, data: str) -> bool:
    """True where the file holds the rows that the run's checkpoints were evaluated on, or some of them are drawn from it."""
    path = Path(data)
    if not path.is_file():
        return False
    named = [Path(one) for one in (run.heldout, run.config.data.eval) if one is not None]
    return path.resolve() in [one.resolve() for one in named] or sha256_of(path) == sha256_of(run.heldout)
