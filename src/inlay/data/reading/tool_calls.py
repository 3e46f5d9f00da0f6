"""Tool calls and tools of rows, in the one shape that chat templates take."""

from __future__ import annotations

from typing import Any, Final

from inlay.data.reading.row_fields import is_empty
from inlay.data.reading.values import json_in, refuse_field, refuse_missing_field, text
from inlay.data.types import Row, Tool, ToolCall
from inlay.errors import DataError, nearest
from inlay.typed_json import JsonObject

Calls = tuple[ToolCall, ...]

CALLS: Final = ("tool_calls", "function_call")
"""The fields of a turn that hold its calls."""
_CALL_FIELDS: Final = frozenset({"id", "type", "function", "name", "arguments", "parameters", "index"})
_EMPTY_CALL: Final = (None, "")


def calls_of_turn(row: Row, where: str, turn: JsonObject) -> Calls:
    """The tool calls of a turn, those in the older `function_call` included."""
    if all(map(turn.get, CALLS)):
        raise DataError(f"{row.source}: {where} has 'tool_calls' and 'function_call'. Keep one of the two.")
    for name in CALLS:
        if not is_empty(value := turn.get(name)):
            if isinstance(value, str):
                value = json_in(row, f"{where}.{name}", value)
            return () if is_empty(value) else as_calls(row, f"{where}.{name}", value)
    return ()


def as_calls(row: Row, field: str, value: object) -> Calls:
    """Calls in one shape: {"type": "function", "function": {"name", "arguments": {}}}, with "id" if given.

    Raises:
        DataError: a call has no name, arguments that are no object, or a field that nothing reads.
    """
    items = value if isinstance(value, list) else [value]
    if not items:
        refuse_field(row, field, value, "It must hold at least one call.")
    calls: list[ToolCall] = []
    for index, item in enumerate(items):
        place = f"{field}[{index}]" if isinstance(value, list) else field
        if not isinstance(item, dict):
            refuse_field(row, place, item, 'A call is an object: {"name": "...", "arguments": {...}}.')
        inner = item.get("function", item)
        if not isinstance(inner, dict):
            refuse_field(row, f"{place}.function", inner, 'It must be an object: {"name": "...", "arguments": {...}}.')
        for part in (item, inner):
            _refuse_unknown(row, place, part)
        if "name" not in inner:
            refuse_missing_field(row, place, "name", inner, _CALL_FIELDS)
        name, arguments = text(row, f"{place}.name", inner["name"]), _arguments(row, place, inner)
        call: ToolCall = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if item.get("id") is not None:
            call["id"] = text(row, f"{place}.id", item["id"])
        calls.append(call)
    return tuple(calls)


def _refuse_unknown(row: Row, place: str, call: JsonObject) -> None:
    kind = call.get("type")
    if kind not in ("function", *_EMPTY_CALL):
        refuse_field(row, f"{place}.type", kind, "Only calls of type 'function' can be read here.")
    for key in call.keys() - _CALL_FIELDS:
        if call[key] is not None:
            guess = nearest(key, _CALL_FIELDS)
            hint = f" Did you mean {guess!r}?" if guess else ""
            refuse_field(
                row, f"{place}.{key}", call[key], f"A call has no such field.{hint} It has name, arguments and id."
            )


def _arguments(row: Row, place: str, call: JsonObject) -> JsonObject:
    """The arguments of a call, which may be JSON text (once or twice); {} where there are none."""
    given = {name: call[name] for name in ("arguments", "parameters") if call.get(name) not in _EMPTY_CALL}
    if not given:
        return {}
    if len(given) > 1:
        raise DataError(f"{row.source}: {place} has 'arguments' and 'parameters'. Keep one of the two.")
    ((name, value),) = given.items()
    for _ in range(2):
        if isinstance(value, str):
            value = json_in(row, f"{place}.{name}", value) if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse_field(row, f"{place}.{name}", value, "It must be an object, or a string that holds one as JSON.")
    return value


def tools(row: Row) -> tuple[Tool, ...]:
    """The row's `tools`, or `functions` as OpenAI called them before, in one shape; JSON text is read too.

    Raises: DataError.
    """
    if "tools" not in row.value and "functions" not in row.value:
        return ()
    given = {name: value for name in ("tools", "functions") if not is_empty(value := _opened(row, name))}
    if not given:
        return ()
    if len(given) > 1:
        raise DataError(f"{row.source}: 'tools' and 'functions' both list tools. Keep one of the two.")
    ((field, value),) = given.items()
    if not isinstance(value, list):
        refuse_field(row, field, value, "It must be a list of tools, or a string that holds one as JSON.")
    return tuple([_tool(row, f"{field}[{index}]", item) for index, item in enumerate(value)])


def _opened(row: Row, field: str) -> Any:
    """The value of a field, out of its JSON text where it is written as that."""
    value = row.value.get(field)
    return json_in(row, field, value) if isinstance(value, str) and value.strip() else value


def _tool(row: Row, place: str, item: object) -> Tool:
    if isinstance(item, str) and item.lstrip().startswith("{"):
        item = json_in(row, place, item)
    inner = item.get("function", item) if isinstance(item, dict) else item
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        refuse_field(row, place, item, 'A tool is {"type": "function", "function": {"name": "...", ...}}.')
    if inner is item and inner.get("type") == "function":
        inner = {name: of_it for name, of_it in inner.items() if name != "type"}
    if "input_schema" in inner and "parameters" not in inner:  # Anthropic's name
        inner = {("parameters" if name == "input_schema" else name): of_it for name, of_it in inner.items()}
    return {"type": "function", "function": inner}
