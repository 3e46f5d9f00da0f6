"""The eval and compare verbs: which models are meant, on which rows they are measured, and what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay import config as configs
from inlay import run as runs
from inlay.config import Config
from inlay.config.identity import settings_hash
from inlay.costs import Bill, Prices
from inlay.errors import AdapterError, ConfigError, DataError, ModelError, RunError
from inlay.events import Reporter
from inlay.incidents import incidents
from inlay.run import Run
from inlay.storage import is_there, verified

if TYPE_CHECKING:
    from inlay.data.encode import Encoder
    from inlay.data.types import Example
    from inlay.evaluation.compare import Comparison, Meaning
    from inlay.evaluation.custom import Wanted
    from inlay.evaluation.metrics import Array, TextMetric
    from inlay.evaluation.retention import Sets
    from inlay.evaluation.score import HeldOut, Score
    from inlay.evaluation.seeds import SeedLevel
    from inlay.models.adapter import AdapterState
    from inlay.models.base import BaseRef

ModelName = str | Path | Run | None
_OF_NO_RUN = {"data": {"train": "-"}}
BASE = "base"
"""The name of the base under the run that is named with it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One model that can be measured."""

    name: str
    kind: str
    """base, run, checkpoint, adapter (a folder) or model (a whole one)."""
    base: str
    """Folder, hub id or built-in name of the weights."""
    run: Run | None = None
    """Whose settings, tokenizer and held-out rows come with it."""
    folder: Path | None = None
    """Of the adapter or checkpoint; None for a model without one."""

    def without_adapter(self) -> Reference:
        return replace(self, name=self.base, kind="base", folder=None)

    def adapter(self, digest: str) -> AdapterState | None:
        """Its adapter. Raises: AdapterError when it was made on a base of another digest."""
        from inlay.models.adapter import AdapterState

        if self.folder is None:
            return None
        if self.kind == "checkpoint":
            from inlay.training import checkpoint

            return checkpoint.load(checkpoint.Checkpoint(self.folder))[0].exported()
        return AdapterState.read(self.folder, digest)


def reference(name: ModelName, folder: str) -> Reference:
    """What a name means: a run, `RUN@STEP`, the folder of an adapter or of a model, a built-in model, a hub id; the
    run trained last for None. A run of that name in `folder` goes before a hub id.

    Raises: RunError, AdapterError, naming what is near.
    """
    if isinstance(name, Run):
        return _of_run(name)
    path, text = Path(name or ""), str(name or "")
    if name is not None and not is_there(path / "run.json"):
        if is_there(path / "adapter_config.json"):
            return _of_adapter(path)
        if text.startswith("builtin:") or is_there(path / "config.json"):
            return Reference(text, "model", text)
        before, at, step = text.rpartition("@")
        if at and step.isdigit():
            return _of_checkpoint(runs.find(before or None, folder), int(step))
        if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.parent.is_dir():
            from inlay.models.base import find_base

            try:
                find_base(text)
            except ModelError as error:
                raise RunError(f"{text}: no run, adapter or model folder of that name. {error}") from None
            return Reference(text, "model", text)
    return _of_run(runs.find(name, folder))


def _of_run(run: Run) -> Reference:
    require_adapter(run)
    verified(run.trained)
    return Reference(run.name, "run", run.config.model.base_model, run, run.trained)


def _of_checkpoint(run: Run, step: int) -> Reference:
    from inlay.training.kept import checkpoint_at

    return Reference(
        f"{run.name}@{step}", "checkpoint", run.config.model.base_model, run, checkpoint_at(run, step).path
    )


def _of_adapter(folder: Path) -> Reference:
    try:
        card = folder / "card.json"
        about = json.loads((card if is_there(card) else folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = about.get("base_model") or about["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise AdapterError(f"{folder}: does not say which base it was made on ({error}).") from None
    made_by = Run(folder.parent) if is_there(folder.parent / "run.json") else None
    return Reference(str(folder), "adapter", str(base), made_by, folder)


def require_adapter(run: Run) -> None:
    """Raises: RunError when the run has no adapter yet."""
    if not run.trained.is_dir():
        raise RunError(
            f"{run.path}: has no adapter yet (status {run.status}). "
            f"Finish it: inlay checkpoints resume {run.path}, or train it anew."
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base ready to be measured."""

    model: Any
    encoder: Encoder
    device: str
    dtype: Any
    """As in training: products in the format of a 16-bit base, None for that of the weights."""
    digest: str


def load_base(run: Run) -> Loaded:
    """The base of a run as the run used it. Raises: ModelError when the base changed."""
    import torch

    from inlay.models import base as bases

    config, record = run.config, run.record
    base = bases.find_base(config.model.base_model, config.model.revision)
    digest = base.digest()
    if digest != record.get("base_digest"):
        raise ModelError(
            f"{config.model.base_model}: is not the base that {run.name} was trained on (its weights differ). "
            "The adapter would not do what was measured."
        )
    kept = run.trained.is_dir()  # a run that is still to end has no adapter, and the tokenizer of its base
    named = bases.BaseRef(f"{run.name}'s tokenizer", run.trained) if kept else base
    tokenizer = bases.load_tokenizer(named, None if kept else config.model.chat_template)
    dtype = getattr(torch, str(record["dtype"]))
    return _ready(base, config, tokenizer, dtype, str(record.get("quantization", "none")), digest)


def _load(one: Reference, config: Config) -> Loaded:
    """The base of a reference; that of no run is loaded with `config`."""
    if one.run is not None:
        return load_base(one.run)
    import torch

    from inlay.models import base as bases

    base = bases.find_base(one.base)
    on_cpu = config.model.dtype == "auto" and _device(config) == "cpu"
    dtype = torch.float32 if on_cpu else getattr(torch, str(config.model.dtype).replace("auto", "bfloat16"))
    return _ready(base, config, bases.load_tokenizer(base), dtype, "none", base.digest())


def _device(config: Config) -> str:
    from inlay.models.probe import pick_device

    # answering needs no particular device: any GPU for a run of a GPU, whatever there is
    return pick_device("cpu" if config.model.device == "cpu" else "auto").device


def _ready(base: BaseRef, config: Config, tokenizer: Any, dtype: Any, quantization: str, digest: str) -> Loaded:
    import torch

    from inlay.data.encode import Encoder
    from inlay.models import base as bases

    device = _device(config)
    model = bases.load_model(base, config, dtype, device, quantization)
    encoder = Encoder.of(tokenizer, config.data)
    return Loaded(model, encoder, device, None if dtype == torch.float32 else dtype, digest)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Every model on the same rows. The first is what the others are compared with."""

    models: tuple[Reference, ...]
    rows: tuple[HeldOut, ...]
    """The same examples as each model's tokenizer sees them."""
    scores: tuple[Score, ...]
    config: Config
    available: int
    data: str
    one_tokenizer: bool
    other: Sets
    """What none of them was trained for; empty where one model is measured alone."""
    other_rows: tuple[HeldOut, ...]
    other_scores: tuple[Score, ...]
    meaning: tuple[Meaning | None, ...]
    """Of the first model and each: None for one on another base, and where one model is measured alone."""
    left_out: int
    """Rows that `data.max_length` leaves nothing of."""


def measured(models: Sequence[Reference], data: str | None, prompts: Sequence[str], reporter: Reporter) -> Measurement:
    """Loss and answers of every model. Raises: ConfigError where there are no rows to measure on."""
    from inlay.evaluation.score import held_out, score
    from inlay.models.base import context_length

    lead = next((one.run for one in models if one.run is not None), None)
    config = lead.config if lead else configs.validate(_OF_NO_RUN | {"model": {"base_model": models[0].base}})
    examples, available, where = _examples(lead, data, config)
    other = _other(models, examples, config)
    elsewhere = [example for kept in other.values() for example in kept]
    rows: list[HeldOut] = []
    scores, other_rows, other_scores, encoders, left_out = [], [], [], set(), 0
    meant: dict[str, list[dict[int, Array]]] = {}
    meaning: list[Meaning | None] = []
    for one in models:
        ready = _load(one, config)
        context = context_length(ready.model.config)
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
        adapter = one.adapter(ready.digest)
        model = ready.model if adapter is None else adapter.attach_to(ready.model)
        scored = partial(
            score, model, one.name,
            encoder=ready.encoder, batch_size=config.eval.batch_size, max_new_tokens=config.eval.max_new_tokens,
            device=ready.device, dtype=ready.dtype, reporter=reporter,
        )  # fmt: skip
        scores.append(scored(rows[-1]))
        if elsewhere:
            other_rows.append(held_out(elsewhere, ready.encoder, context, "drop", ()))
            other_scores.append(scored(other_rows[-1], generate=False))
        if len(models) > 1:
            meaning.append(_meaning(model, ready, rows[-1], scores[-1], config.eval.batch_size, meant))
        encoders.add((ready.encoder.tokenizer_hash, ready.encoder.template_hash))
    # a question that is too long for one of the tokenizers is asked by none
    common = [n for n in rows[0].asked if all(n in one.asked for one in rows)]
    rows = [replace(one, asked={n: one.asked[n] for n in common}) for one in rows]
    return Measurement(
        tuple(models), tuple(rows), tuple(scores), config, available, where, len(encoders) == 1,
        other, tuple(other_rows), tuple(other_scores), tuple(meaning), left_out,
    )  # fmt: skip


def _fitting(found: HeldOut, says: str, later: bool) -> tuple[Example, ...]:
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
    model: Any, ready: Loaded, rows: HeldOut, scored: Score, batch_size: int, first: dict[str, list[dict[int, Array]]]
) -> Meaning | None:
    """What the base under `model` makes of questions, references and answers; `first` keeps those of the first model."""
    from inlay.evaluation.compare import Meaning, shown_question
    from inlay.evaluation.meaning import meanings

    places = list(rows.asked)
    texts = {
        "questions": [shown_question(rows.examples[n]) for n in places],
        "references": [rows.references[n] for n in places],
        "answers": [scored.answers[n] or "" for n in places],
    }

    def embedded(part: str) -> dict[int, Array]:
        found = meanings(
            model, ready.encoder, texts[part], batch_size=batch_size, device=ready.device, dtype=ready.dtype
        )
        return dict(zip(places, found, strict=True))

    if not first:
        first[ready.digest] = [embedded("questions"), embedded("references"), embedded("answers")]
    if ready.digest not in first:
        return None
    questions, references, answers = first[ready.digest]
    return Meaning(questions, references, (answers, embedded("answers")))


def _other(models: Sequence[Reference], examples: Sequence[Example], config: Config) -> Sets:
    from inlay.evaluation.retention import retention_sets
    from inlay.evaluation.score import read_held_out

    if len(models) == 1 or not config.eval.retention_rows:
        return {}
    trained = {one.run.path: one.run for one in models if one.run is not None}.values()
    asked = [example for run in trained if is_there(run.heldout) for example in read_held_out(run.heldout)]
    return retention_sets([*examples, *asked], config.eval.retention_rows, config.train.seed)


def _examples(lead: Run | None, data: str | None, config: Config) -> tuple[tuple[Example, ...], int, str]:
    """(examples, how many there were before drawing, where they are from)."""
    from inlay.data.read import read_examples
    from inlay.data.splits import draw
    from inlay.evaluation.score import read_held_out

    if data is not None:
        found = read_examples(data, role_weights=config.data.weights_of_roles).examples
        picked = tuple(found[n] for n in draw(len(found), config.eval.max_rows, config.train.seed))
        return picked, len(found), data
    if lead is None:
        raise ConfigError("no run is named, so there are no held-out rows. Give rows to measure on: --data FILE.")
    kept = read_held_out(lead.heldout)
    return kept, int(lead.record.get("heldout_available", len(kept))), str(lead.heldout)


def python_tests(found: Measurement, tests: Mapping[str, str]) -> TextMetric:
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


def bills(found: Measurement, prices: Prices) -> list[Bill]:
    """What each model costs to train, keep and serve, as far as it was seen."""
    costs = prices.on(_device(found.config))
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
    took = one.run.record.get("result", {}).get("train_time_s")
    return None if took is None else float(took)


def _stored_bytes(one: Reference) -> int:
    """Of the adapter's weights, or of all weights of a whole model."""
    from inlay.models.base import find_base, weight_files

    if one.folder is not None:
        return sum(path.stat().st_size for path in one.folder.glob("*.safetensors"))
    return sum(path.stat().st_size for path in weight_files(find_base(one.base).folder))


def reported(found: Measurement, wanted: Wanted, where: Path, prices: Prices | None = None) -> Comparison:
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


def comparisons(found: Measurement, wanted: Wanted, where: Path) -> Comparison:
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


def _seeds(found: Measurement, wanted: Wanted) -> tuple[SeedLevel, ...]:
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
    given = (settings_hash(unseeded), record.get("base_digest"), record.get("data_hash"))
    return repr(given), config.train.seed


def _seed(one: Reference) -> int:
    assert one.run is not None, "only a run has a seed"
    return one.run.config.train.seed


def _notes(found: Measurement) -> tuple[str, ...]:
    from inlay.evaluation.seeds import by_seed

    notes = []
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


def _chosen_on_these_rows(model: Reference, found: Measurement) -> tuple[str, ...]:
    if model.kind != "run" or model.run is None or found.data != str(model.run.heldout):
        return ()
    evaluations = sum("eval_loss" in line for line in model.run.metrics)
    result = model.run.record.get("result", {})
    if evaluations < 2 or model.run.config.train.export != "best" or result.get("best_step") is None:
        return ()
    return (
        f"{model.name} is the best of {evaluations} checkpoints by the loss on these rows, which flatters it a little. "
        "Rows that no choice was made on: --data FILE.",
    )


def on_tasks(one: Reference, wanted: Sequence[str], limit: int | None, reporter: Reporter) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness on the base of a reference and on its adapter; see `inlay.api.harness`."""
    from inlay.evaluation import harness

    with harness.quietly():
        tasks = harness.find_tasks(wanted)
        config = one.run.config if one.run else configs.validate(_OF_NO_RUN | {"model": {"base_model": one.base}})
        ready = _load(one, config)
        sides: list[dict[str, Any]] = []
        for name, state in ((one.base, None), (one.name, one.adapter(ready.digest))):
            if sides and state is None:
                sides.append(sides[0])
                break
            reporter.stage(f"{name}: {', '.join(tasks.names)}")
            model = ready.model if state is None else state.attach_to(ready.model)
            sides.append(
                harness.run_tasks(
                    tasks, model, ready.encoder, device=ready.device, dtype=ready.dtype,
                    batch_size=config.eval.batch_size, limit=limit,
                )
            )  # fmt: skip
    scores = harness.paired(sides[0], sides[1], config.eval.resamples, config.train.seed)
    return {"base": one.base, "adapter": one.name, "limit": limit, "scores": [score.to_json() for score in scores]}


def reports_folder(found: Measurement, folder: str) -> Path:
    """Where the reports go: to the first run among the models, else to the next number under `comparisons`."""
    lead = next((one.run for one in found.models if one.run is not None), None)
    there = Path(folder) / "comparisons"
    return lead.reports if lead else there / runs.next_named(there, "comparison")


def write_evaluation(found: Measurement, comparison: Comparison, folder: Path, wanted: Wanted) -> None:
    """`evaluation.json` and its rows; see `inlay.evaluation.document`."""
    from inlay.evaluation.document import write_document

    settings = found.config.eval
    about = {
        "data": {"source": found.data, "available": found.available},
        "settings": {
            "max_new_tokens": settings.max_new_tokens, "resamples": settings.resamples,
            "seed": found.config.train.seed, "greedy": True,
        },
    }  # fmt: skip
    models = [{"name": one.name, "kind": one.kind, "base": one.base} for one in found.models]
    write_document(folder, models, found.rows, found.scores, comparison, about, wanted)
