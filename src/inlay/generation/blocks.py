"""Blocks of the key/value pool: which are free, and who holds each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BLOCK = 128
"""Positions of one block. Attention goes over keys in such blocks, at fixed places, whatever a step brings."""


def blocks_for(tokens: int) -> int:
    """Blocks that so many positions of one sequence take."""
    return -(-tokens // BLOCK)


class Pool:
    """Numbers of blocks with the count of their holders; a block without any is free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._holders = [0] * size

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def holders(self, block: int) -> int:
        """Number of those who hold the block."""
        return self._holders[block]

    def take(self, count: int) -> list[int]:
        """So many free blocks, each with one holder."""
        assert count <= len(self._free), f"{count} blocks wanted of {len(self._free)}"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for blocks that are held already."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free"
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less; a block without any is free from now on."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free"
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)
