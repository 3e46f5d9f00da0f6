"""A router and its judgement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inlay.evaluation.verdict import Difference
    from inlay.workflows.fit_router import Fitted


def fitted_text(fitted: Fitted) -> str:
    """Losses with and without the router, its verdict, and where it sent the rows."""
    found = fitted.judgement
    trained = ", ".join(f"{count:,} prompts of {name}" for name, count in fitted.training_rows.items())
    lines = [f"A router fitted to {trained}; judged on {found.rows} held-out rows that it was not fitted to.", ""]
    width = max(len("best for each row"), *map(len, found.losses))
    lines += [f"{'loss under':<{width}}", f"{'the router':<{width}}{found.routed:>9.4f}"]
    lines += [f"{name:<{width}}{loss:>9.4f}" for name, loss in found.losses.items()]
    lines += [f"{'best for each row':<{width}}{found.oracle:>9.4f}", ""]
    lines.append(f"the router against {found.best} alone: {_shown(found.against_best)}")
    lines.append(f"the router against the best for each row: {_shown(found.against_oracle)}")
    lines += ["", *_table(found.confusion), ""]
    lines.append(f"{found.general_stay:.0%} of {found.general_rows} general texts stay with the base")
    lines.append(
        f"a query takes {1e6 * found.query_s:.0f} µs; an adapter must be {fitted.router.threshold:.0%} probable"
    )
    return "\n".join(lines)


def _shown(difference: Difference) -> str:
    ends = "" if difference.interval is None else " [{:+.4f}, {:+.4f}]".format(*difference.interval)
    return f"{difference.difference:+.4f}{ends} {difference.verdict}"


def _table(confusion: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Rows of each origin by where they went."""
    targets = list(next(iter(confusion.values())))
    first = max(len("rows of"), *map(len, confusion))
    widths = [max(8, len(name) + 2) for name in targets]
    head = "".join(f"{name:>{width}}" for name, width in zip(targets, widths, strict=True))
    return [f"{'rows of':<{first}}{head}"] + [
        f"{name:<{first}}" + "".join(f"{row[target]:>{width}}" for target, width in zip(targets, widths, strict=True))
        for name, row in confusion.items()
    ]
