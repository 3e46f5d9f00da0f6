"""Low-rank adapters on a base: which layers, how they start, and how they lie on the disk (PEFT's file format)."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay.config import Config
from inlay.errors import AdapterError, unknown_name

WEIGHTS, SETTINGS, CARD = "adapter_model.safetensors", "adapter_config.json", "card.json"
_INIT: dict[str, Any] = {"default": True, "gaussian": "gaussian", "pissa": "pissa", "olora": "olora", "eva": "eva"}


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers (Conv1D of GPT-2 too) of the language model, without its output head."""
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    vision = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "embed_vision")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and not name.endswith(("lm_head", "classifier", "score", "cls.predictions.decoder", "pooler.dense"))
        and not any(part in vision for part in name.split("."))
    ]


def resolve_targets(model: nn.Module, wanted: str | list[str]) -> list[str]:
    """The shortest name endings that hit the wanted layers and no others.

    Raises: AdapterError when an ending matches no linear layer.
    """
    layers = linear_layers(model)
    endings = sorted({name.rpartition(".")[2] for name in layers})
    if wanted == "auto":
        if not layers:
            raise AdapterError("adapter.target_modules: this model has no linear layers to adapt.")
        everything = [name for name, _ in model.named_modules()]
        hit = {n for n in everything if n.rpartition(".")[2] in endings}
        return endings if hit == set(layers) else sorted(layers)
    assert isinstance(wanted, list)
    for ending in wanted:
        if not any(name == ending or name.endswith("." + ending) for name in layers):
            raise AdapterError(f"adapter.target_modules: {unknown_name('layer', ending, endings)}")
    return sorted(set(wanted))


def alpha_of(config: Config) -> float:
    """The scale's numerator as a number; `2x` is twice the rank."""
    alpha = config.adapter.alpha
    return float(alpha.removesuffix("x")) * config.adapter.rank if isinstance(alpha, str) else float(alpha)


def attach(model: nn.Module, config: Config, targets: list[str]) -> Any:
    """A PeftModel around the base with a fresh trainable adapter (A random, B zero) in fp32.

    The start is drawn from torch's global generator: seed it first.
    """
    from peft import LoraConfig, TaskType

    adapter = config.adapter
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.rank,
        lora_alpha=alpha_of(config),  # type: ignore[arg-type, unused-ignore]
        lora_dropout=adapter.dropout,
        target_modules=targets,
        bias=adapter.bias,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=_INIT[adapter.init],
        base_model_name_or_path=config.model.base_model,
    )
    return _wrapped(model, lora)


def _wrapped(model: nn.Module, lora: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():  # peft 0.21 asks transformers 5 for a name it renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, lora)


@dataclass(frozen=True, slots=True)
class AdapterState:
    """An adapter away from any model: PEFT's settings and its tensors under PEFT's names. Owns its memory."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @staticmethod
    def of(peft_model: Any) -> AdapterState:
        """A copy of the adapter in a PeftModel, in fp32 on the CPU."""
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        settings = peft_model.peft_config["default"].to_dict() | {"inference_mode": True}
        return AdapterState(_plain(settings), {k: v.detach().float().cpu().clone() for k, v in tensors.items()})

    def write(self, folder: Path) -> None:
        """Puts `adapter_model.safetensors` and `adapter_config.json` into the folder."""
        for name, tensor in self.tensors.items():
            assert torch.isfinite(tensor).all(), f"{name} is not finite"
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / SETTINGS).write_text(json.dumps(self.settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> AdapterState:
        """The adapter in a folder. Raises: AdapterError when a file is missing, broken or not finite."""
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise AdapterError(f"{folder}: not a usable adapter folder ({error}).") from None
        bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise AdapterError(f"{folder}: {bad[0]} holds values that are not finite. The adapter is damaged.")
        return AdapterState(settings, tensors)

    def load_into(self, peft_model: Any) -> None:
        """Puts the tensors into the adapter of a PeftModel. Raises: AdapterError on any name or shape that differs."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        there = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        for name in sorted(set(there) ^ set(self.tensors)):
            side = "is missing from the adapter" if name in there else "has no place in this model"
            raise AdapterError(
                f"adapter: {name} {side}. Rank, target modules and base must be those it was trained with."
            )
        for name, tensor in self.tensors.items():
            if tensor.shape != there[name].shape:
                raise AdapterError(
                    f"adapter: {name} has shape {tuple(tensor.shape)}, this model needs {tuple(there[name].shape)}."
                )
        set_peft_model_state_dict(peft_model, self.tensors)

    def attach_to(self, model: nn.Module) -> Any:
        """A PeftModel around the base with this adapter, ready for inference."""
        from peft import LoraConfig

        known = LoraConfig.__dataclass_fields__  # type: ignore[attr-defined, unused-ignore]
        settings = {k: v for k, v in self.settings.items() if k in known}
        # A start that rewrites the base (pissa, olora) belongs to training, never to loading.
        settings["init_lora_weights"] = True
        peft_model = _wrapped(model, LoraConfig(**settings))
        self.load_into(peft_model)
        return peft_model.eval()


def _plain(value: Any) -> Any:
    """JSON's own types: PEFT keeps sets and enums in its settings."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.value if hasattr(value, "value") else value
