"""Finds end-of-turn tokens that a base never learned: their lm_head rows equal those of unused tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch

_NEAR: Final = 0.1
"""Relative distance of two rows below which they count as equal; trained rows are about 1 apart."""
_MOST: Final = 64
_HEADS: Final = ("lm_head", "embed_out", "output_layer")


def untrained_ends(model: Any, tokenizer: Any, ends: Collection[int]) -> list[int]:
    """The ids of `ends` whose lm_head row equals the rows of two other special or unused tokens.

    An adapter that leaves the head unchanged gives all of these the same logit, so the model cannot learn to end. Empty
    where the head cannot be read.
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.dim() != 2:
        return []
    rows, known = int(weight.shape[0]), len(tokenizer)
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unused = range(known, min(rows, known + _MOST))
    others = [i for i in [*sorted(special)[:_MOST], *unused] if i < rows]
    if len(others) < 3:
        return []
    with torch.no_grad():
        others_NH = weight[torch.tensor(others, device=weight.device)].float()
        found = []
        for end in sorted(end for end in ends if end < rows):
            row_H = weight[end].float()
            scale = torch.maximum(others_NH.norm(dim=1), row_H.norm()).clamp(min=1e-12)
            is_near = ((others_NH - row_H).norm(dim=1) / scale < _NEAR).tolist()
            if sum(near for near, other in zip(is_near, others, strict=True) if other != end) >= 2:
                found.append(end)
    return found


def untrained_ends_warning(
    model: Any, tokenizer: Any, ends: Collection[int], eos_id: int, targets: Collection[str]
) -> str:
    """A warning about ends of answers that cannot be learned, with the remedy; empty where all can.

    `targets` are the modules that are trained: with the head among them every end can be learned.
    """
    if any(name.rpartition(".")[2] in _HEADS for name in targets):
        return ""
    found = untrained_ends(model, tokenizer, ends)
    if not found or set(found) == {eos_id} != set(ends):  # answers end at the template's own token
        return ""
    names = ", ".join(repr(str(tokenizer.convert_ids_to_tokens(i))) for i in found)
    eos = str(tokenizer.convert_ids_to_tokens(eos_id))
    other = f"a template that ends answers with {eos!r} (model.chat_template), " if eos_id not in found else ""
    return (
        f"warning: the base never learned {names}, with which answers end: its row of the head equals those of unused "
        "tokens, and an adapter that leaves the head as it is cannot tell them apart, so answers may not stop. Take the "
        f"base's instruct form, {other}or adapter.method full, which trains the head."
    )
