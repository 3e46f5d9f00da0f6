"""Which layers of a base get an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from inlay.errors import AdapterError, unknown_name

_HEADS = ("lm_head", "embed_out", "classifier", "score", "qa_outputs", "pooler", "predictions")
_VISION = ("vision_tower", "vision_model", "visual", "multi_modal_projector", "embed_vision", "audio_tower")

ROLES: dict[str, dict[str, str]] = {
    "gpt2": {
        "q_proj": "attn.c_attn", "k_proj": "attn.c_attn", "v_proj": "attn.c_attn", "o_proj": "attn.c_proj",
        "up_proj": "mlp.c_fc", "down_proj": "mlp.c_proj",
    },
    "phi3": {
        "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
    },
    "gpt_neox": {
        "q_proj": "query_key_value", "k_proj": "query_key_value", "v_proj": "query_key_value",
        "o_proj": "attention.dense", "up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h",
    },
    "opt": {"o_proj": "out_proj", "up_proj": "fc1", "down_proj": "fc2"},
    "phi": {"o_proj": "self_attn.dense", "up_proj": "fc1", "down_proj": "fc2"},
}  # fmt: skip
"""Model type -> what plays the part of a Llama layer there. A role that is not listed keeps its name, and has no
counterpart where no layer bears it: only gated feed-forwards have a `gate_proj`."""


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers (Conv1D of GPT-2 too) of the language model, without its heads."""
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and not any(part in _HEADS or part in _VISION for part in name.split("."))
    ]


def resolve_targets(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """The shortest list of name endings (else of whole names) that hits the wanted layers and no others.

    Raises: AdapterError when an ending matches no linear layer.
    """
    layers = linear_layers(model)
    if not layers:
        raise AdapterError("adapter.target_modules: this model has no linear layers to adapt.")
    if wanted == "auto":
        return _without_strays(model, sorted({name.rpartition(".")[2] for name in layers}), layers)
    assert not isinstance(wanted, str)
    for ending in wanted:
        if not _hit([ending], layers):
            known = {name.rpartition(".")[2] for name in layers}
            raise AdapterError(f"adapter.target_modules: {unknown_name('layer', ending, known)}")
    return _without_strays(model, sorted(set(wanted)), _hit(wanted, layers))


def layers_for_roles(model: nn.Module, roles: Sequence[str], whose: str) -> tuple[list[str], str]:
    """(name endings in this architecture, how they were found) for layer names in Llama's words, such as a preset's.

    Raises: AdapterError when none of the roles exists here.
    """
    kind = _kind(model)
    names, layers = ROLES.get(kind, {}), linear_layers(model)
    said: list[str] = []
    found: list[str] = []
    for role in roles:
        name = names.get(role, role)
        if not _hit([name], layers):
            said.append(f"{role} has no counterpart")
            continue
        if name != role:
            said.append(f"{role} is in {name}")
        found.append(name)
    if not found:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise AdapterError(
            f"adapter.target_modules: a {kind} has none of {whose} layers {', '.join(roles)}. "
            f"Name some of {', '.join(known)}, or set adapter.target_modules=auto."
        )
    return sorted(set(found)), "; ".join([f"{whose} layers", *([f"in a {kind} {', '.join(said)}"] if said else [])])


def feed_forward_output(model: nn.Module) -> str:
    """The name ending of the layer that the feed-forward part ends with."""
    return ROLES.get(_kind(model), {}).get("down_proj", "down_proj")


def _kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _hit(endings: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that PEFT takes for these endings."""
    wanted = tuple(endings)
    return [name for name in names if name in wanted or name.endswith(tuple(f".{ending}" for ending in wanted))]


def _without_strays(model: nn.Module, endings: list[str], layers: Sequence[str]) -> list[str]:
    """The endings, or whole names where an ending would also hit a head, a vision tower or no linear layer."""
    everything = [name for name, _ in model.named_modules()]
    return endings if set(_hit(endings, everything)) == set(layers) else sorted(layers)
