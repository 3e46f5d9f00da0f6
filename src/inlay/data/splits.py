"""Which rows are held out: decided by what they say, not by where they stand."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from inlay.data.types import Example


def prompt_key(example: Example) -> str:
    """Digest of what is asked: the turns before the first answer, or the whole document."""
    asked = []
    for message in example.messages:
        if message.role == "assistant":
            break
        asked.append((message.role, " ".join(message.content.split()).casefold()))
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def by_content(examples: Sequence[Example], eval_fraction: float) -> tuple[list[int], list[int]]:
    """(training positions, held-out positions), each in file order.

    Groups of rows with the same prompt are ordered by digest; the first ones are held out until the share is
    reached, at least one where there are two. The same rows in another order give the same two sets, and no prompt
    stands in both.
    """
    return by_key([prompt_key(example) for example in examples], eval_fraction)


def by_key(keys: Sequence[str], eval_fraction: float) -> tuple[list[int], list[int]]:
    """`by_content` of rows whose prompts have these keys."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for n, key in enumerate(keys):
        groups[key].append(n)
    wanted = min(round(len(keys) * eval_fraction), len(keys) - 1)
    heldout: list[int] = []
    for key in sorted(groups):
        if len(heldout) + len(groups[key]) <= wanted:
            heldout += groups[key]
    if not heldout and len(groups) > 1:
        heldout = groups[min(groups, key=lambda key: (len(groups[key]), key))]
    chosen = set(heldout)
    return [n for n in range(len(keys)) if n not in chosen], sorted(heldout)


def leaked(train: Iterable[Example], heldout: Iterable[Example]) -> int:
    """How many held-out examples ask what a training row asks too."""
    asked = {prompt_key(example) for example in train}
    return sum(prompt_key(example) in asked for example in heldout)


def draw(count: int, at_most: int, seed: int) -> list[int]:
    """At most `at_most` positions below `count`, drawn by seed, ascending."""
    if count <= at_most:
        return list(range(count))
    return sorted(np.random.default_rng([seed, 0xE7A1]).choice(count, at_most, replace=False).tolist())
