"""The longest sequence that is trained: chosen, applied to the rows, and refused where too many are lost."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np

from inlay.config.sections.data import DataConfig
from inlay.data.encoding.token_arrays import TokenSet
from inlay.errors import DataCheckError, DataError, count_shown

SMALL: Final = 200
"""Below so many rows `auto` takes the longest one: 1% of fewer is a single row, and each one counts."""


@dataclass(frozen=True, slots=True)
class TruncationCounts:
    """Numbers of sequences of a set that `data.max_length` left, cut and dropped."""

    kept: int
    cut: int
    dropped: int
    untrainable: int
    """Dropped sequences in which a cut left no trained token."""
    trained_tokens_lost: int

    @property
    def total(self) -> int:
        """Sequences before the limit was applied."""
        return self.kept + self.dropped


def choose_max_length(config: DataConfig, train: TokenSet, heldout: TokenSet, context_length: int) -> tuple[int, str]:
    """(longest sequence in tokens, reason). `auto` looks at the training rows and the held-out rows.

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
    """(length, reason) that keeps nearly all of a set, and all of a small one."""
    if not len(tokens):
        return 0, ""
    if len(np.unique(tokens.examples)) < SMALL:
        return int(tokens.lengths.max()), f"longest of {count_shown(len(tokens), f'{side} sequence')}"
    return int(np.percentile(tokens.lengths, 99, method="higher")), f"99th percentile of {len(tokens)} {side} sequences"


def apply_max_length(tokens: TokenSet, max_length: int, overlong: str) -> tuple[TokenSet, TruncationCounts]:
    """The sequences within the limit, and counts. Longer ones are dropped or cut. Raises: DataError where `overlong` is `error`."""
    too_long = tokens.lengths > max_length
    if overlong == "error" and too_long.any():
        first = int(np.flatnonzero(too_long)[0])
        raise DataError(
            f"{tokens.source(first)}: {tokens.lengths[first]} tokens, longer than data.max_length {max_length} "
            f"({count_shown(int(too_long.sum()), 'row')} in all). Raise it, or set data.overlong to drop or cut."
        )
    if overlong == "cut":
        cut = TokenSet(tokens.parts, tokens.chosen, max_length)
        result = cut.take(np.flatnonzero(cut.trained_counts))
    else:
        result = tokens.take(np.flatnonzero(~too_long))
    shortened = int((too_long & (cut.trained_counts > 0)).sum()) if overlong == "cut" else 0
    dropped = len(tokens) - len(result)
    lost = tokens.trained_tokens - result.trained_tokens
    return result, TruncationCounts(len(result), shortened, dropped, dropped if overlong == "cut" else 0, lost)


def require_enough(config: DataConfig, path: str, kind: str, lengths: TruncationCounts, limit: str) -> None:
    """Raises: DataCheckError where more than `data.max_lost_share` of the rows are cut or dropped."""
    lost = lengths.dropped + lengths.cut
    if lengths.total and lost / lengths.total > config.max_lost_share:
        raise DataCheckError(
            f"{path}: {lost} of {count_shown(lengths.total, f'{kind} row is', f'{kind} rows are')} longer than {limit}; "
            f"{count_shown(lengths.trained_tokens_lost, 'trained token')} would be lost. Raise data.max_length, shorten the rows, "
            f"or allow it with --set data.max_lost_share={min(1.0, round(lost / lengths.total + 0.01, 2))}."
        )
