"""Two adapters beside each other. `library` is as in `inlay.api.adapters`. Torch is imported by the verb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.names import library_at
from inlay.errors import ConfigError
from inlay.runs.reporter import PlainReporter, Reporter

if TYPE_CHECKING:
    from inlay.workflows.adapter_library.difference import AdapterDifference


def diff_adapters(
    a: str, b: str, *, answers: bool = False, rows: str | None = None, page: str | Path | None = None,
    reporter: Reporter | None = None, library: str | Path | None = None, folder: str = "results",
) -> AdapterDifference:  # fmt: skip
    """Two adapters compared: facts and settings, weights by module, and behaviour on the golden prompts of the first.

    Each is a library name, a run, `RUN@STEP` or a folder. Weights and behaviour are compared where both are on one base, and
    weights only where both are sums of low-rank factors; `reasons` says why not. `answers` adds what `compare` finds on the
    held-out rows of the first run, or on the file `rows`. `page` is an HTML file to write.
    Raises: AdapterError, RunError for names that mean nothing; ConfigError; StorageError.
    """
    from inlay.storage import write_file
    from inlay.workflows.adapter_library.difference import difference
    from inlay.workflows.adapter_library.pages import difference_page

    if rows is not None and not answers:
        raise ConfigError(f"--rows {rows}: only answers are measured on rows. Add --answers, or leave it out.")
    found = difference(
        a, b, library_at(library, folder), folder, reporter or PlainReporter(), answers=answers, rows=rows
    )
    if page is not None:
        write_file(Path(page), difference_page(found))
    return found
