"""The loop: an answer among others is the answer alone, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from inlay.data.encoding.encoder import Encoder
from inlay.errors import AdapterError, ModelError
from inlay.generation.loop import Limits, Loop
from inlay.generation.plain import PlainForward
from inlay.generation.request import Ask, Event, Sampling
from inlay.generation.work import Work


class DenseAdapters:
    """The simplest bank: the change of each module as a whole matrix."""

    def __init__(self) -> None:
        self.changes: dict[str, dict[str, Tensor]] = {}
        self.held: dict[str, int] = {}

    def sites(self) -> frozenset[str]:
        return frozenset(site for changes in self.changes.values() for site in changes)

    def inputs(self, site: str, x_TI: Tensor, work: Work) -> Tensor:
        return x_TI

    def add(self, site: str, x_TI: Tensor, y_TO: Tensor, work: Work) -> Tensor:
        for segment in work.segments:
            if segment.adapter is not None and site in self.changes[segment.adapter]:
                for place in range(segment.start, segment.stop):
                    y_TO[place] += (self.changes[segment.adapter][site] * x_TI[place]).sum(1)
        return y_TO

    def hold(self, digest: str) -> None:
        if digest not in self.changes:
            raise AdapterError(f"adapter {digest}: is not in memory. Load it first.")
        self.held[digest] = self.held.get(digest, 0) + 1

    def release(self, digest: str) -> None:
        self.held[digest] -= 1


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    found = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32).eval()
    with torch.no_grad():  # flat random logits would make the argmax a matter of rounding
        found.lm_head.weight.mul_(20)
    return found


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(str(tiny_base)))


@pytest.fixture(scope="module")
def bank(model: Any) -> DenseAdapters:
    """Three adapters on different modules."""
    found = DenseAdapters()
    torch.manual_seed(1)
    sites = {
        "a": "q_proj v_proj",
        "b": "down_proj o_proj",
        "c": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
    }
    for digest, names in sites.items():
        found.changes[digest] = {
            name: torch.randn_like(module.weight) * 0.2
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in names.split()
        }
    return found


class Recorded(PlainForward):
    """Keeps the logits of each place of each sequence, by the answer's first blocks."""

    def __init__(self, *arguments: Any) -> None:
        self.seen: dict[tuple[str | None, tuple[int, ...]], Tensor] = {}
        self.ids: dict[int, list[int]] = {}
        super().__init__(*arguments)
        self.seen.clear()
        self.ids.clear()

    def logits(self, work: Work) -> Tensor:
        found = super().logits(work)
        for segment in work.segments:
            kept = self.ids.setdefault(segment.blocks[0], [])
            kept[segment.position :] = work.ids_T[segment.start : segment.stop].tolist()
        places = work.wanted_W.tolist()
        for segment in work.segments:
            if segment.stop - 1 in places:
                key = (segment.adapter, tuple(self.ids[segment.blocks[0]]))
                self.seen[key] = found[places.index(segment.stop - 1)]
        return found


def asks(count: int, seed: int, adapters: tuple[str | None, ...] = (None, "a", "b", "c")) -> list[Ask]:
    """Of all lengths, over the base and three adapters."""
    drawn = random.Random(seed)
    lengths = [drawn.choice([1, 2, 5, 20, 60, 127, 128, 129, 180]) for _ in range(count)]
    return [
        Ask(
            tuple(drawn.randrange(4, 400) for _ in range(length)),
            Sampling(max_new_tokens=drawn.randrange(1, 9), ignore_eos=True),
            adapters[n % len(adapters)],
        )
        for n, length in enumerate(lengths)
    ]


def answered(events: list[Event]) -> dict[int, list[int]]:
    """The ids of each answer."""
    found: dict[int, list[int]] = {}
    for event in events:
        found.setdefault(event.row, []).extend(event.ids)
    return found


def require_same(found: Mapping[Any, Tensor], expected: Mapping[Any, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, logits in found.items():
        assert torch.equal(logits, expected[key]), (key[0], len(key[1]), float((logits - expected[key]).abs().max()))


def test_answers_that_come_and_go_at_random_have_the_bits_that_each_has_alone(
    model: Any, encoder: Encoder, bank: DenseAdapters
) -> None:
    wanted = asks(16, seed=0)
    alone = Recorded(model, 32, bank)
    expected = []
    for ask in wanted:
        loop = Loop(alone, encoder, bank)
        row = loop.add(ask)
        expected.append(answered(loop.drain())[row])
    assert len({tuple(ids) for ids in expected}) > 8
    for step_tokens in (16, 64, 1000):
        together = Recorded(model, 32, bank)
        loop = Loop(together, encoder, bank, Limits(rows=6, step_tokens=step_tokens))
        drawn, events, rows = random.Random(step_tokens), [], []
        for ask in wanted:
            rows.append(loop.add(ask))
            for _ in range(drawn.randrange(3)):
                events += loop.step()
        events += loop.drain()
        found = answered(events)
        assert [found[row] for row in rows] == expected
        require_same(together.seen, alone.seen)
        assert loop.state().blocks_used == 0
        assert not any(bank.held.values())


def test_the_start_shows_that_a_base_can_share_a_step_and_one_that_cannot_is_refused_with_the_reason(
    model: Any, encoder: Encoder
) -> None:
    assert PlainForward(model, 2).facts.is_exact
    shape = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    sinks = GptOssForCausalLM(GptOssConfig(**shape, num_key_value_heads=2, head_dim=8, num_local_experts=2)).eval()
    encoder_too = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    )
    no_attention = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, state_size=4))
    for base, says in (
        (sinks, "takes .*s_aux"),
        (encoder_too, "has an encoder"),
        (no_attention, "layers of linear_attention"),
    ):
        with pytest.raises(ModelError, match=says):
            PlainForward(base.eval(), 2)
