"""Many training sequences in flat arrays that may lie on disk, and the views of them that are trained and held out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.types import Source, row_key

_CHUNK: Final = 2048  # sequences joined at once

Shares = tuple[tuple[int, float], ...]
"""(sequences, how often an epoch draws each) of the parts of a mixture."""


def drawn(shares: Shares) -> int:
    """Sequences that an epoch draws."""
    return sum(max(1, round(count * weight)) for count, weight in shares if count)


@dataclass(frozen=True, eq=False)
class TokenArrays:
    """S sequences. Sequence i is `input_ids[offsets[i]:offsets[i+1]]`, made from row `lines[i]` of a file.

    Weights are kept as runs: the tokens from `starts[r]` up to `ends[r]` of a sequence weigh `weights[r]`, all others
    0. Sequence i has the runs from `runs[i]` up to `runs[i+1]`, in order.
    """

    input_ids: np.ndarray  # (T,) uint16 or int32, perhaps a memory-mapped file
    offsets: np.ndarray  # (S+1,) int64
    examples: np.ndarray  # (S,) int32, position of the example each sequence was made from
    files: tuple[str, ...]
    file_of: np.ndarray  # (S,) int16, position in `files`
    lines: np.ndarray  # (S,) int64
    runs: np.ndarray  # (S+1,) int64
    starts: np.ndarray  # (R,) int32
    ends: np.ndarray  # (R,) int32
    weights: np.ndarray  # (R,) float32
    example_count: int
    largest_id: int
    """The largest of `input_ids`; -1 where there are none."""

    def __len__(self) -> int:
        return len(self.lines)

    def sequence(self, i: int, limit: int | None) -> TokenizedSequence:
        """Sequence i with at most its first `limit` tokens."""
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        ids = self.input_ids[a:b][:limit].astype(np.int32)
        weights = np.zeros(len(ids), np.float32)
        for r in range(int(self.runs[i]), int(self.runs[i + 1])):
            weights[self.starts[r] : self.ends[r]] = self.weights[r]
        return TokenizedSequence(ids, weights, self.source(i))

    def source(self, i: int) -> Source:
        """The row that sequence i was made from."""
        return Source(self.files[int(self.file_of[i])], int(self.lines[i]))

    def summed(self, limit: int | None, *, weighed: bool) -> np.ndarray:
        """(S,) how many tokens of each sequence are trained, or their summed weight in float64."""
        starts, ends = (x if limit is None else np.minimum(x, limit) for x in (self.starts, self.ends))
        each = (ends - starts) * self.weights.astype(np.float64) if weighed else (ends - starts).astype(np.int64)
        running = np.concatenate([np.zeros(1, each.dtype), np.cumsum(each)])
        return np.asarray(running[self.runs[1:]] - running[self.runs[:-1]])

    def last_trained(self, limit: int | None) -> np.ndarray:
        """(S,) the id of the last trained token of each sequence; -1 where nothing is trained."""
        begun = self.starts < (np.iinfo(np.int32).max if limit is None else limit)
        running = np.concatenate([[0], np.cumsum(begun)])
        count = running[self.runs[1:]] - running[self.runs[:-1]]
        found = np.full(len(self), -1, np.int64)
        some = np.flatnonzero(count)
        ends = self.ends[self.runs[some] + count[some] - 1].astype(np.int64)
        found[some] = self.input_ids[self.offsets[some] + (ends if limit is None else np.minimum(ends, limit)) - 1]
        return found


@dataclass(frozen=True, eq=False)
class TokenSet:
    """N sequences out of what is stored in `parts`, each with at most its first `limit` tokens. Copies no ids."""

    parts: tuple[TokenArrays, ...]
    chosen: np.ndarray  # (N,) int64, numbered through all parts
    limit: int | None = None
    weights: tuple[float, ...] = ()
    """Draws of each sequence of a part in an epoch; 1 where empty."""

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def shares(self) -> Shares:
        """(number of sequences, draws of each in an epoch) of each part. `chosen` is ascending then."""
        if len(self.weights) < 2:
            return ((len(self), self.weights[0] if self.weights else 1.0),)
        ends = np.searchsorted(self.chosen, [*self._firsts[1:], sum(map(len, self.parts))])
        counts = np.diff(ends, prepend=0).tolist()
        return tuple(zip(counts, self.weights, strict=True))

    @property
    def drawn(self) -> int:
        """Sequences that an epoch draws."""
        return drawn(self.shares)

    @classmethod
    def of(cls, *parts: TokenArrays) -> TokenSet:
        """All sequences of the parts, in order."""
        return cls(parts, np.arange(sum(map(len, parts))))

    @cached_property
    def _firsts(self) -> list[int]:
        return [sum(map(len, self.parts[:p])) for p in range(len(self.parts))]

    def _at(self, i: int) -> tuple[TokenArrays, int]:
        n = int(self.chosen[i])
        p = bisect_right(self._firsts, n) - 1
        return self.parts[p], n - self._firsts[p]

    def _gathered(self, of: Callable[[TokenArrays], np.ndarray]) -> np.ndarray:
        found = [of(part) for part in self.parts]
        return np.asarray((found[0] if len(found) == 1 else np.concatenate(found))[self.chosen])

    def row(self, i: int) -> TokenizedSequence:
        """Sequence i."""
        part, n = self._at(i)
        return part.sequence(n, self.limit)

    def source(self, i: int) -> Source:
        """The row that sequence i was made from."""
        part, n = self._at(i)
        return part.source(n)

    def place(self, i: int) -> tuple[int, int]:
        """(part, the row there, as `DataFile.row_key` calls it) that sequence i was made from."""
        part, n = self._at(i)
        return self.parts.index(part), row_key(int(part.file_of[n]), int(part.lines[n]))

    def rows_of(self, source: Source) -> list[int]:
        """The sequences made from that row."""
        here = self._gathered(
            lambda part: (
                (part.lines == source.line) & np.array([name == source.file for name in part.files], bool)[part.file_of]
            )
        )
        return [int(i) for i in np.flatnonzero(here)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens in each sequence."""
        whole = self._gathered(lambda part: np.diff(part.offsets))
        return whole if self.limit is None else np.minimum(whole, self.limit)

    @cached_property
    def examples(self) -> np.ndarray:
        """(N,) int64 position of each sequence's example, numbered through all parts."""
        firsts = np.concatenate([[0], np.cumsum([part.example_count for part in self.parts])])
        return self._gathered(lambda part: part.examples + firsts[self.parts.index(part)])

    @cached_property
    def row_weights(self) -> np.ndarray:
        """(N,) float64 summed token weight of each sequence."""
        return self._gathered(lambda part: part.summed(self.limit, weighed=True))

    @cached_property
    def trained_counts(self) -> np.ndarray:
        """(N,) int64 trained tokens of each sequence."""
        return self._gathered(lambda part: part.summed(self.limit, weighed=False))

    @property
    def token_count(self) -> int:
        """Tokens of all sequences."""
        return int(self.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all sequences."""
        return int(self.trained_counts.sum())

    @property
    def largest_id(self) -> int:
        """The largest id of all parts; -1 where there are none."""
        return max((part.largest_id for part in self.parts), default=-1)

    def last_trained_ids(self) -> np.ndarray:
        """(N,) int64 the id of the last trained token of each sequence; -1 where nothing is trained."""
        return self._gathered(lambda part: part.last_trained(self.limit))

    def take(self, rows: Sequence[int] | np.ndarray, limit: int | None = None) -> TokenSet:
        """The named sequences in that order, each with at most its first `limit` tokens."""
        limits = [n for n in (self.limit, limit) if n is not None]
        return replace(self, chosen=self.chosen[np.asarray(rows, np.int64)], limit=min(limits, default=None))


def pack(numbered: Iterable[tuple[int, TokenizedSequence]]) -> TokenSet:
    """A TokenSet in memory of (example position, sequence) pairs."""
    kept: list[np.ndarray] = [np.zeros(0, np.int32)]
    packing = Packing(kept.append)
    pairs = iter(numbered)
    while some := list(islice(pairs, _CHUNK)):
        packing.add(joined(some))
    arrays = packing.arrays()
    count = int(arrays["examples"].max(initial=-1)) + 1
    return TokenSet.of(
        TokenArrays(
            np.concatenate(kept), **arrays,
            files=packing.files, example_count=count, largest_id=packing.largest_id,
        )
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Joined:
    """S sequences in flat arrays."""

    ids: np.ndarray  # (T,) int32, or a smaller kind
    arrays: dict[str, np.ndarray]
    """The arrays of a `TokenArrays`, with lengths and counts in place of their running sums (offsets, runs)."""
    files: tuple[str, ...]


def joined(numbered: Sequence[tuple[int, TokenizedSequence]]) -> Joined:
    """(example position, sequence) pairs, at least one, as arrays."""
    sequences, files = [tokens for _, tokens in numbered], dict[str, int]()
    lengths = np.fromiter((len(t.input_ids) for t in sequences), np.int64, len(sequences))
    found = {
        "examples": [n for n, _ in numbered],
        "file_of": [files.setdefault(t.source.file, len(files)) for t in sequences],
        "lines": [t.source.line for t in sequences],
        "lengths": lengths,
    } | _runs(np.concatenate([t.weights for t in sequences]), lengths)
    arrays = {name: np.asarray(values, _KINDS[name]) for name, values in found.items()}
    return Joined(np.concatenate([t.input_ids for t in sequences]), arrays, tuple(files))


class Packing:
    """Joined sequences one behind the other; their ids go to `put`, the rest is gathered."""

    def __init__(self, put: Callable[[np.ndarray], object], files: Sequence[str] = ()) -> None:
        """`files`: those that rows may be from, in their order; others are added as they come."""
        self._put = put
        self._gathered: dict[str, list[np.ndarray]] = {name: [np.zeros(0, kind)] for name, kind in _KINDS.items()}
        self._files = {file: n for n, file in enumerate(files)}
        self.largest_id = -1

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the rows are from."""
        return tuple(self._files)

    def add(self, some: Joined, first: int = 0) -> None:
        """`first` is the position among all examples of the one that is `some`'s number 0."""
        self.largest_id = max(self.largest_id, int(some.ids.max(initial=-1)))
        self._put(some.ids)
        places = np.array([self._files.setdefault(file, len(self._files)) for file in some.files], np.int16)
        moved = {"examples": some.arrays["examples"] + np.int32(first), "file_of": places[some.arrays["file_of"]]}
        for name, values in (some.arrays | moved).items():
            self._gathered[name].append(values)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of a `TokenArrays` besides its ids."""
        whole = {name: np.concatenate(found) for name, found in self._gathered.items()}
        for name, counts in (("offsets", "lengths"), ("runs", "run_counts")):
            whole[name] = np.concatenate([np.zeros(1, np.int64), np.cumsum(whole.pop(counts))])
        return whole


_KINDS: Final = {
    "examples": np.int32, "file_of": np.int16, "lines": np.int64, "lengths": np.int64, "run_counts": np.int64,
    "starts": np.int32, "ends": np.int32, "weights": np.float32,
}  # fmt: skip


def _runs(weights: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The stretches of equal weight above 0 in joined sequences, their places counted from each sequence's start."""
    firsts = np.cumsum(lengths) - lengths
    begins = np.ones(len(weights), bool)
    begins[1:] = weights[1:] != weights[:-1]
    if len(weights):
        firsts_there = firsts[lengths > 0]
        weights[firsts_there] = 0.0  # nothing stands before the first token, so it is never predicted
        begins[firsts_there] = True
        begins[(firsts_there + 1)[firsts_there + 1 < len(weights)]] = True
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(weights))
    trained = weights[starts] != 0
    starts, ends = starts[trained], ends[trained]
    owner = np.searchsorted(firsts, starts, "right") - 1
    return {
        "run_counts": np.bincount(owner, minlength=len(lengths)),
        "starts": starts - firsts[owner],
        "ends": ends - firsts[owner],
        "weights": weights[starts],
    }
