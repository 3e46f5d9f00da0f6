"""Parquet and Arrow tables to rows, without what these containers add: filled-in nulls, label numbers, pandas' index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final

from inlay.data.reading import strict_json
from inlay.data.types import Row, Source
from inlay.errors import DataError
from inlay.typed_json import JsonObject

_Reader = Callable[[Any], Any]
"""Decodes a value of the table."""

_FILE_MAGIC: Final = b"ARROW1"
_STREAM_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
_PANDAS_INDEX: Final = re.compile(r"__index_level_\d+__")
_BATCH_ROWS: Final = 1024


def parquet_rows(stream: BinaryIO, path: str) -> Iterator[Row]:
    """The rows of a parquet file. Raises: DataError."""
    pyarrow = _pyarrow(path, "parquet")
    from pyarrow import parquet

    if not stream.seek(0, os.SEEK_END):
        return
    try:
        file = parquet.ParquetFile(stream)
        yield from _rows(file.schema_arrow, file.iter_batches(_BATCH_ROWS), path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}:1: not a whole parquet file ({_first_line(error)}). Write or copy it again.") from None


def arrow_rows(stream: BinaryIO, path: str) -> Iterator[Row]:
    """The rows of an Arrow file or stream, as datasets' `save_to_disk` writes them. Raises: DataError."""
    pyarrow = _pyarrow(path, "Arrow files")
    from pyarrow import ipc

    size = stream.seek(0, os.SEEK_END)
    if not size:
        return
    stream.seek(0)
    is_file = stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    try:
        if not is_file:
            stream.seek(max(0, size - 8))
            if not stream.read().endswith(
                _STREAM_END
            ):  # a stream that is cut between two batches reads as a shorter one
                raise ValueError("its end mark is missing")
        stream.seek(0)
        if is_file:
            file = ipc.open_file(stream)
            yield from _rows(file.schema, map(file.get_batch, range(file.num_record_batches)), path)
            return
        batches = ipc.open_stream(stream)
        yield from _rows(batches.schema, batches, path)
        if stream.tell() != size:
            raise ValueError(f"something follows its end mark at byte {stream.tell()}")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}:1: not a whole Arrow file ({_first_line(error)}). Write or copy it again.") from None


def _pyarrow(path: str, what: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(f'{path}: reading {what} needs pyarrow: pip install "inlay[parquet]"') from None
    return pyarrow


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _rows(schema: Any, batches: Iterator[Any], path: str) -> Iterator[Row]:
    names = schema.names
    if len(set(names)) != len(names):
        raise DataError(f"{path}:1: two columns have the same name ({strict_json.listed(names)}). Rename one.")
    features = _features(schema.metadata or {})
    index = [name for name in names if _PANDAS_INDEX.fullmatch(name)]
    found = {field.name: _reader(field.type, features.get(field.name)) for field in schema if field.name not in index}
    readers = {name: reader for name, reader in found.items() if reader}
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            for name in index:
                del value[name]
            yield Row(_read(value, readers, path, number), Source(path, number))


def as_written(features: Any) -> Callable[[JsonObject, str, int], JsonObject]:
    """A function of (row, file, line) that decodes rows with these features, as datasets' `to_dict()` gives them."""
    known = _mapping(features)
    readers = {name: reader for name, feature in known.items() if (reader := _reader(None, feature))}

    def read(value: JsonObject, path: str, number: int) -> JsonObject:
        others = {name: _without_nulls for name in value if name not in known}
        return _read(value, readers | others, path, number)

    return read


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _read(value: JsonObject, readers: Mapping[str, _Reader], path: str, number: int) -> JsonObject:
    try:
        for name, reader in readers.items():
            if value.get(name) is not None:
                value[name] = reader(value[name])
    except _ValueError as error:
        raise DataError(f"{path}:{number}: field {name!r}: {error}") from None
    return value


class _ValueError(Exception):
    """A value that its column's own description does not allow."""


def _features(metadata: Mapping[bytes, bytes]) -> JsonObject:
    """The column descriptions that the datasets library keeps in a table, by column; none where there are none."""
    try:
        return _mapping(json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"])
    except (ValueError, LookupError, TypeError):
        return {}


def _mapping(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _reader(arrow_type: Any, feature: Any) -> _Reader | None:
    """The decoder of a column of this Arrow type (None where it is unknown) and feature; None where values need none."""
    kind = _mapping(feature).get("_type")
    if kind == "ClassLabel" and (names := _mapping(feature).get("names")):
        return _label(list(names))
    if kind == "Json" or str(arrow_type).startswith("extension<arrow.json"):
        return _json
    if arrow_type is None:
        return _reader_of_feature(feature)
    from pyarrow import types

    if types.is_struct(arrow_type):
        parts = _struct_features(feature)
        fields = {field.name: _reader(field.type, parts.get(field.name)) for field in arrow_type}
        return _struct({name: reader for name, reader in fields.items() if reader})
    if types.is_map(arrow_type):
        return _pairs(_reader(arrow_type.item_type, None))
    if hasattr(arrow_type, "value_type") and not types.is_dictionary(arrow_type):  # the kinds of list
        return _each(_reader(arrow_type.value_type, _item_feature(feature)))
    return None


def _reader_of_feature(feature: Any) -> _Reader | None:
    if isinstance(feature, list) or _mapping(feature).get("_type") in ("List", "LargeList", "Sequence"):
        item = _item_feature(feature)
        if _mapping(item) and "_type" not in item:  # a list of objects, which older versions give as an object of lists
            parts = {name: _reader_of_feature([part]) for name, part in item.items()}
            return _list_or_struct(_each(_reader(None, item)), _struct({n: r for n, r in parts.items() if r}))
        return _each(_reader(None, item))
    if _mapping(feature) and "_type" not in feature:
        fields = {name: _reader(None, part) for name, part in feature.items()}
        return _struct({name: reader for name, reader in fields.items() if reader})
    return None


def _item_feature(feature: Any) -> Any:
    return feature[0] if isinstance(feature, list) and feature else _mapping(feature).get("feature")


def _struct_features(feature: Any) -> JsonObject:
    parts = _mapping(feature)
    if parts.get("_type") == "Sequence":  # an object of lists
        return {name: [part] for name, part in _mapping(parts.get("feature")).items()}
    return {} if "_type" in parts else parts


def _label(names: list[str]) -> _Reader:
    def name(value: Any) -> Any:
        if isinstance(value, str) or value == -1:  # -1 is no label
            return value if isinstance(value, str) else None
        if not 0 <= value < len(names):
            raise _ValueError(f"label {value} has no name (the file names {len(names)}). Write the file again.")
        return names[value]

    return name


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found, end = strict_json.value_at(value, strict_json.skip_space(value, 0), lambda _: "")
    except DataError as error:
        raise _ValueError(f"not the JSON that its column holds{str(error).removeprefix(':')}") from None
    if strict_json.skip_space(value, end) != len(value):
        raise _ValueError("text after the JSON value. Write the file again.")
    return found


def _struct(readers: Mapping[str, _Reader]) -> _Reader:
    """An object without the keys that are null: a column of structs holds every key of any row in each of them."""

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: readers[key](inner) if key in readers else inner for key, inner in value.items() if inner is not None
        }

    return read


def _pairs(reader: _Reader | None) -> _Reader:
    def read(value: Any) -> Any:
        pairs = value.items() if isinstance(value, dict) else value
        return {key: inner if inner is None or reader is None else reader(inner) for key, inner in pairs}

    return read


def _each(reader: _Reader | None) -> _Reader | None:
    if reader is None:
        return None
    return lambda value: [inner if inner is None else reader(inner) for inner in value]


def _list_or_struct(of_list: _Reader | None, of_struct: _Reader) -> _Reader:
    return lambda value: of_struct(value) if isinstance(value, dict) or not of_list else of_list(value)
