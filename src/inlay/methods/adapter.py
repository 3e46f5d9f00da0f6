"""Adapters on a base: how they are put on, taken off, and lie on the disk (PEFT's file format).

The base's own weights are never changed, whatever the adapter. One that starts from them (PiSSA, OLoRA) is in memory
what it is on the disk, an ordinary LoRA of twice the rank; see `inlay.methods.initialization`.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay.config import Config
from inlay.errors import AdapterError
from inlay.methods import full, prompt_tuning
from inlay.methods.adapter_files import CARD, SETTINGS, WEIGHTS, refuse_endless_patterns, refuse_unusable
from inlay.methods.ia3 import APPLIED, all_conv1d, ia3_config, is_adapters
from inlay.methods.initialization import FROM_WEIGHTS, ShiftedDown, ShiftedUp, factors, principal_inputs
from inlay.methods.peft_names import as_layers, as_peft_reads, of_modules, rewritten, taken_as_given
from inlay.methods.target_modules import expert_targets, hit
from inlay.models.base import BaseRef
from inlay.models.named_class import NamedClass, for_both, renamed, reverse

TRAINED, START = "default", "inlay_start"


def alpha_of(config: Config) -> float:
    """The scale's numerator as a number; `2x` is twice the rank."""
    alpha = config.adapter.alpha
    return float(alpha.removesuffix("x")) * config.adapter.rank if isinstance(alpha, str) else float(alpha)


def attach(
    model: nn.Module,
    config: Config,
    targets: list[str],
    sample: Callable[[], Iterable[Mapping[str, Tensor]]] = lambda: (),
) -> Any:
    """A PeftModel around the base with a fresh trainable adapter in fp32.

    The start is drawn from torch's global generator: seed it first. `sample` gives batches of training rows for an
    adapter that starts from activations (`eva`). Raises: AdapterError for what this base cannot have.
    """
    from peft import LoraConfig, TaskType

    adapter, alpha = config.adapter, alpha_of(config)
    if adapter.method == "prompt":
        return prompt_tuning.fresh(model, adapter.prompt_tokens, config.model.base_model)
    named = set(hit(targets, (name for name, _ in model.named_modules())))
    if adapter.method == "ia3":
        return _as_named(_wrapped(model, ia3_config(model, targets, config.model.base_model)), named)
    if adapter.dora and (unread := rewritten(model, targets)):
        raise AdapterError(
            f"adapter.dora: PEFT reads {', '.join(unread)} of a {model.config.model_type} as names of experts, and could not "  # type: ignore[union-attr]
            "open the adapter. Leave them out of adapter.target_modules, or leave out adapter.dora."
        )
    experts = expert_targets(model) if adapter.experts else []
    from_weights = adapter.init in FROM_WEIGHTS
    if from_weights:  # of twice the rank, at the same scale: alpha/r, or alpha/sqrt(r)
        alpha *= math.sqrt(2.0) if adapter.rslora else 2.0
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=2 * adapter.rank if from_weights else adapter.rank,
        lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=adapter.dropout,
        target_modules=targets,
        target_parameters=experts or None,
        bias=adapter.bias,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        fan_in_fan_out=all_conv1d(model, targets),
        init_lora_weights="gaussian" if adapter.init == "gaussian" else True,
        base_model_name_or_path=config.model.base_model,
    )
    named |= {name.rpartition(".")[0] for name in hit(experts, (name for name, _ in model.named_parameters()))}
    peft_model = _as_named(_wrapped(model, lora), named)
    if adapter.bias != "none" and not peft_model.base_biases:
        raise AdapterError(f"adapter.bias {adapter.bias}: this base has no such biases. Leave it at none.")
    coarse = {p.dtype for p, _ in peft_model.base_biases.values()} - {torch.float32}
    if coarse:
        raise AdapterError(
            f"adapter.bias {adapter.bias}: biases are trained in the base's own format, and {coarse.pop()} would round "
            "most steps away. Set model.dtype=float32, or leave adapter.bias at none."
        )
    if from_weights:
        for _, layer in lora_layers(peft_model):
            up_OR, down_RI = factors(adapter.init, layer, adapter.rank, layer.scaling[TRAINED])
            layer.lora_A[TRAINED], layer.lora_B[TRAINED] = ShiftedDown(down_RI), ShiftedUp(up_OR)
    elif adapter.init == "eva":
        peft_model.eval()
        layers = dict(lora_layers(peft_model))
        with adapter_disabled(peft_model):
            directions = principal_inputs(peft_model, layers, sample(), adapter.rank)
        for name, layer in layers.items():
            layer.lora_A[TRAINED].weight.data.copy_(directions[name])
    return peft_model


def _as_named(peft_model: Any, named: set[str]) -> Any:
    """The model, when the layers that were named have an adapter and no others. Raises: AdapterError."""
    base = peft_model.get_base_model()
    if differing := sorted(named ^ {name for name, _ in _tuned_layers(base)}):
        detach(peft_model)
        raise AdapterError(
            f"adapter.target_modules: PEFT {'leaves out' if differing[0] in named else 'also takes'} {differing[0]} "
            f"({len(differing)} layers differ from those that are named). Name layers that it takes one by one."
        )
    return peft_model


def layers_adapted(peft_model: Any) -> str:
    """` on 12 layers` of the base, empty where the adapter is on none."""
    count = len(_tuned_layers(peft_model))
    return f" on {count} layers" if count else ""


def _tuned_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Layers with an adapter. Experts that have one for each of their weights count once."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [(name, module) for name, module in tuned if not name.endswith(".base_layer")]


def expert_bytes(peft_model: Any) -> int:
    """Of the experts' weights that have an adapter. PEFT copies them in each forward pass with their update added, and the
    backward pass needs the copies."""
    adapted = (layer for _, layer in lora_layers(peft_model) if hasattr(layer, "parameter_name"))
    return sum(layer.get_param().numel() * layer.get_param().element_size() for layer in adapted)


def lora_layers(peft_model: Any) -> Iterator[tuple[str, Any]]:
    """(name in the base, adapted layer) of every layer that really has an adapter."""
    from peft.tuners.lora import LoraLayer

    for name, module in peft_model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _wrapped(model: nn.Module, settings: Any) -> Any:
    from peft import get_peft_model

    name, settings.base_model_name_or_path = settings.base_model_name_or_path, None
    with warnings.catch_warnings(), taken_as_given():  # peft 0.21 asks transformers 5 for a name it renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        peft_model: Any = get_peft_model(model, settings)
    settings.base_model_name_or_path = name  # peft puts the folder there, which is a cache's for a hub id
    named = peft_model.named_parameters()
    peft_model.base_biases = {
        n: (p, p.detach().clone()) for n, p in named if n.endswith("bias") and "lora_" not in n and p.requires_grad
    }
    return peft_model


def starts_from_weights(peft_model: Any) -> bool:
    """Whether what is trained is the difference from a start that the base's weights gave."""
    return any(
        TRAINED in layer.lora_A and isinstance(layer.lora_A[TRAINED], ShiftedDown)
        for _, layer in lora_layers(peft_model)
    )


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[None]:
    """Inside, the model computes what the base without any adapter computes, bit for bit.

    A model without an adapter is left as it is. After full fine-tuning both its weights and the base's are in memory.
    """
    if full.is_whole(model):
        with full.original_weights(model):
            yield
        return
    if prompt_tuning.is_prompted(model):
        with prompt_tuning.switched_off(model):
            yield
        return
    if not hasattr(model, "peft_config"):
        yield
        return
    trained = {name: parameter.detach().clone() for name, (parameter, _) in model.base_biases.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        with model.disable_adapter():
            try:
                _restore_biases(model)
                yield
            finally:
                for name, (parameter, _) in model.base_biases.items():
                    parameter.data.copy_(trained[name])


def _restore_biases(peft_model: Any) -> None:
    for parameter, original in peft_model.base_biases.values():
        parameter.data.copy_(original)


def detach(peft_model: Any) -> Any:
    """The bare base again, as it was before the adapter."""
    if full.is_whole(peft_model):
        return full.take_off(peft_model)
    if prompt_tuning.is_prompted(peft_model):
        return prompt_tuning.take_off(peft_model)
    _restore_biases(peft_model)
    base = peft_model.get_base_model()
    for name, layer in _tuned_layers(base):  # PEFT's unload refuses IA3 over a quantized base
        base.set_submodule(name, layer.get_base_layer())
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base.eval()


@dataclass(frozen=True, slots=True)
class AdapterState:
    """What a run has trained, away from any model. Owns its memory.

    Of an adapter PEFT's settings, and its tensors under PEFT's names; after full fine-tuning one setting that says so, and
    all weights under the model's own names.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    """The A that training started from, where that was the base's weights, has START in its name; only checkpoints hold it."""

    @staticmethod
    def of(peft_model: Any) -> AdapterState:
        """A copy of the adapter in a PeftModel, in fp32 on the CPU."""
        if full.is_whole(peft_model):
            settings: dict[str, Any] = {"peft_type": full.FULL}
        elif prompt_tuning.is_prompted(peft_model):
            settings = prompt_tuning.settings_of(peft_model) | {"inference_mode": True}
        else:
            settings = _plain(peft_model.peft_config[TRAINED].to_dict()) | {"inference_mode": True}
            settings = as_peft_reads(settings, peft_model.get_base_model())
        tensors = {k: v.detach().float().cpu().clone() for k, v in _tensors_of(peft_model).items()}
        return AdapterState(_plain(settings), tensors)

    def exported(self) -> AdapterState:
        """Without what only a resumed run needs."""
        return AdapterState(self.settings, {k: v for k, v in self.tensors.items() if f".{START}." not in k})

    def under(self, named: NamedClass | None) -> AdapterState:
        """With the module names of the class that the base's config.json names, in which it then has its effect."""
        if named is None or not named.prefixes:
            return self
        modules = of_modules(self.tensors, self.settings)
        settings = self.settings | {"target_modules": for_both(modules, named.prefixes)}
        return AdapterState(settings, renamed(self.tensors, named.prefixes))

    def on(self, base: BaseRef) -> AdapterState:
        """With a base in its settings that other programs find."""
        return AdapterState(self.settings | base.for_others(), self.tensors)

    def write(self, folder: Path) -> None:
        """Puts `adapter_model.safetensors` and `adapter_config.json` into the folder.

        Raises: AdapterError when a value is not finite, with nothing written.
        """
        assert not any(f".{START}." in name for name in self.tensors), "export it first"
        for name, tensor in self.tensors.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"{folder}: {name} is not finite; nothing was written.")
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / SETTINGS).write_text(json.dumps(self.settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path, base: BaseRef | str | None = None) -> AdapterState:
        """The adapter in a folder.

        Raises: AdapterError when a file is missing or broken, a value is not finite or absurd, or its card names
        another base than `base`, or than the one that was recorded with that digest.
        """
        try:
            if (folder / "config.json").is_file():
                settings, tensors = {"peft_type": full.FULL}, full.read(folder)
            else:
                settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
                tensors = load_file(folder / WEIGHTS)
            card = json.loads((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).is_file() else {}
            if moved := card.get("module_names"):
                tensors = renamed(tensors, reverse(moved))
            refuse_unusable(folder, settings, tensors)
        except (OSError, ValueError, AttributeError, SafetensorError) as error:
            raise AdapterError(f"{folder}: not a usable adapter folder ({error}).") from None
        if said := _difference(card, base):
            raise AdapterError(
                f"{folder}: was trained on another base ({card.get('base_model')}, {str(card['base_digest'])[:12]}) than "
                f"this one: {said}. It would not do what was measured."
            )
        return AdapterState(settings, tensors)

    def load_into(self, peft_model: Any) -> None:
        """Puts the tensors into the adapter of a PeftModel. Raises: AdapterError on any name or shape that differs."""
        there = _tensors_of(peft_model)
        if full.is_whole(peft_model) or prompt_tuning.is_prompted(peft_model):
            _require_places(there, self.tensors)
            for name, tensor in self.tensors.items():
                there[name].copy_(tensor)
            return
        parts = _without_copies(self.tensors, peft_model)
        _require_places(there, parts)
        for down, up in _shifted(peft_model):
            rank = len(parts[_start_of(down)])
            weight_RI, weight_OR = parts.pop(f"{down}.weight"), parts.pop(f"{up}.weight")
            parts[f"{down}.start"], parts[f"{down}.change"] = parts.pop(_start_of(down)), weight_RI[rank:]
            parts[f"{up}.change"], parts[f"{up}.start"] = weight_OR[:, :rank], weight_OR[:, rank:]
        places = _peft_tensors_of(peft_model)
        for name, tensor in parts.items():
            places[name].copy_(tensor)

    @staticmethod
    def shared_by(copy: Callable[[Tensor], Tensor], peft_model: Any) -> None:
        """Puts into the model what `copy` makes of each of its tensors, in the order of their names."""
        state = AdapterState.of(peft_model)
        AdapterState(state.settings, {name: copy(state.tensors[name]) for name in sorted(state.tensors)}).load_into(
            peft_model
        )

    def attach_to(self, model: nn.Module) -> Any:
        """A PeftModel around the base with this adapter, ready for inference. Raises: AdapterError if it does not fit."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING

        if self.settings["peft_type"] == full.FULL:
            _require_places(full.weights_of(model), self.tensors)
            return full.put_on(model, self.tensors)
        if self.settings["peft_type"] == "PROMPT_TUNING":
            _require_places({prompt_tuning.NAME: prompt_tuning.placeholder(model, self.settings)}, self.tensors)
            return prompt_tuning.put_on(model, self.settings, self.tensors[prompt_tuning.NAME]).eval()
        # A start that rewrites the base (pissa, olora) belongs to training, never to loading.
        kind = self.settings["peft_type"]
        settings = {k: v for k, v in as_layers(self.settings, model).items() if k in APPLIED[kind]}
        refuse_endless_patterns(settings, (name for name, _ in model.named_modules()))
        try:
            peft_model = _wrapped(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings))
        except (ValueError, TypeError) as error:
            raise AdapterError(f"adapter: cannot be put on this base ({error}).") from None
        try:
            self.load_into(peft_model)
        except AdapterError:
            detach(peft_model)  # the base stays usable
            raise
        return peft_model.eval()


def _difference(card: Mapping[str, Any], base: BaseRef | str | None) -> str:
    if base is None or card.get("base_digest") is None:
        return ""
    if isinstance(base, str):
        return "" if base == card["base_digest"] else base[:12]
    return base.difference(card)


def _require_places(there: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises: AdapterError on any name or shape of the tensors that the model has not."""
    for name in sorted(set(there) ^ set(tensors)):
        side = "is missing from the adapter" if name in there else "has no place in this model"
        raise AdapterError(f"adapter: {name} {side}. Rank, target modules and base must be those it was trained with.")
    for name, tensor in tensors.items():
        if tensor.shape != there[name].shape:
            raise AdapterError(
                f"adapter: {name} has shape {tuple(tensor.shape)}, this model needs {tuple(there[name].shape)}."
            )


def _without_copies(tensors: Mapping[str, Tensor], peft_model: Any) -> dict[str, Tensor]:
    """The tensors without copies of the base's own weights: PEFT adds the embedding or the head that it adapts.

    Raises: AdapterError for a weight in place of the base's own.
    """
    own = {
        name: parameter
        for name, parameter in peft_model.named_parameters()
        if not parameter.requires_grad and not is_adapters(name)
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


def _peft_tensors_of(peft_model: Any) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, in the model's own memory."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return tensors


def _tensors_of(peft_model: Any) -> dict[str, Tensor]:
    if full.is_whole(peft_model):
        return full.weights_of(peft_model)
    if prompt_tuning.is_prompted(peft_model):
        return {prompt_tuning.NAME: getattr(peft_model, prompt_tuning.NAME).detach()}
    tensors = _peft_tensors_of(peft_model)
    shifted = _shifted(peft_model)
    for names, layer in shifted.items():
        for name, matrix in zip(names, (layer.lora_A[TRAINED], layer.lora_B[TRAINED]), strict=True):
            start = tensors.pop(f"{name}.start")
            del tensors[f"{name}.change"]
            tensors[f"{name}.weight"] = matrix.weight.detach()
            if isinstance(matrix, ShiftedDown):  # the start of B is a part of the weight as it is
                tensors[_start_of(name)] = start
    return tensors


def _shifted(peft_model: Any) -> dict[tuple[str, str], Any]:
    """PEFT's names of A and B of every layer whose adapter starts from its weights, and the layer."""
    prefix = "base_model.model."
    return {
        (f"{prefix}{name}.lora_A", f"{prefix}{name}.lora_B"): layer
        for name, layer in lora_layers(peft_model)
        if TRAINED in layer.lora_A and isinstance(layer.lora_A[TRAINED], ShiftedDown)
    }


def _start_of(name: str) -> str:
    return f"{name}.{START}.weight"


def _plain(value: Any) -> Any:
    """JSON's own types: PEFT keeps sets and enums in its settings."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.value if hasattr(value, "value") else value
