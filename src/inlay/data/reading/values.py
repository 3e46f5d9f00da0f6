"""Values of a row as the formats need them, and the one way to refuse others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from inlay.data.reading.strict_json import listed, shown, value_at
from inlay.data.types import Row
from inlay.errors import DataError, nearest


def refuse_field(row: Row, field: str, value: object, right: str) -> NoReturn:
    """Raises the DataError that every field defect ends in."""
    raise DataError(f"{row.source}: field {field!r} is {shown(value)}. {right}")


def refuse_missing_field(row: Row, where: str, name: str, keys: Collection[str], known: Collection[str]) -> NoReturn:
    """Raises the DataError for a field that `where` lacks; one of `keys` that is not `known` may be a slip."""
    guess = nearest(name, [key for key in keys if key not in known])
    hint = f" Did you mean {name!r} where it says {guess!r}?" if guess else ""
    field = f"{where}.{name}" if where else name
    raise DataError(f"{row.source}: field {field!r} is missing.{hint} Add it; there is {listed(keys)}.")


def text(row: Row, field: str, value: object, *, may_be_empty: bool = False) -> str:
    """`value` unchanged, when it is a string with something in it."""
    if not isinstance(value, str):
        refuse_field(row, field, value, "It must be a string.")
    if not may_be_empty and not value.strip():
        refuse_field(row, field, value, "It must hold some text. Fill it or remove the row.")
    return value


def optional_text(row: Row, field: str) -> str:
    """The string in `field`; "" when it is absent or null."""
    value = row.value.get(field)
    return "" if value is None else text(row, field, value, may_be_empty=True)


def json_in(row: Row, field: str, value: str) -> Any:
    """The JSON value that a string field holds."""
    start = len(value) - len(value.lstrip())
    found, end = value_at(value, start, lambda _: f"{row.source}: field {field!r} holds JSON text")
    if value[end:].strip():
        refuse_field(row, field, value, "It must hold one JSON value and nothing after it.")
    return found
