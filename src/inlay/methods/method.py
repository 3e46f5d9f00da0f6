"""The interface of a fine-tuning method: all that differs between methods. Each is a class in a file of its own.

`inlay.methods.table.METHODS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from torch import Tensor, nn

from inlay.config import Config
from inlay.errors import AdapterError
from inlay.methods.target_modules import all_linear, resolve_targets

TRAINED: Final = "default"
"""Name of the adapter that a run trains; PEFT's own default."""
SavedActivations = tuple[float, float, float, float]
"""Activations that autograd saves per token in one layer, as multiples of (hidden size, MLP width, query width, key width).

A frozen linear layer saves no input; one with an adapter, or one that is trained, does."""
PeftSettings = dict[str, Any]
"""The content of PEFT's adapter_config.json."""
Batches = Callable[[], Iterable[Mapping[str, Tensor]]]


class FirstToMove(NamedTuple):
    """The parameters that the first optimizer step must change."""

    part: str
    """In the names of these parameters; all have more than one dimension."""
    what: str
    """Their name in a message."""
    remedy: str
    """Advice for a run where they have not moved."""


@dataclass(frozen=True, slots=True)
class AttachInputs:
    """Inputs of a fresh adapter beside the config."""

    targets: Sequence[str] = ()
    """Name endings of the layers that get an adapter."""
    sample: Batches = tuple
    """Batches of training rows, for an initialization from activations (`eva`)."""
    reopen: Callable[[], nn.Module] | None = None
    """Opens the base once more from its files."""


class Method(Protocol):
    """One way to change a base. `model` is the base, or the base with adapters on it.

    An adapter on a base has a name. Several may be on one base where the method allows it.
    """

    name: ClassVar[str]
    """`adapter.method`."""
    title: ClassVar[str]
    """Its name in a sentence."""
    peft_type: ClassVar[str]
    """`peft_type` in adapter_config.json; inlay's own word where PEFT has none."""
    trains_base: ClassVar[bool] = False
    """Whether the base's own weights are trained: in fp32, unquantized, and the result is a model of its own."""
    has_targets: ClassVar[bool] = False
    """Whether `adapter.target_modules` says where it goes."""
    has_rank: ClassVar[bool] = False
    """Whether it trains pairs A and B of `adapter.rank`; A gets no gradient while B is zero."""
    shares_base: ClassVar[bool] = False
    """Whether several adapters of this method may be on one base."""
    first_to_move: ClassVar[FirstToMove]
    saved_activations_fp32: ClassVar[SavedActivations]
    """With 4 bytes a value."""
    saved_activations_16bit: ClassVar[SavedActivations]
    """With 2 bytes a value."""

    def summary(self, config: Config) -> str:
        """The adapter in words, for the pre-flight: `rank 16, alpha 32`."""
        raise NotImplementedError

    def learning_rate(self, hidden_size: int, model_type: str) -> tuple[float, str]:
        """(peak rate of `train.learning_rate=auto`, reason)"""
        raise NotImplementedError

    def virtual_tokens(self, config: Config) -> int:
        """Positions that stand before every row, and take up context."""
        return 0

    def virtual_tokens_on(self, model: Any) -> int:
        """The same for a model that has an adapter of this method."""
        return 0

    def auto_targets(self, model: nn.Module) -> tuple[list[str], str]:
        """(name endings of the layers that `adapter.target_modules=auto` takes, reason)"""
        return resolve_targets(model, "auto"), all_linear(model)

    def differences(self, config: Config, settings: PeftSettings) -> list[tuple[str, object, object]]:
        """(setting, its value in the config, in the stored adapter) of each that changes what the adapter computes."""
        return []

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of that name in a model belongs to an adapter of this method and not to the base."""
        raise NotImplementedError

    def attach(self, model: Any, config: Config, inputs: AttachInputs, name: str) -> Any:
        """The model with a fresh trainable adapter in fp32, drawn from torch's global generator.

        Raises: AdapterError for what this base cannot have, with the base as it was.
        """
        raise NotImplementedError

    def attach_stored(self, model: Any, settings: PeftSettings, tensors: Mapping[str, Tensor], name: str) -> Any:
        """The model with a stored adapter, frozen. Raises: AdapterError if it does not fit, with the base as it was."""
        raise NotImplementedError

    def require_usable(self, folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
        """Raises: AdapterError, or a ValueError that says what is wrong, for files that inlay does not load."""
        raise NotImplementedError

    def names_on(self, model: Any) -> Sequence[str]:
        """Names of the adapters of this method on the model, in the order in which they were attached."""
        raise NotImplementedError

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """Inside, the model computes what the base computes, bit for bit."""
        raise NotImplementedError

    def only(self, model: Any, name: str) -> AbstractContextManager[None]:
        """Inside, this adapter alone acts."""
        raise NotImplementedError

    def detach(self, model: Any, name: str) -> Any:
        """The model without this adapter: the bare base, frozen, where it was the last one."""
        raise NotImplementedError

    def parameters(self, model: Any, name: str) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in the model."""
        raise NotImplementedError

    def settings(self, model: Any, name: str) -> PeftSettings:
        """Settings under which PEFT alone puts the same adapter on the same base."""
        raise NotImplementedError

    def tensors(self, model: Any, name: str) -> dict[str, Tensor]:
        """The adapter's tensors under the names of its file, in the model's own memory where they lie there as such."""
        raise NotImplementedError

    def load(self, model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
        """Copies the tensors into the adapter. Raises: AdapterError on any name or shape that differs."""
        places = self.tensors(model, name)
        require_places(places, tensors)
        for place, tensor in tensors.items():
            places[place].copy_(tensor)


def require_places(there: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError on any name or shape of the tensors that the model has not."""
    for name in sorted(set(there) ^ set(tensors)):
        side = "is missing from the adapter" if name in there else "has no place in this model"
        raise AdapterError(f"adapter: {name} {side}. Rank, target modules and base must be those it was trained with.")
    for name, tensor in tensors.items():
        if tensor.shape != there[name].shape:
            raise AdapterError(
                f"adapter: {name} has shape {tuple(tensor.shape)}, this model needs {tuple(there[name].shape)}."
            )


def plain(value: Any) -> Any:
    """The same in JSON's own types: PEFT keeps sets and enums in its settings."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.value if hasattr(value, "value") else value
