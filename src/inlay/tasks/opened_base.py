"""A frozen base opened for use: tokenizer, encoder and context length at once, weights when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inlay.config import Config
from inlay.config.sections.data import DataConfig
from inlay.config.sections.model import ModelConfig
from inlay.data.encoding.encoder import Encoder
from inlay.methods.adapter import detach
from inlay.methods.adapter_state import AdapterState
from inlay.models import base as bases
from inlay.models.base import BaseRef
from inlay.tasks.task import TASKS, Task, task_of

_OF_LOADING = ("attention", "matmul_precision", "double_quantization", "compute_dtype")
"""Settings that decide, beside the precision, what is in memory."""


class Precision(NamedTuple):
    """Device of a base, dtype of its weights, and their quantization."""

    device: str
    dtype: torch.dtype
    quantization: str = "none"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Dtype of matmuls: that of a 16-bit base, None for that of the weights."""
        return None if self.dtype == torch.float32 else self.dtype


class OpenedBase:
    """A base with its tokenizer, its encoder and, once asked for, its model in memory, which serves many adapters."""

    def __init__(
        self, ref: BaseRef, settings: ModelConfig, data: DataConfig, precision: Precision | None = None,
        tokenizer_folder: Path | None = None, warn: Callable[[str], None] = lambda _: None, task: Task | None = None,
    ) -> None:  # fmt: skip
        """`tokenizer_folder` holds a tokenizer to use in place of the base's own, with the chat template that was trained.

        Without a `precision` there is no model. `warn` gets what of the weight files is not used. The task is causal
        language modelling where none is given.
        """
        self.ref, self.settings, self.data, self.task = ref, settings, data, task or TASKS["causal"]
        self._precision, self.tokenizer_folder, self._warn = precision, tokenizer_folder, warn
        self._weights = _Weights()

    @staticmethod
    def of(ref: BaseRef, config: Config, precision: Precision | None = None) -> OpenedBase:
        """The base as a config has it."""
        return OpenedBase(ref, config.model, config.data, precision, task=task_of(config))

    @cached_property
    def architecture(self) -> Any:
        """The transformers config of the base. Raises: ModelError for a base that inlay cannot train."""
        return self.task.architecture(self.ref)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the chat template of the settings. Raises: ModelError when it cannot be loaded."""
        if self.tokenizer_folder is None:
            return bases.load_tokenizer(self.ref, self.settings.chat_template)
        return bases.load_tokenizer(BaseRef(f"the tokenizer of {self.tokenizer_folder}", self.tokenizer_folder))

    @cached_property
    def encoder(self) -> Encoder:
        """Rows and prompts to ids. No weights are touched. Raises: ModelError, DataError."""
        template = None if self.tokenizer_folder else self.settings.chat_template
        return self.task.encoder(self.tokenizer, self.data, template, bases.embedding_rows(self.architecture))

    @property
    def context_length(self) -> int:
        """Longest sequence the base was made for."""
        return bases.context_length(self.architecture)

    def require_vocabulary(self, used: Collection[int] = ()) -> None:
        """Raises: ModelError when the tokenizer, the template or the `used` ids go beyond the base's embeddings."""
        bases.require_vocabulary(self.ref, self.tokenizer, self.architecture, [*self.encoder.stop_ids, *used])

    @property
    def precision(self) -> Precision:
        """Device, dtype and quantization of the model."""
        assert self._precision is not None, f"{self.ref.name} was opened without a precision"
        return self._precision

    @property
    def device(self) -> str:
        """Device of the model."""
        return self.precision.device

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """See `Precision.autocast_dtype`."""
        return self.precision.autocast_dtype

    @property
    def model(self) -> Any:
        """The bare base, frozen, in eval mode: loaded at the first call, later freed of any adapter."""
        return self.with_adapter(None)

    def with_adapter(self, state: AdapterState | None) -> Any:
        """The one model in memory with this adapter alone, ready for inference; bare for None.

        The adapter before is detached: models that this gave earlier must not be used any more.
        Raises: ModelError when the base cannot be loaded, AdapterError when the adapter does not fit.
        """
        held = self._weights
        if held.model is None:
            held.model = self.load(self._warn)
        if held.state is not None and held.state is not state:
            held.model, held.state = detach(held.model), None
        if state is not None and held.state is None:
            held.model, held.state = state.attach_to(held.model), state
        return held.model

    def load(self, warn: Callable[[str], None] = lambda _: None) -> Any:
        """The base's model, loaded anew and kept by nobody."""
        device, dtype, quantization = self.precision
        return self.task.load_model(self.ref, self.settings, dtype, device, quantization, warn)

    def share(self, other: OpenedBase | None) -> OpenedBase:
        """This base, with the model that `other` holds where it is the same model in the same precision."""
        if other is not None and self._loads_what(other):
            self._weights = other._weights
        return self

    def _loads_what(self, other: OpenedBase) -> bool:
        alike = all(getattr(self.settings, name) == getattr(other.settings, name) for name in _OF_LOADING)
        if self.precision != other.precision or not alike:
            return False
        return self.ref.folder == other.ref.folder or self.ref.digest() == other.ref.digest()


class _Weights:
    """A model in memory and the adapter on it; several opened bases may hold the same."""

    def __init__(self) -> None:
        self.model: Any = None
        self.state: AdapterState | None = None
