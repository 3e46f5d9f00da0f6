"""Prompt tuning: virtual tokens that stand before every sequence, and whose embeddings are all that is trained.

They are put in where the decoder takes its embeddings, and their positions are taken out of what it gives. Loss, logits
and generation therefore see as many positions as there are real tokens, whoever calls the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

NAME: Final = "prompt_embeddings"
"""Of the trained parameter, and of its tensor in PEFT's files."""
_STATE: Final = "_virtual_tokens"


class _State:
    """What is put before the sequences of one model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.is_on, self.was_put = settings, True, False
        self.handles: list[Any] = []


def put_on(model: Any, settings: dict[str, Any], values_NH: Tensor) -> Any:
    """The model with these embeddings of virtual tokens before every sequence; `settings` are PEFT's."""
    state = _State(settings)
    embed = model.get_input_embeddings()
    parameter = nn.Parameter(values_NH.to(embed.weight.device, torch.float32, copy=True))
    model.register_parameter(NAME, parameter)
    setattr(model, _STATE, state)

    def before(decoder: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:  # noqa: ARG001
        if not state.is_on:
            return None
        if given:
            named = named | {"input_ids": given[0]}
        cache = named.get("cache", named.get("past_key_values"))  # transformers 5.24 and later call it cache
        mask_BL, positions_BL = named.get("attention_mask"), named.get("position_ids")
        state.was_put = cache is None or not cache.get_seq_length()
        count = len(parameter)
        if mask_BL is not None:
            named = named | {"attention_mask": torch.cat([mask_BL.new_ones(len(mask_BL), count), mask_BL], 1)}
        if positions_BL is not None:
            positions_BL = positions_BL + count
        if state.was_put:
            tokens_BLH = embed(named["input_ids"])
            prompt_BNH = parameter.to(tokens_BLH.dtype).expand(len(tokens_BLH), -1, -1)
            named = named | {"input_ids": None, "inputs_embeds": torch.cat([prompt_BNH, tokens_BLH], 1)}
            if positions_BL is not None:
                first = torch.arange(count, device=positions_BL.device).expand(len(positions_BL), -1)
                positions_BL = torch.cat([first, positions_BL], 1)
        return (), named | {"position_ids": positions_BL}

    def after(decoder: Any, given: Any, output: Any) -> Any:  # noqa: ARG001
        if state.is_on and state.was_put:
            output.last_hidden_state = output.last_hidden_state[:, len(parameter) :]
        return output

    decoder = model.base_model
    state.handles = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    ]
    return model


def fresh(model: Any, count: int, base_model: str) -> Any:
    """The model with so many new virtual tokens, which start as tokens drawn from the vocabulary by torch's generator."""
    from peft import PromptTuningConfig, TaskType

    weight_VH = model.get_input_embeddings().weight
    config = model.config.get_text_config()
    settings = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=count, token_dim=weight_VH.shape[1], num_transformer_submodules=1,
        num_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        base_model_name_or_path=base_model,
    ).to_dict()  # fmt: skip
    drawn = torch.randint(len(weight_VH), (count,), device="cpu")
    return put_on(model, settings, weight_VH.detach()[drawn.to(weight_VH.device)])


def placeholder(model: Any, settings: dict[str, Any]) -> Tensor:
    """Of the shape that the embeddings must have for this model, without values."""
    width = model.get_input_embeddings().weight.shape[1]
    return torch.empty(int(settings["num_virtual_tokens"]), width, device="meta")


def is_prompted(model: Any) -> bool:
    return hasattr(model, _STATE)


def virtual_tokens(model: Any) -> int:
    """Positions that stand before every sequence of this model."""
    return len(getattr(model, NAME)) if is_prompted(model) else 0


def settings_of(model: Any) -> dict[str, Any]:
    """PEFT's settings of the virtual tokens."""
    return dict(getattr(model, _STATE).settings)


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Inside, the model is its base."""
    state = getattr(model, _STATE)
    state.is_on = False
    try:
        yield
    finally:
        state.is_on = True


def take_off(model: Any) -> Any:
    """The base again, frozen."""
    for handle in getattr(model, _STATE).handles:
        handle.remove()
    delattr(model, _STATE)
    delattr(model, NAME)
    return model.requires_grad_(False).eval()
