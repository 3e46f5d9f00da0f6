"""The layers that a stored adapter is on, by the names of its tensors; and settings that name these layers to PEFT.

PEFT takes names in an adapter's settings for regular expressions. Those of a file are never run: the tensors say on which
layers they are, and their shapes say of which rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from torch import Tensor, nn

from inlay.errors import AdapterError
from inlay.folder_files import shown
from inlay.methods.adapter_file_checks import values_by_layer
from inlay.methods.base_modules import base_modules, base_parameters
from inlay.methods.method import PeftSettings
from inlay.methods.target_modules import hit

ROOT: Final = "base_model.model."
_WRAPPED: Final = ".base_layer"
Parts = dict[str, Tensor]
"""The tensors of one layer, by what follows its name."""


class ExactNames(dict[str, Any]):
    """Values by full names of layers. PEFT takes the keys of an ordinary dict for regular expressions, and tries each
    on each layer; of this one it sees none, and looks its own name up."""

    def keys(self) -> Any:
        """None: see the class."""
        return ()

    def __bool__(self) -> bool:
        return False


def layers_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Parts]:
    """Layer -> its tensors. A name with `.base_layer` is that of another tensor of the same module (see PEFT's ParamWrapper)."""
    layers: dict[str, Parts] = {}
    for name, tensor in tensors.items():
        layer, found, part = name.removeprefix(ROOT).rpartition(f".{prefix}")
        if found:
            layers.setdefault(layer, {})[f"{prefix}{part}"] = tensor
    return layers


def exact_targets(
    settings: PeftSettings, layers: Collection[str], base: nn.Module, *, is_shortest: bool = True
) -> PeftSettings:
    """`target_modules` and `exclude_modules` under which PEFT takes these layers of the base and no others.

    With `is_shortest` those of the settings where they do, else full names.

    Raises: AdapterError for a layer that the base has not, or that is named without tensors.
    """
    names = [name for name, _ in base_modules(base)]
    there, wanted = set(names), set(layers)
    if strange := sorted(wanted - there):
        raise AdapterError(
            f"adapter: {ROOT}{strange[0]} has no place in this model ({len(strange)} of its layers have none). The adapter "
            "belongs to another base."
        )
    targets, without = settings.get("target_modules"), settings.get("exclude_modules")
    if isinstance(targets, list) and (without is None or isinstance(without, list)):
        named = set(hit(targets, names)) - set(hit(without or (), names))
        if settings.get("layers_to_transform") is None and (missing := sorted(named - wanted)):
            raise AdapterError(
                f"adapter: is named for {missing[0]} (target_modules), but {ROOT}{missing[0]} is missing from the adapter "
                f"({len(missing)} layers are). It is cut short, or belongs to another base."
            )
        if extra := sorted(wanted - named):
            raise AdapterError(
                f"adapter: {ROOT}{extra[0]} has no place in this model: its target_modules do not name it. The adapter is "
                "damaged."
            )
        if named == wanted and is_shortest:
            return {"target_modules": sorted(targets), "exclude_modules": sorted(without) if without else None}
    also = sorted(set(hit(wanted, names)) - wanted)
    return {"target_modules": sorted(wanted), "exclude_modules": also or None}


def parameters_of(targets: Collection[str], base: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Module -> (name, experts) of each of its parameters that `target_parameters` names, in PEFT's order.

    Raises: AdapterError for a name that fits none.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    parameters = dict(base_parameters(base))
    ends = {".".join(parts[at:]) for parts in (name.split(".") for name in parameters) for at in range(len(parts))}
    if strange := sorted(set(targets) - ends):
        raise AdapterError(
            f"adapter: {shown(strange[0])} of its target_parameters has no place in this model. The adapter belongs to "
            "another base."
        )
    for name in hit(targets, parameters):
        shape = parameters[name].shape
        found.setdefault(name.rpartition(".")[0], []).append((name, shape[0] if len(shape) == 3 else 1))
    return found


def ranks_of(layers: Mapping[str, Parts], parameters: Mapping[str, list[tuple[str, int]]]) -> dict[str, int]:
    """Rank of each layer and each parameter that has an A, by the shape of it.

    The last parameter of a module lies outermost; each one within it has one more `.base_layer` in its name.
    """
    ranks = {}
    for layer, parts in layers.items():
        down = parts.get("lora_A.weight", parts.get("lora_embedding_A"))
        if down is None:
            continue
        module = layer.replace(_WRAPPED, "")
        if module not in parameters:
            ranks[layer] = down.shape[0]
            continue
        depth, there = layer.count(_WRAPPED), parameters[module]
        if depth < len(there):
            name, experts = there[-1 - depth]
            ranks[name] = max(1, down.shape[0] // experts)
    return ranks


def exact_lora(settings: PeftSettings, tensors: Mapping[str, Tensor], base: nn.Module) -> PeftSettings:
    """The settings of a LoRA, with each layer, rank and alpha under its full name. Raises: AdapterError."""
    require_pairs("adapter", tensors)
    layers = layers_of(tensors, "lora_")
    parameters = parameters_of(settings.get("target_parameters") or (), base)
    of_modules = {layer: parts for layer, parts in layers.items() if layer.replace(_WRAPPED, "") not in parameters}
    targets = exact_targets(settings, of_modules, base)
    modules = dict(base_modules(base))
    for layer, parts in of_modules.items():
        _require_fit(layer, parts, modules[layer])
    ranks = ranks_of(layers, parameters)
    rank = settings.get("r", 8)
    alpha = settings.get("lora_alpha", 8)
    alphas = values_by_layer(settings.get("alpha_pattern"), ranks, alpha)
    return {
        **settings, **targets, "r": rank, "lora_alpha": alpha, "layers_to_transform": None, "layers_pattern": None,
        "rank_pattern": ExactNames({name: each for name, each in ranks.items() if each != rank}),
        "alpha_pattern": ExactNames({name: each for name, each in alphas.items() if each != alpha}),
    }  # fmt: skip


def exact_ia3(settings: PeftSettings, tensors: Mapping[str, Tensor], base: nn.Module) -> PeftSettings:
    """The settings of an IA3 with each layer under its full name. Raises: AdapterError."""
    layers = layers_of(tensors, "ia3_l")
    targets = exact_targets(settings, layers, base, is_shortest=False)
    # a vector for a layer's input is a row, one for its output is a column
    of_input = sorted(layer for layer, parts in layers.items() if all(part.shape[0] == 1 for part in parts.values()))
    return {**settings, **targets, "feedforward_modules": of_input}


def require_pairs(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError for an A without its B, or a B without its A."""
    for one, other in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
        for name in tensors:
            for here, beside in ((one, other), (other, one)):
                pair = f"{name.removesuffix(here)}{beside}"
                if name.endswith(f".{here}") and pair not in tensors:
                    raise AdapterError(
                        f"{where}: {pair} is missing from the adapter, which holds the {here} beside it. It is cut short: "
                        "get it once more."
                    )


def _require_fit(layer: str, parts: Parts, module: nn.Module) -> None:
    """Raises: AdapterError where A and B are not those of a layer with these inputs and outputs."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if inputs is None and type(module).__name__ == "Conv1D":
        inputs, outputs = getattr(module, "weight").shape  # noqa: B009
    down, up = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if down is None or up is None or inputs is None:
        return
    rank = down.shape[0]
    for name, held, needed in (("lora_A", down, (rank, inputs)), ("lora_B", up, (outputs, rank))):
        if tuple(held.shape) != needed:
            raise AdapterError(
                f"adapter: {ROOT}{layer}.{name}.weight has shape {tuple(held.shape)}, this model needs {needed}. The adapter "
                "is damaged, or belongs to another base."
            )
