"""Bases of many families computed step by step: their own logits, and the same bits in any step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from inlay.generation import plain
from inlay.generation.attention import KeyValues
from inlay.generation.blocks import blocks_for
from inlay.generation.plain import PlainForward
from inlay.generation.work import Segment, Work

SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, Any] = {
    "llama": t.LlamaConfig(**SHAPE),
    "mistral, window": t.MistralConfig(**SHAPE, sliding_window=150),
    "qwen2, biases": t.Qwen2Config(**SHAPE),
    "qwen3, norms of heads": t.Qwen3Config(**SHAPE, head_dim=16),
    "gemma2, window and softcaps": t.Gemma2Config(
        **SHAPE, head_dim=16, sliding_window=40, query_pre_attn_scalar=8, attn_logit_softcapping=2.0, layer_types=KINDS
    ),
    "gemma3, window": t.Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=5, layer_types=KINDS),
    "phi3, one matmul for q, k, v": t.Phi3Config(**SHAPE, pad_token_id=0),
    "gpt2, learned positions": t.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "one key head": t.LlamaConfig(**SHAPE | {"num_key_value_heads": 1}),
}


def cut(ids_T: Tensor, *cuts: int) -> Iterator[Work]:
    """A sequence in pieces; the last ones of one token are generated ones."""
    for start, stop in zip((0, *cuts), (*cuts, len(ids_T)), strict=True):
        segment = Segment(0, stop - start, start, range(blocks_for(len(ids_T))), None, stop - start == 1)
        places_T = torch.arange(start, stop)
        yield Work(ids_T[places_T], places_T, (segment,), places_T - start)


@pytest.mark.parametrize(
    ("family", "has_loops"),
    [
        *((family, True) for family in CONFIGS),
        ("mistral, window", False),
        ("gemma2, window and softcaps", False),
        ("one key head", False),
    ],
)
def test_a_base_step_by_step_has_its_own_logits_wherever_a_prompt_is_cut(
    family: str, has_loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_loops:
        monkeypatch.setattr(KeyValues, "fits_loops", lambda self: False)
    torch.manual_seed(0)
    base = t.AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3)
    ids_T = torch.randint(60, (290,))
    forward = PlainForward(base, 3)
    assert forward.facts.is_exact
    assert forward.facts.has_loops == has_loops
    with torch.inference_mode():
        own_TV = base(input_ids=ids_T[None], use_cache=False).logits[0]
    found = [
        torch.cat([forward.logits(work) for work in cut(ids_T, *cuts, 288, 289)])
        for cuts in ((), (128,), (1, 17, 130, 257))
    ]
    assert torch.allclose(found[0], own_TV, atol=1e-4 * float(own_TV.abs().max()))
    assert all(torch.equal(one[:288], found[0][:288]) for one in found)
    assert all(torch.equal(one[288:], found[0][288:]) for one in found)
    assert base.config._attn_implementation != plain._NAME
