"""The cost of each model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from inlay.evaluation.costs import HEAD, Bill


def bills_text(bills: Sequence[Bill]) -> list[str]:
    """The cost of each model as a table, and the assumptions; no lines without bills."""
    if not bills:
        return []
    rows = [list(HEAD), *(one.cells() for one in bills)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    table = [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return ["", *table, f"cost: {bills[0].costs.stated}"]
