"""The loop: an answer among others is the answer alone, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from inlay.data.encoding.encoder import Encoder
from inlay.errors import AdapterError, DataError, ModelError
from inlay.generation.admission import PATIENCE_S
from inlay.generation.bank import Bank
from inlay.generation.blocks import BLOCK
from inlay.generation.gain import Gain
from inlay.generation.loop import Limits, Loop
from inlay.generation.plain import PlainForward
from inlay.generation.request import Ask, Event, Sampling
from inlay.generation.work import Work


@pytest.fixture(scope="module")
def gains(model: Any) -> dict[str, dict[str, Gain]]:
    """Three adapters on different modules."""
    drawn = torch.Generator().manual_seed(1)

    def gain(module: Any, rank: int) -> Gain:
        out, into = module.weight.shape
        return Gain(*(torch.randn(shape, generator=drawn) * 0.4 for shape in ((rank, into), (out, rank))))

    sites = {
        "a": "q_proj v_proj",
        "b": "down_proj o_proj",
        "c": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
    }
    return {
        digest: {
            name: gain(module, rank)
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in names.split()
        }
        for rank, (digest, names) in enumerate(sites.items(), 2)
    }


@pytest.fixture
def bank(gains: dict[str, dict[str, Gain]]) -> Bank:
    """The three adapters in memory."""
    found = Bank()
    for digest, of_module in gains.items():
        found.load(digest, of_module)
    return found


class Recorded(PlainForward):
    """Keeps the logits of each sequence of tokens, by adapter, as its blocks hold it."""

    def __init__(self, *arguments: Any) -> None:
        self.seen: dict[tuple[str | None, tuple[int, ...]], Tensor] = {}
        self.content: dict[int, list[int]] = {}
        super().__init__(*arguments)
        self.seen.clear()

    def logits(self, work: Work) -> Tensor:
        found = super().logits(work)
        places = work.wanted_W.tolist()
        for segment in work.segments:
            for place in range(segment.start, segment.stop):
                position = segment.position + place - segment.start
                kept = self.content.setdefault(segment.blocks[position // BLOCK], [])
                kept[position % BLOCK :] = [int(work.ids_T[place])]
                if place in places:
                    whole = (i for block in segment.blocks[: position // BLOCK + 1] for i in self.content[block])
                    self.seen[segment.adapter, tuple(whole)] = found[places.index(place)]
        return found

    def copy_block(self, source: int, target: int, tokens: int) -> None:
        super().copy_block(source, target, tokens)
        self.content[target] = self.content[source][:tokens]


def asks(count: int, seed: int, adapters: tuple[str | None, ...] = (None, "a", "b", "c")) -> list[Ask]:
    """Of all lengths, over the base and three adapters."""
    drawn = random.Random(seed)
    lengths = [drawn.choice([1, 2, 5, 20, 60, 127, 128, 129, 180]) for _ in range(count)]
    return [
        Ask(
            tuple(drawn.randrange(4, 400) for _ in range(length)),
            Sampling(drawn.randrange(1, 9), drawn.choice([0.0, 1.0]), seed=n, ignore_eos=True),
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


def require_empty(loop: Loop, bank: Bank) -> None:
    """Nothing of an answer is left, but what the prefix cache keeps."""
    state = loop.state()
    assert (state.running, state.waiting, state.queued_tokens, state.blocks_used) == (0, 0, 0, 0)
    assert loop._pool.free + state.blocks_kept == state.blocks
    assert not any(bank.holders(digest) for digest in ("a", "b", "c"))


def test_answers_that_come_and_go_at_random_have_the_bits_that_each_has_alone(
    model: Any, encoder: Encoder, bank: Bank
) -> None:
    wanted = asks(12, seed=0)
    alone = Recorded(model, 32, bank)
    expected = []
    for ask in wanted:
        loop = Loop(alone, encoder, bank)
        row = loop.add(ask)
        expected.append(answered(loop.drain())[row])
    assert len({tuple(ids) for ids in expected}) > 6
    for step_tokens in (16, 1000):
        together = Recorded(model, 32, bank)
        loop = Loop(together, encoder, bank, Limits(rows=6, adapters=2, step_tokens=step_tokens))
        drawn, events, rows = random.Random(step_tokens), [], []
        for ask in wanted:
            rows.append(loop.add(ask))
            for _ in range(drawn.randrange(3)):
                events += loop.step()
        events += loop.drain()
        found = answered(events)
        assert [found[row] for row in rows] == expected
        require_same(together.seen, alone.seen)
        require_empty(loop, bank)


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


def told(loop: Loop, *wanted: Ask) -> list[tuple[list[int], int]]:
    """(ids, tokens found in the cache) of asks, one after the other."""
    found = []
    for ask in wanted:
        row = loop.add(ask)
        events = [event for event in loop.drain() if event.row == row]
        found.append(([i for event in events for i in event.ids], events[0].cached_tokens))
    return found


def test_a_prompt_that_begins_like_an_earlier_one_has_the_bits_that_it_has_alone(
    model: Any, encoder: Encoder, bank: Bank
) -> None:
    drawn = random.Random(7)
    common = [drawn.randrange(4, 400) for _ in range(200)]
    prompts = [tuple(common[:cut] + [drawn.randrange(4, 400) for _ in range(more)]) for cut, more in (
        (200, 20), (200, 1), (200, 0), (128, 30), (90, 60), (128, 1), (128, 0), (200, 45), (50, 0),
    )]  # fmt: skip
    for adapter in (None, "c"):
        cold, warm = Recorded(model, 16, bank), Recorded(model, 16, bank)
        loop = Loop(warm, encoder, bank)
        found = told(loop, *(Ask(prompt, Sampling(max_new_tokens=3), adapter) for prompt in prompts))
        alone = [
            told(Loop(cold, encoder, bank), Ask(prompt, Sampling(max_new_tokens=3), adapter))[0] for prompt in prompts
        ]
        assert [ids for ids, _ in found] == [ids for ids, _ in alone]
        assert [hit for _, hit in found] == [0, 200, 199, 128, 90, 128, 127, 200, 49]
        require_same(warm.seen, cold.seen)
        assert loop.state().prefix_hits_tokens == sum(hit for _, hit in found)


def test_a_pool_of_one_answer_gives_them_one_after_another_though_they_begin_alike(
    model: Any, encoder: Encoder
) -> None:
    loop = Loop(PlainForward(model, 1), encoder)
    for prompt in ((5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 7, 8)):
        loop.add(Ask(prompt, Sampling(max_new_tokens=4)))
    for _ in range(40):
        loop.step()
    assert not loop.live


def test_a_prefix_is_found_by_its_own_principal_and_adapter_alone(model: Any, encoder: Encoder, bank: Bank) -> None:
    prompt = tuple(random.Random(1).randrange(4, 400) for _ in range(150))
    keys = [(b"one", None), (b"two", None), (b"one", "a"), (b"one", "b"), (b"two", "b")]
    forward = Recorded(model, 32, bank)
    loop = Loop(forward, encoder, bank)
    for hit in (0, 149):
        found = told(loop, *(Ask(prompt, Sampling(max_new_tokens=4), adapter, salt) for salt, adapter in keys))
        assert [cached for _, cached in found] == [hit] * 5
        assert found[0][0] == found[1][0] != found[2][0] != found[3][0] == found[4][0]
    loop.retire("b")
    bank.load("b", {})
    assert told(loop, Ask(prompt, Sampling(max_new_tokens=4), "b", b"one")) == [(found[0][0], 0)]


def test_cancelled_at_any_time_an_answer_leaves_nothing_behind_and_the_others_as_they_are(
    model: Any, encoder: Encoder, bank: Bank
) -> None:
    wanted, forward = asks(6, seed=3), PlainForward(model, 12, bank)
    expected = [ids for ids, _ in told(Loop(forward, encoder, bank), *wanted)]
    for after in range(0, 12, 2):
        loop = Loop(forward, encoder, bank, Limits(rows=3, step_tokens=40))
        rows = [loop.add(ask) for ask in wanted]
        events = [event for _ in range(after) for event in loop.step()]
        gone = {row for row in rows if row % 2}
        for row in gone:
            loop.cancel(row)
        found = answered(events + loop.drain())
        assert [found[row] for row in rows if row not in gone] == [
            expected[n] for n, row in enumerate(rows) if row not in gone
        ]
        loop.cancel(rows[0])
        require_empty(loop, bank)


def test_nobody_starves_at_the_limit_of_adapters(model: Any, encoder: Encoder, bank: Bank) -> None:
    clock = [0.0]
    loop = Loop(PlainForward(model, 16, bank), encoder, bank, Limits(rows=4, adapters=1), lambda: clock[0])
    short = Sampling(max_new_tokens=8, ignore_eos=True)
    others = {loop.add(Ask((5, 6), short, "a")) for _ in range(2)}
    late, ended = loop.add(Ask((5, 6), short, "b")), set()
    while late not in ended:
        others.add(loop.add(Ask((5, 6), short, "a")))
        clock[0] += 0.5
        ended |= {event.row for event in loop.step() if event.finish}
        assert clock[0] < PATIENCE_S + 2 * 8 * 0.5 + 1
    ended |= {event.row for event in loop.drain() if event.finish}
    assert ended == {late, *others}
    require_empty(loop, bank)


def test_principals_take_turns_by_the_tokens_that_they_were_given(model: Any, encoder: Encoder) -> None:
    loop = Loop(PlainForward(model, 8), encoder, None, Limits(rows=1))
    brief, order = Sampling(max_new_tokens=1), []
    greedy = [loop.add(Ask((5,) * 20, brief, salt=b"greedy")) for _ in range(6)]
    modest = [loop.add(Ask((5,) * 10, brief, salt=b"modest")) for _ in range(3)]
    while loop.live:
        order += ["greedy" if event.row in greedy else "modest" for event in loop.step()]
    assert order == ["greedy", "modest", "modest", "greedy", "modest", "greedy", "greedy", "greedy", "greedy"]
    assert len(modest) == 3


def test_a_retired_adapter_ends_what_it_began_and_begins_nothing(model: Any, encoder: Encoder, bank: Bank) -> None:
    loop = Loop(PlainForward(model, 8, bank), encoder, bank)
    ask = Ask((5, 6, 7), Sampling(max_new_tokens=4, ignore_eos=True), "a")
    ((expected, _),) = told(loop, ask)
    row = loop.add(ask)
    found = loop.step()
    loop.retire("a")
    with pytest.raises(AdapterError, match="not in memory"):
        loop.add(ask)
    assert answered(found + loop.drain())[row] == expected
    assert loop.state().blocks_kept == 0
    assert bank.holders("a") == 0


@pytest.mark.parametrize(
    ("prompt", "says"),
    [((), "no tokens"), ((5,) * 256, "256 tokens fill the context of 256"), ((5, 10**6), "has the id 1000000")],
)
def test_a_prompt_that_cannot_be_answered_is_refused(
    model: Any, encoder: Encoder, prompt: tuple[int, ...], says: str
) -> None:
    loop = Loop(PlainForward(model, 1), encoder)
    with pytest.raises(DataError, match=says):
        loop.add(Ask(prompt))
    with pytest.raises(DataError, match="100 tokens with 128 more need memory for 228; there is some for 128"):
        loop.add(Ask((5,) * 100))
    assert not loop.live
    assert loop.step() == []
