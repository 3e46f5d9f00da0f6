"""JSON text to values, refusing what `json.loads` lets through: keys that appear twice, NaN, infinite numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Final


class RefusedJson(ValueError):
    """Valid for Python's json module, not for us."""


def parsed(text: str) -> Any:
    """The one JSON value of a text. Raises: ValueError with what is wrong, in one line."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise RefusedJson("nested too deep to read") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise RefusedJson(f"key {twice!r} appears twice in one object. Keep one of them.")
    return value


def _constant(name: str) -> Any:
    raise RefusedJson(f"{name} is not a JSON number. Write a finite number, or null if the field is unused.")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RefusedJson(f"number {text} is too large (infinite as a 64-bit float). Write a finite number.")
    return value


DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
"""Raises RefusedJson, or as the json module does."""
