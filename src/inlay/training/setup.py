"""From a config to an AdapterJob: the base is opened, rows are read, the adapter attached, `auto` settled.

Everything that can be wrong is found here, before anything is written. Processes that train together must have set up
the same, or none of them begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.config import Config
from inlay.config.identity import PLACES
from inlay.config.load import preset_tree
from inlay.config.render import explicit_values
from inlay.config.sections.train import TrainConfig
from inlay.data.batches import Batch, step_rows
from inlay.data.curriculum import curriculum, difficulty
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.prepare import MIXED, PreparedData, prepare
from inlay.engine import cpu_ops
from inlay.engine.autograd import Engine
from inlay.engine.estimate import shape_of
from inlay.engine.memory import tune_allocator
from inlay.engine.select_engine import EngineChoice, select_engine
from inlay.errors import AdapterError, ConfigError, ModelError, RunError, UserError
from inlay.hardware.facts import library_versions
from inlay.hardware.probe import DTYPES, dtype_name, matmul_dtype, pick_device, pick_dtype, pick_matmul_precision
from inlay.methods.adapter import attach, detach, layers_adapted, trained_parameters
from inlay.methods.adapter_state import AdapterState
from inlay.methods.auto_rank import auto_rank, directions_hint, with_rank
from inlay.methods.called_layers import failed_pass_warning
from inlay.methods.method import TRAINED
from inlay.methods.table import method_of
from inlay.methods.target_modules import coverage, expert_targets, layers_for_roles, resolve_targets
from inlay.models import base as bases
from inlay.models.base import BaseRef
from inlay.models.dropout import own_dropout
from inlay.models.generation_settings import generation_settings
from inlay.models.untrained_ends import untrained_ends_warning
from inlay.runs import folder as runs
from inlay.runs.reporter import Reporter
from inlay.runs.trackers import chosen
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.tasks.task import Task, task_of
from inlay.training.checkpoint import adapter_at
from inlay.training.job import AdapterJob, Choices, TrainingBase
from inlay.training.memory import fit_batches, keeps_freed, parse_bytes, work_of
from inlay.training.optimizer import auto_learning_rate, length_of, make_optimizer, require_warmup
from inlay.training.process import require_precision
from inlay.training.process_group import ProcessGroup, require_work, share_size
from inlay.typed_json import JsonObject

_ROWS_TRIED = 2
_SAMPLE_ROWS, _SAMPLE_BATCH = 64, 4


def open_training_base(config: Config, group: ProcessGroup, revision: str | None = None) -> TrainingBase:
    """The base of a config, placed but not yet loaded: rows are read before, and may be at fault.

    It is `model.revision` of a hub's base unless another `revision` is given. Raises: ConfigError, ModelError.
    """
    choices = Choices(config)
    torch.manual_seed(config.train.seed)
    tune_allocator(for_speed=keeps_freed(config))
    ref = bases.find_base(config.model.base_model, revision or config.model.revision)
    bases.architecture(ref)
    precision = _placed(choices, group)
    if precision.device == "cpu":
        cpu_ops.prepare(precision.dtype)  # of autograd, which the hand-written engine is compared with
        if config.train.engine != "autograd":
            cpu_ops.prepare(matmul_dtype(precision.device, precision.dtype))
    opened = OpenedBase(ref, choices.config_settled().model, config.data, precision)
    limit = config.train.max_memory
    return TrainingBase(opened, config, group, choices, parse_bytes(limit) if limit else None)


def _placed(choices: Choices, group: ProcessGroup) -> Precision:
    """Raises: ConfigError, ModelError."""
    config = choices.config
    device = pick_device(group.device(config.model.device))
    if config.train.activation_offload and device.device == "cpu":
        raise ConfigError(
            "train.activation_offload: activations lie in the machine's memory already. Leave it out on a CPU."
        )
    if device.device.startswith("cuda"):
        torch.cuda.set_device(device.device)  # the device that torch measures and seeds by default
    whole = method_of(config).trains_base
    dtype = pick_dtype(device.device, "float32" if whole else config.model.dtype)
    require_precision(os.environ, dtype.dtype)
    choices.settle("model.device", device.device, device.reason)
    choices.settle("model.dtype", dtype.dtype, "all weights are trained" if whole else dtype.reason)
    precision, why = pick_matmul_precision(device.device, "auto")
    choices.settle("model.matmul_precision", group.broadcast_text(precision), why)
    quantization, choices.reasons["model.quantization"] = choose_quantization(config, device.device, dtype.dtype)
    return Precision(device.device, DTYPES[dtype.dtype], quantization)


def make_single_job(config: Config, reporter: Reporter, group: ProcessGroup, revision: str | None = None) -> AdapterJob:
    """A job alone on its base, ready for step 1: see `open_training_base` and `make_job`."""
    return make_job(open_training_base(config, group, revision), config, reporter)


def make_job(base: TrainingBase, config: Config, reporter: Reporter) -> AdapterJob:
    """A fresh adapter of this config on the base, with its data and optimizer; only its run folder is missing.

    Raises: a UserError subclass for anything in the config, the data or the base that cannot work. The base then has the
    adapters that it had before.
    """
    base.require_shared(config)
    chosen(config)
    name = base.new_name()
    try:
        return _make_job(base, config, name, reporter)
    except UserError:
        if name in base.names and not method_of(config).trains_base:
            base.model = detach(base.model, name)
            base.names.remove(name)
        raise


def _make_job(base: TrainingBase, config: Config, name: str, reporter: Reporter) -> AdapterJob:
    choices = Choices(config, {**base.choices.values}, {**base.choices.reasons})
    opened = base.opened_for(config)
    data = _data(opened, choices, reporter)
    require_work(config.train.batch_size, data.train.drawn, base.group.size)
    total, eval_every, save_every = length_of(config.train, data.train.drawn)
    require_warmup(config.train, total)
    hardness = difficulty(config, data.train)
    if base.model is None:
        base.load(config, reporter)
        choices.reasons |= base.choices.reasons
    targets = _attached(base, opened, data, choices, name, reporter)
    config = choices.config
    text = getattr(opened.architecture, "text_config", None) or opened.architecture
    hidden = shape_of(text, "hidden_size", "n_embd", "d_model")
    choices.settle("train.learning_rate", *auto_learning_rate(config, hidden, str(opened.architecture.model_type)))
    work = work_of(config, base.model, base.precision, name)
    memory, eval_batch_size = fit_batches(base.model, work, choices, data.max_length, base.device, base.group)
    reporter.stage("checking the engine on one micro batch")
    engine = _engine(base, data, choices, opened.encoder.pad_id, name)
    choices.settle("train.eval_steps", eval_every, "ten times a run")
    choices.settle("train.save_steps", save_every, "with each evaluation")
    parameters = trained_parameters(base.model, name)
    return AdapterJob(
        base=base, config=choices.config_settled(), reasons=choices.reasons, name=name, encoder=opened.encoder, data=data,
        parameters=parameters, engine=engine, optimizer=make_optimizer(config.train, parameters), targets=targets,
        memory=memory, eval_batch_size=eval_batch_size, total_steps=total, eval_every=eval_every, save_every=save_every,
        has_dropout=config.adapter.dropout > 0 or own_dropout(base.model) > 0, versions=library_versions() | _loops(base),
        curriculum=None if hardness is None else curriculum(config.train, hardness),
    )  # fmt: skip


def _data(opened: OpenedBase, choices: Choices, reporter: Reporter) -> PreparedData:
    """The rows as this base reads them."""
    config = choices.config
    opened.require_vocabulary()
    reporter.stage(f"reading {config.data.train_name}")
    context = opened.context_length - method_of(config).virtual_tokens(config)
    data = prepare(config.data, opened.encoder, context, config.eval.max_rows, config.train.seed, reporter)
    opened.require_vocabulary([max(tokens.largest_id for tokens in (data.train, data.heldout))])
    choices.settle("data.max_length", data.max_length, data.max_length_reason)
    if data.format != MIXED:
        choices.settle("data.format", data.format, data.format_reason)
    if config.data.eval is None:
        share = f"part {config.data.fold}" if config.data.fold else f"{config.data.eval_fraction:.0%}"
        choices.reasons["data.eval"] = f"{share} of the rows, by content"
    return data


def _attached(
    base: TrainingBase, opened: OpenedBase, data: PreparedData, choices: Choices, name: str, reporter: Reporter
) -> list[str]:
    """The target modules of a fresh adapter, which is on the base's model now."""
    config = choices.config
    if method_of(config).trains_base:
        if left_out := (generation_settings(base.ref.folder) or ({}, []))[1]:
            reporter.note(
                f"warning: generation_config.json of {base.ref.name} is one that transformers will not save: the model is "
                f"written without {', '.join(left_out)}"
            )
        base.model = ready_to_train(attach(base.model, config, [], reopen=opened.load, name=name), config)
        base.names.append(name)
        return []
    bare = base.model
    targets, why = targets_of(config, bare)
    if method_of(config).has_targets:
        choices.settle("adapter.target_modules", targets, why)
        if unseen := failed_pass_warning(bare):
            reporter.note(unseen)
        experts = expert_targets(bare) if config.adapter.experts else []
        choices.reasons["adapter.coverage"] = coverage(bare, targets, experts)
        if config.adapter.rank == "auto":
            rank, reason = auto_rank(bare, targets, experts, data.train.trained_tokens)
            hint = directions_hint(bare, targets, sample_batches(config, data, opened.encoder, base.device))
            choices.settle("adapter.rank", rank, f"{reason}; {hint}")
            config = choices.config = with_rank(config, rank)
    if why:  # a preset's words stay in the config, their meaning here goes beside them
        choices.reasons["adapter.target_modules"] = why
    sample = partial(sample_batches, config, data, opened.encoder, base.device)
    torch.manual_seed(config.train.seed)
    base.model = attach(base.model, config, targets, sample, name=name)
    base.names.append(name)
    if config.adapter.start_from and (caution := start_from(config, base.model, base.ref, name)):
        reporter.note(caution)
    base.model = ready_to_train(base.model, config)
    encoder = opened.encoder
    if untrained := untrained_ends_warning(bare, encoder.tokenizer, encoder.stop_ids, encoder.eos_id, targets):
        reporter.note(untrained)
    trainable = sum(p.numel() for p in trained_parameters(base.model, name).values())
    reporter.stage(f"adapter: {trainable:,} trainable parameters{layers_adapted(base.model, name)}")
    return targets


def targets_of(config: Config, model: Any) -> tuple[list[str], str]:
    """(target modules, reason) of the config; the reason is empty for a list that the user wrote.

    A preset names layers as Llama does; they are found under this architecture's names. A user's list is taken as it is.
    """
    wanted = config.adapter.target_modules
    method = method_of(config)
    if not method.has_targets:
        return [], ""
    if wanted == "auto":
        return method.auto_targets(model)
    if config.preset is not None and preset_tree(config.preset).get("adapter", {}).get("target_modules") == wanted:
        names, reason = layers_for_roles(model, wanted, "the preset's")
        return resolve_targets(model, names), reason
    return resolve_targets(model, wanted), ""


def choose_quantization(config: Config, device: str, dtype: str) -> tuple[str, str]:
    """The quantization that is used, and why. Raises: ModelError if the chosen one does not work and must not fall back."""
    wanted = config.model.quantization
    if wanted == "none":
        return "none", "not asked for"
    from inlay.models.quantization import probe_quantization

    compute = config.model.compute_dtype if config.model.compute_dtype != "auto" else dtype
    probe = probe_quantization(wanted, device, compute)
    if probe.works:
        return wanted, probe.reason
    if not config.model.quantization_fallback:
        raise ModelError(
            f"model.quantization {wanted}: does not work here: {probe.reason}. Leave it out, or allow an unquantized "
            "run with --set model.quantization_fallback=true."
        )
    return "none", f"{wanted} was asked for but does not work here: {probe.reason}"


def sample_batches(config: Config, data: PreparedData, encoder: Encoder, device: str) -> Iterator[dict[str, Tensor]]:
    """The first training rows, in the order of training, a few at a time."""
    rows = step_rows(1, config.train.seed, data.train.shares, min(_SAMPLE_ROWS, data.train.drawn))
    for start in range(0, len(rows), _SAMPLE_BATCH):
        batch = task_of(config).batch(data.train, rows[start : start + _SAMPLE_BATCH], encoder.pad_id, device)
        yield {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def start_from(config: Config, model: Any, base: BaseRef, adapter_name: str = TRAINED) -> str:
    """Puts the adapter that `adapter.start_from` names into the model; what to tell of its run, usually nothing.

    Raises: AdapterError when it is none, or when it differs from the config in what an adapter computes.
    """
    reference = str(config.adapter.start_from)
    name, step = runs.split_step(reference)
    if step is not None:
        run = runs.find(name, config.output.folder)
        if difference := base.difference(run.record.base):
            raise AdapterError(
                f"adapter.start_from {reference}: was trained on another base than this one: {difference}."
            )
        state, caution = adapter_at(run, step), run.caution
    else:
        folder = _adapter_folder(str(name), config.output.folder)
        state, caution = AdapterState.read(folder, base), runs.caution_of(folder)
    method, its_method = method_of(config), state.method
    if its_method is not method:
        raise AdapterError(
            f"adapter.start_from {reference}: is of method {its_method.name}, this config {method.name}. "
            f"Set adapter.method={its_method.name} to go on from it."
        )
    for setting, wanted, found in method.differences(config, state.settings):
        raise AdapterError(
            f"adapter.start_from {reference}: has {setting} {found}, this config {wanted}. "
            f"Set adapter.{setting}={found} to go on from it."
        )
    try:
        state.load_into(model, adapter_name)
    except AdapterError as error:
        raise AdapterError(f"adapter.start_from {reference}: {str(error).removeprefix('adapter: ')}") from None
    return caution


def _adapter_folder(reference: str, results: str) -> Path:
    for folder in (Path(reference), Path(results) / reference):
        for candidate in (folder / "adapter", folder):
            if (candidate / "adapter_config.json").is_file():
                return candidate
    raise AdapterError(
        f"adapter.start_from {reference}: no run with an adapter, no adapter folder, no name in the library."
    )


def ready_to_train(model: Any, config: Config) -> Any:
    """The model in training mode, and with gradient checkpointing where the config has it."""
    if config.train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model


def _engine(base: TrainingBase, data: PreparedData, choices: Choices, pad_id: int, name: str) -> Engine:
    """The engine of this adapter, the same on every rank."""
    train, group = choices.config.train, base.group
    settled = choices.config_settled().train
    task = task_of(choices.config)
    light, heavy = _engine_check_batches(task, data.train, settled, pad_id, base.device, group.size)
    modes = train.gradient_checkpointing, train.activation_offload
    how = partial(select_engine, heavy=heavy, adapter=name, loss=task.loss)
    choice = how(train.engine, base.model, light, *base.precision, *modes)
    if "autograd" in group.gather(choice.engine.name) and choice.is_handwritten:
        autograd = how("autograd", base.model, light, *base.precision, *modes).engine
        choice = EngineChoice(autograd, refused="another rank takes the autograd engine")
    choices.settle("train.engine", choice.engine.name, choice.summary())
    return choice.engine


def _engine_check_batches(
    task: Task, train: TokenSet, settings: TrainConfig, pad_id: int, device: str, processes: int
) -> tuple[Batch, Batch]:
    """Two batches to choose the engine by: a few of the shortest rows of the first step, to compare gradients, and a full
    micro batch of the longest rows, to time both engines."""
    rows = step_rows(1, settings.seed, train.shares, settings.batch_size)
    at_once = min(int(settings.micro_batch_size), share_size(settings.batch_size, processes))
    lengths = train.lengths
    by_length = sorted(rows, key=lambda row: int(lengths[row]))
    light, heavy = by_length[: min(_ROWS_TRIED, at_once)], by_length[-at_once:]
    return task.batch(train, light, pad_id, device), task.batch(train, heavy, pad_id, device)


def _loops(base: TrainingBase) -> dict[str, str | None]:
    """Whether there are fused loops: they and torch round in other places."""
    if base.device != "cpu":
        return {}
    return {"fused loops": "none" if cpu_ops.reason(matmul_dtype(base.device, base.dtype)) else "compiled"}


_NAMED = 3
_OWN = ("output.", "track.", "data.cache", "model.device", "preset")
"""Settings in which processes may differ: only the first one writes, and each has its own device."""


def require_same(job: AdapterJob, requested: Config) -> None:
    """Raises: RunError, the same on every rank, when one has other versions, settings, data or base than another.

    `requested` is the config as it was given, before `auto` was settled.
    """
    group = job.base.group
    if group.size == 1:
        return
    every = [json.loads(text) for text in group.gather(json.dumps(_seen(job, requested), default=str))]
    for kind, way_out in _WAYS.items():  # the cause before what follows from it
        differing = [name for name in every[0][kind] if len({json.dumps(one[kind].get(name)) for one in every}) > 1]
        if differing:
            differences = "; ".join(
                _difference_text(name, [one[kind].get(name) for one in every]) for name in differing[:_NAMED]
            )
            more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise RunError(f"the {group.size} processes differ in {differences}{more}. {way_out} Nothing was written.")


_WAYS = {
    "versions": "Install the same versions everywhere.",
    "settings": "Start all of them with the same command and the same files.",
    "inputs": "Give all of them the same files.",
    "resolved": "Use like devices, or set these so that all do the same.",
}


def _seen(job: AdapterJob, requested: Config) -> dict[str, JsonObject]:
    """Values that must be the same in all processes, under the names that a user knows."""
    settings = explicit_values(requested, everything=True)
    inputs = job.inputs
    return {
        "versions": library_versions(),
        "settings": {
            path: value for path, value in settings.items() if path not in PLACES and not path.startswith(_OWN)
        },
        "inputs": {
            "the data": inputs["data_hash"][:12],
            "the base model": inputs["base_digest"][:12],
            "the tokenizer": inputs["tokenizer_hash"][:12],
            "the chat template": inputs["chat_template_hash"][:12],
        },
        "resolved": {
            "device": job.device.partition(":")[0],
            "dtype": dtype_name(job.base.dtype),
            "quantization": job.base.precision.quantization,
            "engine": job.engine.name,
            "settings": inputs["settings_hash"][:12],
        },
    }


def _difference_text(name: str, values: list[Any]) -> str:
    """`train.seed (0 on process 0, 1 on process 1)`, each value once."""
    firsts = {json.dumps(value): (value, rank) for rank, value in reversed(list(enumerate(values)))}
    shown = sorted(firsts.values(), key=lambda one: one[1])
    return f"{name} ({', '.join(f'{_short(value)} on process {rank}' for value, rank in shown)})"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
