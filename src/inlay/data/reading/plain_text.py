"""Plain text to rows: documents parted by empty lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from inlay.data.types import Row, Source
from inlay.errors import DataError


def text_rows(lines: Iterable[tuple[int, str]], path: str) -> Iterator[Row]:
    """A row `{"text": …}` for each stretch of lines that are not blank; it names the line where it begins.

    Raises: DataError for JSON lines.
    """
    document: list[str] = []
    first = 0
    for number, text in lines:
        line = text.removesuffix("\n").removesuffix("\r")
        if line.strip():
            if not document:
                if not first and _is_json_object(line):
                    raise DataError(f"{path}:{number}: the content is JSON lines, not plain text. Name it .jsonl.")
                first = number
            document.append(line)
        elif document:
            yield Row({"text": "\n".join(document)}, Source(path, first))
            document = []
    if document:
        yield Row({"text": "\n".join(document)}, Source(path, first))


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
