"""A data file to examples, in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

from inlay.data import formats, sources
from inlay.data.detection import PREVIEW, DetectedFormat, detect
from inlay.data.types import Example


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A whole file, read."""

    examples: tuple[Example, ...]
    format: str
    why: str
    """How the format was found, in one line."""
    hash: str
    """Hex sha256 of the file's bytes."""


def read_examples(path: str, format: str = "auto", columns: Mapping[str, str] | None = None) -> ReadResult:  # noqa: A002
    """Every example of a file. `columns` maps a field of the format to the file's name for it.

    Raises:
        DataError: the file is damaged, no format fits, or a row cannot be trained on.
    """
    sha = hashlib.sha256()
    found, examples = stream_examples(path, format, columns, sha)
    return ReadResult(tuple(examples), found.name, found.why, sha.hexdigest())


def stream_examples(
    path: str,
    format: str = "auto",  # noqa: A002
    columns: Mapping[str, str] | None = None,
    sha: sources.Hash | None = None,
) -> tuple[DetectedFormat, Iterator[Example]]:
    """The format and the examples one by one; only the rows that decide the format are held at once.

    Raises:
        DataError: as `read_examples`, for a row when the iterator reaches it.
    """
    if format != "auto":
        formats.named(format)
    if columns:
        formats.check_columns(columns, format)
    rows = sources.rows(path, sha)
    if columns:
        rows = (formats.rename(row, columns) for row in rows)
    if format == "auto":
        first = list(islice(rows, PREVIEW))
        found = detect(first)
        rows = chain(first, rows)
    else:
        found = DetectedFormat(format, "named by the caller")
    chosen = formats.FORMATS[found.name]
    return found, (chosen.parse(row) for row in rows)
