"""The frozen base that adapters are trained on, and what all of them share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from inlay.config import Config
from inlay.config.render import explicit_values
from inlay.engine import cpu_ops
from inlay.engine.estimate import LAYER_NAMES, shape_of
from inlay.engine.memory import tune_allocator
from inlay.errors import ConfigError
from inlay.hardware.probe import DTYPES, matmul_dtype, pick_device, pick_dtype, pick_matmul_precision
from inlay.methods.method import TRAINED
from inlay.methods.table import method_of
from inlay.methods.target_modules import numel
from inlay.models import base as bases
from inlay.models.dropout import own_dropout, switch_off
from inlay.models.fingerprint import Fingerprint
from inlay.models.named_class import NamedClass, named_class
from inlay.models.quantization import quantized_summary
from inlay.runs.folder import caution_of
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.training.choices import Choices
from inlay.training.launcher import require_precision
from inlay.training.memory_budget import keeps_freed, parse_bytes
from inlay.training.process_group import ProcessGroup
from inlay.training.resolve import choose_quantization

_SHARED = ("model.", "train.max_memory", "train.gradient_checkpointing", "train.base_dropout")
"""Settings of the base, which all adapters on it have in common."""


@dataclass
class TrainingBase:
    """The opened base with the adapters on it, the processes that train together, and the memory they may hold."""

    opened: OpenedBase
    config: Config
    """Of the run that opened it; its settings in `_SHARED` hold for every adapter."""
    group: ProcessGroup
    choices: Choices
    """What `auto` became in the settings of the base."""
    max_memory_bytes: int | None = None
    """Limit of what a pass may hold; beyond it is out of memory."""
    model: Any = None
    """The base with the adapters of all jobs on it; None until the first one joins."""
    names: list[str] = field(default_factory=list)
    """Of the adapters on it."""
    total_parameters: int = 0
    """Of the bare base."""
    named: NamedClass | None = None
    """What config.json names where something else is trained."""
    fingerprint: Fingerprint = field(init=False, repr=False)

    @property
    def ref(self) -> bases.BaseRef:
        """Reference to the base's files."""
        return self.opened.ref

    @property
    def precision(self) -> Precision:
        """Device, dtype and quantization."""
        return self.opened.precision

    @property
    def device(self) -> str:
        """Device of the model and of every batch."""
        return self.opened.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the weights are held in."""
        return self.precision.dtype

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """See `Precision.autocast_dtype`."""
        return self.opened.autocast_dtype

    def opened_for(self, config: Config) -> OpenedBase:
        """The base as this config reads its rows. No weights are touched."""
        if config.data == self.config.data:
            return self.opened
        return OpenedBase(self.ref, self.opened.settings, config.data, self.precision)

    def new_name(self) -> str:
        """A name for the next adapter, no part of which is another's: PEFT looks for them by parts of names."""
        return TRAINED if not self.names else f"job{len(self.names) + 1:04d}"

    def require_shared(self, config: Config) -> None:
        """Raises: ConfigError where a setting of the base differs from that of the adapters on it."""
        if not self.names:
            return
        here, there = explicit_values(self.config, everything=True), explicit_values(config, everything=True)
        differing = [
            f"{path} ({there.get(path)!r}, the base has {here.get(path)!r})"
            for path in sorted({*here, *there})
            if path.startswith(_SHARED) and here.get(path) != there.get(path)
        ]
        if differing:
            raise ConfigError(f"{', '.join(differing)}: adapters on one base share these settings. Make them equal.")

    def load(self, config: Config, reporter: Reporter) -> None:
        """Loads the weights, for a first adapter of this config. Raises: ModelError, ConfigError."""
        reporter.stage(f"loading {config.model.base_model}")
        if caution := caution_of(self.ref.folder):
            reporter.note(caution)
        model = self.opened.load(lambda text: reporter.note(f"warning: {text}"))
        self.total_parameters = sum(numel(p) for p in model.parameters())
        method = method_of(config)
        layers = shape_of(model.config.get_text_config(), *LAYER_NAMES)
        reporter.stage(
            f"base: {type(model).__name__}, {layers} layers, {self.total_parameters:,} parameters, "
            f"all {'trained' if method.trains_base else 'frozen'}"
        )
        reasons = self.choices.reasons
        if rate := own_dropout(model):
            reasons["train.base_dropout"] = f"the base's config has {rate:g}"
            if not config.train.base_dropout:
                switch_off(model)
        elif config.train.base_dropout:
            raise ConfigError("train.base_dropout: has no effect, this base has no dropout. Leave it out.")
        quantization = self.precision.quantization
        if quantization != "none":
            reasons["model.quantization"] = f"{quantized_summary(model, quantization)}; {reasons['model.quantization']}"
        if method.has_targets:
            self.named = named_class(self.ref, model)
            if self.named and self.named.unproven:
                reporter.note(f"warning: this trains {self.named.summary()}")
        self.model, self.fingerprint = model, self.ref.fingerprint()


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
        torch.cuda.set_device(device.device)  # what torch measures and seeds without being told where
    whole = method_of(config).trains_base
    dtype = pick_dtype(device.device, "float32" if whole else config.model.dtype)
    require_precision(os.environ, dtype.dtype)
    choices.settle("model.device", device.device, device.reason)
    choices.settle("model.dtype", dtype.dtype, "all weights are trained" if whole else dtype.reason)
    precision, why = pick_matmul_precision(device.device, "auto")
    choices.settle("model.matmul_precision", group.broadcast_text(precision), why)
    quantization, choices.reasons["model.quantization"] = choose_quantization(config, device.device, dtype.dtype)
    return Precision(device.device, DTYPES[dtype.dtype], quantization)
