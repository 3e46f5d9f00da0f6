"""Full fine-tuning: all weights of the base are trained, in fp32.

The base's files stay as they are; its weights are read from them again whenever the base is evaluated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from inlay.config import Config
from inlay.config.sections.model import ModelConfig
from inlay.methods.lora import lora_learning_rate
from inlay.methods.method import AttachInputs, FirstToMove, Method, PeftSettings, SavedActivations, require_places
from inlay.models import base as bases
from inlay.models.generation_settings import FILE, generation_settings
from inlay.storage import write_json

FULL: Final = "FULL"
"""In the place of a PEFT type."""
_STATE: Final = "_full_fine_tuning"
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _State:
    name: str
    originals: Callable[[], Weights]
    """The base's weights by name."""


class FullFineTuning(Method):
    """All weights of the base are trained."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "full fine-tuning"
    peft_type: ClassVar[str] = FULL
    trains_base: ClassVar[bool] = True
    first_to_move: ClassVar[FirstToMove] = FirstToMove(
        "", "weight matrices", "Train LoRA on the layers that the model uses instead."
    )
    saved_activations_fp32: ClassVar[SavedActivations] = (6, 4, 4, 0)
    saved_activations_16bit: ClassVar[SavedActivations] = saved_activations_fp32  # never used: the weights are in fp32

    def summary(self, config: Config) -> str:
        """Says that there is no adapter."""
        return "none: all weights are trained"

    def learning_rate(self, hidden_size: int, model_type: str) -> tuple[float, str]:
        """A tenth of LoRA's, as the "LoRA without regret" study found."""
        rate, reason = lora_learning_rate(hidden_size, model_type)
        return rate / 10, f"a tenth of LoRA's: {reason}"

    def owns(self, parameter: str) -> bool:
        """False: every parameter is the base's."""
        return False

    def attach(self, model: Any, config: Config, inputs: AttachInputs, name: str) -> Any:
        """The model with all its weights trainable; `inputs.reopen` gives the base's weights back."""
        reopen = inputs.reopen
        assert reopen is not None, "full fine-tuning opens the base again"
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        setattr(model, _STATE, _State(name, lambda: weights_of(reopen())))
        return model

    def attach_stored(self, model: Any, settings: PeftSettings, tensors: Weights, name: str) -> Any:
        """The base with these weights in place of its own, which stay in memory."""
        own = weights_of(model)
        require_places(own, tensors)
        setattr(model, _STATE, _State(name, lambda: own))
        _put(model, tensors)
        return model.eval()

    def require_usable(self, folder: Path, settings: PeftSettings, tensors: Weights) -> None:
        """Nothing beyond finite values: transformers has read the folder."""

    def names_on(self, model: Any) -> Sequence[str]:
        """The one name, where the weights are, or were, trained."""
        return (getattr(model, _STATE).name,) if hasattr(model, _STATE) else ()

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """Inside, the model has the base's weights; both are in memory then."""
        trained = weights_of(model)
        _put(model, getattr(model, _STATE).originals())
        try:
            yield
        finally:
            _put(model, trained)

    def only(self, model: Any, name: str) -> contextlib.AbstractContextManager[None]:
        """Nothing to switch: the model has no other adapter."""
        return contextlib.nullcontext()

    def detach(self, model: Any, name: str) -> Any:
        """The base again, frozen, with its own weights."""
        _put(model, getattr(model, _STATE).originals())
        delattr(model, _STATE)
        model.zero_grad(set_to_none=True)
        return model.requires_grad_(False).eval()

    def parameters(self, model: Any, name: str) -> dict[str, nn.Parameter]:
        """All weights; tied ones once."""
        return dict(model.named_parameters())

    def settings(self, model: Any, name: str) -> PeftSettings:
        """The one setting that tells a model folder from an adapter folder."""
        return {"peft_type": FULL}

    def tensors(self, model: Any, name: str) -> dict[str, Tensor]:
        """All weights by name; they are not copied."""
        return weights_of(model)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, tied ones once; they are not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def read(folder: Path) -> dict[str, Tensor]:
    """The weights in a model folder, fp32, under the names that they have in the model. Raises: ModelError."""
    settings = ModelConfig(base_model=str(folder))
    return weights_of(bases.load_model(bases.find_base(str(folder)), settings, torch.float32, "cpu", "none"))


def write_model(model: Any, base: Path, folder: Path) -> None:
    """Writes the model as transformers does, in fp32 as it was trained, with the base's generation settings."""
    model.save_pretrained(str(folder))
    if found := generation_settings(base):
        write_json(folder / FILE, found[0])


def _put(model: nn.Module, tensors: Weights) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = tensors[name].to(parameter.device, parameter.dtype)
