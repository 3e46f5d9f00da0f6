"""The verbs as functions: what the command line calls, and a notebook too."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay import config as configs
from inlay import run as runs
from inlay.config import Config
from inlay.config.render import as_yaml, explicit_values
from inlay.config.settings import GenerationConfig
from inlay.errors import ConfigError, InlayError, Interrupted, RunError, nearest
from inlay.events import LoggedReporter, PlainReporter, Reporter, bytes_shown, duration_shown
from inlay.run import FAILED, FINISHED, INTERRUPTED, RUNNING, Run
from inlay.storage import owned, require_space, require_writable, sweep_staging, write_file

if TYPE_CHECKING:
    from inlay.data.encode import Encoder
    from inlay.evaluation.compare import Comparison
    from inlay.training.loop import Job
    from inlay.training.setup import Setup
    from inlay.training.world import World

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
    reporter: Reporter | None = None,
    confirm: Confirm | None = None,
) -> Run:
    """The finished run: adapter, reports and a verdict by held-out loss in its folder.

    `resume` goes on from the newest valid checkpoint, or starts when there is none. `fresh` moves an earlier run of
    that name aside. When checkpoints exist and neither is given, `confirm` is asked whether to resume.

    Raises: UserError for input that cannot work, before anything is written; TrainingError, StorageError when the
    run fails; Interrupted when a signal stopped it after a checkpoint.
    """
    wanted = as_config(config)
    if resume and fresh:
        raise ConfigError("train: --resume and --fresh exclude each other. Give one.")
    _refuse_early(wanted)
    if reporter is not None and os.environ.get("RANK", "0") == "0":
        reporter.stage("loading torch")
    from inlay.evaluation.compare import primary_metric
    from inlay.training.world import join_world

    primary_metric(wanted.eval.metric)
    world = join_world(wanted.model.device)
    reporter = (reporter or PlainReporter()) if world.is_first else _Silent()
    run, going_on = _claim(wanted, resume, fresh, confirm, reporter) if world.is_first else (Run(Path()), False)
    run = Run(Path(world.broadcast_text(str(run.path))))
    going_on = world.any(going_on)
    if going_on and run.status == FINISHED:
        reporter.note(
            f"{run.path}: already finished at step {run.record.get('result', {}).get('steps')}; nothing to do."
        )
        return run
    began = time.perf_counter()
    effective = _stored_config(run, wanted) if going_on else wanted
    from inlay.training.setup import set_up

    setup = set_up(effective, reporter, world)
    has_answers = any(e.messages[0].role != "text" for e in setup.data.heldout_examples)
    primary_metric(effective.eval.metric, has_answers=has_answers)
    if going_on:
        _refuse_other_inputs(run, setup)
    if not world.is_first:
        _train_in(run, setup, world, reporter, going_on, began)
        return run
    require_space(run.path, _space_needed_bytes(setup))
    if not going_on and (aside := runs.start_fresh(run)):
        reporter.note(f"moved the earlier run to {aside}")
    _create_folder(run, setup, going_on)
    with owned(run.path), _recorded(run):
        _train_in(run, setup, world, LoggedReporter(reporter, run), going_on, began)
    return run


def _refuse_early(config: Config) -> None:
    """Raises for data and folders that cannot work, before torch is loaded and anything is computed."""
    from inlay.data import stream_examples
    from inlay.data.sources import EXTENSIONS

    require_writable(Path(config.output.folder))
    for path in (config.data.train, config.data.eval):
        if path and (Path(path).exists() or path.lower().removesuffix(".gz").endswith(EXTENSIONS)):
            _, examples = stream_examples(path, config.data.format, config.data.columns)
            next(examples, None)  # the first row shows whether the format fits


def _claim(config: Config, resume: bool, fresh: bool, confirm: Confirm | None, reporter: Reporter) -> tuple[Run, bool]:
    """The run to write and whether it goes on from a checkpoint; changes nothing. Raises: RunError if undecided."""
    if config.output.name is not None:
        run = Run(Path(config.output.folder) / config.output.name)
    else:
        earlier = runs.numbered(config)
        if not resume or not earlier:
            unfinished = [r for r in earlier if r.status in (RUNNING, INTERRUPTED) and r.has_checkpoint()]
            if unfinished and not fresh:
                last = unfinished[-1]
                if confirm and confirm(f"{last.path} is unfinished. Go on with it? (no starts a new run)"):
                    return last, True
                if not confirm:
                    reporter.note(f"{last.path} is unfinished; --resume would go on with it. This is a new run.")
            return runs.next_numbered(config), False
        run = earlier[-1]
    if fresh or not run.path.exists():
        return run, False
    finished, started = run.status == FINISHED, run.has_checkpoint()
    if resume and (finished or started):
        return run, True
    if finished:
        raise RunError(f"{run.path}: this run is finished. Give another --name, or --fresh to move it aside.")
    if started:
        if confirm is None:
            raise RunError(f"{run.path}: has checkpoints of an earlier start. Give --resume to go on, or --fresh.")
        if confirm(f"{run.path} has checkpoints of an earlier start. Go on from there? (no starts anew)"):
            return run, True
    return run, False


def _stored_config(run: Run, wanted: Config) -> Config:
    """The config that the run began with. Raises: ConfigError listing what was now asked to be otherwise."""
    stored = run.config
    before, now = explicit_values(stored, everything=True), explicit_values(wanted)
    differing = [
        f"  {path}: {before.get(path)!r} then, {value!r} now"
        for path, value in now.items()
        if value != "auto" and before.get(path) != value and not path.startswith(("output.", "track.", "preset"))
    ]
    if differing:
        raise ConfigError(
            f"{run.path}: was started with other settings:\n" + "\n".join(differing) + "\n"
            "Leave them out to resume, or start anew with --fresh or another --name."
        )
    return stored


def _refuse_other_inputs(run: Run, setup: Setup) -> None:
    record = run.record
    now = {
        "data_hash": ("the data file", setup.data.data_hash),
        "base_digest": ("the base model", setup.base_digest),
        "chat_template_hash": ("the chat template", setup.encoder.template_hash),
    }
    changed = [what for key, (what, value) in now.items() if record.get(key) != value]
    if changed:
        raise RunError(
            f"{run.path}: {' and '.join(changed)} changed since this run began; going on would mix two runs. "
            "Put it back, or start anew with --fresh or another --name."
        )


def _create_folder(run: Run, setup: Setup, going_on: bool) -> None:
    from inlay.evaluation.score import write_examples
    from inlay.training.finish import versions

    if not going_on:
        write_file(run.path / "config.yaml", as_yaml(setup.config, setup.reasons))
        write_file(run.heldout, write_examples(setup.data.heldout_examples))
        run.update(
            status=RUNNING,
            started_at=datetime.now(UTC).isoformat(timespec="microseconds"),
            seed=setup.config.train.seed,
            versions=versions(),
            device=setup.device,
            dtype=str(setup.dtype).removeprefix("torch."),
            quantization=setup.quantization,
            data_hash=setup.data.data_hash,
            base_digest=setup.base_digest,
            chat_template_hash=setup.encoder.template_hash,
            heldout_available=setup.data.heldout_available,
            max_length=setup.data.max_length,
        )
    else:
        run.update(status=RUNNING, resumed_at=datetime.now(UTC).isoformat(timespec="seconds"))
    sweep_staging(run.path)
    sweep_staging(run.checkpoints)


@contextlib.contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Leaves the way the run ended in run.json, and a traceback in log.txt for what nobody foresaw."""
    try:
        yield
    except Interrupted as error:
        run.update(status=INTERRUPTED, error=str(error))
        run.log(f"interrupted: {error}")
        if run.has_checkpoint():
            error.add_note(f"Go on with: inlay checkpoints resume {run.path}")
        raise
    except KeyboardInterrupt:
        run.update(status=INTERRUPTED, error="interrupted before the first step")
        raise
    except InlayError as error:
        with contextlib.suppress(InlayError):  # a full disk must not hide the first error
            run.log(f"failed: {error}")
            run.update(status=FAILED, error=str(error))
        raise
    except BaseException as error:
        with contextlib.suppress(InlayError):
            run.log(traceback.format_exc())
            run.update(status=FAILED, error=f"{type(error).__name__}: {error}")
            error.add_note(f"traceback in {run.path / 'log.txt'}")
        raise


def _train_in(run: Run, setup: Setup, world: World, reporter: Reporter, going_on: bool, began: float) -> None:
    from inlay.training import finish
    from inlay.training.calibrate import seconds_per_token
    from inlay.training.loop import heldout_nll, run_job
    from inlay.training.signals import stop_on_signals
    from inlay.training.trackers import open_trackers

    job = setup.job(run)
    if going_on:
        _restore(job, reporter)
    pace_s = seconds_per_token(job)
    if world.is_first:
        reporter.block("pre-flight", [*setup.facts(), *_forecast(setup, job, pace_s)])
    trackers = open_trackers(setup.config, run.path, run.name) if world.is_first else []
    try:
        with stop_on_signals() as stop:
            run_job(job, world, stop, reporter, trackers)
    finally:
        for tracker in trackers:
            tracker.close()
    reporter.stage("saving the adapter and checking that it is what was trained")
    step = job.progress.step
    if world.is_first:
        step = finish.export(setup, job)
    world.barrier()
    if not world.is_first:
        return
    from inlay.evaluation.compare import loss_difference
    from inlay.models.adapter import base_view
    from inlay.training.world import World as Alone

    with base_view(job.model):
        base = heldout_nll(job, Alone())
    adapter = heldout_nll(job, Alone())
    difference = loss_difference(base, adapter, setup.config.eval.resamples, setup.config.train.seed)
    finish.draw_curves(run)
    progress = job.progress
    result = {
        "run": str(run.path),
        "status": FINISHED,
        "steps": progress.step,
        "adapter_step": step,
        "best_step": progress.best_step,
        "train_loss": progress.train_loss,
        "eval_loss": difference.other,
        "base_eval_loss": difference.base,
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "verdict": difference.verdict,
        "stopped_early": progress.stopped_early,
        "trained_tokens_seen": progress.tokens_seen,
        "train_time_s": round(progress.train_time_s, 3),
        "time_s": round(time.perf_counter() - began, 3),
        "adapter": str(run.adapter),
    }
    run.update(status=FINISHED, error=None, result=result)
    reporter.note(
        f"held-out loss {difference.base:.4f} → {difference.other:.4f}: {difference.difference:+.4f} "
        f"[{difference.low:+.4f}, {difference.high:+.4f}] {difference.verdict}"
    )


def _restore(job: Job, reporter: Reporter) -> None:
    from inlay.training import checkpoint as checkpoints

    newest, faults = checkpoints.newest_valid(job.run.checkpoints)
    for fault in faults:
        reporter.note(f"passed over a damaged checkpoint: {fault}")
    if newest is None:
        raise RunError(f"{job.run.path}: no checkpoint can be read. Start anew with --fresh.")
    adapter, tensors, values, progress, rng = checkpoints.load(newest)
    adapter.load_into(job.model)
    checkpoints.restore(job.optimizer, tensors, values, rng)
    job.progress = progress
    job.run.truncate_metrics(progress.step)
    reporter.note(f"going on after step {progress.step} of {job.total_steps} from {newest.path}")


def _forecast(setup: Setup, job: Job, pace_s: float) -> list[tuple[str, str]]:
    remaining = job.total_steps - job.progress.step
    per_step = len(job.train.input_ids) / len(job.train) * min(setup.config.train.batch_size, len(job.train))
    evaluations = remaining // job.eval_every + 1
    # a forward pass alone costs about a third of forward and backward
    expected_s = pace_s * (remaining * per_step + evaluations * len(job.heldout.input_ids) / 3)
    memory = setup.memory
    return [
        (
            "memory",
            f"about {bytes_shown(memory.total)}: weights {bytes_shown(memory.weights)}, adapter and optimizer "
            f"{bytes_shown(memory.adapter)}, activations {bytes_shown(memory.activations)}, "
            f"logits {bytes_shown(memory.logits)}",
        ),
        ("expected time", f"about {duration_shown(expected_s)} ({1 / pace_s:,.0f} tokens/s in one micro batch)"),
        ("run folder", str(job.run.path)),
    ]


def _space_needed_bytes(setup: Setup) -> int:
    checkpoints = setup.config.train.keep_checkpoints + 2
    return setup.trainable * 12 * checkpoints + 20_000_000


class _Silent:
    """The reporter of the ranks that do not speak."""

    def stage(self, text: str) -> None: ...
    def block(self, title: str, rows: list[tuple[str, str]]) -> None: ...
    def start(self, total: int, done: int, unit: str) -> None: ...
    def progress(self, done: int, values: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


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
        from inlay.engine.loss import autocast
        from inlay.generation.generate import answers

        asked = [self.encoder.prompt(_dialogue(prompt)) for prompt in prompts]
        with autocast(self.device, self.autocast_dtype):
            return answers(self.model, self.encoder, asked, self._sampling(sampling))

    def stream(self, messages: Sequence[Mapping[str, str]], on_text: Callable[[str], None], **sampling: Any) -> str:
        """Like `generate`, handing over the text piece by piece as it comes."""
        from inlay.engine.loss import autocast
        from inlay.generation.generate import answers, text_streamer

        asked = [self.encoder.prompt(_dialogue(messages))]
        streamer = text_streamer(self.encoder.tokenizer, on_text)
        with autocast(self.device, self.autocast_dtype):
            return answers(self.model, self.encoder, asked, self._sampling(sampling), streamer=streamer)[0]

    def _sampling(self, over: Mapping[str, Any]) -> Any:
        from inlay.generation.generate import Sampling

        settings = self.run.config.generation
        return Sampling.of(_generation(settings.model_dump() | dict(over)))


def _generation(values: Mapping[str, Any]) -> GenerationConfig:
    return configs.validate({"model": {"base_model": "-"}, "data": {"train": "-"}, "generation": values}).generation


def _dialogue(prompt: str | Sequence[Mapping[str, str]]) -> list[Any]:
    from inlay.data.types import Message

    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [Message(turn["role"], turn["content"]) for turn in prompt]


def load(run: str | Path | Run | None = None, *, adapter: bool = True, folder: str = "results") -> Loaded:
    """The run's base with its adapter (`adapter=False`: without). No name is the run trained last."""
    found = _trained(run, folder)
    model, encoder, device, dtype = _load_base(found)
    if adapter:
        from inlay.models.adapter import AdapterState

        model = AdapterState.read(found.adapter, found.record["base_digest"]).attach_to(model)
    return Loaded(found, model, encoder, device, dtype)


def _trained(run: str | Path | Run | None, folder: str) -> Run:
    """The run, which has an adapter. Raises: RunError."""
    found = run if isinstance(run, Run) else runs.find(run, folder)
    if not found.adapter.is_dir():
        raise RunError(
            f"{found.path}: has no adapter yet (status {found.status}). "
            f"Finish it: inlay checkpoints resume {found.path}, or train it anew."
        )
    return found


def _load_base(run: Run) -> tuple[Any, Encoder, str, Any]:
    """(base model, encoder, device, autocast dtype) as the run used them. Raises: ModelError when the base changed."""
    import torch

    from inlay.data.encode import Encoder
    from inlay.errors import ModelError
    from inlay.models import base as bases
    from inlay.models.probe import pick_device

    config, record = run.config, run.record
    base = bases.find_base(config.model.base_model, config.model.revision)
    if base.digest() != record.get("base_digest"):
        raise ModelError(
            f"{config.model.base_model}: is not the base that {run.name} was trained on (its weights differ). "
            "The adapter would not do what was measured."
        )
    tokenizer = bases.load_tokenizer(bases.BaseRef(f"{run.name}'s tokenizer", run.adapter))
    device = pick_device("auto" if str(config.model.device).startswith("cuda") else config.model.device).device
    dtype = getattr(torch, str(record["dtype"]))
    model = bases.load_model(base, config, dtype, device, str(record.get("quantization", "none")))
    return model, Encoder(tokenizer), device, None if dtype == torch.float32 else dtype


def compare(
    run: str | Path | Run | None = None,
    *,
    prompts: Sequence[str] = (),
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Comparison:
    """Base against adapter on the run's held-out rows, with a verdict; also written to the run's `reports/`."""
    found = _trained(run, folder)
    from inlay.evaluation.compare import compare_pair
    from inlay.evaluation.report import write_reports
    from inlay.models.adapter import AdapterState

    config = found.config
    reporter = reporter or PlainReporter()
    model, encoder, device, dtype = _load_base(found)
    rows = _rows(found, encoder, [*config.eval.prompts, *prompts])
    base = _score(model, config.model.base_model, rows, encoder, config, device, dtype, reporter)
    adapted = AdapterState.read(found.adapter, found.record["base_digest"]).attach_to(model)
    adapter = _score(adapted, found.name, rows, encoder, config, device, dtype, reporter)
    comparison = compare_pair(
        rows, base, adapter, primary=config.eval.metric, resamples=config.eval.resamples,
        seed=config.train.seed, available=int(found.record.get("heldout_available", len(rows.examples))),
    )  # fmt: skip
    write_reports(comparison, found.reports, curves=(found.reports / "curves.png").exists())
    return comparison


def _rows(run: Run, encoder: Encoder, prompts: Sequence[str]) -> Any:
    from inlay.evaluation.score import held_out, read_held_out

    data = run.config.data
    return held_out(read_held_out(run.heldout), encoder, int(data.max_length), data.overlong, prompts)


def _score(
    model: Any, name: str, rows: Any, encoder: Encoder, config: Config, device: str, dtype: Any, reporter: Reporter
) -> Any:
    from inlay.evaluation.score import score

    return score(
        model, name, rows, encoder, batch_size=config.eval.batch_size, max_new_tokens=config.eval.max_new_tokens,
        device=device, dtype=dtype, reporter=reporter,
    )  # fmt: skip


def evaluate(
    run: str | Path | Run | None = None,
    *,
    adapter: bool = True,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> dict[str, Any]:
    """{"name", "n", "metrics": {metric: value}, "time_s"} of one model on the run's held-out rows."""
    found = _trained(run, folder)
    from inlay.evaluation.compare import totals
    from inlay.models.adapter import AdapterState

    model, encoder, device, dtype = _load_base(found)
    rows = _rows(found, encoder, ())
    if adapter:
        model = AdapterState.read(found.adapter, found.record["base_digest"]).attach_to(model)
    name = found.name if adapter else found.config.model.base_model
    scored = _score(model, name, rows, encoder, found.config, device, dtype, reporter or PlainReporter())
    return {"name": name, "n": len(rows.examples), "metrics": totals(rows, scored), "time_s": round(scored.time_s, 3)}


# --- look ----------------------------------------------------------------------------------------------------


def doctor(*, quick: bool = False, folder: str = "results") -> dict[str, Any]:
    """The machine record: versions, memory, devices, what really works, and recommended settings."""
    from inlay.models.machine import machine_record

    return machine_record(quick, Path(folder))


def checkpoints(run: str | Path | Run | None = None, *, folder: str = "results") -> list[dict[str, Any]]:
    """Every checkpoint of a run, oldest first: step, losses, bytes, whether it is whole, whether it is the best."""
    from inlay.errors import StorageError
    from inlay.storage import verified
    from inlay.training import checkpoint as stored

    found = run if isinstance(run, Run) else runs.find(run, folder)
    listed = []
    for checkpoint in stored.listed(found.checkpoints):
        row: dict[str, Any] = {"step": checkpoint.step, "path": str(checkpoint.path), "valid": True, "fault": None}
        try:
            about = verified(checkpoint.path)
            row |= {"train_loss": about.get("train_loss"), "eval_loss": about.get("eval_loss")}
            row["size_bytes"] = sum(f["size"] for f in about["files"].values())
        except StorageError as error:
            row |= {"valid": False, "fault": str(error), "train_loss": None, "eval_loss": None, "size_bytes": None}
        listed.append(row)
    losses = [row["eval_loss"] for row in listed if row["eval_loss"] is not None]
    return [row | {"best": bool(losses) and row["eval_loss"] == min(losses)} for row in listed]


def resume(run: str | Path | Run | None = None, *, reporter: Reporter | None = None, folder: str = "results") -> Run:
    """Goes on with a run from its own config."""
    found = run if isinstance(run, Run) else runs.find(run, folder)
    config = found.config
    here = config.output.model_copy(update={"name": found.name, "folder": str(found.path.parent)})
    return train(config.model_copy(update={"output": here}), resume=True, reporter=reporter)


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
