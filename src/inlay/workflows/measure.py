"""Every model on the same rows: which rows, the losses and answers of each, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from inlay.adapters.reference import Reference, config_of, opened
from inlay.config import Config
from inlay.config.measuring import changed, said
from inlay.errors import ConfigError, DataError
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter, duration_shown
from inlay.storage import path_exists
from inlay.tasks.opened_base import OpenedBase

if TYPE_CHECKING:
    from inlay.data.types import Example
    from inlay.evaluation.compare import Meaning
    from inlay.evaluation.metrics import Array
    from inlay.evaluation.retention import Sets
    from inlay.evaluation.score import EvalSet, Score

_WORTH_SAYING_S = 10.0


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Every model on the same rows. The first is what the others are compared with."""

    models: tuple[Reference, ...]
    rows: tuple[EvalSet, ...]
    """The same examples as each model's tokenizer sees them."""
    scores: tuple[Score, ...]
    config: Config
    available: int
    data: str
    one_tokenizer: bool
    other: Sets
    """What none of them was trained for; empty where one model is measured alone."""
    other_rows: tuple[EvalSet, ...]
    other_scores: tuple[Score, ...]
    meaning: tuple[Meaning | None, ...]
    """Of the first model and each: None for one on another base, and where one model is measured alone."""
    left_out: int
    """Rows that `data.max_length` leaves nothing of."""
    set_here: tuple[str, ...]
    """Each setting that was given for this measurement and differs from the config's, in words."""


def measured(
    models: Sequence[Reference],
    data: str | None,
    prompts: Sequence[str],
    reporter: Reporter,
    over: Mapping[str, Any] = MappingProxyType({}),
) -> EvaluationResult:
    """Loss and answers of every model; `over` are settings that stand over those of the first run.

    Raises: ConfigError where there are no rows to measure on, or a setting cannot take effect.
    """
    from inlay.evaluation.compare import primary_metric
    from inlay.evaluation.score import held_out, score

    for one in models:
        if one.kind == "adapter":
            one.adapter(None)  # what is refused is refused before the models in front of it are measured
    lead = next((one.run for one in models if one.run is not None), None)
    trained = lead.config if lead else config_of(models[0])
    config = changed(trained, over)
    examples, available, where = _examples(lead, data, config, over)
    if "eval.metric" in over:
        primary_metric(config.eval.metric, has_answers=any(e.messages[0].role != "text" for e in examples))
    other = _other(models, examples, config)
    elsewhere = [example for kept in other.values() for example in kept]
    rows: list[EvalSet] = []
    scores, other_rows, other_scores, encoders, left_out = [], [], [], set(), 0
    meant: dict[str, list[dict[int, Array]]] = {}
    meaning: list[Meaning | None] = []
    ready = None
    for number, one in enumerate(models, 1):
        began = time.perf_counter()
        if len(models) == 1 and one.caution:  # a comparison has it among its notes
            reporter.note(one.caution)
        ready = opened(one, config, ready)
        context = ready.context_length
        limit = config.data.max_length if lead else context
        asked = [*config.eval.prompts, *prompts]
        encoded = partial(
            held_out, encoder=ready.encoder, max_length=int(limit), overlong=config.data.overlong, prompts=asked
        )
        found = encoded(examples)
        if fitting := _fitting(found, f"{where}: {{}} rows are longer than {limit} tokens for {one.name}", bool(rows)):
            left_out, examples = len(examples) - len(fitting), fitting
            found = encoded(examples)
        rows.append(found)
        model = ready.with_adapter(one.adapter(ready.ref))
        scored = partial(
            score, model, one.name,
            encoder=ready.encoder, batch_size=config.eval.batch_size, max_new_tokens=config.eval.max_new_tokens,
            device=ready.device, dtype=ready.autocast_dtype, reporter=reporter,
        )  # fmt: skip
        scores.append(scored(rows[-1]))
        if elsewhere:
            other_rows.append(held_out(elsewhere, ready.encoder, context, "drop", ()))
            other_scores.append(scored(other_rows[-1], generate=False))
        if len(models) > 1:
            meaning.append(_meaning(model, ready, rows[-1], scores[-1], config.eval.batch_size, meant))
        del model, scored  # or they stay in memory while another base is loaded
        encoders.add((ready.encoder.tokenizer_hash, ready.encoder.template_hash))
        took_s, left = time.perf_counter() - began, len(models) - number
        if left and took_s >= _WORTH_SAYING_S:
            expected = f"about {duration_shown(took_s * left)} for the {f'other {left}' if left > 1 else 'other one'}"
            reporter.note(f"{one.name} took {duration_shown(took_s)}; {expected}")
    # a question that is too long for one of the tokenizers is asked by none
    common = [n for n in rows[0].asked if all(n in one.asked for one in rows)]
    rows = [replace(one, asked={n: one.asked[n] for n in common}) for one in rows]
    return EvaluationResult(
        tuple(models), tuple(rows), tuple(scores), config, available, where, len(encoders) == 1,
        other, tuple(other_rows), tuple(other_scores), tuple(meaning), left_out, tuple(said(trained, over)),
    )  # fmt: skip


def _fitting(found: EvalSet, says: str, later: bool) -> tuple[Example, ...]:
    """The examples of which something is left to score, where that is not so of all; empty where it is.

    Raises: DataError, beginning with `says`, where it is so of none, or of fewer than a model before had.
    """
    kept = set(found.tokens.examples.tolist())
    if len(kept) == len(found.examples):
        return ()
    if later or not kept:
        raise DataError(f"{says.format(len(found.examples) - len(kept))}, so nothing of them can be measured.")
    return tuple(example for n, example in enumerate(found.examples) if n in kept)


def _meaning(
    model: Any,
    ready: OpenedBase,
    rows: EvalSet,
    scored: Score,
    batch_size: int,
    first: dict[str, list[dict[int, Array]]],
) -> Meaning | None:
    """What the base under `model` makes of questions, references and answers; `first` keeps those of the first model."""
    from inlay.evaluation.compare import Meaning, shown_question
    from inlay.evaluation.embeddings import meanings

    places = list(rows.asked)
    texts = {
        "questions": [shown_question(rows.examples[n]) for n in places],
        "references": [rows.references[n] for n in places],
        "answers": [scored.answers[n] or "" for n in places],
    }

    def embedded(part: str) -> dict[int, Array]:
        found = meanings(
            model, ready.encoder, texts[part], batch_size=batch_size, device=ready.device, dtype=ready.autocast_dtype
        )
        return dict(zip(places, found, strict=True))

    digest = ready.ref.digest()
    if not first:
        first[digest] = [embedded("questions"), embedded("references"), embedded("answers")]
    if digest not in first:
        return None
    questions, references, answers = first[digest]
    return Meaning(questions, references, (answers, embedded("answers")))


def _other(models: Sequence[Reference], examples: Sequence[Example], config: Config) -> Sets:
    from inlay.evaluation.retention import retention_sets
    from inlay.evaluation.score import read_held_out

    if len(models) == 1 or not config.eval.retention_rows:
        return {}
    trained = {one.run.path: one.run for one in models if one.run is not None}.values()
    asked = [example for run in trained if path_exists(run.heldout) for example in read_held_out(run.heldout)]
    return retention_sets([*examples, *asked], config.eval.retention_rows, config.train.seed)


def _examples(
    lead: Run | None, data: str | None, config: Config, over: Mapping[str, Any]
) -> tuple[tuple[Example, ...], int, str]:
    """(examples, how many there were before drawing, where they are from)."""
    from inlay.data.reading.read import read_examples
    from inlay.data.splits import draw
    from inlay.evaluation.score import read_held_out

    if data is not None:
        read = _how_read(data, config, over)
        found = read_examples(data, *read, role_weights=config.data.weights_of_roles).examples
        picked = tuple(found[n] for n in draw(len(found), config.eval.max_rows, config.train.seed))
        return picked, len(found), data
    if lead is None:
        raise ConfigError("no run is named, so there are no held-out rows. Give rows to measure on: --data FILE.")
    kept = read_held_out(lead.heldout)
    available, most = lead.record.heldout_available, over.get("eval.max_rows")
    if most is None:
        return kept, available, str(lead.heldout)
    if most > len(kept) and available > len(kept):
        raise ConfigError(
            f"eval.max_rows {most}: {lead.name} kept {len(kept)} of its {available} held-out rows, as it was trained "
            "with. Measure on more with --data FILE."
        )
    return tuple(kept[n] for n in draw(len(kept), most, config.train.seed)), available, str(lead.heldout)


def _how_read(data: str, config: Config, over: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """(format, columns) of a file: what is set for it, else the columns of the run where the file has them."""
    from inlay.data.reading.sources import rows

    name = config.data.format if "data.format" in over else "auto"
    columns = config.data.columns
    if columns and not any(path.startswith("data.columns") for path in over):
        first = next(iter(rows(data)), None)
        columns = columns if first is not None and set(columns.values()) <= set(first.value) else {}
    return name, columns


def on_tasks(
    one: Reference,
    wanted: Sequence[str],
    limit: int | None,
    reporter: Reporter,
    over: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness on the base of a reference and on its adapter; see `inlay.api.harness`."""
    from inlay.evaluation import harness

    with harness.quietly():
        tasks = harness.find_tasks(wanted)
        if one.caution:
            reporter.note(one.caution)
        config = changed(config_of(one), over)
        ready = opened(one, config)
        sides: list[dict[str, Any]] = []
        for name, state in ((one.base, None), (one.name, one.adapter(ready.ref))):
            if sides and state is None:
                sides.append(sides[0])
                break
            reporter.stage(f"{name}: {', '.join(tasks.names)}")
            model = ready.with_adapter(state)
            sides.append(
                harness.run_tasks(
                    tasks, model, ready.encoder, device=ready.device, dtype=ready.autocast_dtype,
                    batch_size=config.eval.batch_size, limit=limit,
                )
            )  # fmt: skip
    scores = harness.paired(sides[0], sides[1], config.eval.resamples, config.train.seed)
    return {"base": one.base, "adapter": one.name, "limit": limit, "scores": [score.to_json() for score in scores]}
