"""The choice of an adapter by the query: a router is fitted and judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.names import library_at
from inlay.errors import InlayError
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.storage import require_writable

if TYPE_CHECKING:
    from inlay.workflows.fit_router import Fitted


class RouterRefused(InlayError):
    """A router that is no better than one adapter alone."""

    def __init__(self, message: str, fitted: Fitted) -> None:
        super().__init__(message)
        self.fitted = fitted


def fit_router(
    names: Sequence[str], out: str | Path = "router.json", *, accept: bool = False, reporter: Reporter | None = None,
    library: str | Path | None = None, folder: str = "results",
) -> Fitted:  # fmt: skip
    """A router of adapters on one base, fitted to the prompts of their training rows, judged on held-out rows, written to `out`.

    Each held-out row is scored under the base and every adapter. The router is better where its losses are lower than those of
    the best of them alone; otherwise nothing is written, unless `accept`.
    Raises: RouterRefused; AdapterError for adapters on different bases; DataError where held-out rows are missing.
    """
    from inlay.workflows.fit_router import fit_router as fit

    path = Path(out)
    require_writable(path.parent)
    fitted = fit(names, library_at(library, folder), folder, reporter or PlainReporter())
    if not (accept or fitted.judgement.wins):
        found = fitted.judgement
        raise RouterRefused(
            f"route: the router is {found.against_best.verdict} against {found.best} alone ({found.against_best.reason}), so "
            f"nothing was written. Serve {found.best}, or write it all the same: --accept.",
            fitted,
        )
    fitted.router.write(path)
    return fitted
