"""How long a sequence may be: the limit, what it does to the rows, and whether it leaves enough of them."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np

from inlay.config.settings import DataConfig
from inlay.data.encoding.token_arrays import TokenSet
from inlay.errors import DataCheckError, DataError

SMALL: Final = 200
"""Rows of a set below which `auto` takes the longest: 1% of fewer is a single row, and each one counts."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What `max_length` did to one set of sequences."""

    kept: int
    cut: int
    dropped: int
    untrainable: int
    """Of the dropped: cut to where nothing trained was left."""
    trained_tokens_lost: int

    @property
    def total(self) -> int:
        return self.kept + self.dropped


def choose_max_length(config: DataConfig, train: TokenSet, heldout: TokenSet, context_length: int) -> tuple[int, str]:
    """(the longest sequence that is used, its reason). `auto` serves the training rows and the held-out rows alike.

    Raises: DataError for a `data.max_length` beyond the context.
    """
    if config.max_length != "auto":
        if config.max_length > context_length:
            raise DataError(
                f"data.max_length: {config.max_length} is longer than the base's context of {context_length} tokens."
            )
        return config.max_length, "as set"
    both = [_wanted(tokens, side) for tokens, side in ((train, "training"), (heldout, "held-out"))]
    wanted, reason = max(both, key=itemgetter(0))
    if wanted <= context_length:
        return max(8, wanted), reason
    return context_length, f"the base's context; the {reason} is {wanted}"


def _wanted(tokens: TokenSet, side: str) -> tuple[int, str]:
    """(length, what it is) that loses next to nothing of a set: of a small one nothing at all."""
    if not len(tokens):
        return 0, ""
    if len(np.unique(tokens.examples)) < SMALL:
        return int(tokens.lengths.max()), f"longest of {len(tokens)} {side} sequences"
    return int(np.percentile(tokens.lengths, 99, method="higher")), f"99th percentile of {len(tokens)} {side} sequences"


def apply_max_length(tokens: TokenSet, max_length: int, overlong: str) -> tuple[TokenSet, Lengths]:
    """The sequences that fit, with those that do not dropped or cut, and an account. Raises: DataError on `error`."""
    too_long = tokens.lengths > max_length
    if overlong == "error" and too_long.any():
        first = int(np.flatnonzero(too_long)[0])
        raise DataError(
            f"{tokens.source(first)}: {tokens.lengths[first]} tokens, longer than data.max_length {max_length} "
            f"({int(too_long.sum())} rows in all). Raise it, or set data.overlong to drop or cut."
        )
    if overlong == "cut":
        cut = TokenSet(tokens.parts, tokens.chosen, max_length)
        result = cut.take(np.flatnonzero(cut.trained_counts))
    else:
        result = tokens.take(np.flatnonzero(~too_long))
    shortened = int((too_long & (cut.trained_counts > 0)).sum()) if overlong == "cut" else 0
    dropped = len(tokens) - len(result)
    lost = tokens.trained_tokens - result.trained_tokens
    return result, Lengths(len(result), shortened, dropped, dropped if overlong == "cut" else 0, lost)


def require_enough(config: DataConfig, path: str, kind: str, lengths: Lengths, limit: str) -> None:
    lost = lengths.dropped + lengths.cut
    if lengths.total and lost / lengths.total > config.max_lost_share:
        raise DataCheckError(
            f"{path}: {lost} of {lengths.total} {kind} rows are longer than {limit}; "
            f"{lengths.trained_tokens_lost} trained tokens would be lost. Raise data.max_length, shorten the rows, "
            f"or allow it with --set data.max_lost_share={min(1.0, round(lost / lengths.total + 0.01, 2))}."
        )
