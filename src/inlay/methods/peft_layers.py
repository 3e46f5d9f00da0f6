"""Adapters that PEFT puts into the layers of a base (LoRA, IA3): any number on one base, each under its name."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from inlay.errors import AdapterError
from inlay.folder_files import in_a_line
from inlay.methods.base_modules import base_modules, base_of, flags_kept, peft_disabled
from inlay.methods.method import Method, PeftSettings, plain
from inlay.methods.peft_names import literal_target_names, with_layer_targets, with_weight_targets

APPLIED_IN_LAYERS: Final = (
    "task_type", "base_model_name_or_path", "inference_mode", "target_modules", "exclude_modules", "fan_in_fan_out",
)  # fmt: skip
"""Settings of PEFT's that are taken over from every adapter in layers."""


class LayerMethod(Method):
    """A method whose parameters lie in PEFT's layers."""

    has_targets: ClassVar[bool] = True
    shares_base: ClassVar[bool] = True
    prefix: ClassVar[str]
    """Prefix of PEFT's parameter names, such as `lora_`."""
    applied: ClassVar[tuple[str, ...]]
    """Settings of a stored adapter that are taken over when it is put on a base; how it was started is not."""

    def attach_stored(self, model: Any, settings: PeftSettings, tensors: Mapping[str, Tensor], name: str) -> Any:
        """A PeftModel with the stored adapter; its initialization, which could rewrite the base, is not repeated."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        base = base_of(model)
        exact = self.exact(with_layer_targets(settings, base), tensors, base)
        taken = {k: v for k, v in exact.items() if k in self.applied}
        try:
            peft_model = self.wrapped(model, PEFT_TYPE_TO_CONFIG_MAPPING[self.peft_type](**taken), name)
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            _take_back(base, name)
            raise AdapterError(f"adapter: cannot be put on this base ({in_a_line(error)}).") from None
        try:
            self.load(peft_model, tensors, name)
        except AdapterError:
            self.detach(peft_model, name)  # the base stays usable
            raise
        return peft_model.eval()

    def exact(self, settings: PeftSettings, tensors: Mapping[str, Tensor], base: nn.Module) -> PeftSettings:
        """The settings with each layer that has tensors under its full name. Raises: AdapterError for what does not fit."""
        raise NotImplementedError

    def names_on(self, model: Any) -> Sequence[str]:
        """Names in PEFT's own table."""
        there = model.peft_config if hasattr(model, "get_base_model") else {}
        return [name for name, settings in there.items() if settings.peft_type == self.peft_type]

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """Inside, no adapter acts, and trained biases of the base have their own values."""
        trained = {name: parameter.detach().clone() for name, (parameter, _) in _biases(model).items()}
        with peft_disabled(model):
            try:
                _restore_biases(model)
                yield
            finally:
                for name, (parameter, _) in _biases(model).items():
                    parameter.data.copy_(trained[name])

    @contextlib.contextmanager
    def only(self, model: Any, name: str) -> Iterator[None]:
        """Inside, PEFT's active adapter is this one."""
        before = model.active_adapter
        _activate(model, name)
        try:
            yield
        finally:
            _activate(model, before)

    def detach(self, model: Any, name: str) -> Any:
        """The PeftModel with the others, or the bare base with its own layers again."""
        others = [other for other in model.peft_config if other != name]
        base = base_of(model)
        if not others:
            _restore_biases(model)
            for layer_name, layer in tuned_layers(base):  # PEFT's unload refuses IA3 over a quantized base
                base.set_submodule(layer_name, layer.get_base_layer())
            for parameter in base.parameters():
                parameter.requires_grad_(False)
            if hasattr(base, "peft_config"):
                del base.peft_config
            return base.eval()
        if model.active_adapter == name:
            _activate(model, others[-1])
        with flags_kept(model):
            model.delete_adapter(name)
        for layer_name, layer in tuned_layers(base):
            if not any(_has(layer, other) for other in others):
                base.set_submodule(layer_name, layer.get_base_layer())
        return model

    def parameters(self, model: Any, name: str) -> dict[str, nn.Parameter]:
        """The adapter's matrices or vectors, and biases of the base that it trains."""
        return {
            parameter_name: parameter
            for parameter_name, parameter in model.named_parameters()
            if self._is_in(parameter_name, name) or parameter_name in _biases(model)
        }

    def owns(self, parameter: str) -> bool:
        """Whether PEFT's prefix of this method is in the name."""
        return self.prefix in parameter

    def _is_in(self, parameter_name: str, name: str) -> bool:
        parts = parameter_name.split(".")
        return any(part.startswith(self.prefix) and after == name for part, after in itertools.pairwise(parts))

    def settings(self, model: Any, name: str) -> PeftSettings:
        """PEFT's settings, marked for inference, under names that PEFT leaves alone."""
        settings = {**plain(model.peft_config[name].to_dict()), "inference_mode": True}
        return with_weight_targets(settings, base_of(model))

    def tensors(self, model: Any, name: str) -> dict[str, Tensor]:
        """The tensors of PEFT's state dict."""
        return peft_tensors(model, name)

    def load(self, model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
        """Copies the tensors, after a look at those that are copies of the base's weights."""
        super().load(model, without_copies(tensors, model, self), name)

    def wrapped(self, model: Any, settings: Any, name: str) -> Any:
        """A PeftModel with a fresh adapter of these PEFT settings, which alone acts; others that are on it stay.

        Raises: ValueError, TypeError from PEFT; AdapterError for biases of the base beside another adapter.
        """
        path, settings.base_model_name_or_path = settings.base_model_name_or_path, None
        with warnings.catch_warnings(), literal_target_names():  # peft 0.21 asks transformers 5 for a name it renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            if hasattr(model, "get_base_model"):
                if _biases(model) or getattr(settings, "bias", "none") != "none":
                    raise AdapterError(
                        f"adapter {name}: one that trains biases of the base (adapter.bias) needs it alone."
                    )
                model.add_adapter(name, settings)
            else:
                model = _first(model, settings, name)
        settings.base_model_name_or_path = path  # peft puts the folder there, which is a cache's for a hub id
        if len(model.peft_config) == 1:
            model.base_biases = {
                n: (p, p.detach().clone())
                for n, p in model.named_parameters()
                if n.endswith("bias") and "lora_" not in n and p.requires_grad
            }
            return model
        _activate(model, name)
        for parameter in self.parameters(model, name).values():
            parameter.requires_grad_(not settings.inference_mode)
        return model


def tuned_layers(model: nn.Module, name: str | None = None) -> list[tuple[str, Any]]:
    """(name in the base, layer) of those with an adapter, of one name or of any.

    Experts that have an adapter for each of their weights count once.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [
        (path, module)
        for path, module in tuned
        if not path.endswith(".base_layer") and (name is None or _has(module, name))
    ]


def as_named(peft_model: Any, named: set[str], method: LayerMethod, name: str) -> Any:
    """The model, when exactly the named layers have the adapter. Raises: AdapterError."""
    if differing := sorted(named ^ {path for path, _ in tuned_layers(base_of(peft_model), name)}):
        method.detach(peft_model, name)
        raise AdapterError(
            f"adapter.target_modules: PEFT {'leaves out' if differing[0] in named else 'also takes'} {differing[0]} "
            f"({len(differing)} layers differ from those that are named). Name layers that it takes one by one."
        )
    return peft_model


def peft_tensors(peft_model: Any, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, in the model's own memory."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    return tensors


def without_copies(tensors: Mapping[str, Tensor], peft_model: Any, method: Method) -> dict[str, Tensor]:
    """The tensors without copies of the base's own weights: PEFT adds the embedding or the head that it adapts.

    Raises: AdapterError for a weight in place of the base's own.
    """
    own = {
        name: parameter
        for name, parameter in peft_model.named_parameters()
        if not parameter.requires_grad and not method.owns(name)
    }
    kept = {}
    for name, tensor in tensors.items():
        weight = own.get(name)
        if weight is None:
            kept[name] = tensor
        elif tensor.shape != weight.shape or not torch.equal(tensor.to(weight.device, weight.dtype), weight):
            raise AdapterError(
                f"adapter: brings a {name} of its own, of shape {tuple(tensor.shape)}, in place of the base's: tokens "
                "were added or the base is another. Merge it into its base with PEFT, and name the merged model."
            )
    return kept


def all_conv1d(model: nn.Module, targets: Iterable[str]) -> bool:
    """Whether the layers with these name endings are GPT-2's Conv1D, whose weights are transposed."""
    from transformers.pytorch_utils import Conv1D

    endings = tuple(targets)
    kinds = {type(m) for n, m in base_modules(model) if n.endswith(endings) and isinstance(m, (nn.Linear, Conv1D))}
    return kinds == {Conv1D}


def _first(model: Any, settings: Any, name: str) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, settings, adapter_name=name)


def _has(layer: Any, name: str) -> bool:
    return any(name in getattr(layer, held) for held in layer.adapter_layer_names)


def _take_back(base: Any, name: str) -> None:
    """Leaves the base as it was before PEFT began to put the adapter of that name on it, and failed."""
    for layer_name, layer in tuned_layers(base):
        if _has(layer, name):
            layer.delete_adapter(name)
        if not any(len(getattr(layer, held)) for held in layer.adapter_layer_names):
            base.set_submodule(layer_name, layer.get_base_layer())
    there = getattr(base, "peft_config", {})
    there.pop(name, None)
    if not there and hasattr(base, "peft_config"):
        del base.peft_config


def _activate(model: Any, name: str) -> None:
    with flags_kept(model):
        model.set_adapter(name)


def _biases(peft_model: Any) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Name -> (parameter, the base's own values) of each bias of the base that the adapter trains."""
    return getattr(peft_model, "base_biases", {})


def _restore_biases(peft_model: Any) -> None:
    for parameter, original in _biases(peft_model).values():
        parameter.data.copy_(original)
