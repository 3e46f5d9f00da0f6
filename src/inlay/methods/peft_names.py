"""Target module names that PEFT rewrites, taken literally here.

In a base with experts PEFT 0.21 reads `gate_proj`, `up_proj`, `down_proj` and `gate` as the names that the experts had in
transformers 4. It would train the experts, and leave out the dense layers and the shared experts that have these names.
inlay adapts the layers with these names, and saves settings that make PEFT adapt the same layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from inlay.methods.base_modules import base_modules
from inlay.methods.method import PeftSettings

_WEIGHT = ".weight"


@contextlib.contextmanager
def literal_target_names() -> Iterator[None]:
    """Inside, PEFT adapts exactly the layers that a config names."""
    from peft.utils import transformers_weight_conversion as conversion

    convert = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = convert


def names_peft_rewrites(base: nn.Module, targets: list[str]) -> list[str]:
    """The target modules that PEFT would replace by other names in this base."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    def is_kept(target: str) -> bool:
        config = LoraConfig(target_modules=[target])
        try:
            convert_peft_config_for_transformers(config, base, None)
        except ValueError:  # it would have to be named together with another one
            return False
        return set(config.target_modules) == {target}

    last = {target: target.rpartition(".")[2] for target in targets}  # PEFT looks at that alone
    kept = {name: is_kept(name) for name in {*last.values()}}
    return [target for target in targets if not kept[last[target]]]


def with_weight_targets(settings: PeftSettings, base: nn.Module) -> PeftSettings:
    """Settings under which PEFT alone adapts the same layers.

    Layers whose names it would rewrite are named by their weights (`target_parameters`), which computes the same.
    """
    targets = settings.get("target_modules")
    if settings.get("peft_type") != "LORA" or isinstance(targets, str) or not targets:
        return settings
    moved = names_peft_rewrites(base, sorted(targets))
    if not moved:
        return settings
    weights = sorted({*(settings.get("target_parameters") or ()), *(f"{target}{_WEIGHT}" for target in moved)})
    kept = sorted(set(targets) - set(moved))
    # dropout belongs to training, and PEFT knows none on a weight
    return settings | {"target_modules": kept, "target_parameters": weights, "lora_dropout": 0.0}


def with_layer_targets(settings: PeftSettings, base: nn.Module) -> PeftSettings:
    """Settings in which linear layers named by their weights are target modules again: undoes `with_weight_targets`."""
    weights = settings.get("target_parameters") or ()
    targets = settings.get("target_modules")
    linear = [name for name, module in base_modules(base) if isinstance(module, nn.Linear)]
    ends = {".".join(parts[at:]) for parts in (name.split(".") for name in linear) for at in range(len(parts))}
    back = [weight.removesuffix(_WEIGHT) for weight in weights if weight.endswith(_WEIGHT)]
    back = [weight for weight in back if weight in ends]
    if not back:
        return settings
    left = sorted(set(weights) - {f"{target}{_WEIGHT}" for target in back})
    together = targets if isinstance(targets, str) else sorted({*back, *(targets or ())})
    return settings | {"target_modules": together, "target_parameters": left or None}


def tensors_of_target_modules(tensors: Iterable[str], settings: PeftSettings) -> list[str]:
    """The tensors of an adapter whose module is in `target_modules`; the others belong to `target_parameters`."""
    holders = tuple(f".{weight.rpartition('.')[0]}" for weight in settings.get("target_parameters") or ())
    return [name for name in tensors if not name.split(".lora_")[0].replace(".base_layer", "").endswith(holders)]
