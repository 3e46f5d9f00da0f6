"""Target modules: the layers of a base that get an adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from inlay.errors import AdapterError, unknown_name
from inlay.methods.base_modules import base_modules, base_parameters
from inlay.methods.called_layers import unsuitable

_HEADS = ("lm_head", "embed_out", "classifier", "score", "qa_outputs", "pooler", "predictions")
_VISION = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "embed_vision", "audio_tower")
_NOT_IN_PEFT = "is refused by PEFT, since fast kernels use its weight past its forward"

ROLES: dict[str, tuple[str, ...]] = {
    "q_proj": (
        "q_proj", "qkv_proj", "query_key_value", "attn.c_attn", "Wqkv", "q_b_proj", "attention.receptance",
        "mixer.x_proj", "mixer.in_proj",
    ),
    "k_proj": (
        "k_proj", "qkv_proj", "query_key_value", "attn.c_attn", "Wqkv", "kv_b_proj", "attention.key",
        "mixer.x_proj", "mixer.in_proj",
    ),
    "v_proj": (
        "v_proj", "qkv_proj", "query_key_value", "attn.c_attn", "Wqkv", "kv_b_proj", "attention.value", "mixer.in_proj",
    ),
    "o_proj": (
        "o_proj", "attention.dense", "self_attention.dense", "self_attn.dense", "attn.c_proj", "attn.out_proj",
        "attention.out_proj", "self_attn.out_proj", "attn.Wo", "attention.output", "mixer.out_proj",
    ),
    "gate_proj": ("gate_proj", "gate_up_proj", "feed_forward.w1", "mlp.Wi", "input_linear", "feed_forward.receptance"),
    "up_proj": (
        "up_proj", "gate_up_proj", "dense_h_to_4h", "fc1", "fc_in", "mlp.c_fc", "feed_forward.w3", "mlp.Wi",
        "input_linear", "feed_forward.key",
    ),
    "down_proj": (
        "down_proj", "dense_4h_to_h", "fc2", "fc_out", "mlp.c_proj", "feed_forward.w2", "mlp.Wo", "output_linear",
        "feed_forward.value",
    ),
}  # fmt: skip
"""Layer name of Llama -> name endings of its counterparts in other architectures; the first that a base has is taken.
Mamba's `x_proj` stands for queries and keys, its `in_proj` for values."""


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers of the language model (GPT-2's Conv1D too) that can have an adapter, without its heads."""
    left_out = unsuitable_layers(model)
    return [name for name in _linear(model) if name not in left_out]


def unsuitable_layers(model: nn.Module) -> dict[str, str]:
    """Linear layer -> reason why it gets no adapter."""
    layers = _linear(model)
    return unsuitable(model, layers) | {name: _NOT_IN_PEFT for name in layers if _is_refused_by_peft(model, name)}


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    from transformers.pytorch_utils import Conv1D

    head = _head(model)
    return {
        name: module
        for name, module in base_modules(model)
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and not any(part in _HEADS or part in _VISION for part in name.split("."))
    }


def _head(model: nn.Module) -> nn.Module | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return getattr(head, "base_layer", head)


def _is_refused_by_peft(model: nn.Module, name: str) -> bool:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False


def expert_parameters(model: nn.Module) -> list[str]:
    """Names of tensors (expert, out, in) that hold one weight of all experts of a layer, outside of any linear layer."""
    return [
        f"{name}.{held}"
        for name, module in base_modules(model)
        if name.rpartition(".")[2] == "experts" and not any(part in _VISION for part in name.split("."))
        for held, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.is_floating_point()
    ]


def expert_targets(model: nn.Module) -> list[str]:
    """The shortest list of name endings (else of full names) that matches the experts' weights and no others.

    Raises: AdapterError where there are none.
    """
    weights = expert_parameters(model)
    if not weights:
        raise AdapterError(
            f"adapter.experts: a {_kind(model)} has no experts whose weights lie in one tensor. Leave it out: experts "
            "that are linear layers are among adapter.target_modules."
        )
    endings = sorted({".".join(name.split(".")[-2:]) for name in weights})
    everything = [name for name, _ in base_parameters(model)]
    return endings if set(hit(endings, everything)) == set(weights) else sorted(weights)


def resolve_targets(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """The shortest list of name endings (else of full names) that matches the wanted layers and no others.

    Raises: AdapterError when an ending matches no linear layer.
    """
    layers = linear_layers(model)
    if not layers:
        raise AdapterError("adapter.target_modules: this model has no linear layers to adapt.")
    if wanted == "auto":
        return _without_strays(model, sorted({name.rpartition(".")[2] for name in layers}), layers)
    assert not isinstance(wanted, str)
    layers += _heads_named(model, wanted)
    for ending in wanted:
        if not hit([ending], layers):
            raise AdapterError(f"adapter.target_modules: {_why_not(model, ending, layers)}")
    return _without_strays(model, sorted(set(wanted)), hit(wanted, layers))


def all_linear(model: nn.Module) -> str:
    """The layers that `auto` takes, in words."""
    against: dict[str, str] = {}
    for name, why in unsuitable_layers(model).items():
        against.setdefault(why, name.rpartition(".")[2] if not name[-1].isdigit() else name)
    but = "; ".join(f"{name} {why}" for why, name in against.items())
    if expert_parameters(model):
        return "the linear layers that are neither head nor expert" + (
            f", where they can be adapted ({but})" if but else ""
        )
    return (
        "the linear layers without the head that can be adapted" + f" ({but})"
        if but
        else "all linear layers without the head"
    )


def _heads_named(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """The head, where it is named. Raises: AdapterError where it shares its weights with the embeddings."""
    found = hit(wanted, _head_names(model))
    if found and _is_tied(model):
        raise AdapterError(
            f"adapter.target_modules: {found[0]} has the weights of the embeddings (tie_word_embeddings), and an adapter "
            "merged into it would change them too. Leave it out, or train all weights with adapter.method=full."
        )
    return found


def _head_names(model: nn.Module) -> list[str]:
    head = _head(model)
    return [name for name, module in base_modules(model) if isinstance(head, nn.Linear) and module is head]


def _is_tied(model: nn.Module) -> bool:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return embeddings is not None and getattr(_head(model), "weight", None) is embeddings.weight


def _why_not(model: nn.Module, ending: str, layers: Sequence[str]) -> str:
    """Reason and remedy for a name that matches no layer that can have an adapter."""
    known = {name.rpartition(".")[2] for name in layers}
    against = unsuitable_layers(model)
    if found := hit([ending], against):
        named = ", ".join(sorted(known - {ending}))
        return (
            f"{ending} of a {_kind(model)} {against[found[0]]}; an adapter there would not act. Name some of {named}."
        )
    if hit([ending], expert_parameters(model)):
        return f"{ending} is no layer here but a tensor with all experts. Leave it out, and set adapter.experts=true."
    embeddings = [name for name, module in base_modules(model) if isinstance(module, nn.Embedding)]
    if hit([ending], embeddings):
        return (
            f"{ending} is an embedding, and adapters are put on linear layers. Leave it out, or train all weights with "
            "adapter.method=full."
        )
    if not _is_tied(model):
        known |= {name.rpartition(".")[2] for name in _head_names(model)}
    return unknown_name("layer", ending, known)


def coverage(model: nn.Module, targets: Sequence[str], experts: Sequence[str] = ()) -> str:
    """`80% of the decoder's weights`: the share that these targets adapt, and that of experts without an adapter.

    The decoder's weights are all matrices, but for embeddings, the head and what belongs to images and sound.
    """
    outside = {id(p) for m in (_head(model), *_embeddings(model)) if m is not None for p in m.parameters()}
    sizes = {
        name: numel(p)
        for name, p in base_parameters(model)
        if p.ndim > 1 and id(p) not in outside and not any(part in _VISION for part in name.split("."))
    }
    total = sum(sizes.values())
    names = {f"{layer}.weight" for layer in hit(targets, [n.removesuffix(".weight") for n in sizes])}
    taken = sum(size for name, size in sizes.items() if name in names or hit(experts, [name]))
    share = f"{percent(taken, total)} of the decoder's weights"
    left = sum(sizes[name] for name in expert_parameters(model) if not hit(experts, [name]))
    return share if not left else f"{share} (its experts, {percent(left, total)}, get none without adapter.experts)"


def percent(part: int, whole: int) -> str:
    """`12.5%`, and 100% or 0% only where it is that."""
    share = 100 * part / max(1, whole)
    return f"{share:.0f}%" if share in (0, 100) else f"{min(99.9, max(0.1, share)):.3g}%"


def numel(parameter: Any) -> int:
    """Number of weights in a parameter: a 4-bit one packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(math.prod(state.shape)) if state is not None else int(parameter.numel())


def _embeddings(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def layers_for_roles(model: nn.Module, roles: Sequence[str], whose: str) -> tuple[list[str], str]:
    """(name endings in this architecture, how they were found) for layer names of Llama, such as a preset's.

    Raises: AdapterError when none of the roles exists here.
    """
    kind, layers = _kind(model), linear_layers(model)
    notes: list[str] = []
    found: list[str] = []
    for role in roles:
        name = _first(ROLES.get(role, (role,)), layers)
        if name is None:
            notes.append(f"{role} has no counterpart")
            continue
        if name != role:
            notes.append(f"{role} is in {name}")
        found.append(name)
    if not found:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise AdapterError(
            f"adapter.target_modules: a {kind} has none of {whose} layers {', '.join(roles)}. "
            f"Name some of {', '.join(known)}, or set adapter.target_modules=auto."
        )
    return sorted(set(found)), "; ".join([f"{whose} layers", *([f"in a {kind} {', '.join(notes)}"] if notes else [])])


def feed_forward_output(model: nn.Module) -> str:
    """Name ending of the last layer of the feed-forward part."""
    return _first(ROLES["down_proj"], linear_layers(model)) or "down_proj"


def _first(endings: Iterable[str], layers: Sequence[str]) -> str | None:
    return next((ending for ending in endings if hit([ending], layers)), None)


def _kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def hit(endings: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that PEFT matches with these endings."""
    wanted = set(endings)
    after_dot = tuple(f".{ending}" for ending in wanted)
    return [name for name in names if name in wanted or name.endswith(after_dot)]


def _without_strays(model: nn.Module, endings: list[str], layers: Sequence[str]) -> list[str]:
    """The endings, or full names where an ending would also match a head, a vision tower or no linear layer."""
    everything = [name for name, _ in base_modules(model)]
    return endings if set(hit(endings, everything)) == set(layers) else sorted(layers)
