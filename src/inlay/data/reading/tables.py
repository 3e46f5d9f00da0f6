"""CSV and TSV tables to rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from inlay.data.reading.strict_json import listed
from inlay.data.types import OnFault, Row, Source
from inlay.errors import DataError

Lines = Iterable[tuple[int, str]]
"""Numbered lines with their line breaks."""

_LONE_RETURN: Final = "a lone carriage return outside quotes. Save the file with \\n or \\r\\n line ends."
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')


def csv_rows(lines: Lines, path: str, delimiter: str, on_fault: OnFault | None) -> Iterator[Row]:
    """Rows of a table whose cells may be quoted; each names the line where its record begins. Raises: DataError."""
    _allow_long_cells()
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as reason:
            raise DataError(f"{path}:{line}: {_explain(str(reason), delimiter)}") from None
        if record is None:
            return
        if not record:
            continue
        if not names:
            names = header(record, f"{path}:{line}", delimiter)
        elif len(record) != len(names):
            _fault(_wrong_count(record, names, f"{path}:{line}", delimiter), on_fault)
        else:
            yield Row(dict(zip(names, record, strict=True)), Source(path, line))


def tsv_rows(lines: Lines, path: str, on_fault: OnFault | None) -> Iterator[Row]:
    """Rows of a TSV file, where a line is a row and a quote is text.

    Programs that write CSV with tabs quote a cell that holds a tab, a line break or a quote; these are read as such:
    cells with doubled quotes, records that have as many cells as the header only so, and files whose header is quoted.

    Raises: DataError.
    """
    _allow_long_cells()
    rest = iter(lines)
    first = next(((number, text) for number, text in rest if text.strip("\r\n")), None)
    if first is None:
        return
    number, text = first
    cells = text.rstrip("\r\n").split("\t")
    if all(len(cell) > 1 and _QUOTED.fullmatch(cell) for cell in cells):
        blank = ((n, "\n") for n in range(1, number))
        yield from csv_rows(chain(blank, [first], rest), path, "\t", on_fault)
        return
    if "\r" in text.rstrip("\r\n"):
        raise DataError(f"{path}:{number}: {_LONE_RETURN}")
    names = header([_unquoted(cell) for cell in cells], f"{path}:{number}", "\t")
    yield from _tsv_records(_Ahead(rest), names, path, on_fault)


class _Ahead:
    """Lines that can be looked at before they are taken."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines, self._waiting = lines, list[tuple[int, str]]()

    def take(self) -> tuple[int, str] | None:
        return self._waiting.pop(0) if self._waiting else next(self._lines, None)

    def look(self, n: int) -> str | None:
        """The n-th line that is not taken yet."""
        while len(self._waiting) <= n:
            line = next(self._lines, None)
            if line is None:
                return None
            self._waiting.append(line)
        return self._waiting[n][1]


_MOST_LINES: Final = 1000  # of one quoted record


def _tsv_records(lines: _Ahead, names: list[str], path: str, on_fault: OnFault | None) -> Iterator[Row]:
    while (taken := lines.take()) is not None:
        number, text = taken
        line = text.rstrip("\r\n")
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(names) or (_opens(cells[-1]) and _is_torn(lines, len(names))):
            cells = _quoted_record(text, lines, len(names)) or cells
        elif '""' in line:
            cells = [_unquoted(cell) for cell in cells]
        if "\r" in line:
            _fault(DataError(f"{path}:{number}: {_LONE_RETURN}"), on_fault)
        elif len(cells) != len(names):
            _fault(_wrong_count(cells, names, f"{path}:{number}", "\t"), on_fault)
        else:
            yield Row(dict(zip(names, cells, strict=True)), Source(path, number))


def _opens(cell: str) -> bool:
    """Whether a quoted cell would continue in the next line."""
    return cell.startswith('"') and cell.count('"') % 2 == 1


def _is_torn(lines: _Ahead, count: int) -> bool:
    """Whether the next line continues this row."""
    following = lines.look(0)
    return following is not None and len(following.split("\t")) != count


def _quoted_record(text: str, lines: _Ahead, count: int) -> list[str] | None:
    """The cells of the record that begins with this line, where quoting gives as many as there are columns; its further
    lines are taken then."""
    joined, is_open = [text], text.count('"') % 2 == 1
    while is_open and len(joined) <= _MOST_LINES and (following := lines.look(len(joined) - 1)) is not None:
        joined.append(following)
        is_open ^= following.count('"') % 2 == 1
    try:
        records = list(csv.reader(joined, delimiter="\t", strict=True))
    except csv.Error:
        return None
    if len(records) != 1 or len(records[0]) != count:
        return None
    for _ in joined[1:]:
        lines.take()
    return records[0]


def _unquoted(cell: str) -> str:
    """The text of a cell that only a CSV writer makes: in quotes, with those inside doubled."""
    if len(cell) > 2 and cell[0] == '"' and '""' in cell[1:-1] and _QUOTED.fullmatch(cell):
        return cell[1:-1].replace('""', '"')
    return cell


def _allow_long_cells() -> None:
    # The module's own limit of 128 KiB a cell refuses long documents; it can only be set for the process.
    csv.field_size_limit(2**31 - 1)


def _fault(error: DataError, on_fault: OnFault | None) -> None:
    if on_fault is None:
        raise error
    on_fault(error)


def _wrong_count(record: list[str], names: list[str], place: str, delimiter: str) -> DataError:
    way = (
        "A line of a TSV is a row; save text with tabs or line breaks as CSV."
        if delimiter == "\t"
        else f"Quote a cell that contains {delimiter!r} or a line break."
    )
    return DataError(f"{place}: {len(record)} cells where the header has {len(names)} ({listed(names)}). {way}")


def _explain(error: str, delimiter: str) -> str:
    if "unexpected end of data" in error:
        return 'a cell opens with " and is never closed. Close it.'
    if "expected after" in error:
        return f'text between a closing " and the next {delimiter!r}. Double a quote inside a quoted cell ("").'
    if "new-line" in error:
        return _LONE_RETURN
    return f"not a readable table row ({error})."


def header(record: list[str], place: str, delimiter: str = "") -> list[str]:
    """The column names of a table. Raises: DataError for one that is missing or there twice, and where `delimiter` is
    not what parts them."""
    names = [name.strip() for name in record]
    if "" in names:
        raise DataError(
            f"{place}: column {names.index('') + 1} of the header has no name. "
            "Name every column (pandas: to_csv(index=False))."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: the header names {twice!r} twice. Name every column once.")
    other = next((sign for sign in ",;\t|" if sign != delimiter and sign in names[0]), None)
    if delimiter and len(names) == 1 and other is not None:
        raise DataError(
            f"{place}: the header is one column ({names[0][:60]!r}); "
            f"the cells seem to be separated by {other!r}. "
            f"Save the file with {delimiter!r} between cells" + (" or name it .tsv." if other == "\t" else ".")
        )
    return names
