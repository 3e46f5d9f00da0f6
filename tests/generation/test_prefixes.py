"""Blocks of the key/value pool, and the tree of kept prefixes: counts that hold after any sequence of calls."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inlay.generation import prefixes
from inlay.generation.blocks import Pool, blocks_for
from inlay.generation.prefixes import Prefixes

SALTS, ADAPTERS = st.sampled_from([b"", b"one", b"two"]), st.sampled_from([None, "a", "b"])
PROMPTS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=11).map(tuple)


class Blocks(RuleBasedStateMachine):
    """Answers that come and go; blocks of four positions. Each block remembers what was computed into it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(12)
        self.tree = Prefixes(self.pool)
        self.live: list[tuple[bytes, str | None, tuple[int, ...], list[int]]] = []
        self.content: dict[int, Any] = {}

    @rule(salt=SALTS, adapter=ADAPTERS, prompt=PROMPTS)
    def begin(self, salt: bytes, adapter: str | None, prompt: tuple[int, ...]) -> None:
        known = self.tree.match(salt, adapter, prompt[:-1])
        assert known.tokens < len(prompt)
        more = blocks_for(len(prompt)) - len(known.blocks)
        self.tree.evict(more - self.pool.free)
        found = [*known.blocks, *([] if known.tail is None else [known.tail])]
        for n, block in enumerate(found):
            same = prompt[n * 4 : min(n * 4 + 4, known.tokens)]
            assert self.content[block][:3] == (salt, adapter, prompt[: n * 4])
            assert self.content[block][3][: len(same)] == same
        if known.tail is not None:
            self.pool.release([known.tail])
        if more > self.pool.free:
            self.pool.release(known.blocks)
            return
        blocks = [*known.blocks, *self.pool.take(more)]
        for n, block in enumerate(blocks[len(known.blocks) :], len(known.blocks)):
            self.content[block] = (salt, adapter, prompt[: n * 4], prompt[n * 4 : n * 4 + 4])
        self.live.append((salt, adapter, prompt, blocks))

    @rule(data=st.data(), keeps=st.booleans())
    def end(self, data: st.DataObject, keeps: bool) -> None:
        if self.live:
            salt, adapter, prompt, blocks = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
            if keeps:
                self.tree.add(salt, adapter, prompt, blocks)
                again = self.tree.match(salt, adapter, prompt)
                assert again.tokens == len(prompt)
                self.pool.release([*again.blocks, *([] if again.tail is None else [again.tail])])
            self.pool.release(blocks)

    @rule(count=st.integers(0, 3))
    def evict(self, count: int) -> None:
        before = self.pool.free
        assert self.tree.evict(count) == self.pool.free - before <= count

    @rule(adapter=st.sampled_from(["a", "b"]))
    def forget(self, adapter: str) -> None:
        self.tree.forget(adapter)
        for salt in (b"", b"one", b"two"):
            assert self.tree.match(salt, adapter, (1, 2)).tokens == self.tree.match(salt, adapter, (2, 2)).tokens == 0

    @invariant()
    def each_block_has_the_holders_that_there_are(self) -> None:
        held = [block for *_, blocks in self.live for block in blocks] + [node.block for node in self.tree._used]
        assert [self.pool.holders(block) for block in range(12)] == [held.count(block) for block in range(12)]
        assert self.pool.free == sum(not self.pool.holders(block) for block in range(12))

    def teardown(self) -> None:
        for *_, blocks in self.live:
            self.pool.release(blocks)
        self.tree.evict(12)
        assert self.pool.free == 12


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "BLOCK", 4)
    monkeypatch.setattr("inlay.generation.blocks.BLOCK", 4)


class TestBlocks(Blocks.TestCase):  # type: ignore[misc, name-defined]
    """Any sequence of begin, end, evict and forget."""


def test_the_longest_unused_goes_first_and_a_parent_after_its_children() -> None:
    pool = Pool(4)
    tree = Prefixes(pool)
    long, other = pool.take(3), pool.take(1)
    tree.add(b"", None, (1,) * 12, long)
    tree.add(b"", None, (2,) * 4, other)
    pool.release([*long, *other])
    pool.release(tree.match(b"", None, (1,) * 8).blocks)
    assert [tree.evict(1), tree.match(b"", None, (1,) * 12).tokens] == [1, 8]
