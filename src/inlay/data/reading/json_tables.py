"""The rows inside one JSON object: a list of them, a table as pandas and datasets write it, or the object itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from inlay.errors import DataError
from inlay.typed_json import JsonObject

ROW_LISTS: Final = frozenset({
    "messages", "conversations", "contents", "prompt", "completion", "tools", "functions", "instances",
    "chosen", "rejected", "preferred_output", "non_preferred_output",
})  # fmt: skip
"""Fields of one row that hold lists of objects, so such a list is not the list of rows."""

_SPLITS: Final = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})


def rows_within(value: JsonObject, place: str) -> list[Any]:
    """The rows of the one object in a .json file.

    Raises: DataError where they may be several lists, or a table that may be read in more than one way.
    """
    if set(value) == {"columns", "index", "data"}:  # pandas, orient="split"
        return _split(value, place)
    inner = list(value.values())
    if (
        inner
        and all(isinstance(one, list) for one in inner)
        and not any(isinstance(one, dict) for many in inner for one in many)
    ):
        return _transposed({name: dict(enumerate(many)) for name, many in value.items()}, place)
    if inner and all(isinstance(one, dict) for one in inner):
        if all(one and all(map(_is_number, one)) for one in inner):  # pandas, orient="columns"
            return _transposed(value, place)
        if all(map(_is_number, value)):  # pandas, orient="index"
            return inner
        if len(inner) > 1:
            raise DataError(
                f"{place}: the object holds {len(inner)} objects and no list of rows. "
                "Save it as a list of rows (pandas: to_json(orient='records'))."
            )
    return _one_list(value, place)


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit()


def _split(value: JsonObject, place: str) -> list[Any]:
    names, records = value["columns"], value["data"]
    if not (isinstance(names, list) and isinstance(records, list) and all(isinstance(name, str) for name in names)):
        raise DataError(f"{place}: 'columns' must be a list of names and 'data' a list of rows.")
    if len(set(names)) != len(names):
        raise DataError(f"{place}: 'columns' has a name twice. Name every column once.")
    for number, record in enumerate(records, 1):
        if not isinstance(record, list) or len(record) != len(names):
            raise DataError(f"{place}: row {number} of 'data' is not a list of {len(names)} values, one a column.")
    return [dict(zip(names, record, strict=True)) for record in records]


def _transposed(columns: Mapping[str, Mapping[Any, Any]], place: str) -> list[Any]:
    """The rows of a table that is written column by column."""
    (first, keys), *others = ((name, list(column)) for name, column in columns.items())
    for name, theirs in others:
        if theirs != keys:
            raise DataError(
                f"{place}: the columns {first!r} and {name!r} are not of the same rows ({len(keys)} and {len(theirs)}). "
                "Save the table as a list of rows (pandas: to_json(orient='records'))."
            )
    return [{name: column[key] for name, column in columns.items()} for key in keys]


def _one_list(value: JsonObject, place: str) -> list[Any]:
    lists = {
        name: items
        for name, items in value.items()
        if name not in ROW_LISTS and isinstance(items, list) and items and isinstance(items[0], dict)
    }
    if len(lists) > 1:
        what = "splits" if set(lists) <= _SPLITS else "lists of objects"
        raise DataError(
            f"{place}: the object holds {len(lists)} {what} ({', '.join(sorted(lists))}). "
            "Save the one to train on as its own file" + (", and one for data.eval." if what == "splits" else ".")
        )
    return next(iter(lists.values())) if lists else [value]
