"""From a config to an AdapterJob: everything that can be wrong is found here, before anything is written."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from inlay.config import Config
from inlay.config.sections.train import TrainConfig
from inlay.data.batches import Batch, step_rows
from inlay.data.curriculum import curriculum, difficulty
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.prepare import MIXED, PreparedData, prepare
from inlay.engine import cpu_ops
from inlay.engine.autograd import Engine
from inlay.engine.estimate import shape_of
from inlay.engine.select_engine import EngineChoice, select_engine
from inlay.hardware.facts import library_versions
from inlay.hardware.probe import matmul_dtype
from inlay.methods.adapter import attach, layers_adapted, trained_parameters
from inlay.methods.called_layers import failed_pass_warning
from inlay.methods.table import method_of
from inlay.methods.target_modules import coverage, expert_targets
from inlay.models.dropout import own_dropout
from inlay.models.generation_settings import generation_settings
from inlay.models.untrained_ends import untrained_ends_warning
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase
from inlay.tasks.table import task_of
from inlay.tasks.task import Task
from inlay.training.base import TrainingBase, open_training_base
from inlay.training.choices import Choices
from inlay.training.job import AdapterJob
from inlay.training.memory_budget import fit_batches, work_of
from inlay.training.optimizer import make_optimizer
from inlay.training.process_group import ProcessGroup
from inlay.training.resolve import sample_batches, start_from, targets_of
from inlay.training.schedule import auto_learning_rate, length_of, require_warmup
from inlay.training.shares import require_work, share_size
from inlay.training.trackers import chosen

_ROWS_TRIED = 2


def set_up(config: Config, reporter: Reporter, group: ProcessGroup, revision: str | None = None) -> AdapterJob:
    """A job alone on its base, ready for step 1: see `open_training_base` and `join`."""
    return join(open_training_base(config, group, revision), config, reporter)


def join(base: TrainingBase, config: Config, reporter: Reporter) -> AdapterJob:
    """A fresh adapter of this config on the base, with its data and optimizer; only its run folder is missing.

    Raises: a UserError subclass for anything in the config, the data or the base that cannot work.
    """
    base.require_shared(config)
    chosen(config)
    choices = Choices(config, {**base.choices.values}, {**base.choices.reasons})
    opened, name = base.opened_for(config), base.new_name()
    data = _data(opened, choices, reporter)
    require_work(config.train.batch_size, data.train.drawn, base.group.size)
    total, eval_every, save_every = length_of(config.train, data.train.drawn)
    require_warmup(config.train, total)
    hardness = difficulty(config, data.train)
    if base.model is None:
        base.load(config, reporter)
        choices.reasons |= base.choices.reasons
    targets = _attached(base, opened, data, choices, name, reporter)
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
    light, heavy = _tried(task, data.train, settled, pad_id, base.device, group.size)
    modes = train.gradient_checkpointing, train.activation_offload
    how = partial(select_engine, heavy=heavy, adapter=name, loss=task.loss)
    choice = how(train.engine, base.model, light, *base.precision, *modes)
    if "autograd" in group.gather(choice.engine.name) and choice.is_handwritten:
        autograd = how("autograd", base.model, light, *base.precision, *modes).engine
        choice = EngineChoice(autograd, refused="another rank takes the autograd engine")
    choices.settle("train.engine", choice.engine.name, choice.summary())
    return choice.engine


def _tried(
    task: Task, train: TokenSet, settings: TrainConfig, pad_id: int, device: str, processes: int
) -> tuple[Batch, Batch]:
    """The shortest rows of the first step, enough to see a difference, and cheap; and as many of the longest as are
    computed at once."""
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
