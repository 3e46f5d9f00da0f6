"""The frozen base, and one adapter that is trained on it: its config, data, optimizer, progress and checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from inlay.config import Config
from inlay.config.identity import settings_hash
from inlay.config.load import merge, nested, validate
from inlay.config.render import explicit_values
from inlay.data.curriculum import Curriculum
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.prepare import PreparedData
from inlay.engine.autograd import Engine
from inlay.engine.estimate import LAYER_NAMES, MemoryEstimate, shape_of
from inlay.engine.profile import timed
from inlay.errors import ConfigError, StorageError
from inlay.methods.adapter_files import CARD
from inlay.methods.adapter_state import AdapterState
from inlay.methods.full import write_model
from inlay.methods.method import TRAINED
from inlay.methods.table import method_of
from inlay.methods.target_modules import numel
from inlay.models import base as bases
from inlay.models.dropout import own_dropout, switch_off
from inlay.models.fingerprint import Fingerprint
from inlay.models.generation_settings import FILE, ends_of_base
from inlay.models.named_class import NamedClass, named_class
from inlay.models.quantization import quantized_summary
from inlay.runs.folder import Run, caution_of
from inlay.runs.record import OutOfMemoryEvent, RunRecord
from inlay.runs.reporter import Reporter
from inlay.runs.trackers import Tracker
from inlay.storage import replace_folder, write_json
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Checkpoint, Progress, Saver, StepMetrics
from inlay.training.optimizer import restore_state
from inlay.training.plateau import escape
from inlay.training.process_group import ProcessGroup
from inlay.typed_json import JsonObject

TRAINING, EVALUATION = "training", "evaluation"
"""Phases of a run that may run out of memory."""
_LOSS_SCALE = 1024.0  # of float16, whose small gradients would vanish
_SHARED = ("model.", "train.max_memory", "train.gradient_checkpointing", "train.base_dropout")
"""Settings of the base, which all adapters on it have in common."""


@dataclass
class Choices:
    """Value and reason of each setting that was `auto`."""

    config: Config
    values: dict[str, object] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def settle(self, path: str, value: Any, reason: str) -> None:
        """Takes the value where the config leaves it open."""
        section, _, name = path.partition(".")
        if getattr(getattr(self.config, section), name) == "auto":
            self.values[path], self.reasons[path] = value, reason

    def config_settled(self) -> Config:
        """The config without `auto` where it was settled."""
        return validate(merge(self.config.model_dump(), nested(self.values)), "resolved config")


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


@dataclass
class AdapterJob:
    """One adapter being trained over a base that it may share with others: its config, data, optimizer and progress."""

    base: TrainingBase
    config: Config
    """Resolved: no setting is `auto`."""
    reasons: dict[str, str]
    """Why a setting that was `auto` has its value."""
    name: str
    """Of the adapter on the model."""
    encoder: Encoder
    data: PreparedData
    parameters: dict[str, torch.nn.Parameter]
    """All that is trained, by its name in the model."""
    engine: Engine
    """Computes loss and gradient of a micro batch."""
    optimizer: Optimizer
    targets: list[str]
    """Modules that have an adapter."""
    memory: MemoryEstimate
    eval_batch_size: int
    """Rows at a time of an evaluation: `eval.batch_size`, or as many as `train.max_memory` has room for."""
    total_steps: int
    eval_every: int
    save_every: int
    run: Run = field(init=False, repr=False)
    """Set once the folder is there: whatever is wrong with a config is found before."""
    base_digest: str = ""
    """Under which the run knows its base."""
    micro_batch_size: int = 0
    has_dropout: bool = False
    """Whether a pass draws random numbers, for the adapter or the base: then they belong to the micro batch."""
    versions: dict[str, str | None] = field(default_factory=dict)
    """Versions of the libraries that decide what a run computes; every checkpoint carries them."""
    curriculum: Curriculum | None = None
    """The order of the first epochs; None where it is random."""
    saver: Saver = field(default_factory=Saver)
    trackers: list[Tracker] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    out_of_memory_events: list[OutOfMemoryEvent] = field(default_factory=list)
    """Where memory ran out, and the rows of a batch since."""
    most_tokens: int = 0
    """Tokens of the largest micro batch yet."""
    own_tokens: int = 0
    """Tokens that this process has computed gradients of since it started, with padding where that is computed too."""
    # of each training row: tokens, summed weight, trained tokens
    lengths: np.ndarray = field(init=False)
    row_weights: np.ndarray = field(init=False)
    trained_counts: np.ndarray = field(init=False)
    _digests: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._digests = {
            "settings_hash": settings_hash(self.config),
            "data_hash": self.data.data_hash,
            "base_digest": "",
            "tokenizer_hash": self.encoder.tokenizer_hash,
            "chat_template_hash": self.encoder.template_hash,
        }
        self.lengths, self.row_weights = self.train.lengths, self.train.row_weights
        self.trained_counts = self.train.trained_counts
        self.micro_batch_size = self.micro_batch_size or int(self.config.train.micro_batch_size)
        self.base_digest = self.base_digest or self.base.fingerprint.digest
        self.progress.planned_steps = self.progress.planned_steps or self.total_steps

    @property
    def model(self) -> Any:
        """The base with the adapters of all jobs on it."""
        return self.base.model

    @property
    def device(self) -> str:
        """Device of the model and the batches."""
        return self.base.device

    @property
    def train(self) -> TokenSet:
        """The training rows."""
        return self.data.train

    @property
    def heldout(self) -> TokenSet:
        """The held-out rows."""
        return self.data.heldout

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def pad_id(self) -> int:
        """Token that fills rows of a batch; it counts nowhere."""
        return self.encoder.pad_id

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate at the end of the warmup."""
        return float(self.config.train.learning_rate)

    @property
    def base_record(self) -> JsonObject:
        """Keys that identify the base, for run.json and the adapter's card."""
        seen, commit = self.base.fingerprint.to_json(), self.base.ref.pinned_commit
        gguf = {"base_gguf": self.base.ref.gguf.to_json()} if self.base.ref.gguf else {}
        return {"base_digest": self.base_digest, "base_fingerprint": seen, "base_commit": commit, **gguf}

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of everything that decides the numbers of the run; every checkpoint carries them."""
        return self._digests | {"base_digest": self.base_digest}

    def recognise(self, record: RunRecord) -> str:
        """The difference between the base and that of a run's record; without any, the recorded digest holds from here on."""
        difference = self.base.ref.difference(record.base)
        if not difference:
            self.base_digest = record.base_digest
        return difference

    @property
    def is_over(self) -> bool:
        """Whether no step is left to make or to finish."""
        progress = self.progress
        return progress.unfinished is None and (progress.step >= self.total_steps or progress.stopped_early)

    @property
    def loss_scale(self) -> float:
        """Factor on the loss before the backward pass."""
        return _LOSS_SCALE if self.base.autocast_dtype == torch.float16 else 1.0

    def batch_size_at(self, phase: str, step: int) -> int:
        """Rows of one forward pass: as configured, or fewer since an out-of-memory event up to this step."""
        wanted = self.micro_batch_size if phase == TRAINING else self.eval_batch_size
        return min([wanted, *(e.batch_size for e in self.out_of_memory_events if e.phase == phase and e.step <= step)])

    def out_of_memory_at(self, step: int) -> StepMetrics:
        """The events of that step as a part of its line in metrics.jsonl."""
        found = [asdict(event) for event in self.out_of_memory_events if event.step == step]
        return {"out_of_memory": found} if found else {}

    @timed("checkpoint")
    def save_checkpoint(self) -> None:
        """Begins to write the checkpoint of the last whole step, and then to forget those that retention gives up.

        `saver` knows when it is done.
        """
        folder, settings = self.run.checkpoints, self.config.train
        needed = {self.progress.best_step, self.progress.saved_step, *self._needed_for_escape()}
        self.progress.metrics_seal = self.run.seal_metrics()
        kept = checkpoints.snapshot(
            AdapterState.of(self.model, self.name), self.optimizer, self.progress, self.inputs, self.versions
        )

        def write() -> None:
            checkpoints.write(folder, kept)
            checkpoints.prune(folder, settings.keep_checkpoints, needed, settings.keep_every)

        self.saver.save(write)

    def _needed_for_escape(self) -> set[int]:
        if self.progress.plateau is not None:
            return {self.progress.plateau.back_to}
        wanted = self.config.train.on_plateau == "escape"
        return escape.branch_steps_to_keep(self.progress.step, self.save_every, self.eval_every) if wanted else set()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes weights, optimizer and progress from the checkpoint. Raises: StorageError when it is damaged."""
        adapter, tensors, values, progress = checkpoints.load(checkpoint)
        adapter.load_into(self.model, self.name)
        restore_state(self.optimizer, tensors, values)
        self.progress = progress

    def export(self) -> int:
        """Writes `adapter/`, or after full fine-tuning `model/`, from the best or the last step; the model then holds it.

        Returns that step.
        """
        progress, step = self.progress, self.progress.step
        if self.config.train.export == "best" and progress.best_step is not None:
            step = progress.best_step
        if step != progress.step:
            kept = checkpoints.Checkpoint(self.run.checkpoints / f"step-{step:06d}")
            try:
                checkpoints.load(kept)[0].load_into(self.model, self.name)
            except StorageError as error:
                aside = f", now {checkpoints.set_aside(kept).name}" if kept.path.exists() else ""
                raise StorageError(
                    f"{error} It was the best step{aside}. To take the last one instead, set train.export to last in "
                    f"{self.run.path / 'config.yaml'} and resume."
                ) from None
        whole = method_of(self.config).trains_base
        card: JsonObject = {
            **self.base.ref.card_entries(),
            **self.base_record,
            "chat_template": self.encoder.template_name,
            "chat_template_hash": self.encoder.template_hash,
            "template_kwargs": self.config.data.template_kwargs,
            "data_hash": self.data.data_hash,
            "run": self.run.name,
            "step": step,
            "metrics": {
                "base_eval_loss": progress.base_eval_loss,
                "eval_loss": progress.best_eval_loss if step == progress.best_step else progress.eval_loss,
            },
        }

        if self.base.named:
            card |= {
                "class": self.base.named.summary(),
                "opens_in": self.base.named.opened_in,
                "module_names": self.base.named.prefixes,
            }

        def fill(folder: Path) -> None:
            if whole:
                write_model(self.model, self.base.ref.folder, folder)
            else:
                AdapterState.of(self.model, self.name).exported().under(self.base.named).on(self.base.ref).write(folder)
            self.encoder.tokenizer.save_pretrained(str(folder))
            _write_ends(self.encoder, self.model, folder)
            write_json(folder / CARD, card)

        replace_folder(self.run.model if whole else self.run.adapter, fill, {"step": step})
        return step


def _write_ends(encoder: Encoder, model: Any, folder: Path) -> None:
    """Names the ids that end an answer for other programs, which else know only the tokenizer's end-of-sequence. What
    ended the base's answers still ends them."""
    path = folder / FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(
        path, kept | {"eos_token_id": sorted(encoder.stop_ids | ends_of_base(model)), "pad_token_id": encoder.pad_id}
    )
