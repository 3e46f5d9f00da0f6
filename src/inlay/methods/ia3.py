"""IA3: vectors that scale keys, values and the input of the feed-forward part's last layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from inlay.config import Config
from inlay.methods.adapter_file_checks import IA3, refuse_names, refuse_settings
from inlay.methods.base_modules import base_modules
from inlay.methods.method import AttachInputs, FirstToMove, PeftSettings, SavedActivations
from inlay.methods.peft_layers import APPLIED_IN_LAYERS, LayerMethod, all_conv1d, as_named
from inlay.methods.stored_layers import exact_ia3
from inlay.methods.target_modules import feed_forward_output, hit, layers_for_roles, resolve_targets

_ROLES: Final = ("k_proj", "v_proj", "down_proj")
"""Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper", section 3.3 for the layers and the learning rate."""


class Ia3(LayerMethod):
    """One trained vector on each target module."""

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "IA3"
    peft_type: ClassVar[str] = "IA3"
    first_to_move: ClassVar[FirstToMove] = FirstToMove(
        "ia3_l", "scaling vectors", "Leave them out of adapter.target_modules."
    )
    saved_activations_fp32: ClassVar[SavedActivations] = (2, 4, 4, 2)
    saved_activations_16bit: ClassVar[SavedActivations] = (4, 5, 4, 2)
    prefix: ClassVar[str] = "ia3_l"
    applied: ClassVar[tuple[str, ...]] = (*APPLIED_IN_LAYERS, "feedforward_modules")

    def summary(self, config: Config) -> str:
        """`IA3 vectors`."""
        return "IA3 vectors"

    def learning_rate(self, hidden_size: int, model_type: str) -> tuple[float, str]:
        """The published rate, whatever the size of the base."""
        return 3e-3, "as IA3 was published, whatever the size"

    def auto_targets(self, model: nn.Module) -> tuple[list[str], str]:
        """The layers that play the part of keys, values and the end of the feed-forward part in this architecture."""
        names, reason = layers_for_roles(model, _ROLES, "IA3's")
        return resolve_targets(model, names), reason

    def attach(self, model: Any, config: Config, inputs: AttachInputs, name: str) -> Any:
        """A PeftModel with a vector of ones on each target module."""
        targets = list(inputs.targets)
        named = set(hit(targets, (path for path, _ in base_modules(model))))
        peft_model = self.wrapped(model, _peft_config(model, targets, config.model.base_model), name)
        return as_named(peft_model, named, self, name)

    def require_usable(self, folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
        """Refuses settings beside those of IA3, and other tensors than vectors."""
        refuse_settings(folder, settings, IA3)
        refuse_names(folder, tensors, ("ia3_l", "weight"))

    def exact(self, settings: PeftSettings, tensors: Mapping[str, Tensor], base: nn.Module) -> PeftSettings:
        """Layers whose input is scaled, too."""
        return exact_ia3(settings, tensors, base)


def _peft_config(model: nn.Module, targets: list[str], base_model: str) -> Any:
    """PEFT's settings of IA3 on these layers: where the feed-forward part ends its input is scaled, else the output."""
    from peft import IA3Config, TaskType

    last = feed_forward_output(model)
    return IA3Config(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        feedforward_modules=[name for name in targets if f".{name}".endswith(f".{last}")],
        fan_in_fan_out=all_conv1d(model, targets),
        base_model_name_or_path=base_model,
    )
