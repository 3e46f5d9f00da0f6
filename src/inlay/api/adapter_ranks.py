"""The rank of trained adapters: how much one uses, and smaller ones of it in the library.

`library` is its folder; by default that of INLAY_LIBRARY, else `library` beside `folder`, which holds the runs. Torch is
imported by the verbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.names import library_at
from inlay.runs.reporter import PlainReporter, Reporter

if TYPE_CHECKING:
    from inlay.workflows.adapter_library.ranks import RankEvidence
    from inlay.workflows.adapter_library.shrink import Shrunk


def rank_adapter(
    ref: str, *, rows: str | None = None, keep: float = 0.98, page: str | Path | None = None,
    reporter: Reporter | None = None, library: str | Path | None = None, folder: str = "results",
) -> RankEvidence:  # fmt: skip
    """Singular values of each module's change, and the held-out loss with every module cut to R, R/2, … 1.

    `ref` is a library name, a run, `RUN@STEP` or a folder. The losses are on the held-out rows of its run, or on the file
    `rows`; without either there are singular values only. `recommended` is the least rank that keeps the share `keep` of
    the gain by its interval. `page` is an HTML file to write.
    Raises: AdapterError for an adapter that is no sum of low-rank factors, such as DoRA; ConfigError; StorageError.
    """
    from inlay.storage import write_file
    from inlay.workflows.adapter_library.pages import rank_page
    from inlay.workflows.adapter_library.ranks import rank_evidence

    found = rank_evidence(ref, rows, keep, library_at(library, folder), folder, reporter or PlainReporter())
    if page is not None:
        write_file(Path(page), rank_page(found))
    return found


def shrink_adapter(
    ref: str, name: str, *, rank: int | None = None, energy: float | None = None, keep: float | None = None,
    rows: str | None = None, reporter: Reporter | None = None, library: str | Path | None = None,
    folder: str = "results",
) -> Shrunk:  # fmt: skip
    """A smaller form of the adapter `ref` as a new version of `name`.

    By default it is the smallest that keeps the share `keep` (0.98) of the gain, by its interval on held-out rows. Or it has
    the size of `rank`, or keeps the share `energy` of each module's ‖ΔW‖². Where there are rows, of the run or of the
    file `rows`, two forms are measured and the better one is kept: nearest in weights, and nearest in what it adds to the
    outputs of its modules on a quarter of the rows, which does not judge.
    Raises: InlayError where no lower rank keeps the gain, with nothing written; AdapterError; ConfigError; StorageError.
    """
    from inlay.workflows.adapter_library.shrink import ShrinkRequest, shrink

    request = ShrinkRequest(rank, energy, keep, rows)
    return shrink(ref, name, request, library_at(library, folder), folder, reporter or PlainReporter())
