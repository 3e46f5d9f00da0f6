"""Many training sequences as three flat arrays, and their cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from inlay.data.encode import CODE_VERSION, Encoder, Tokens
from inlay.data.types import Example, Source
from inlay.errors import StorageError
from inlay.storage import cache_folder, write_file


@dataclass(frozen=True, slots=True)
class TokenSet:
    """N sequences. Sequence i is `input_ids[offsets[i]:offsets[i+1]]`; it comes from `sources[i]`."""

    input_ids: np.ndarray  # (T,) int32
    weights: np.ndarray  # (T,) float32
    offsets: np.ndarray  # (N+1,) int64
    examples: np.ndarray  # (N,) int32, position of the example each sequence was made from
    sources: tuple[Source, ...]  # (N,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens in each sequence."""
        return np.asarray(np.diff(self.offsets))

    def row(self, i: int) -> Tokens:
        a, b = self.offsets[i], self.offsets[i + 1]
        return Tokens(self.input_ids[a:b], self.weights[a:b], self.sources[i])

    def row_weights(self) -> np.ndarray:
        """(N,) float64 summed token weight of each sequence."""
        running = np.concatenate([[0.0], np.cumsum(self.weights, dtype=np.float64)])
        return np.asarray(running[self.offsets[1:]] - running[self.offsets[:-1]])

    def trained_counts(self) -> np.ndarray:
        """(N,) trained tokens of each sequence."""
        running = np.concatenate([[0], np.cumsum(self.weights > 0)])
        return np.asarray(running[self.offsets[1:]] - running[self.offsets[:-1]])

    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))

    def take(self, rows: Sequence[int] | np.ndarray, limit: int | None = None) -> TokenSet:
        """The named sequences in that order, each with at most its first `limit` tokens."""
        picked = [self.row(int(i)) for i in rows]
        return pack(((int(self.examples[i]), t) for i, t in zip(rows, picked, strict=True)), limit)


def pack(numbered: Iterable[tuple[int, Tokens]], limit: int | None = None) -> TokenSet:
    """A TokenSet of (example position, sequence) pairs."""
    pairs = list(numbered)
    ids = [t.input_ids[:limit] for _, t in pairs]
    weights = [_predicted(t.weights[:limit]) for _, t in pairs]
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    empty_ids, empty_weights = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return TokenSet(
        np.concatenate([empty_ids, *ids]),
        np.concatenate([empty_weights, *weights]),
        offsets,
        np.asarray([n for n, _ in pairs], np.int32),
        tuple(t.source for _, t in pairs),
    )


def _predicted(weights: np.ndarray) -> np.ndarray:
    # nothing stands before the first token, so it is never predicted: a plain document without BOS starts with one
    return np.concatenate([np.zeros(1, np.float32), weights[1:]])


def encode(examples: Sequence[Example], encoder: Encoder, data_key: str, use_cache: bool) -> TokenSet:
    """The examples as ids. `data_key` stands for the file's bytes, format and columns."""
    if not use_cache:
        return pack(encoder.examples(examples))
    key = json.dumps([CODE_VERSION, data_key, encoder.tokenizer_hash, encoder.template_hash, len(examples)])
    path = cache_folder("tokens") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    cached = _cached(path, examples)
    if cached is not None:
        return cached
    tokens = pack(encoder.examples(examples))
    arrays = {name: getattr(tokens, name) for name in _ARRAYS}
    # a cache that cannot be written costs time at the next start, nothing else
    with contextlib.suppress(StorageError):
        write_file(path, save(arrays | {"digest": np.frombuffer(_digest(arrays), np.uint8)}))
    return tokens


_ARRAYS = ("input_ids", "weights", "offsets", "examples")


def _cached(path: Path, examples: Sequence[Example]) -> TokenSet | None:
    """What the file holds; None when it is not there, or not what was written."""
    try:
        arrays = load_file(path)
        if arrays.pop("digest").tobytes() != _digest(arrays):
            return None
        return TokenSet(**arrays, sources=tuple(examples[int(n)].source for n in arrays["examples"]))
    except (SafetensorError, KeyError, TypeError, OSError):
        return None


def _digest(arrays: dict[str, np.ndarray]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(arrays[name].tobytes()).digest() for name in _ARRAYS)).digest()
