"""The split into training and held-out rows: by the content of the prompts, not by the order of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from inlay.data.types import Example, Message, normalised


def prompt_key(example: Example) -> bytes:
    """Digest of the prompt, 16 bytes: the turns before the first answer, or the whole document."""
    turns = [(m.role, normalised(m.content)) for m in example.messages[: prompt_turns(example.messages)]]
    return hashlib.sha256(repr(turns).encode()).digest()[:16]


def prompt_turns(messages: Sequence[Message]) -> int:
    """Number of turns before the first answer; a greeting before the first question is no answer."""
    begun = next((n for n, m in enumerate(messages) if m.role in ("user", "tool")), 0)
    return next((n for n, m in enumerate(messages) if n >= begun and m.role == "assistant"), len(messages))


def as_keys(digests: Iterable[bytes]) -> np.ndarray:
    """(N, 2) uint64 that sort as the digests do."""
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def least(keys: np.ndarray, most: int | None) -> np.ndarray:
    """Positions of at most `most` of these (N, 2) keys, ascending: the lowest, read from behind, where no split looks."""
    few = most is not None and most < len(keys)
    return np.sort(np.lexsort((keys[:, 0], keys[:, 1]))[:most]) if few else np.arange(len(keys))


def by_content(examples: Iterable[Example], eval_fraction: float) -> tuple[list[int], list[int]]:
    """(training positions, held-out positions), each in file order.

    Groups of rows with the same prompt are ordered by digest; the first ones are held out until the share is
    reached, at least one where there are two. The same rows in another order give the same two sets, and no prompt
    is in both.
    """
    train, heldout = by_key(as_keys(prompt_key(example) for example in examples), eval_fraction)
    return train.tolist(), heldout.tolist()


def by_key(keys: np.ndarray, eval_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """`by_content` of rows whose prompts have these (N, 2) keys."""
    count = len(keys)
    order, sizes = _groups(keys)
    wanted = min(round(count * eval_fraction), count - 1)
    chosen, held = np.zeros(len(sizes), bool), 0
    for group, size in enumerate(sizes.tolist()):
        if held >= wanted:
            break
        if held + size <= wanted:
            chosen[group], held = True, held + size
    if not held and len(sizes) > 1:
        chosen[int(np.argmin(sizes))] = True
    heldout = np.zeros(count, bool)
    heldout[order] = np.repeat(chosen, sizes)
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def by_fold(keys: np.ndarray, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """(training positions, held-out positions) of part `part` (from 1) of so many, by these (N, 2) keys of prompts.

    Groups of rows with the same prompt, in the order of their keys, are cut into parts of about equal size. The
    held-out rows of all parts are all rows, each once, and no prompt is in two.
    """
    order, sizes = _groups(keys)
    middles = np.cumsum(sizes) - sizes / 2
    chosen = np.floor(middles * parts / max(1, len(keys))).astype(int) == part - 1
    heldout = np.zeros(len(keys), bool)
    heldout[order] = np.repeat(chosen, sizes)
    return np.flatnonzero(~heldout), np.flatnonzero(heldout)


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows in the order of their keys, how many rows each distinct key has, in that order)"""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    begins = np.ones(len(keys), bool)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    return order, np.diff(np.append(np.flatnonzero(begins), len(keys)))


def leaked(train: np.ndarray, heldout: np.ndarray) -> int:
    """Number of held-out prompts that are also training prompts; both (N, 2) keys."""
    seen = train[np.isin(train[:, 0], heldout[:, 0])]
    known = set(map(tuple, seen.tolist()))
    return sum(tuple(key) in known for key in heldout.tolist())


def draw(count: int, at_most: int, seed: int) -> list[int]:
    """At most `at_most` positions below `count`, drawn by seed, ascending."""
    if count <= at_most:
        return list(range(count))
    return sorted(np.random.default_rng([seed, 0xE7A1]).choice(count, at_most, replace=False).tolist())
