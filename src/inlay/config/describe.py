"""The allowed values of a setting in words, from its type: for `config explain`, docs and error messages."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inlay.config.sections.base import OneOf

_WORDS: Final[dict[Any, str]] = {
    Any: "any value", bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null",
}  # fmt: skip
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


def allowed(field: FieldInfo) -> str:
    """``a whole number of at least 1, or `auto` `` for a field of that type and range."""
    return _joined(_alternatives(field.annotation, field.metadata))


def is_text(field: FieldInfo) -> bool:
    """True if every value but null is free text, so that a text needs no quotes."""
    kinds = set(_members(field.annotation)) - {NoneType}
    return kinds == {str} and not any(isinstance(m, OneOf) for m in field.metadata)


def is_mapping(field: FieldInfo) -> bool:
    """True if the setting is a mapping, whose entries have dotted names."""
    return any(get_origin(member) is dict for member in _members(field.annotation))


def is_text_mapping(field: FieldInfo) -> bool:
    """True if the setting is a mapping to text."""
    return any(get_origin(member) is dict and get_args(member)[1] is str for member in _members(field.annotation))


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return tuple(inner for member in get_args(annotation) for inner in _members(member))
    return (annotation,)


def _alternatives(annotation: Any, metadata: Sequence[Any] = ()) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if named := next((m.names for m in metadata if isinstance(m, OneOf)), None):
        return [f"`{name}`" for name in named]
    if origin is Annotated:
        inner = [m for extra in arguments[1:] for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _alternatives(arguments[0], inner)
    if origin in (Union, UnionType):
        named = [text for member in arguments for text in _alternatives(member, metadata)]
        return sorted(dict.fromkeys(named), key=lambda text: text == _WORDS[NoneType])  # null comes last
    if origin is Literal:
        return [f"`{value}`" for value in arguments]
    if origin is list:
        return [f"a list of {_joined(_alternatives(arguments[0]))}{_entries(metadata)}"]
    if origin is dict:
        key, value = (_joined(_alternatives(argument)) for argument in arguments)
        return [f"a mapping of {key} to {value}"]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [f"a mapping with {', '.join(annotation.model_fields)}"]
    return [_WORDS[annotation] + _range(metadata)]


def _range(metadata: Sequence[Any]) -> str:
    found = {name: bound for m in metadata for name in _BOUNDS if (bound := getattr(m, name, None)) is not None}
    if set(found) == {"ge", "le"}:
        return f" from {found['ge']} to {found['le']}"
    return "".join(f"{' and' if n else ''} {_BOUNDS[name]} {bound}" for n, (name, bound) in enumerate(found.items()))


def _entries(metadata: Sequence[Any]) -> str:
    least = next((m.min_length for m in metadata if getattr(m, "min_length", None)), None)
    return f", at least {least}" if least else ""


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
