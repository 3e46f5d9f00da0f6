"""Excel workbooks to rows, with every cell as the text that a CSV of the sheet would hold."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

from inlay.data.reading.tables import header
from inlay.data.types import OnFault, Row, Source
from inlay.errors import DataError


def workbook_rows(stream: BinaryIO, path: str, on_fault: OnFault | None) -> Iterator[Row]:
    """The rows of the one sheet that holds any; each names its row in the sheet. Raises: DataError."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f'{path}: reading .xlsx needs openpyxl: pip install "inlay[excel]". Or save the sheet as CSV.'
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations that it does not read
            book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
            sheets = {sheet.title: _cells(sheet) for sheet in book.worksheets}
    except Exception as error:  # noqa: BLE001  a damaged workbook shows in a dozen kinds of exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path}:1: not a whole .xlsx workbook ({reason}). Save it again, or as CSV.") from None
    filled = {title: cells for title, cells in sheets.items() if cells}
    if len(filled) > 1:
        raise DataError(
            f"{path}: the workbook has {len(filled)} sheets with rows ({', '.join(filled)}). "
            "Save the one to train on as CSV, or delete the others."
        )
    for cells in filled.values():
        yield from _rows(cells, path, on_fault)


def _cells(sheet: Any) -> list[tuple[int, list[Any]]]:
    """(number, cells) of each row that is not blank, without the blank cells at its end."""
    sheet.reset_dimensions()  # some writers say A1:A1 whatever there is
    found = []
    for number, row in enumerate(sheet.iter_rows(), 1):
        cells = list(row)
        while cells and cells[-1].value in (None, ""):
            cells.pop()
        if cells:
            found.append((number, cells))
    return found


def _rows(cells: list[tuple[int, list[Any]]], path: str, on_fault: OnFault | None) -> Iterator[Row]:
    (first, names), *records = cells
    columns = header([_text(cell) for cell in names], f"{path}:{first}")
    for number, record in records:
        error = _fault(record, columns, f"{path}:{number}")
        if error and on_fault is None:
            raise error
        if error and on_fault:
            on_fault(error)
            continue
        texts = [_text(cell) for cell in record]
        yield Row(dict(zip(columns, texts + [""] * (len(columns) - len(texts)), strict=True)), Source(path, number))


def _fault(record: list[Any], columns: list[str], place: str) -> DataError | None:
    if len(record) > len(columns):
        return DataError(f"{place}: {len(record)} cells where the header has {len(columns)}. Give the column a name.")
    bad = next((n for n, cell in enumerate(record) if cell.data_type == "e"), None)
    if bad is not None:
        fault = f"column {columns[bad]!r} holds the error {record[bad].value}"
        return DataError(f"{place}: {fault}. Mend the formula or write the text.")
    return None


def _text(cell: Any) -> str:
    value = cell.value
    match value:
        case None:
            return ""
        case bool():
            return str(value).upper()
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case datetime.datetime():
            midnight = value.time() == datetime.time()
            return value.date().isoformat() if midnight else value.isoformat(sep=" ")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return str(value)
