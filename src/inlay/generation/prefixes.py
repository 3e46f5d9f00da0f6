"""Beginnings of prompts whose keys and values are kept: a tree of blocks for each principal and adapter.

What computed a block is its key: the principal's salt, the digest of the adapter's weights, the ids of the block, and the
blocks before it. Nothing else can find it. Only tokens of prompts are kept: those of answers are computed by another kernel,
whose sums have another order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from inlay.generation.blocks import BLOCK, Pool

_LOOKED_AT = 32
"""Blocks after the same prefix that are compared token by token, the latest first."""


class Match(NamedTuple):
    """The longest known beginning of a prompt."""

    blocks: list[int]
    """Whole blocks."""
    tail: int | None
    """A block that begins like the rest, to be copied."""
    tail_tokens: int
    """So many of its tokens are the same."""

    @property
    def tokens(self) -> int:
        """Tokens that need not be computed."""
        return len(self.blocks) * BLOCK + self.tail_tokens


class _Node:
    """One block after those of its parents. Only a full one has children."""

    def __init__(self, parent: _Node | None, ids: tuple[int, ...], block: int) -> None:
        self.parent, self.ids, self.block = parent, ids, block
        self.children: dict[tuple[int, ...], _Node] = {}


class Prefixes:
    """The tree. It holds its blocks in the pool; those that nobody else holds are given back, the longest unused first."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._roots: dict[tuple[bytes, str | None], _Node] = {}
        self._used: OrderedDict[_Node, None] = OrderedDict()
        """All nodes, the longest unused first; a child always before its parent."""

    def __len__(self) -> int:
        return len(self._used)

    def match(self, salt: bytes, adapter: str | None, ids: Sequence[int]) -> Match:
        """The longest beginning of the ids that is known for this principal and adapter. Its blocks, the tail too, get a
        holder more."""
        node, path = self._roots.get((salt, adapter)), []
        if node is None:
            return Match([], None, 0)
        at = 0
        while at + BLOCK <= len(ids) and (child := node.children.get(tuple(ids[at : at + BLOCK]))) is not None:
            path.append(child)
            node, at = child, at + BLOCK
        tail, same = _nearest(node, ids[at : at + BLOCK])
        self._touch([*path, tail] if tail else path)
        blocks = [one.block for one in path]
        self._pool.hold([*blocks, tail.block] if tail else blocks)
        return Match(blocks, tail.block if tail else None, same)

    def add(self, salt: bytes, adapter: str | None, ids: Sequence[int], blocks: Sequence[int]) -> None:
        """Keeps the blocks that hold these ids; the last one may be full in part. Known ones stay as they are."""
        node = self._roots.setdefault((salt, adapter), _Node(None, (), -1))
        path = []
        for n, block in enumerate(blocks[: -(-len(ids) // BLOCK)]):
            own = tuple(ids[n * BLOCK : (n + 1) * BLOCK])
            if len(own) < BLOCK and self._is_covered(node, own):
                break
            if own not in node.children:
                node.children[own] = _Node(node, own, block)
                self._pool.hold([block])
                self._used[node.children[own]] = None
            node = node.children[own]
            path.append(node)
        self._touch(path)

    def _is_covered(self, node: _Node, own: tuple[int, ...]) -> bool:
        """Whether a block of this parent begins with these ids; one that they begin with is dropped in their favour."""
        nearest, same = _nearest(node, own)
        if nearest is not None and same == len(nearest.ids) < len(own):
            self._drop(nearest)
        return nearest is not None and same == len(own)

    def evict(self, count: int) -> int:
        """The number of blocks that it freed: up to `count` of those that only the tree holds."""
        freed = 0
        for node in list(self._used) if count > 0 else ():
            if freed == count:
                break
            if not node.children and self._pool.holders(node.block) == 1:
                self._drop(node)
                freed += 1
        self._drop_empty_roots()
        return freed

    def forget(self, adapter: str) -> None:
        """Drops all that this adapter computed."""
        for key in [key for key in self._roots if key[1] == adapter]:
            for node in list(_below(self._roots[key])):
                self._drop(node)
        self._drop_empty_roots()

    def _drop(self, node: _Node) -> None:
        assert node.parent is not None
        del self._used[node]
        del node.parent.children[node.ids]
        self._pool.release([node.block])

    def _drop_empty_roots(self) -> None:
        for key in [key for key, root in self._roots.items() if not root.children]:
            del self._roots[key]

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._used.move_to_end(node)


def _below(node: _Node) -> Iterator[_Node]:
    """All nodes under this one, children before their parents."""
    for child in node.children.values():
        yield from _below(child)
        yield child


def _nearest(node: _Node, ids: Sequence[int]) -> tuple[_Node | None, int]:
    """(the child that shares most of its first tokens with the ids, how many)"""
    best, most, looked = None, 0, 0
    for child in reversed(node.children.values()):
        if not ids or child.ids[0] != ids[0]:
            continue
        same = next(
            (n for n, (a, b) in enumerate(zip(child.ids, ids, strict=False)) if a != b), min(len(child.ids), len(ids))
        )
        if same > most:
            best, most = child, same
        looked += 1
        if looked == _LOOKED_AT:
            break
    return best, most
