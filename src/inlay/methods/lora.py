"""LoRA and its variants (DoRA, rsLoRA, PiSSA, OLoRA, EVA), in PEFT's layers.

An adapter that starts from the base's weights (PiSSA, OLoRA) is in memory what it is on the disk, an ordinary LoRA of
twice the rank; see `inlay.methods.initialization`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from inlay.config import Config
from inlay.errors import AdapterError
from inlay.methods.adapter_file_checks import (
    LORA,
    refuse_alpha_patterns,
    refuse_names,
    refuse_ranks,
    refuse_settings,
    refuse_start,
    refuse_tied_embedding,
)
from inlay.methods.base_modules import base_modules, base_of, base_parameters
from inlay.methods.initialization import FROM_WEIGHTS, ShiftedDown, ShiftedUp, factors, principal_inputs
from inlay.methods.method import TRAINED, AttachInputs, FirstToMove, PeftSettings, SavedActivations, require_places
from inlay.methods.peft_layers import (
    APPLIED_IN_LAYERS,
    LayerMethod,
    all_conv1d,
    as_named,
    peft_tensors,
    without_copies,
)
from inlay.methods.peft_names import names_peft_rewrites
from inlay.methods.stored_layers import exact_lora, require_pairs
from inlay.methods.target_modules import expert_targets, hit

START: Final = "inlay_start"
"""In the name of the A that training started from, where that was the base's weights; only checkpoints hold it."""

_TENSORS: Final = (
    "lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "weight", "bias",
)  # fmt: skip
"""Ends of the names of its tensors. The last two are those of biases that it trains, and of copies that PEFT adds."""


class Lora(LayerMethod):
    """ΔW = scale·B·A beside the frozen weight of each target module."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    peft_type: ClassVar[str] = "LORA"
    has_rank: ClassVar[bool] = True
    first_to_move: ClassVar[FirstToMove] = FirstToMove(
        "lora_B", "adapter matrices B", "Leave them out of adapter.target_modules."
    )
    saved_activations_fp32: ClassVar[SavedActivations] = (4, 4, 4, 0)
    saved_activations_16bit: ClassVar[SavedActivations] = (9.2, 4, 5.2, 0)
    prefix: ClassVar[str] = "lora_"
    applied: ClassVar[tuple[str, ...]] = (
        *APPLIED_IN_LAYERS, "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "rank_pattern",
        "alpha_pattern", "target_parameters",
    )  # fmt: skip

    def summary(self, config: Config) -> str:
        """Rank and alpha."""
        return f"rank {config.adapter.rank}, alpha {alpha_of(config):g}"

    def learning_rate(self, hidden_size: int, model_type: str) -> tuple[float, str]:
        """See `lora_learning_rate`."""
        return lora_learning_rate(hidden_size, model_type)

    def differences(self, config: Config, settings: PeftSettings) -> list[tuple[str, object, object]]:
        """Rank, alpha, rsLoRA, DoRA and bias, where they differ."""
        adapter = config.adapter
        found: list[tuple[str, object, object]] = [
            ("rank", adapter.rank, settings.get("r")),
            ("alpha", alpha_of(config), float(settings.get("lora_alpha", 0))),
            ("rslora", adapter.rslora, bool(settings.get("use_rslora"))),
            ("dora", adapter.dora, bool(settings.get("use_dora"))),
            ("bias", adapter.bias, settings.get("bias", "none")),
        ]
        return [each for each in found if each[1] != each[2]]

    def attach(self, model: Any, config: Config, inputs: AttachInputs, name: str) -> Any:
        """A PeftModel with A and B initialized as `adapter.init` says."""
        adapter, targets = config.adapter, list(inputs.targets)
        named = set(hit(targets, (path for path, _ in base_modules(model))))
        base = base_of(model)
        if adapter.dora and (unread := names_peft_rewrites(base, targets)):
            raise AdapterError(
                f"adapter.dora: PEFT reads {', '.join(unread)} of a {base.config.model_type} as names of experts, and "
                "could not open the adapter. Leave them out of adapter.target_modules, or leave out adapter.dora."
            )
        experts = expert_targets(model) if adapter.experts else []
        named |= {path.rpartition(".")[0] for path in hit(experts, (path for path, _ in base_parameters(model)))}
        peft_model = self.wrapped(model, _peft_config(config, base, targets, experts), name)
        peft_model = as_named(peft_model, named, self, name)
        try:
            if adapter.bias != "none":
                _refuse_untrainable_biases(adapter.bias, peft_model)
            _initialize(self, peft_model, config, inputs, name)
        except AdapterError:
            self.detach(peft_model, name)
            raise
        return peft_model

    def require_usable(self, folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
        """Refuses all that A, B and the scale do not tell: other settings, and initializations that changed the base."""
        refuse_settings(folder, settings, LORA)
        refuse_start(folder, settings.get("init_lora_weights"))
        refuse_alpha_patterns(folder, settings)
        refuse_names(folder, tensors, _TENSORS)
        refuse_tied_embedding(folder, settings, tensors)
        refuse_ranks(folder, settings, tensors)
        require_pairs(str(folder), tensors)

    def exact(self, settings: PeftSettings, tensors: Mapping[str, Tensor], base: nn.Module) -> PeftSettings:
        """Rank and alpha of each layer, too."""
        return exact_lora(settings, tensors, base)

    def tensors(self, model: Any, name: str) -> dict[str, Tensor]:
        """A and B of an ordinary LoRA; beside them, where A started from the base's weights, that start under START."""
        tensors = peft_tensors(model, name)
        for names, layer in _shifted(model, name).items():
            for path, matrix in zip(names, (layer.lora_A[name], layer.lora_B[name]), strict=True):
                start = tensors.pop(f"{path}.start")
                del tensors[f"{path}.change"]
                tensors[f"{path}.weight"] = matrix.weight.detach()
                if isinstance(matrix, ShiftedDown):  # the start of B is a part of the weight as it is
                    tensors[_start_of(path)] = start
        return tensors

    def load(self, model: Any, tensors: Mapping[str, Tensor], name: str) -> None:
        """Copies A and B; splits them where the adapter trains the difference from its start."""
        parts = without_copies(tensors, model, self)
        require_places(self.tensors(model, name), parts)
        for down, up in _shifted(model, name):
            rank = len(parts[_start_of(down)])
            weight_RI, weight_OR = parts.pop(f"{down}.weight"), parts.pop(f"{up}.weight")
            parts[f"{down}.start"], parts[f"{down}.change"] = parts.pop(_start_of(down)), weight_RI[rank:]
            parts[f"{up}.change"], parts[f"{up}.start"] = weight_OR[:, :rank], weight_OR[:, rank:]
        places = peft_tensors(model, name)
        for path, tensor in parts.items():
            places[path].copy_(tensor)


def alpha_of(config: Config) -> float:
    """Numerator of the LoRA scale; `2x` is twice the rank."""
    alpha = config.adapter.alpha
    return float(alpha.removesuffix("x")) * rank_of(config) if isinstance(alpha, str) else float(alpha)


def rank_of(config: Config) -> int:
    """Rank of the adapter, which is settled where it was `auto`."""
    assert config.adapter.rank != "auto"
    return config.adapter.rank


def lora_learning_rate(hidden_size: int, model_type: str) -> tuple[float, str]:
    """(peak rate by hidden size and family, reason)

    Source: the power law of the "LoRA without regret" study, capped at 2e-3 for very small models.
    """
    exponent = 0.0775 if "qwen" in model_type else 0.78
    return min(5e-4 * (2000 / hidden_size) ** exponent, 2e-3), f"5e-4·(2000/{hidden_size})^{exponent}, at most 2e-3"


def lora_layers(peft_model: Any, name: str = TRAINED) -> Iterator[tuple[str, Any]]:
    """(name in the base, layer) of every layer that the adapter is on."""
    from peft.tuners.lora import LoraLayer

    for path, module in peft_model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and any(name in getattr(module, held) for held in module.adapter_layer_names):
            yield path, module


def starts_from_weights(peft_model: Any, name: str = TRAINED) -> bool:
    """Whether the adapter trains the difference from a start taken from the base's weights (PiSSA, OLoRA)."""
    return bool(_shifted(peft_model, name))


def expert_bytes(peft_model: Any, name: str = TRAINED) -> int:
    """Bytes of the experts' weights that have an adapter.

    PEFT copies them in each forward pass with their update added, and the backward pass needs the copies.
    """
    adapted = (layer for _, layer in lora_layers(peft_model, name) if hasattr(layer, "parameter_name"))
    return sum(layer.get_param().numel() * layer.get_param().element_size() for layer in adapted)


def _peft_config(config: Config, base: Any, targets: list[str], experts: list[str]) -> Any:
    from peft import LoraConfig, TaskType

    adapter, alpha, rank = config.adapter, alpha_of(config), rank_of(config)
    if adapter.init in FROM_WEIGHTS:  # of twice the rank, at the same scale: alpha/r, or alpha/sqrt(r)
        alpha *= math.sqrt(2.0) if adapter.rslora else 2.0
        rank *= 2
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # other programs read no 32.0  # type: ignore[arg-type, unused-ignore]
        lora_dropout=adapter.dropout,
        target_modules=targets,
        target_parameters=experts or None,
        bias=adapter.bias,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        fan_in_fan_out=all_conv1d(base, targets),
        init_lora_weights="gaussian" if adapter.init == "gaussian" else True,
        base_model_name_or_path=config.model.base_model,
    )


def _refuse_untrainable_biases(bias: str, peft_model: Any) -> None:
    """Raises: AdapterError."""
    if not peft_model.base_biases:
        raise AdapterError(f"adapter.bias {bias}: this base has no such biases. Leave it at none.")
    coarse = {p.dtype for p, _ in peft_model.base_biases.values()} - {torch.float32}
    if coarse:
        raise AdapterError(
            f"adapter.bias {bias}: biases are trained in the base's own format, and {coarse.pop()} would round "
            "most steps away. Set model.dtype=float32, or leave adapter.bias at none."
        )


def _initialize(method: Lora, peft_model: Any, config: Config, inputs: AttachInputs, name: str) -> None:
    """Replaces PEFT's initialization of A and B by that of `adapter.init`."""
    adapter = config.adapter
    if adapter.init in FROM_WEIGHTS:
        for _, layer in lora_layers(peft_model, name):
            up_OR, down_RI = factors(adapter.init, layer, rank_of(config), layer.scaling[name])
            layer.lora_A[name], layer.lora_B[name] = ShiftedDown(down_RI), ShiftedUp(up_OR)
    elif adapter.init == "eva":
        peft_model.eval()
        layers = dict(lora_layers(peft_model, name))
        with method.disabled(peft_model):
            directions = principal_inputs(peft_model, layers, inputs.sample(), rank_of(config))
        for path, layer in layers.items():
            layer.lora_A[name].weight.data.copy_(directions[path])


def _shifted(peft_model: Any, name: str) -> dict[tuple[str, str], Any]:
    """PEFT's names of A and B of every layer whose adapter starts from its weights, and the layer."""
    prefix = "base_model.model."
    return {
        (f"{prefix}{path}.lora_A", f"{prefix}{path}.lora_B"): layer
        for path, layer in lora_layers(peft_model, name)
        if name in layer.lora_A and isinstance(layer.lora_A[name], ShiftedDown)
    }


def _start_of(path: str) -> str:
    return f"{path}.{START}.weight"
