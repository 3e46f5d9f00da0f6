"""From a config to an AdapterJob: everything that can be wrong is found here, before anything is written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.config import Config
from inlay.config.identity import settings_hash
from inlay.config.load import merge, nested, validate
from inlay.config.sections.train import TrainConfig
from inlay.data.batches import Batch, collate, step_rows, steps_per_epoch
from inlay.data.curriculum import curriculum, difficulty
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.prepare import MIXED, PreparedData, prepare
from inlay.engine import cpu_ops
from inlay.engine.autograd import Engine
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.estimate import (
    LAYER_NAMES,
    MemoryEstimate,
    Shape,
    Work,
    estimate,
    largest_micro_batch,
    shape_of,
)
from inlay.engine.lm_head import head_of
from inlay.engine.memory import held_bytes, tune_allocator
from inlay.engine.select_engine import EngineChoice, expected_engine, select_engine
from inlay.errors import ConfigError
from inlay.hardware.facts import library_versions, memory_facts
from inlay.hardware.probe import DTYPES, pick_device, pick_dtype, pick_matmul_precision, product_dtype
from inlay.methods.adapter import attach, layers_adapted, trained_parameters
from inlay.methods.called_layers import told_unseen
from inlay.methods.lora import expert_bytes
from inlay.methods.table import method_of
from inlay.methods.target_modules import coverage, expert_targets, numel
from inlay.models import base as bases
from inlay.models.dropout import own_dropout, switch_off
from inlay.models.fingerprint import Fingerprint
from inlay.models.generation_settings import generation_settings
from inlay.models.named_class import NamedClass, named_class
from inlay.models.quantization import held
from inlay.models.untrained_ends import told_untrained
from inlay.runs.folder import caution_of
from inlay.runs.record import RunRecord
from inlay.runs.reporter import Reporter, bytes_shown
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.training.checkpoint import Progress
from inlay.training.job import AdapterJob
from inlay.training.launcher import launch, require_precision
from inlay.training.optimizer import make_optimizer
from inlay.training.process_group import ProcessGroup
from inlay.training.resolve import choose_quantization, sample_batches, start_from, targets_of
from inlay.training.schedule import auto_learning_rate, require_warmup, warmup_steps
from inlay.training.shares import require_work, share_size
from inlay.training.trackers import chosen

_ROWS_TRIED = 2
_TOKEN_CAP = {"cpu": 4096, "mps": 4096, "cuda": 16384}
_TOKEN_CAP_16_BIT_CPU = 8192  # its products are so quick that calls between them count


@dataclass
class Setup:
    """A run ready to start: the resolved config, the reasons behind every `auto`, and the parts of an AdapterJob."""

    config: Config
    reasons: dict[str, str]
    base: bases.BaseRef
    base_seen: Fingerprint
    base_digest: str
    """Under which the run knows its base."""
    named: NamedClass | None
    """What config.json names where something else is trained."""
    encoder: Encoder
    data: PreparedData
    model: Any
    device: str
    dtype: torch.dtype
    quantization: str
    engine: Engine
    trainable: int
    total_parameters: int
    targets: list[str]
    memory: MemoryEstimate
    difficulty: np.ndarray | None
    """(N,) by what the training rows are ordered, where the data alone tells."""
    eval_batch_size: int
    """Rows at a time of an evaluation: `eval.batch_size`, or as many as `train.max_memory` has room for."""
    total_steps: int
    eval_every: int
    save_every: int
    group: ProcessGroup

    def recognise(self, record: RunRecord) -> str:
        """What the base computes with otherwise than a run's record says; where nothing, it goes by the recorded digest."""
        said = self.base.difference(record.base)
        if not said:
            self.base_digest = record.base_digest
        return said

    @property
    def base_record(self) -> dict[str, Any]:
        """What tells this base from others: for run.json and the adapter's card."""
        seen, commit = self.base_seen.to_json(), self.base.pinned_commit
        return {"base_digest": self.base_digest, "base_fingerprint": seen, "base_commit": commit}

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of everything that decides the numbers of the run."""
        return {
            "settings_hash": settings_hash(self.config),
            "data_hash": self.data.data_hash,
            "base_digest": self.base_digest,
            "tokenizer_hash": self.encoder.tokenizer_hash,
            "chat_template_hash": self.encoder.template_hash,
        }

    def facts(self) -> list[tuple[str, str]]:
        """The pre-flight block, without what only a calibration can tell."""
        config, data, reasons = self.config, self.data, self.reasons
        lengths = data.train_lengths
        return [
            ("base", f"{config.model.base_model} ({self.total_parameters / 1e6:.1f}M parameters, {self.base_digest[:12]})"),
            *([("class", self.named.summary())] if self.named else []),
            ("device", f"{self.device} ({reasons.get('model.device', 'as set')})"),
            ("dtype", f"{config.model.dtype} ({reasons.get('model.dtype', 'as set')})"),
            *([("products", f"{config.model.matmul_precision} ({reasons.get('model.matmul_precision', 'as set')})")]
              if config.model.matmul_precision != "highest" else []),
            ("quantization", f"{self.quantization} ({reasons.get('model.quantization', 'as set')})"),
            ("data", f"{data.rows} rows, format {data.format} ({data.format_reason})"),
            *([("data check", data.check.summary())] if data.check else []),
            ("template", self.encoder.template_name),
            *([("mixture", data.mixture)] if data.mixture else []),
            ("rows", f"{lengths.kept} kept, {lengths.cut} cut, {lengths.dropped} dropped "
                     f"({lengths.trained_tokens_lost} trained tokens lost); max_length {data.max_length} "
                     f"({data.max_length_reason})"),
            ("held out", f"{len(data.heldout_examples)} of {data.heldout_available} rows"
                         + (" (drawn by seed)" if len(data.heldout_examples) < data.heldout_fitting else "")
                         + (f"; {data.heldout_lengths.dropped} dropped, {data.heldout_lengths.cut} cut"
                            if data.heldout_lengths.dropped + data.heldout_lengths.cut else "")
                         + (f"; {data.leaked} with the prompt of a training row" if data.leaked else "")),
            ("trained tokens", f"{data.train.trained_tokens:,} of {data.train.token_count:,} ({data.trained_share:.0%})"),
            ("adapter", f"{self._kind()}{self._variant()}"),
            *([("base's dropout", f"{'on' if config.train.base_dropout else 'off'} ({why})")]
              if (why := reasons.get("train.base_dropout")) else []),
            ("trainable", f"{self.trainable:,} ({self.trainable / self.total_parameters:.2%})"),
            ("engine", f"{self.engine.name} ({reasons.get('train.engine', 'as set')})"),
            *([("processes", f"{self.group.size}, each with its share of every step and of the held-out rows")]
              if self.group.size > 1 else []),
            ("batch", self._batch()),
            *([("apart", apart)] if (apart := batch_groups(self.model).summary()) else []),
            *([("order", _order_told(config.train))] if config.train.order != "random" else []),
            ("steps", f"{self.total_steps}, warmup {warmup_steps(config.train, self.total_steps)}, {config.train.schedule}, "
                      f"learning rate {config.train.learning_rate:g} ({reasons.get('train.learning_rate', 'as set')})"
                      + (f", of B {config.train.lora_plus_ratio:g} times that" if config.train.lora_plus_ratio != 1 else "")),
            ("evaluate, save", f"every {self.eval_every}, every {self.save_every} steps"),
        ]  # fmt: skip

    def _batch(self) -> str:
        train, at_once = self.config.train, int(self.config.train.micro_batch_size)
        share = share_size(train.batch_size, self.group.size)
        over = f"{self.group.size} processes × " if self.group.size > 1 else ""
        return f"{train.batch_size} = {over}{min(at_once, share) if over else at_once} × {-(-share // at_once)}"

    def _kind(self) -> str:
        method = method_of(self.config)
        if not method.has_targets:
            return method.summary(self.config)
        places = _short(self.targets) + (" and all experts" if self.config.adapter.experts else "")
        return f"{method.summary(self.config)}, on {places}: {self.reasons['adapter.coverage']}"

    def _variant(self) -> str:
        adapter = self.config.adapter
        said = [
            "DoRA" if adapter.dora else "",
            "scaled by alpha/sqrt(r)" if adapter.rslora else "",
            f"started by {adapter.init}" if adapter.init != "default" else "",
            f"started from {adapter.start_from}" if adapter.start_from else "",
            f"dropout {adapter.dropout:g}" if adapter.dropout else "",
            f"biases {adapter.bias}" if adapter.bias != "none" else "",
            self.reasons.get("adapter.target_modules", ""),
        ]
        return "".join(f", {text}" for text in said if text)

    def job(self, run: Any) -> AdapterJob:
        """The AdapterJob over this setup, at step 0."""
        train = self.config.train
        named = trained_parameters(self.model)
        autocast = None if self.dtype == torch.float32 else self.dtype
        return AdapterJob(
            config=self.config,
            run=run,
            model=self.model,
            parameters=list(named.values()),
            engine=self.engine,
            optimizer=make_optimizer(train, named),
            train=self.data.train,
            heldout=self.data.heldout,
            pad_id=self.encoder.pad_id,
            device=self.device,
            group=self.group,
            micro_batch_size=int(train.micro_batch_size),
            eval_batch_size=self.eval_batch_size,
            peak_learning_rate=float(train.learning_rate),
            total_steps=self.total_steps,
            eval_every=self.eval_every,
            save_every=self.save_every,
            autocast_dtype=autocast,
            has_dropout=self.config.adapter.dropout > 0 or own_dropout(self.model) > 0,
            max_memory_bytes=parse_bytes(train.max_memory) if train.max_memory else None,
            inputs=self.inputs,
            versions=library_versions() | self._loops(),
            curriculum=None if self.difficulty is None else curriculum(train, self.difficulty),
            progress=Progress(planned_steps=self.total_steps),
        )

    def _loops(self) -> dict[str, str | None]:
        """Whether there are fused loops: they and torch round in other places."""
        if self.device != "cpu":
            return {}
        return {"fused loops": "none" if cpu_ops.reason(product_dtype(self.device, self.dtype)) else "compiled"}


@dataclass
class _Choices:
    """What `auto` became, by setting, and why."""

    config: Config
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def settle(self, path: str, value: Any, reason: str) -> None:
        """Takes the value where the config leaves it open."""
        section, _, name = path.partition(".")
        if getattr(getattr(self.config, section), name) == "auto":
            self.values[path], self.reasons[path] = value, reason

    def config_settled(self) -> Config:
        return validate(merge(self.config.model_dump(), nested(self.values)), "resolved config")


def set_up(config: Config, reporter: Reporter, group: ProcessGroup, revision: str | None = None) -> Setup:
    """A run ready to start, on `model.revision` of a hub's base unless another `revision` is given.

    Raises: a UserError subclass for anything in the config, the data or the base that cannot work.
    """
    choices = _Choices(config)
    chosen(config)
    torch.manual_seed(config.train.seed)
    tune_allocator(for_speed=_keeps_freed(config))
    base = bases.find_base(config.model.base_model, revision or config.model.revision)
    architecture = bases.architecture(base)
    place = _placed(choices, group)
    if place.device == "cpu":
        cpu_ops.prepare(place.dtype)  # of autograd, which the hand-written engine is compared with
        if config.train.engine != "plain":
            cpu_ops.prepare(product_dtype(place.device, place.dtype))
    opened = OpenedBase(base, choices.config_settled().model, config.data, place)
    encoder, data = opened.encoder, _data(opened, choices, reporter)
    require_work(config.train.batch_size, data.train.drawn, group.size)
    total, eval_every, save_every = length_of(config.train, data.train.drawn)
    require_warmup(config.train, total)
    hardness = difficulty(config, data.train)
    reporter.stage(f"loading {config.model.base_model}")
    model, named, total_parameters, targets = _model(opened, data, choices, reporter)
    seen = base.fingerprint()
    text = getattr(architecture, "text_config", None) or architecture
    hidden = shape_of(text, "hidden_size", "n_embd", "d_model")
    choices.settle("train.learning_rate", *auto_learning_rate(config, hidden, str(architecture.model_type)))
    work = work_of(config, model, *place)
    memory, eval_batch_size = _fitted(model, work, choices, data.max_length, place.device, group)
    reporter.stage("checking the engine on one micro batch")
    light, heavy = _tried(data.train, choices.config_settled().train, encoder.pad_id, place.device, group.size)
    modes = config.train.gradient_checkpointing, config.train.activation_offload
    chosen_engine = select_engine(config.train.engine, model, light, *place, *modes, heavy=heavy)
    if "plain" in group.gather(chosen_engine.engine.name) and chosen_engine.is_handwritten:
        autograd = select_engine("plain", model, light, *place, *modes).engine
        chosen_engine = EngineChoice(autograd, refused="another rank takes the autograd engine")
    engine = chosen_engine.engine
    choices.settle("train.engine", engine.name, chosen_engine.summary())
    choices.settle("train.eval_steps", eval_every, "ten times a run")
    choices.settle("train.save_steps", save_every, "with each evaluation")
    make_optimizer(config.train, trained_parameters(model))  # refuses what is not here
    return Setup(
        config=choices.config_settled(), reasons=choices.reasons, base=base, base_seen=seen, base_digest=seen.digest, named=named,
        encoder=encoder, data=data, model=model, device=place.device, dtype=place.dtype, quantization=place.quantization, engine=engine,
        trainable=sum(p.numel() for p in trained_parameters(model).values()), total_parameters=total_parameters,
        targets=targets, memory=memory, difficulty=hardness, eval_batch_size=eval_batch_size, total_steps=total,
        eval_every=eval_every, save_every=save_every, group=group,
    )  # fmt: skip


def _data(opened: OpenedBase, choices: _Choices, reporter: Reporter) -> PreparedData:
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


def _placed(choices: _Choices, group: ProcessGroup) -> Precision:
    """Raises: ConfigError, ModelError."""
    config = choices.config
    device = pick_device(group.device(config.model.device))
    if config.train.activation_offload and device.device == "cpu":
        raise ConfigError(
            "train.activation_offload: activations lie in the machine's memory already. Leave it out on a CPU."
        )
    if device.device.startswith("cuda"):
        torch.cuda.set_device(device.device)  # what torch measures and seeds without being told where
    whole = method_of(config).trains_base
    dtype = pick_dtype(device.device, "float32" if whole else config.model.dtype)
    require_precision(os.environ, dtype.dtype)
    choices.settle("model.device", device.device, device.reason)
    choices.settle("model.dtype", dtype.dtype, "all weights are trained" if whole else dtype.reason)
    products, why = pick_matmul_precision(device.device, "auto")
    choices.settle("model.matmul_precision", group.broadcast_text(products), why)
    quantization, choices.reasons["model.quantization"] = choose_quantization(config, device.device, dtype.dtype)
    return Precision(device.device, DTYPES[dtype.dtype], quantization)


def _model(
    opened: OpenedBase, data: PreparedData, choices: _Choices, reporter: Reporter
) -> tuple[Any, NamedClass | None, int, list[str]]:
    """(the base with what is trained in it, what its config.json names, its parameters, the target modules)"""
    config, base, encoder, place = choices.config, opened.ref, opened.encoder, opened.precision
    if said := caution_of(base.folder):
        reporter.note(said)
    model = opened.load(lambda text: reporter.note(f"warning: {text}"))
    total_parameters = sum(numel(p) for p in model.parameters())
    method = method_of(config)
    layers = shape_of(model.config.get_text_config(), *LAYER_NAMES)
    reporter.stage(
        f"base: {type(model).__name__}, {layers} layers, {total_parameters:,} parameters, all {'trained' if method.trains_base else 'frozen'}"
    )
    if rate := own_dropout(model):
        choices.reasons["train.base_dropout"] = f"the base's config has {rate:g}"
        if not config.train.base_dropout:
            switch_off(model)
    elif config.train.base_dropout:
        raise ConfigError("train.base_dropout: has no effect, this base has no dropout. Leave it out.")
    if place.quantization != "none":
        choices.reasons["model.quantization"] = (
            f"{held(model, place.quantization)}; {choices.reasons['model.quantization']}"
        )
    if method.trains_base:
        if left_out := (generation_settings(base.folder) or ({}, []))[1]:
            reporter.note(
                f"warning: generation_config.json of {base.name} is one that transformers will not save: the model is "
                f"written without {', '.join(left_out)}"
            )
        model = attach(model, config, [], reopen=opened.load)
        return ready_to_train(model, config), None, total_parameters, []
    named = named_class(base, model) if method.has_targets else None
    if named and named.unproven:
        reporter.note(f"warning: this trains {named.summary()}")
    base_model = model
    model, targets = _adapted(
        model, choices, base, reporter, partial(sample_batches, config, data, encoder, place.device)
    )
    if told := told_untrained(base_model, encoder.tokenizer, encoder.stop_ids, encoder.eos_id, targets):
        reporter.note(told)
    trainable = sum(p.numel() for p in trained_parameters(model).values())
    reporter.stage(f"adapter: {trainable:,} trainable parameters{layers_adapted(model)}")
    return model, named, total_parameters, targets


def _tried(train: TokenSet, settings: TrainConfig, pad_id: int, device: str, processes: int) -> tuple[Batch, Batch]:
    """The shortest rows of the first step, enough to see a difference, and cheap; and as many of the longest as are
    computed at once."""
    rows = step_rows(1, settings.seed, train.shares, settings.batch_size)
    at_once = min(int(settings.micro_batch_size), share_size(settings.batch_size, processes))
    lengths = train.lengths
    by_length = sorted(rows, key=lambda row: int(lengths[row]))
    light, heavy = by_length[: min(_ROWS_TRIED, at_once)], by_length[-at_once:]
    return collate(train, light, pad_id).to(device), collate(train, heavy, pad_id).to(device)


def _adapted(
    model: Any,
    choices: _Choices,
    base: bases.BaseRef,
    reporter: Reporter,
    sample: Callable[[], Iterable[Mapping[str, Tensor]]],
) -> tuple[Any, list[str]]:
    """(the base with its adapter as training starts from it, the target modules)"""
    config = choices.config
    targets, why = targets_of(config, model)
    if method_of(config).has_targets:
        choices.settle("adapter.target_modules", targets, why)
        if told := told_unseen(model):
            reporter.note(told)
        experts = expert_targets(model) if config.adapter.experts else []
        choices.reasons["adapter.coverage"] = coverage(model, targets, experts)
    if why:  # a preset's words stay in the config, their meaning here goes beside them
        choices.reasons["adapter.target_modules"] = why
    torch.manual_seed(config.train.seed)
    model = attach(model, config, targets, sample)
    if config.adapter.start_from and (said := start_from(config, model, base)):
        reporter.note(said)
    return ready_to_train(model, config), targets


def ready_to_train(model: Any, config: Config) -> Any:
    """The model in training mode, and with gradient checkpointing where the config has it."""
    if config.train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return model


def _fitted(
    model: Any, work: Work, choices: _Choices, max_length: int, device: str, group: ProcessGroup
) -> tuple[MemoryEstimate, int]:
    """(what the micro batch, settled here, is estimated to need, rows at a time of an evaluation that needs no more).

    Raises: ConfigError when it is more than `train.max_memory` leaves.
    """
    config, train, shape = choices.config, choices.config.train, Shape.of(model)
    # all ranks cut alike, as the smallest of them must
    room = min(map(int, group.gather(str(_room_bytes(shape, config, work.adapter, device)))))
    micro = train.micro_batch_size
    if micro == "auto":
        micro, reason = largest_micro_batch(
            shape, work, train.batch_size, max_length, room, token_cap(device, work, shape)
        )
        choices.settle("train.micro_batch_size", micro, reason)
    # of a step's longest rows no process has more than this at once; of short ones it has no more tokens
    micro_size = min(int(micro), share_size(train.batch_size, group.size))
    memory = estimate(shape, work, micro_size * max_length, max_length)
    if train.max_memory is None:
        return memory, config.eval.batch_size
    if memory.total > room:
        raise ConfigError(
            f"train.max_memory: the run needs about {bytes_shown(memory.total)} at micro_batch_size {micro_size}, and "
            f"{train.max_memory} leave {bytes_shown(max(0, room))} beside what Python and the libraries hold. Lower "
            "train.micro_batch_size, data.max_length or adapter.rank, set train.gradient_checkpointing=true, or quantize."
        )
    # a forward pass alone saves no more than one with gradient checkpointing
    cap, forward = config.eval.batch_size * max_length, replace(work, recompute=True, engine="plain")
    rows, _ = largest_micro_batch(shape, forward, config.eval.batch_size, max_length, room, cap)
    return memory, rows


def token_cap(device: str, work: Work, shape: Shape) -> int:
    """Tokens of a micro batch, beyond which speed stops growing."""
    if device == "cpu" and work.engine == "direct" and (work.width or shape.width) < 4:
        return _TOKEN_CAP_16_BIT_CPU
    return _TOKEN_CAP[device.partition(":")[0]]


def work_of(config: Config, model: Any, device: str, dtype: torch.dtype, quantization: str) -> Work:
    """How this PeftModel's gradient will be computed, as far as it can be told without trying."""
    method = method_of(config)
    engine = expected_engine(config.train.engine, model, device, dtype, quantization)
    widens = engine == "direct" and (quantization != "none" or product_dtype(device, dtype) != dtype)
    return Work(
        engine=engine,
        recompute=config.train.gradient_checkpointing,
        offload=config.train.activation_offload,
        adapter=0 if method.trains_base else sum(p.numel() for p in trained_parameters(model).values()),
        rank=config.adapter.rank if method.has_rank else 0,
        method=config.adapter.method,
        virtual_tokens=method.virtual_tokens(config),
        unpacks=quantization == "nf4",
        optimizer=config.train.optimizer,
        head_in_chunks=head_of(model) is not None,
        leaves_holes=device == "cpu" and _keeps_freed(config),
        makes_kernels=device == "cpu" and (product_dtype(device, dtype) if engine == "direct" else dtype).itemsize < 4,
        experts=expert_bytes(model) if config.adapter.experts else 0,
        width=product_dtype(device, dtype).itemsize if widens else None,
    )


def _keeps_freed(config: Config) -> bool:
    """Whether a CPU's freed blocks stay for the next step: not where memory is what counts."""
    return config.train.max_memory is None and not config.train.gradient_checkpointing


def _room_bytes(shape: Shape, config: Config, trainable: int, device: str) -> int:
    """Memory to plan a run with; of `train.max_memory` what Python and the libraries leave."""
    if config.train.max_memory:
        loaded = shape.weight_bytes + 4 * trainable
        return parse_bytes(config.train.max_memory) - max(0, held_bytes(device) - loaded)
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.9)
    return int(memory_facts().available_bytes * 0.7) // launch().local_size


def length_of(train: TrainConfig, drawn: int) -> tuple[int, int, int]:
    """(steps in all, between evaluations, between checkpoints) of a run whose epochs draw so many rows."""
    per_epoch = steps_per_epoch(drawn, train.batch_size)
    total = train.max_steps or per_epoch * train.epochs
    eval_every = _every(train.eval_steps, max(1, math.ceil(total / 10)), per_epoch)
    return total, eval_every, _every(train.save_steps, eval_every, per_epoch)


def parse_bytes(text: str, where: str = "train.max_memory") -> int:
    """`8GB`, `500 MB`, `2e9`. Raises: ConfigError."""
    units = {
        "": 1,
        "B": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "TB": 10**12,
        "KIB": 2**10,
        "MIB": 2**20,
        "GIB": 2**30,
    }
    compact = text.replace(" ", "").upper()
    number = compact.rstrip("BKMGTI")
    try:
        value = float(number) * units[compact[len(number) :]]
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: not an amount (got {text!r}). Write 8GB or 500MB.") from None
    if not 0 < value < 1e18:
        raise ConfigError(f"{where}: must be above 0 and below 1e18 bytes (got {text!r}).")
    return int(value)


def _every(setting: str | int, auto: int, per_epoch: int) -> int:
    return per_epoch if setting == "epoch" else auto if setting == "auto" else int(setting)


def _order_told(train: TrainConfig) -> str:
    what = {"length": "length", "loss": "loss of the base", "column": f"column {train.order_column}"}[train.order]
    epochs = f"first {train.order_epochs} epochs" if train.order_epochs > 1 else "first epoch"
    return (
        f"by {what}, {train.order_first} first, in the {epochs}: from a pool of {train.order_pool:.0%} of the rows that "
        f"holds all after {train.order_pacing:.0%} of an epoch"
    )


def _short(targets: list[str]) -> str:
    return ", ".join(targets) if len(targets) <= 8 else f"{len(targets)} layers"
