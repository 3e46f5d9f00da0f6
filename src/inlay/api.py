"""The verbs as functions: what the command line calls, and a notebook too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay import config as configs
from inlay.config import Config
from inlay.config.measuring import TAKEN, assigned
from inlay.config.render import as_yaml
from inlay.config.settings import GenerationConfig
from inlay.errors import ConfigError, RunError, nearest
from inlay.evaluation.costs import Prices
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.storage import write_file
from inlay.training.launcher import require_alone
from inlay.workflows import escape_plateau
from inlay.workflows import train as training_run

if TYPE_CHECKING:
    from inlay.adapters.reference import ModelName, Reference
    from inlay.data.checks.lengths import Model
    from inlay.data.checks.report import DataReport
    from inlay.data.encoding.encoder import Encoder
    from inlay.data.show import ShownRow
    from inlay.evaluation.compare import Comparison
    from inlay.evaluation.custom import MetricSpecs
    from inlay.workflows.advise.advise import Advice
    from inlay.workflows.plan import Plan

ConfigLike = Config | Mapping[str, Any] | str | Path
Confirm = Callable[[str], bool]


def as_config(config: ConfigLike) -> Config:
    """A Config from a Config, a nested mapping, or the path of a YAML file. Raises: ConfigError."""
    if isinstance(config, Config):
        return config
    if isinstance(config, (str, Path)):
        return configs.load(Path(config))
    return configs.load(tree=config)


# --- train ---------------------------------------------------------------------------------------------------


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

    `resume` goes on from the newest valid checkpoint, or starts when there is none. `fresh` moves an earlier run of
    that name aside. When checkpoints exist and neither is given, `confirm` is asked whether to resume. `extend` goes
    on to a new length in all, `600` (steps) or `5epochs`; the learning rate follows the schedule of that length from
    there on. Given again it changes nothing, so a supervisor may repeat the command. `profile` says in words, and in
    `run.record["profile"]` in seconds, where the time of the steps went.

    Raises: UserError for input that cannot work, before anything is written; TrainingError, StorageError when the
    run fails; Interrupted when a signal stopped it after a checkpoint.
    """
    reporter = reporter or PlainReporter()
    run = training_run.train(as_config(config), resume, fresh, reporter, confirm, extend, profile)
    escape_plateau.follow(run, reporter)
    return run


def compare_methods(
    config: ConfigLike, methods: Sequence[str], *, fresh: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Trains the config once a method and puts side by side what each trained, took and came to.

    {"folder", "methods": [{"method", "run", "status", "reason", and of those that ran "trainable", "share",
    "learning_rate", "memory_bytes", "steps", "train_time_s", "time_s", "saved_bytes", "base_eval_loss", "eval_loss",
    "difference", "low", "high", "verdict"}], "notes"}. `methods` are some of `lora`, `qlora`, `rslora`, `dora`, `lora+`,
    `ia3`, `prompt`, `full`. Each has the learning rate of its kind where the config leaves it at auto; a number is LoRA's. Called
    again it goes on where it was; `fresh` moves an earlier one of that name aside. Raises: ConfigError, RunError for what
    cannot be compared; Interrupted after a signal.
    """
    from inlay.workflows.compare_methods import side_by_side

    require_alone("train --methods")
    return side_by_side(as_config(config), methods, fresh, reporter or PlainReporter())


def plan(
    config: ConfigLike,
    *,
    memory: str | None = None,
    calibrate: bool = False,
    cost: float | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """What LoRA, QLoRA and full fine-tuning with this config would hold and how long they would take; see `Plan`.

    Nothing is trained and no weights are loaded: config and tokenizer of the base are enough. `calibrate` loads it and
    computes two micro batches of the run instead. `memory` such as `8GB` is what to plan with; else `train.max_memory`,
    or what is free on this machine. Any of `cost`, `watts` and `utilisation`, as in `compare`, adds what each way costs.
    Raises: UserError for a config, data or a base that cannot work.
    """
    from inlay.workflows.plan import plan as planned

    prices = Prices.of(cost, watts, utilisation)
    return planned(as_config(config), memory, calibrate, reporter or PlainReporter(), prices)


# --- use -----------------------------------------------------------------------------------------------------


@dataclass
class Loaded:
    """A base with a run's adapter on it, ready to answer."""

    run: Run
    model: Any
    encoder: Encoder
    device: str
    autocast_dtype: Any
    """As in training and scoring: products in the format of a 16-bit base, None for that of the weights."""

    def generate(self, prompt: str | Sequence[Mapping[str, str]], **sampling: Any) -> str:
        """The answer to a prompt or a dialogue; keywords override the run's `generation` settings.

        Raises: ConfigError for an unknown keyword or a value out of range.
        """
        return self.generate_many([prompt], **sampling)[0]

    def generate_many(self, prompts: Sequence[str | Sequence[Mapping[str, str]]], **sampling: Any) -> list[str]:
        """The answers to several prompts, computed together."""
        return self._answers(prompts, sampling)

    def stream(self, messages: Sequence[Mapping[str, str]], on_text: Callable[[str], None], **sampling: Any) -> str:
        """Like `generate`, handing over the text piece by piece as it comes."""
        from inlay.generation.generate import text_streamer

        return self._answers([messages], sampling, text_streamer(self.encoder.tokenizer, on_text))[0]

    def _answers(
        self, prompts: Sequence[str | Sequence[Mapping[str, str]]], over: Mapping[str, Any], streamer: Any = None
    ) -> list[str]:
        from inlay.engine.loss import autocast
        from inlay.generation.generate import Sampling, answers

        sampling = Sampling.of(_generation(self.run.config.generation.model_dump() | dict(over)))
        asked = [self.encoder.prompt(_dialogue(prompt)) for prompt in prompts]
        with autocast(self.device, self.autocast_dtype):
            return answers(self.model, self.encoder, asked, sampling, streamer=streamer)


def _generation(values: Mapping[str, Any]) -> GenerationConfig:
    return configs.validate({"model": {"base_model": "-"}, "data": {"train": "-"}, "generation": values}).generation


def _dialogue(prompt: str | Sequence[Mapping[str, str]]) -> list[Any]:
    from inlay.data.types import Message

    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [Message(turn["role"], turn["content"]) for turn in prompt]


def load(
    run: str | Path | Run | None = None,
    *,
    adapter: bool = True,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Loaded:
    """The base of a run with its adapter (`adapter=False`: without), or with that of a checkpoint: `RUN@STEP`.

    No name is the run trained last. Raises: RunError for what is not of a run.
    """
    from inlay.adapters import reference

    named = reference.reference(run, folder)
    if named.run is None:
        raise RunError(f"{run}: not a run. Name a run or a checkpoint of one, as RUN@120.")
    if adapter and named.caution:
        (reporter or PlainReporter()).note(named.caution)
    ready = reference.load_base(named.run)
    model = ready.model
    if adapter:
        state = named.adapter(ready.base)
        assert state is not None, f"{named.name} has no adapter"
        model = state.attach_to(model)
    return Loaded(named.run, model, ready.encoder, ready.device, ready.dtype)


def compare(
    *models: ModelName,
    data: str | None = None,
    metrics: MetricSpecs = (),
    prompts: Sequence[str] = (),
    settings: Sequence[str] = (),
    python_tests: str | Path | None = None,
    blind: bool = False,
    cost: float | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Comparison:
    """The models on the same rows, each against the first; one alone (by default the run trained last) against its base.

    A model is a run, `RUN@STEP`, the folder of an adapter or of a whole model, `base`, or a hub id. The rows are those
    of the first run's held-out set, or of the file `data`. `metrics` names those to take instead of what the references
    call for; one may be a function `(prediction, reference) -> float`, or `FILE.py:FUNCTION`. `settings` are `key=value`
    texts of the section eval, such as eval.max_rows=50, over those of the first run; with `data` also data.format and
    data.columns, which say how the file is read. `python_tests` is a file
    of {"question", "tests"} rows: the Python of those answers is run, in a limited process. Reports go to `reports/` of
    the first run, without a run to `comparisons/` in `folder`. `blind` then asks on a local page which answers are
    better, without saying whose they are, and adds what was said to the reports. Any of `cost` (of an hour of this
    machine), `watts` and `utilisation` (the share of the paid time in which it serves) adds what the models cost.
    Raises: RunError, AdapterError, ModelError, ConfigError for names that mean nothing or cannot be measured.
    """
    from inlay.evaluation.blind_server import ask
    from inlay.evaluation.python_tests import read_tests
    from inlay.evaluation.task_metrics import resolved
    from inlay.workflows import compare, measure

    reporter, metrics = reporter or PlainReporter(), resolved(metrics)
    over = assigned(settings, "compare", data)
    tests = read_tests(python_tests) if python_tests else {}
    prices = Prices.of(cost, watts, utilisation)
    named = _references(models or (None,), folder)
    if blind and len(named) > 2:
        raise ConfigError(f"--blind: two models are judged against each other (got {len(named)}). Name two, or one.")
    both = named if len(named) > 1 else [named[0].without_adapter(), *named]
    found = measure.measured(both, data, prompts, reporter, over)
    metrics = [*metrics, compare.python_tests(found, tests)] if python_tests else metrics
    where = compare.reports_folder(found, folder)
    comparison = compare.reported(found, metrics, where, prices)
    if not blind:
        return comparison
    ask(comparison, where, reporter.note)
    return compare.reported(found, metrics, where, prices)


def _references(names: Sequence[ModelName], folder: str) -> list[Reference]:
    from inlay.adapters.reference import BASE, reference

    found = [None if name == BASE else reference(name, folder) for name in names]
    owner = next((one for one in found if one is not None), None)
    if owner is None:
        raise ConfigError(f"{BASE}: of which run? Name one with it: inlay compare {BASE} RUN.")
    return [owner.without_adapter() if one is None else one for one in found]


def advise(
    config: ConfigLike | None = None,
    *,
    run: str | Path | Run | None = None,
    settings: Sequence[str] = (),
    documents: str | Path | None = None,
    quick: bool = False,
    max_rows: int | None = None,
    prompt_tokens: int = 1024,
    passages: int = 4,
    requests: int = 100_000,
    cost: float | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Advice:
    """Which way to better answers: base, base with examples, base with retrieved passages, adapter, adapter with them.

    Each is measured on the same held-out rows with prompts of at most `prompt_tokens`, and the cheapest of those that
    none was shown to beat is recommended, over so many `requests`. Passages are training rows, or those of the text
    files under `documents`. The adapter is that of `run`, else one is trained by `config`. `settings` are `key=value` texts
    of the section eval, over those of the run. `quick` gives a rule of thumb
    from the rows alone. `cost` is the price of an hour of this machine, `watts` what it draws, `utilisation` the share
    of the paid time in which it serves.
    Raises: ConfigError, DataError, RunError; as `train` where it trains.
    """
    from inlay.workflows.advise.advise import Terms
    from inlay.workflows.advise.advise import advise as advised

    reporter = reporter or PlainReporter()
    over = assigned(settings, "advise --run") if run is not None else {}
    if settings and run is None:
        raise ConfigError("advise: settings are for a run that is there. Put them into the config that trains one.")
    terms = Terms(prompt_tokens, passages, requests, Prices(cost, watts, utilisation))
    return advised(
        None if config is None else as_config(config), run if isinstance(run, Run) or run is None else str(run),
        None if documents is None else Path(documents), quick, terms, lambda found: train(found, reporter=reporter),
        reporter, folder, max_rows, over,
    )  # fmt: skip


def verify(run: str | Path | Run | None = None, *, folder: str = "results") -> dict[str, Any]:
    """{"run", "passed", "proofs": [{"name", "passed", "found", "samples"}]} of a run that has an adapter.

    `passed` of a proof is None where what it needs is not here any more, such as the data file. Raises: RunError.
    """
    found = run if isinstance(run, Run) else runs.find(run, folder)
    from inlay.adapters.reference import load_base, require_adapter
    from inlay.proof.verify import prove_stored

    def loaded() -> tuple[Any, Encoder, str, Any]:
        ready = load_base(found)
        return ready.model, ready.encoder, ready.device, ready.dtype

    require_adapter(found)
    proofs = prove_stored(found, loaded)
    passed = all(proof.passed is not False for proof in proofs)
    return {"run": str(found.path), "passed": passed, "proofs": [proof.to_json() for proof in proofs]}


def evaluate(
    model: ModelName = None,
    *,
    adapter: bool = True,
    data: str | None = None,
    metrics: MetricSpecs = (),
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
    folder: str = "results",
) -> dict[str, Any]:
    """{"name", "n", "settings", "metrics": {metric: value}, "speed", "time_s"} of one model.

    Models, rows and `settings` as in `compare`; those that only a comparison needs, such as eval.resamples, are refused.
    """
    from inlay.evaluation.compare import totals
    from inlay.evaluation.task_metrics import resolved
    from inlay.workflows import measure

    metrics, over = resolved(metrics), assigned(settings, "eval", data)
    (named,) = _references([model], folder)
    named = named if adapter else named.without_adapter()
    found = measure.measured([named], data, (), reporter or PlainReporter(), over)
    rows, scored = found.rows[0], found.scores[0]
    values = totals(rows, scored, metrics)
    speed = None if scored.speed is None else scored.speed.to_json()
    took = round(scored.time_s, 3)
    used = {path: getattr(found.config.eval, path.removeprefix("eval.")) for path in TAKEN["eval"]}
    return {
        "name": named.name, "n": len(rows.examples), "settings": used, "metrics": values, "speed": speed, "time_s": took,
    }  # fmt: skip


def harness(
    model: ModelName = None,
    tasks: Sequence[str] = (),
    *,
    limit: int | None = None,
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
    folder: str = "results",
) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness on a base and on the adapter over it.

    `tasks` are its names, groups or patterns, or YAML task files; `limit` is the number of documents of each; `settings`
    are `key=value` texts of eval.batch_size and eval.resamples. Gives
    {"base", "adapter", "scores": [{"task", "metric", "documents", "base", "adapter", "difference"}]}; the difference
    has its paired interval where the metric is a mean over documents. Raises: ConfigError for tasks that are not there,
    or when the extra `harness` is not installed.
    """
    from inlay.adapters.reference import reference
    from inlay.workflows.measure import on_tasks

    over = assigned(settings, "eval --harness")
    return on_tasks(reference(model, folder), tasks, limit, reporter or PlainReporter(), over)


def cross_validate(
    config: ConfigLike, folds: int = 5, *, metrics: Sequence[str] = (), reporter: Reporter | None = None
) -> dict[str, Any]:
    """Trains once a fold and scores every row by the adapter that never saw it, against the base.

    {"folds", "folder", "rows", "verdict", "metrics": {metric: {"pooled": a difference with its interval over all rows,
    "mean", "spread", …}}, "per_fold": […], "notes"}. The runs lie in one folder; called again it goes on where it was.
    Raises: ConfigError for fewer than two folds or a config with `data.eval`; else as `train`.
    """
    from inlay.workflows.cross_validate import cross_validate as validated

    return validated(as_config(config), folds, metrics, reporter or PlainReporter())


# --- look ----------------------------------------------------------------------------------------------------


def doctor(*, quick: bool = False, folder: str = "results") -> dict[str, Any]:
    """The machine record: versions, memory, devices, what really works, and recommended settings."""
    from inlay.workflows.doctor import machine_record

    return machine_record(quick, Path(folder))


def checkpoints(run: str | Path | Run | None = None, *, folder: str = "results") -> list[dict[str, Any]]:
    """Every checkpoint of a run, oldest first: step, losses, bytes, whether it is whole, the best, pinned."""
    from inlay.training import checkpoint_commands

    return checkpoint_commands.rows(_run(run, folder))


def checkpoint(run: str | Path | Run | None, step: int, *, folder: str = "results") -> dict[str, Any]:
    """What the checkpoint of a step holds. Raises: RunError when there is none; StorageError when it is damaged."""
    from inlay.training import checkpoint_commands

    return checkpoint_commands.details(_run(run, folder), step)


def pin(run: str | Path | Run | None, step: int, *, keep: bool = True, folder: str = "results") -> dict[str, Any]:
    """Pins a checkpoint, so that nothing deletes it, or takes the pin away."""
    from inlay.training import checkpoint_commands

    checkpoint_commands.pin(_run(run, folder), step, keep)
    return {"step": step, "pinned": keep}


def clean_checkpoints(
    run: str | Path | Run | None = None, *, keep: int = 1, dry_run: bool = False, folder: str = "results"
) -> list[dict[str, Any]]:
    """Deletes all complete checkpoints but the newest `keep`, the best and the kept ones; gives the rows of what went."""
    from inlay.training import checkpoint_commands

    return checkpoint_commands.clean(_run(run, folder), keep, dry_run=dry_run)


def delete_checkpoint(run: str | Path | Run | None, step: int, *, folder: str = "results") -> dict[str, Any]:
    """Deletes one checkpoint and gives its row. Raises: RunError for the newest whole one, the best, a pinned one."""
    from inlay.training import checkpoint_commands

    return checkpoint_commands.remove(_run(run, folder), step)


def _run(run: str | Path | Run | None, folder: str) -> Run:
    return run if isinstance(run, Run) else runs.find(run, folder)


def resume(
    run: str | Path | Run | None = None,
    *,
    extend: str | None = None,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Run:
    """Goes on with a run from its own config; `extend` as in `train`."""
    found = _run(run, folder)
    config = found.config
    here = config.output.model_copy(update={"name": found.name, "folder": str(found.path.parent)})
    config = config.model_copy(update={"output": here})
    return train(config, resume=True, extend=extend, reporter=reporter)


def init(path: str | Path = "inlay.yaml", *, preset: str | None = None, force: bool = False) -> Path:
    """Writes a commented config to start from. Raises: ConfigError when the file is already there."""
    from inlay.config.render import starter

    target = Path(path)
    if target.exists() and not force:
        raise ConfigError(f"{target}: is already there. Give another path, or --force to replace it.")
    write_file(target, starter(preset))
    return target


# --- config --------------------------------------------------------------------------------------------------


def config_of(
    source: str, settings: Sequence[str] = (), preset: str | None = None, given: Mapping[str, Any] | None = None
) -> Config:
    """The config of a command line: a YAML file or a data file, `key=value` texts, and options that were given."""
    if not source:
        raise ConfigError("the name of the data is empty. Name a data file, a hub dataset or a .yaml config.")
    assignments: dict[str, Any] = dict(configs.parse_assignment(text) for text in settings)
    assignments |= {path: value for path, value in (given or {}).items() if value is not None}
    if source.endswith((".yaml", ".yml")):
        return configs.load(Path(source), assignments, preset)
    return configs.load(None, {"data.train": source} | assignments, preset)


def sampling_of(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts of the generation section, with or without its name. Raises: ConfigError."""
    full = [text if text.startswith(("generation.", "=")) else f"generation.{text}" for text in settings]
    values = {path.removeprefix("generation."): value for path, value in map(configs.parse_assignment, full)}
    _generation(values)
    return values


def show_config(what: str | None, *, folder: str = "results") -> tuple[Any, str]:
    """(value, text) of a config file, a run's config or a preset; of the list of presets when `what` is None."""
    from inlay.config.load import preset_tree, read_tree

    found = configs.presets()
    if what is None:
        about = {name: read_tree(path).get("description", "") for name, path in found.items()}
        width = max(map(len, about), default=0)
        return about, "\n".join(f"{name:<{width}}  {text}" for name, text in about.items())
    if what in found:
        return preset_tree(what), found[what].read_text(encoding="utf-8").rstrip()
    if what.endswith((".yaml", ".yml")):
        config = configs.load(Path(what))
        return config.model_dump(), as_yaml(config, {}, f"{what} with every default filled in.").rstrip()
    try:
        run = runs.find(what, folder)
    except RunError:
        guess = nearest(what, found)
        hint = f" Did you mean the preset {guess!r}?" if guess else f" Presets: {', '.join(found)}."
        raise ConfigError(f"{what}: neither a preset, nor a .yaml file, nor a run in {folder}.{hint}") from None
    return run.config.model_dump(), (run.path / "config.yaml").read_text(encoding="utf-8").rstrip()


def explain_config(setting: str | None = None) -> list[dict[str, Any]]:
    """Documentation of a setting, of a section, or of all."""
    from inlay.config.render import explain

    return explain(setting)


def import_config(path: str | Path, *, dataset: str | None = None, to: str | Path | None = None) -> dict[str, Any]:
    """A config of LLaMA-Factory or Axolotl as one of inlay: its text, settings, and what has no counterpart.

    Written to `to` if given. Raises: ConfigError when the file is neither, or `to` is there already.
    """
    from inlay.config.foreign import import_config as read_foreign

    found = read_foreign(Path(path), dataset)
    text = found.as_yaml(str(path))
    if to is not None:
        if Path(to).exists():
            raise ConfigError(f"{to}: is already there. Name another file with --out.")
        Path(to).write_text(text, encoding="utf-8")
    return {
        "kind": found.kind, "config": found.values, "missing": found.missing, "text": text,
        "path": str(to) if to is not None else None,
    }  # fmt: skip


# --- demo ----------------------------------------------------------------------------------------------------


def demo(*, folder: str = "results", reporter: Reporter | None = None) -> tuple[Run, Comparison]:
    """Trains the built-in base on the built-in customer-support rows and compares; a new numbered run each time."""
    from inlay.data.domain import find_domain

    files = find_domain("customer_support")
    config = configs.load(
        tree={
            "preset": "support",
            "model": {"base_model": "builtin:nano"},
            "data": {"train": str(files.train), "eval": str(files.heldout)},
            "train": {"epochs": 3},
            "eval": {"max_rows": 100, "max_new_tokens": 64},
            "output": {"folder": folder, "name": runs.next_named(folder, "demo")},
        }
    )
    run = train(config, reporter=reporter)
    return run, compare(run, reporter=reporter)


# --- data ----------------------------------------------------------------------------------------------------


def check_data(
    *sources: str | Path,
    eval: str | Path | None = None,  # noqa: A002
    model: str | None = None,
    settings: Sequence[str] = (),
    only_count: bool = False,
    reporter: Reporter | None = None,
) -> DataReport:
    """What is in the files, or in the file of a config, and what is wrong with it; `eval` names held-out rows.

    With a model lengths are in its tokens and its chat template is tried on every row. `settings` are `key=value`
    texts, such as data.format=alpaca. `only_count` looks for nothing that is wrong. Raises: ConfigError, DataError,
    ModelError.
    """
    from inlay.config.settings import TrainFile
    from inlay.data.checks.report import check_files

    first = str(sources[0])
    is_config = first.endswith((".yaml", ".yml"))
    base = model or (None if is_config else "-")
    config = config_of(first, settings, given={"data.eval": eval and str(eval), "model.base_model": base})
    files = [*config.data.train_files, *(TrainFile(path=str(source)) for source in sources[1:])]
    base_of = None if config.model.base_model == "-" else _checked_model(config)
    return check_files(files, config.data, base_of, only_count=only_count, bar=reporter or PlainReporter())


def _checked_model(config: Config) -> Model:
    from inlay.data.checks.lengths import Model
    from inlay.data.encoding.encoder import Encoder
    from inlay.models import base as bases

    base = bases.find_base(config.model.base_model, config.model.revision)
    tokenizer, architecture = bases.load_tokenizer(base, config.model.chat_template), bases.architecture(base)
    rows = bases.embedding_rows(architecture)
    encoder = Encoder.of(tokenizer, config.data, config.model.chat_template, rows)
    bases.require_vocabulary(base, tokenizer, architecture, encoder.stop_ids)
    return Model(
        name=config.model.base_model,
        encoder=encoder,
        context_length=bases.context_length(architecture),
        parameters=bases.parameter_count(base),
    )


def show_data(
    source: str | Path, *, model: str | None = None, row: int | str | None = None, settings: Sequence[str] = ()
) -> ShownRow:
    """The row at line `row` of a data file (or of that of a config; of a mixture `FILE:LINE`), by default the first,
    exactly as training with the model sees it: ids, labels, weights, and where it lands.

    Raises: ConfigError, DataError, ModelError.
    """
    from inlay.data.show import show
    from inlay.engine.batch_invariance import groups_of_config
    from inlay.models import base as bases

    config = config_of(str(source), settings, given={"model.base_model": model})
    base = _checked_model(config)
    architecture = bases.architecture(bases.find_base(config.model.base_model, config.model.revision))
    virtual = config.adapter.prompt_tokens if config.adapter.method == "prompt" else 0
    return show(config, base.encoder, base.context_length, row, groups_of_config(architecture, virtual).apart)


def write_data_page(report: DataReport, path: str | Path) -> Path:
    """Writes the report of `check_data` as one HTML file that needs no other. Raises: StorageError."""
    from inlay.data.checks.html import check_page

    write_file(Path(path), check_page(report))
    return Path(path)


def data_stats(
    *sources: str | Path, model: str | None = None, price: float | None = None, settings: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> tuple[DataReport, dict[str, Any]]:  # fmt: skip
    """What is in the files, and what an epoch over it costs; `price` is that of a million training tokens.

    Raises: as `check_data`.
    """
    from inlay.data.checks.advice import cost

    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"price: must be 0 or more (got {price}).")
    if price is not None and model is None and not str(sources[0]).endswith((".yaml", ".yml")):
        raise ConfigError("price: it is that of tokens, which need a model. Name one with --model.")
    report = check_data(*sources, model=model, settings=settings, only_count=True, reporter=reporter)
    return report, cost(report.lengths, report.parameters, price)


def split_data(source: str | Path, *, to: str | Path = ".", settings: Sequence[str] = ()) -> dict[str, Any]:
    """Writes the two parts that `train` would make of a file; gives their paths and row counts. Raises: DataError."""
    from inlay.data.divide import divide

    config = config_of(str(source), settings, given={"model.base_model": "-"})
    if isinstance(config.data.train, list):
        raise ConfigError("data split: takes one file, not a mixture. Split each of them.")
    return divide(config.data.train, Path(to), config.data)


def make_data(name: str, *, to: str | Path = ".") -> dict[str, Any]:
    """Writes the training and held-out rows of an example task; gives the paths and row counts.

    Raises: DataError for an unknown task or when one of the files is already there.
    """
    from inlay.data.domain import find_domain
    from inlay.errors import DataError

    task, written = find_domain(name), {}
    targets = {"train": (task.train, "train"), "heldout": (task.heldout, "heldout")}
    places = {key: Path(to) / f"{name}_{part}.jsonl" for key, (_, part) in targets.items()}
    for path in places.values():
        if path.exists():
            raise DataError(f"{path}: is already there. Choose another folder with --to.")
    for key, (source, _) in targets.items():
        text = source.read_text(encoding="utf-8")
        write_file(places[key], text)
        written[key] = {"path": str(places[key]), "rows": len(text.splitlines())}
    return {"task": name, **written}
