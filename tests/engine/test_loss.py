"""The loss of a batch is the weighted sum that a hand would write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from inlay.data.batches import collate
from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.data.types import Source
from inlay.engine.lm_head import head_of
from inlay.engine.loss import autocast, causal_loss, score_rows, takes_logits_to_keep

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
         "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64, "resid_pdrop": 0.0}
FAMILIES = {"LlamaConfig": SMALL, "Qwen2Config": SMALL, "Gemma2Config": SMALL, "GPT2Config": GPT2}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, family)(**FAMILIES[family])
    return AutoModelForCausalLM.from_config(config).float().eval()


def rows() -> TokenSet:
    random = np.random.default_rng(0)
    weights = [[0, 0, 0, 1, 1, 1], [0, 0.5, 0, 0, 1, 0, 0, 0.5, 1], [0, 0, 1]]
    return pack(
        (k, TokenizedSequence(random.integers(1, 64, len(w)).astype(np.int32), np.array(w, np.float32), Source("f", k)))
        for k, w in enumerate(weights)
    )


def by_hand(model: Any, tokens: TokenSet, row: int) -> tuple[float, float]:
    """(summed weighted nll, weight) of one row from all its logits."""
    ids = torch.tensor(tokens.row(row).input_ids[None].astype(np.int64))
    logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    weights = tokens.row(row).weights
    total = sum(-w * logprobs[t, ids[0, t + 1]].item() for t, w in enumerate(weights[1:].tolist()))
    return total, float(weights[1:].sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_padded_batch_is_that_of_each_row_by_hand(family: str) -> None:
    model, tokens = model_of(family), rows()
    assert head_of(model) is not None
    with torch.inference_mode():
        nll_B, weight_B, _ = causal_loss(model, collate(tokens, [0, 1, 2], pad_id=0))
        hand = [by_hand(model, tokens, row) for row in range(3)]
    assert nll_B.tolist() == pytest.approx([n for n, _ in hand], rel=1e-6, abs=1e-6)
    assert weight_B.tolist() == [w for _, w in hand]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_in_chunks_has_loss_and_gradient_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(family), collate(rows(), [0, 1, 2], pad_id=0)
    head = model.get_output_embeddings()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        nll_B = causal_loss(model, batch)[0]
        nll_B.sum().backward()
        return nll_B.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    monkeypatch.setattr("inlay.engine.lm_head._FEWEST_ROWS", 2)
    monkeypatch.setattr("inlay.engine.lm_head._LOGITS_AT_ONCE", 0)
    head.weight.requires_grad_(False)  # of GPT-2 and Gemma also the embeddings
    found = head_of(model)
    assert found is not None
    assert not found.is_trained
    chunked = step()
    monkeypatch.setattr("inlay.engine.loss.head_of", lambda model: None)
    whole = step()
    assert chunked[0].tolist() == pytest.approx(whole[0].tolist(), rel=1e-6)
    assert (chunked[1] - whole[1]).norm() <= 1e-6 * whole[1].norm()


def test_a_head_first_seen_under_autocast_leaves_every_weight_its_gradient() -> None:
    model, batch = model_of("LlamaConfig"), collate(rows(), [0, 1, 2], pad_id=0)
    with autocast("cpu", torch.bfloat16):
        nll_B, *_ = causal_loss(model, batch)
    nll_B.sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_no_more_logits_exist_at_once_than_those_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of("Gemma2Config").requires_grad_(False), collate(rows(), [0, 1, 2], pad_id=0)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    monkeypatch.setattr("inlay.engine.lm_head._FEWEST_ROWS", 2)
    monkeypatch.setattr("inlay.engine.lm_head._LOGITS_AT_ONCE", 0)
    largest: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if not func.is_view and isinstance(found, torch.Tensor) and found.shape[-1:] == (64,):
                largest.append(found.numel())
            return found

    head_of(model)
    with Sizes():
        causal_loss(model, batch)[0].sum().backward()
    assert max(largest) == 2 * 64


@pytest.mark.parametrize(
    ("family", "own"),
    [("CohereConfig", {"logit_scale": 0.5}), ("GraniteConfig", {"logits_scaling": 3.0})],
)
def test_logits_that_are_more_than_a_head_are_taken_from_the_model(family: str, own: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, family)(**SMALL | own)).eval().requires_grad_(False)
    assert head_of(model) is None
    tokens = rows()
    nll_B, *_ = causal_loss(model, collate(tokens, [0, 1, 2], pad_id=0))
    assert nll_B.tolist() == pytest.approx([by_hand(model, tokens, row)[0] for row in range(3)], rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_only_where_something_is_trained_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(family), collate(rows(), [0, 1, 2], pad_id=0)
    assert takes_logits_to_keep(model)
    monkeypatch.setattr("inlay.engine.loss.head_of", lambda model: None)
    with torch.inference_mode():
        kept = causal_loss(model, batch)[0]
        plain = model.forward

        def forward(input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            return plain(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

        monkeypatch.setattr(model, "forward", forward)
        assert not takes_logits_to_keep(model)
        full = causal_loss(model, batch)[0]
        monkeypatch.setattr(model, "forward", lambda logits_to_keep, **kw: forward(**kw))
        ignored = causal_loss(model, batch)[0]
    assert kept.tolist() == pytest.approx(full.tolist(), rel=1e-6)
    assert torch.equal(full, ignored)


def test_weights_of_zero_and_one_are_masking_and_the_gradient_is_linear_in_the_weight() -> None:
    model, tokens = model_of("LlamaConfig"), rows()
    batch = collate(tokens, [0], pad_id=0)
    ids = batch.input_ids
    labels = torch.where(batch.weights > 0, ids, -100)
    masked = model(input_ids=ids, labels=labels).loss * 3
    assert causal_loss(model, batch)[0].item() == pytest.approx(masked.item(), rel=1e-6)
    gradients = []
    for factor in (1.0, 0.5):
        model.zero_grad()
        scaled = type(batch)(ids, batch.attention_mask, batch.weights * factor, batch.rows)
        causal_loss(model, scaled)[0].sum().backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    assert torch.allclose(gradients[0], 2 * gradients[1], rtol=1e-6, atol=1e-9)


def test_the_pad_id_changes_no_bit_of_the_loss() -> None:
    model, tokens = model_of("LlamaConfig"), rows()
    with torch.inference_mode():
        losses = [causal_loss(model, collate(tokens, [0, 1, 2], pad_id=pad))[0] for pad in (0, 7)]
    assert torch.equal(*losses)


def test_scores_do_not_depend_on_how_rows_are_shared_out_and_leave_model_and_rng_alone() -> None:
    model, tokens = model_of("GPT2Config").train(), rows()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    together = score_rows(model, tokens, [[1, 0, 2]], 0, "cpu", None)
    single = score_rows(model, tokens, [[0], [1], [2]], 0, "cpu", None)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    assert torch.allclose(together, single, rtol=1e-5)
    assert score_rows(model, tokens, [[2]], 0, "cpu", None)[:, :2].abs().sum() == 0
