"""JSON text to values, refusing what `json.loads` lets through and naming the place of every defect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from inlay.data.reading.json_tables import rows_within
from inlay.data.types import OnFault, Row, Source
from inlay.errors import DataError
from inlay.strict_json import DECODER, RefusedJson
from inlay.typed_json import JsonObject

Where = Callable[[int], str]
"""Character position in a text to the `file:line` that an error names."""

_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def skip_space(text: str, at: int) -> int:
    """The position of the next character that is not JSON white space."""
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def value_at(text: str, at: int, where: Where) -> tuple[Any, int]:
    """The JSON value that starts at `at`, and the position after it.

    Raises:
        DataError: not JSON, a duplicate key, NaN or infinity, half a surrogate pair, or too deep.
    """
    try:
        value, end = DECODER.raw_decode(text, at)
        if "\\u" in text and _SURROGATE.search(text, at, end):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise DataError(f"{where(error.pos)}: {_explain(text, error)}") from None
    except RefusedJson as error:
        raise DataError(f"{where(at)}: {error}") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{where(at)}: {half} is half of a surrogate pair and stands for no character. "
            "Write the whole pair or the character itself."
        ) from None
    except RecursionError:
        raise DataError(f"{where(at)}: nested too deep to read. A row is a flat object.") from None
    except ValueError as error:
        raise DataError(f"{where(at)}: a number that cannot be read ({error}). Write it as a string.") from None
    return value, end


def _explain(text: str, error: json.JSONDecodeError) -> str:
    """The fault where the decoder stopped, and the way out."""
    at = skip_space(text, error.pos)
    before = text[max(0, error.pos - 200) : error.pos].rstrip()
    found = text[at : at + 20].split("\n")[0]
    column = error.pos - (text.rfind("\n", 0, error.pos) + 1) + 1
    if error.msg.startswith("Unterminated string"):
        return (
            f"a string opened at column {column} is never closed (cut off, or a line break inside it). "
            "Close it; write a line break as \\n."
        )
    if error.msg.startswith("Invalid control character"):
        return (
            f"control character {text[error.pos]!r} inside a string at column {column}. "
            "Write a line break as \\n, a tab as \\t."
        )
    if at >= len(text):
        return "JSON ends before it is complete (cut off, or spread over several lines). Write it whole."
    if (found[0] in "}]" and before.endswith(",")) or re.match(r",\s*[}\]]", text[at : at + 200]):
        return f"trailing comma before the closing bracket at column {column}. Remove the comma."
    if found[0] == "'":
        return f"single quotes at column {column} (got {found!r}). JSON takes double quotes: use json.dumps."
    word = re.match(r"-?[A-Za-z]+", found)
    if word and word[0] in ("True", "False", "None", "undefined", "nan", "inf", "-nan", "-inf"):
        return f"{word[0]} at column {column} is not JSON. Write true, false, null or a finite number."
    if error.msg.startswith(("Invalid \\escape", "Invalid \\uXXXX")):
        return f"unknown escape at column {column} (got {found[:6]!r}). Write a backslash itself as \\\\."
    if error.msg.startswith(("Expecting ',' delimiter", "Expecting ':' delimiter")):
        sign = error.msg[11]
        return f"{sign!r} is missing at column {column} (got {found!r}). Write it or close what is open."
    return f'not JSON at column {column} (got {found!r}). Write one object such as {{"prompt": "..."}}.'


def lines_to_rows(lines: Iterable[tuple[int, str]], file: str, on_fault: OnFault | None = None) -> Iterator[Row]:
    """A row for each line that is not blank. A damaged line goes to `on_fault` where that is given.

    Raises:
        DataError: a line is not exactly one object.
    """
    first = True
    for number, text in lines:
        if (plain := _plain_object(text)) is not None:
            first = False
            yield Row(plain, Source(file, number))
            continue
        line = text.rstrip("\r\n")
        start = skip_space(line, 0)
        if start == len(line):
            continue
        place = f"{file}:{number}"
        if first and line[start] == "[" and not _is_turns(line):
            raise DataError(
                f"{place}: the row is a list (got {line[start : start + 30].rstrip()!r}). "
                "A row is an object; if the file is one JSON array, name it .json."
            )
        first = False
        try:
            value, end = value_at(line, start, _always(place))
            _nothing_after(line, end, place)
            row = _row(value, Source(file, number), "the row")
        except DataError as error:
            if on_fault is None:
                raise
            on_fault(error)
            continue
        yield row


def _plain_object(line: str) -> JsonObject | None:
    """The object that is all of the line, where nothing has to be looked at twice; else None."""
    if not line.startswith("{") or "\\u" in line:
        return None
    try:
        value, end = DECODER.raw_decode(line)
    except (ValueError, RecursionError):  # the careful reading reports what is wrong
        return None
    return value if line[end:] in ("\n", "\r\n", "") else None


def _always(place: str) -> Where:
    return lambda _: place


def _nothing_after(text: str, end: int, place: str) -> None:
    after = skip_space(text, end)
    if after == len(text):
        return
    rest = text[after : after + 20].split("\n")[0]
    if rest[0] == "{":
        raise DataError(f"{place}: two objects on one line (the second is {rest!r}). Put each on its own line.")
    if rest.rstrip() == ",":
        raise DataError(f"{place}: a comma after the object. JSON lines have none; remove it.")
    raise DataError(f"{place}: text after the object (got {rest!r}). One line holds one object and nothing else.")


_TURN_KEYS: Final = (("contents", {"role", "parts"}), ("messages", {"role"}), ("conversations", {"from"}))
"""(field, the keys of every turn in it) of each way to write turns."""


def turns_field(value: Any) -> str | None:
    """The field that a list of turns would stand in, if the value is one."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return next((name for name, keys in _TURN_KEYS if all(t.keys() >= keys for t in value)), None)
    return None


def _is_turns(line: str) -> bool:
    """Whether all of a line is a list of turns."""
    try:
        value, end = value_at(line, skip_space(line, 0), str)
    except DataError:
        return False
    return skip_space(line, end) == len(line) and turns_field(value) is not None


def _row(value: Any, source: Source, what: str) -> Row:
    if field := turns_field(value):
        return Row({field: value}, source)
    if not isinstance(value, dict):
        raise DataError(f'{source}: {what} is {shown(value)}. A row is an object: {{"field": "value", ...}}.')
    return Row(value, source)


def document_to_rows(lines: list[tuple[int, str]], file: str) -> Iterator[Row]:
    """The rows of a .json file: an array of objects, an object around one such list, or JSON lines.

    Rows of an array carry their number, not their line; defects of the JSON itself name the line.
    """
    filled = [(number, line) for number, line in lines if line.strip()]
    if len(filled) > 1 and (_is_whole_object(filled[0][1]) or _is_turns(filled[0][1])):
        yield from lines_to_rows(filled, file)
        return
    text = "".join(line for _, line in lines)
    start = skip_space(text, 0)

    def where(at: int) -> str:
        return f"{file}:{text.count(chr(10), 0, min(at, len(text.rstrip()))) + 1}"

    if start == len(text):
        return
    if text[start] == "[":
        elements: Iterable[Any] = _elements(text, start, where)
    else:
        value, end = value_at(text, start, where)
        _nothing_after(text, end, where(skip_space(text, end)))
        if not isinstance(value, dict):
            raise DataError(f"{where(start)}: the file is {shown(value)}. A .json file is an array of objects.")
        elements = rows_within(value, where(start))
    for number, element in enumerate(elements, 1):
        yield _row(element, Source(file, number), f"row {number} of the array")


def _is_whole_object(line: str) -> bool:
    start = skip_space(line, 0)
    if line[start] != "{":
        return False
    try:
        _, end = value_at(line, start, str)
    except DataError:
        return False
    return skip_space(line, end) == len(line)


def _elements(text: str, at: int, where: Where) -> Iterator[Any]:
    """The values of the array that opens at `at` and ends the text."""
    at = skip_space(text, at + 1)
    sign = text[at : at + 1]
    while sign != "]":
        value, end = value_at(text, at, where)
        yield value
        at = skip_space(text, end)
        sign = text[at : at + 1]
        if sign == ",":
            at = skip_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise DataError(f"{where(at)}: trailing comma before the array ends. Remove the comma.")
        elif not sign:
            raise DataError(f"{where(at)}: the array is never closed (cut off). End the file with ']'.")
        elif sign != "]":
            raise DataError(f"{where(at)}: ',' is missing between two rows (got {text[at : at + 20]!r}).")
    after = skip_space(text, at + 1)
    if after != len(text):
        raise DataError(f"{where(after)}: text after the array (got {text[after : after + 20]!r}). Remove it.")


def shown(value: object) -> str:
    """A value as an error names it: its JSON type and the start of what it holds."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"number {_short(repr(value) if abs(value) < 1e30 else float_text(value))}"
        case str() if not value:
            return "an empty string"
        case str() if not value.strip():
            return f"only white space ({_short(repr(value[:40]))})"
        case str():
            return f"string {_short(repr(value[:60]))}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {_short(', '.join(map(repr, value)) or 'no fields')}"
        case _:
            return f"a value of type {type(value).__name__}"


def listed(names: Iterable[str]) -> str:
    """Field names as an error names them: on one line, at most twenty."""
    every = [name if name.isprintable() and name else repr(name) for name in names]
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return (", ".join(map(_short, every[:20])) or "no fields") + more


def float_text(value: float) -> str:
    """A very large number in a few characters, whatever its size."""
    try:
        return f"{float(value):.6g}"
    except OverflowError:
        return "of more than 300 digits"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
