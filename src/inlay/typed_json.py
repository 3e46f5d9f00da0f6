"""Dataclasses to JSON values and back: the one way that typed files such as run.json are read and written.

Pydantic does not replace it: it refuses a missing nullable key, and leaves out all defaults or none, not the empty ones.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")
JsonObject = dict[str, Any]
"""An object of JSON with free keys: a row, a turn, a line of metrics, the settings of a library, a `--json` result."""


class Mistyped(ValueError):
    """A JSON value is not of the type that its place demands."""


def encode(value: Any) -> Any:
    """The JSON value of a dataclass, or of tuples and mappings that hold some.

    A field whose default is empty (None or an empty tuple) is left out while it holds that default.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if is_dataclass(value):
        return {
            one.name: encode(held)
            for one in fields(value)
            if not (_is_empty(held := getattr(value, one.name)) and _default(one) == held)
        }
    if isinstance(value, Mapping):
        return {key: encode(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(held) for held in value]
    return value


def decode(kind: type[T], value: object, where: str = "") -> T:
    """The dataclass (or other type) that `encode` made `value` of; unknown keys are passed over.

    A missing key takes the field's default, or None where the type allows it. `where` names the place in messages.
    Raises: Mistyped naming the place, the type it demands and the value found.
    """
    return typing.cast(T, _decoded(kind, value, where))


def _decoded(kind: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (Union, types.UnionType):
        return _of_union(parts, value, where)
    if origin is Literal:
        return _require(value in parts, value, kind, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _of_tuple(parts, value, where)
    if origin is list and isinstance(value, (list, tuple)):
        return [_decoded(parts[0], one, f"{where}[{n}]") for n, one in enumerate(value)]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(key): _decoded(parts[1], one, _inside(where, key)) for key, one in value.items()}
    if typing.is_typeddict(kind):  # its keys stay as stored: they may be those of another version
        return _require(isinstance(value, Mapping), value, kind, value, where)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _of_dataclass(kind, value, where)
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return _require(is_number, float(value) if is_number else value, kind, value, where)
    if kind is int:
        return _require(isinstance(value, int) and not isinstance(value, bool), value, kind, value, where)
    return _require(isinstance(kind, type) and isinstance(value, kind), value, kind, value, where)


def _of_union(parts: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in parts:
        return None
    others = [part for part in parts if part is not types.NoneType]
    for part in others[:-1]:
        try:
            return _decoded(part, value, where)
        except Mistyped:
            continue
    return _decoded(others[-1], value, where)


def _of_tuple(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if parts[-1] is Ellipsis and parts[0] in (int, str) and all(type(one) is parts[0] for one in value):
        return tuple(value)  # thousands of ids of a prompt
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
    if len(kinds) != len(value):
        raise Mistyped(f"{where}: must hold {len(kinds)} values (got {len(value)})")
    return tuple(_decoded(kind, one, f"{where}[{n}]") for n, (kind, one) in enumerate(zip(kinds, value, strict=True)))


def _of_dataclass(kind: Any, value: Mapping[str, object], where: str) -> Any:
    hints, found = _hints(kind), {}
    for one in fields(kind):
        if one.name in value:
            found[one.name] = _decoded(hints[one.name], value[one.name], _inside(where, one.name))
        elif one.default is MISSING and one.default_factory is MISSING:
            if types.NoneType not in get_args(hints[one.name]):
                raise Mistyped(f"{_inside(where, one.name)}: missing")
            found[one.name] = None
    return kind(**found)


@functools.cache
def _hints(kind: Any) -> Mapping[str, object]:
    return typing.get_type_hints(kind)


def _require(holds: bool, result: Any, kind: Any, got: Any, where: str) -> Any:
    if not holds:
        shown = repr(got)
        raise Mistyped(f"{where}: must be {_named(kind)} (got {shown if len(shown) < 80 else shown[:79] + '…'})")
    return result


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")


def _inside(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)
