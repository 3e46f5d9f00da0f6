"""The engine of serving computes what transformers computes, and each answer in a mixed step what it computes alone."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.decoders import FAMILIES, decoder
from inlay.engine import cpu_ops, decode_ops
from inlay.errors import ModelError
from inlay.generation.bank import Bank
from inlay.generation.blocks import blocks_for
from inlay.generation.direct import DirectForward, refusal
from inlay.generation.forwards import forward_of
from inlay.generation.gain import Gain
from inlay.generation.plain import PlainForward
from inlay.generation.work import Segment, Work

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its loops run on threads of GNU's OpenMP")
LENGTH = 136
CUTS = (100, *range(124, LENGTH))
"""Two pieces, then generated tokens into a second block."""


@pytest.fixture(autouse=True)
def compiled() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert cpu_ops.reason(dtype) is None
        assert decode_ops.reason(dtype) is None


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    return decoder(family, dtype, max_position_embeddings=256)


def step(forward: Any, *parts: tuple[Tensor, int, int, int, str | None]) -> list[Tensor]:
    """Logits of each part of one step: (ids of a sequence, first, end, its number, adapter); one token is a generated one."""
    segments, ids, places, at = [], [], [], 0
    for ids_T, first, end, number, adapter in parts:
        count = blocks_for(256)
        blocks = list(range(number * count, (number + 1) * count))
        segments.append(Segment(at, at + end - first, first, blocks, adapter, end - first == 1))
        ids.append(ids_T[first:end])
        places.append(torch.arange(first, end))
        at += end - first
    found = forward.logits(Work(torch.cat(ids), torch.cat(places), tuple(segments), torch.arange(at)))
    return list(found.split([segment.stop - segment.start for segment in segments]))


def ids_of(number: int, length: int = LENGTH) -> Tensor:
    return torch.randint(2, 64, (length,), generator=torch.Generator().manual_seed(number))


def in_pieces(forward: Any, number: int, cuts: tuple[int, ...], adapter: str | None = None) -> Tensor:
    ids_T, bounds = ids_of(number), (0, *cuts, LENGTH)
    return torch.cat([step(forward, (ids_T, a, b, number, adapter))[0] for a, b in itertools.pairwise(bounds)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_pieces_and_tokens_after_it_get_the_models_own_logits(family: str) -> None:
    model = model_of(family)
    expected = model(ids_of(0)[None]).logits[0]
    found = in_pieces(DirectForward(model, 4), 0, CUTS)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", ["llama", "gemma2, caps", "qwen3"])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_model_is(family: str) -> None:
    model = model_of(family, torch.bfloat16)
    exact = model_of(family, torch.bfloat16).float()
    wanted = exact(ids_of(0)[None]).logits[0]
    own = float((model(ids_of(0)[None]).logits[0].float() - wanted).norm())
    found = in_pieces(DirectForward(model, 4), 0, CUTS)
    assert float((found - wanted).norm()) < 1.5 * own


def bank_for(model: Any, dtype: torch.dtype) -> Bank:
    """Four adapters: of two ranks, with scaled outputs, with scaled inputs, on the embedding and the head."""
    bank, draw = Bank(dtype), torch.Generator().manual_seed(5)
    linears = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.2

    def gain(module: Any, **more: Any) -> Gain:
        return Gain(random(3, module.in_features), random(module.out_features, 3), **more)

    inner = {name: module for name, module in linears.items() if name != "lm_head"}
    bank.load("a", {name: gain(module) for name, module in inner.items()})
    bank.load("b", {name: gain(module, g_O=1 + random(module.out_features)) for name, module in linears.items()})
    bank.load("c", {name: Gain(h_I=1 + random(module.in_features)) for name, module in inner.items()})
    embed = model.model.embed_tokens
    bank.load("d", {"model.embed_tokens": Gain(random(2, len(embed.weight)), random(32, 2), is_embedding=True)})
    return bank


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float32) for family in FAMILIES), ("llama", torch.bfloat16), ("gemma2, caps", torch.bfloat16)],
)
def test_each_answer_in_a_mixed_step_has_the_bits_that_it_has_alone(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    forward = DirectForward(model, 24, bank_for(model, torch.bfloat16))
    digests = [None, "a", "b", "c", "d", "a"]
    alone, mixed = [], []
    for number, digest in enumerate(digests):
        ids_T = ids_of(number)
        own = (ids_T, 0, 100 + number, number, digest), (ids_T, 100 + number, 101 + number, number, digest)
        alone.append([step(forward, part)[0] for part in own])
    first = step(forward, *[(ids_of(n), 0, 60, n, d) for n, d in enumerate(digests)])
    second = step(forward, *[(ids_of(n), 60, 100 + n, n, d) for n, d in reversed(list(enumerate(digests)))])
    mixed = [torch.cat([a, b]) for a, b in zip(first, reversed(second), strict=True)]
    decoded = step(
        forward, *[(ids_of(n), 100 + n, 101 + n, n, d) for n, d in enumerate(digests)], (ids_of(7), 0, 50, 10, "b")
    )
    for n in range(len(digests)):
        assert torch.equal(mixed[n], alone[n][0]), n
        assert torch.equal(decoded[n], alone[n][1]), n
    assert not torch.equal(decoded[0], decoded[1])


@pytest.mark.parametrize("family", ["phi3, half rope", "gemma3"])
def test_adapters_act_as_in_transformers_modules(family: str) -> None:
    model = model_of(family)
    bank = bank_for(model, torch.float32)
    direct, plain = DirectForward(model, 8, bank), PlainForward(model, 8, bank)
    for digest in "abcd":
        found, expected = (in_pieces(each, 0, (100, LENGTH - 1), digest) for each in (direct, plain))
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_block_that_a_generated_token_begins_holds_nothing_of_its_last_use() -> None:
    model = model_of("llama")
    expected = model(ids_of(0)[None]).logits[0]
    forward = DirectForward(model, 4)
    in_pieces(forward, 0, CUTS)
    with torch.inference_mode():
        for part in (part for both in forward._kept._layers.values() for part in both):
            part.fill_(torch.nan)
    found = in_pieces(forward, 0, (128, 129))  # the piece behind reads the block, in which nothing stands after it
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_it_does_not_know_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert refusal(model) is None
    model.config.hidden_act = "relu"
    with pytest.raises(ModelError, match="does not know the activation relu"):
        DirectForward(model, 4)
    monkeypatch.setattr(decode_ops, "reason", lambda _: "numba is not installed")
    assert refusal(model_of("llama")) == "there are no compiled loops (numba is not installed)"


def test_a_base_takes_its_own_engine_where_that_is_proved_equal_else_transformers_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    assert isinstance(forward_of(model, 4), DirectForward)
    monkeypatch.setattr("inlay.generation.direct.gated", lambda _, both: both.chunk(2, 1)[0].contiguous())
    assert isinstance(forward_of(model, 4), DirectForward), "it was tried before"
    assert isinstance(forward_of(model_of("llama"), 4), PlainForward)


def test_a_weight_that_changes_is_computed_with_and_others_are_packed_once() -> None:
    model = model_of("llama")
    before = in_pieces(DirectForward(model, 4), 0, ())
    assert DirectForward(model, 4)._decoder is DirectForward(model, 4)._decoder
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(2)
    after = in_pieces(DirectForward(model, 4), 0, ())
    assert (after - model(ids_of(0)[None]).logits[0]).abs().max() < 1e-4 * before.abs().max()
    assert not torch.equal(after, before)
