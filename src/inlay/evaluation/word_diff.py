"""Words of a text that another text lacks, to colour two answers beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher

_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
_NONE: tuple[str, ...] = ()
_MOST_WORDS = 1500
"""Longer texts are not aligned: it takes time with the square of their length."""


def marked(text: str, others: Mapping[str, str | None]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The text in runs, each with the names of the others in which its words are missing; spaces go with the run.

    A word is missing where it is not in both texts when they are laid beside each other: order counts. An other of
    None marks nothing.
    """
    pieces = _PIECES.findall(text)
    words = [n for n, piece in enumerate(pieces) if not piece.isspace()]
    spoken = [pieces[n] for n in words]
    lacking: dict[int, list[str]] = {n: [] for n in words}
    for name, other in others.items():
        for n in _unmatched(spoken, other):
            lacking[words[n]].append(name)
    yield from _runs(pieces, {n: tuple(names) for n, names in lacking.items()})


def _unmatched(words: list[str], other: str | None) -> Iterable[int]:
    if other is None:
        return ()
    against = [piece for piece in _PIECES.findall(other) if not piece.isspace()]
    if words == against or max(len(words), len(against)) > _MOST_WORDS:
        return ()
    matcher = SequenceMatcher(None, words, against, autojunk=False)
    shared = {n for block in matcher.get_matching_blocks() for n in range(block.a, block.a + block.size)}
    return (n for n in range(len(words)) if n not in shared)


def _runs(pieces: list[str], lacking: Mapping[int, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    run, kind = "", _NONE
    for n, piece in enumerate(pieces):
        # a space is marked as both words beside it are
        here = lacking[n] if n in lacking else tuple(name for name in kind if name in lacking.get(n + 1, ()))
        if here != kind and run:
            yield run, kind
            run = ""
        run, kind = run + piece, here
    if run:
        yield run, kind
