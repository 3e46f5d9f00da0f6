"""Texts as the mean of a base's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from inlay.data.batches import micro_batches
from inlay.data.encoding.encoder import Encoder
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import autocast
from inlay.evaluation.metrics import Array
from inlay.methods.adapter import adapter_disabled
from inlay.models.base import context_length

_DEPTHS = 5
_MOST_TOKENS = 256


def text_embeddings(
    model: Any, encoder: Encoder, texts: Sequence[str], *, batch_size: int, device: str, dtype: torch.dtype | None
) -> Array:
    """(texts, depths, hidden) hidden states at a few depths, averaged over a text's first 256 tokens.

    They are those of the base alone where `model` carries an adapter. An empty text is all zeros.
    """
    most = min(_MOST_TOKENS, context_length(model.config))
    cut = {"add_special_tokens": False, "truncation": True, "max_length": most}
    ids = [encoder.tokenizer(text, **cut).input_ids for text in texts]
    lengths = np.array([len(one) for one in ids])
    shares = micro_batches([n for n, one in enumerate(ids) if one], lengths, batch_size)
    found: dict[int, Array] = {}
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    with adapter_disabled(model), torch.inference_mode(), autocast(device, dtype):
        for picked in batch_groups(model).apart(shares, lengths):
            width = len(ids[picked[0]])
            padded = [ids[n] + [encoder.pad_id] * (width - len(ids[n])) for n in picked]
            mask_BT = torch.tensor([[1] * len(ids[n]) + [0] * (width - len(ids[n])) for n in picked], device=device)
            every = backbone(
                input_ids=torch.tensor(padded, device=device), attention_mask=mask_BT, output_hidden_states=True,
                use_cache=False,
            ).hidden_states  # fmt: skip
            depths = np.unique(np.linspace(0, len(every) - 1, _DEPTHS).astype(int))
            share_BT1 = (mask_BT / mask_BT.sum(1, keepdim=True))[..., None].float()
            means = torch.stack([(every[d].float() * share_BT1).sum(1) for d in depths], 1)
            found |= dict(zip(picked, means.cpu().numpy().astype(np.float64), strict=True))
    shape = next(iter(found.values())).shape if found else (0, 0)
    return np.stack([found.get(n, np.zeros(shape)) for n in range(len(texts))]) if texts else np.zeros((0, *shape))
