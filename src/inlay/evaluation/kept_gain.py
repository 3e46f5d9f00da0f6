"""The share of an adapter's gain on held-out rows that a changed form of it keeps: merged, rounded, or of a lower rank.

Shape suffixes: N rows, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from inlay.evaluation.metrics import Array
from inlay.typed_json import JsonObject

_RESAMPLES: Final = 2000
_LEVEL: Final = 0.95
LEAST_ROWS: Final = 8
"""Fewer rows give no interval."""


@dataclass(frozen=True, slots=True)
class KeptGain:
    """Held-out loss of the base, of the adapter, and of a changed form of it, in nats per trained token."""

    base: float
    adapter: float
    other: float
    rows: int
    share: float | None
    """(base - other) / (base - adapter); None where the adapter gains nothing."""
    low: float | None
    high: float | None
    """The 95% interval of the share over resampled rows; None with too few rows, or where the gain may be nothing."""

    def text(self) -> str:
        """`keeps 97.8% of the gain [96.9%, 98.6%]`, or the reason why there is no share."""
        if self.share is None:
            return f"the adapter gains nothing on these {self.rows} rows ({self.base:.4f} → {self.adapter:.4f})"
        interval = f" [{self.low:.1%}, {self.high:.1%}]" if self.low is not None else ""
        return f"keeps {self.share:.1%} of the gain{interval}"

    def to_json(self) -> JsonObject:
        """Losses, share and interval."""
        return {
            "base_loss": self.base, "adapter_loss": self.adapter, "loss": self.other, "rows": self.rows,
            "kept": self.share, "low": self.low, "high": self.high,
        }  # fmt: skip


def kept_gain(base_N: Array, adapter_N: Array, other_N: Array, weight_N: Array, seed: int = 0) -> KeptGain:
    """The share of the gain that is kept, from the summed nll of each row under three models; `weight_N` is that of its tokens."""
    gain_N, kept_N = base_N - adapter_N, base_N - other_N
    total, rows = float(weight_N.sum()), len(weight_N)
    base, adapter, other = (float(side.sum()) / total for side in (base_N, adapter_N, other_N))
    if gain_N.sum() <= 0:
        return KeptGain(base, adapter, other, rows, None, None, None)
    share, low, high = float(kept_N.sum() / gain_N.sum()), None, None
    if rows >= LEAST_ROWS:
        counts_RN = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=_RESAMPLES)
        gain_R = counts_RN @ gain_N
        if (gain_R > 0).mean() > 1 - (1 - _LEVEL) / 2:  # else some resamples divide by nothing
            drawn_R = (counts_RN @ kept_N)[gain_R > 0] / gain_R[gain_R > 0]
            low, high = (float(q) for q in np.quantile(drawn_R, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)))
    return KeptGain(base, adapter, other, rows, share, low, high)
