"""The arm of an alias that a user gets: shares of a line of 2^64 places, the user's place on it by a keyed hash.

The same user gets the same arm until the shares change, and then only as many users move as must.
"""

from __future__ import annotations

import hmac
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

PLACES: Final = 1 << 64
"""Of the line."""


class Piece(NamedTuple):
    """Neighbouring places of one arm, up to and without `stop`."""

    start: int
    stop: int
    arm: str

    @property
    def size(self) -> int:
        """Places in it."""
        return self.stop - self.start


def place_of(key: str, secret: bytes) -> int:
    """The place of a user: HMAC-SHA256 of the key, so that nobody without the secret can choose one."""
    return int.from_bytes(hmac.digest(secret, key.encode("utf-8", "surrogatepass"), "sha256")[:8], "big")


@dataclass(frozen=True, slots=True)
class Split:
    """The pieces of the line in order, without a gap."""

    pieces: tuple[Piece, ...]

    @staticmethod
    def of(weights: Mapping[str, float]) -> Split:
        """Each arm has one piece, as long as its share of the weights; in their order."""
        pieces, start = [], 0
        for arm, size in _sizes(weights).items():
            pieces.append(Piece(start, start + size, arm))
            start += size
        return Split(tuple(piece for piece in pieces if piece.size))

    @property
    def shares(self) -> dict[str, float]:
        """The share of each arm that has one."""
        sizes = self._sizes()
        return {arm: size / PLACES for arm, size in sizes.items()}

    def arm(self, place: int) -> str:
        """The arm that owns a place."""
        return self.pieces[bisect_right(self.pieces, place, key=lambda piece: piece.start) - 1].arm

    def changed(self, weights: Mapping[str, float]) -> Split:
        """The split with other weights that moves the fewest places: only from arms that shrink to arms that grow.

        An arm that grows takes first from the end of a neighbour, so that going back gives the earlier split again.
        """
        wanted, now = _sizes(weights), self._sizes()
        change = {arm: wanted.get(arm, 0) - now.get(arm, 0) for arm in {**wanted, **now}}
        pieces = list(self.pieces)
        for taker in [arm for arm in change if change[arm] > 0]:
            while change[taker]:
                at, at_end = _next_source(pieces, taker, change)
                piece = pieces[at]
                size = min(change[taker], -change[piece.arm], piece.size)
                change[taker] -= size
                change[piece.arm] += size
                pieces[at : at + 1] = _cut(piece, size, taker, at_end)
                pieces = _joined(pieces)
        return Split(tuple(pieces))

    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for piece in self.pieces:
            sizes[piece.arm] = sizes.get(piece.arm, 0) + piece.size
        return sizes


def _sizes(weights: Mapping[str, float]) -> dict[str, int]:
    """Places of each arm; all together `PLACES`."""
    total = math.fsum(weights.values())
    assert total > 0, "at least one arm has a weight above 0"
    assert min(weights.values()) >= 0, "no weight is below 0"
    ends = [round(PLACES * (math.fsum(list(weights.values())[: n + 1]) / total)) for n in range(len(weights))]
    return {arm: end - start for arm, start, end in zip(weights, [0, *ends], ends, strict=False)}


def _next_source(pieces: list[Piece], taker: str, change: Mapping[str, int]) -> tuple[int, bool]:
    """(index of the piece that the taker takes from, whether from its end): beside the taker if there is one, else the last."""
    for at, piece in enumerate(pieces):
        if change[piece.arm] < 0:
            if at + 1 < len(pieces) and pieces[at + 1].arm == taker:
                return at, True
            if at and pieces[at - 1].arm == taker:
                return at, False
    return max(at for at, piece in enumerate(pieces) if change[piece.arm] < 0), True


def _cut(piece: Piece, size: int, taker: str, at_end: bool) -> list[Piece]:
    """The piece with `size` places of it given to the taker."""
    middle = piece.stop - size if at_end else piece.start + size
    first, second = (piece.arm, taker) if at_end else (taker, piece.arm)
    parts = (Piece(piece.start, middle, first), Piece(middle, piece.stop, second))
    return [part for part in parts if part.size]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one arm as one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].arm == piece.arm:
            joined[-1] = Piece(joined[-1].start, piece.stop, piece.arm)
        else:
            joined.append(piece)
    return joined
