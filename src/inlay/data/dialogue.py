"""Turns, tool calls and tools as data sets write them, to Messages. Used by the formats."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn

from inlay.data.strictjson import listed, shown, value_at
from inlay.data.types import Example, Message, Row
from inlay.errors import DataError, nearest

OPENAI_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_TURN_FIELDS: Final = ("role", "content", "from", "value", "weight", "name", "tool_calls", "function_call")
_OTHER_NAMES: Final = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "agent": "assistant",
}

Calls = tuple[dict[str, Any], ...]


def fail(row: Row, field: str, value: object, right: str) -> NoReturn:
    """Raises the DataError that every field defect ends in."""
    raise DataError(f"{row.source}: field {field!r} is {shown(value)}. {right}")


def missing(row: Row, where: str, name: str, keys: Collection[str], known: Collection[str]) -> NoReturn:
    """Raises the DataError for a field that `where` lacks; "
    "one of `keys` that is not `known` may be a slip."""
    guess = nearest(name, [key for key in keys if key not in known])
    hint = f" Did you mean {name!r} where it says {guess!r}?" if guess else ""
    field = f"{where}.{name}" if where else name
    raise DataError(f"{row.source}: field {field!r} is missing.{hint} Add it; there is {listed(keys)}.")


def text(row: Row, field: str, value: object, *, may_be_empty: bool = False) -> str:
    """`value` unchanged, when it is a string with something in it."""
    if not isinstance(value, str):
        fail(row, field, value, "It must be a string.")
    if not may_be_empty and not value.strip():
        fail(row, field, value, "It must hold some text. Fill it or remove the row.")
    return value


def optional_text(row: Row, field: str) -> str:
    """The string in `field`; "" when it is absent or null."""
    value = row.value.get(field)
    return "" if value is None else text(row, field, value, may_be_empty=True)


def turn(row: Row, role: str, content: str) -> Message:
    """A turn with the weight of its role."""
    return Message(role, content, row.role_weights.get(role, 0.0))


def example(row: Row, messages: list[Message], tools: Calls = ()) -> Example:
    """The dialogue up to its last trained answer.

    Raises:
        DataError: no turn is trained, or none comes before the assistant's.
    """
    last = len(messages) - 1
    while last >= 0 and not (messages[last].role == "assistant" and messages[last].weight > 0):
        last -= 1
    if last < 0:
        roles = ", ".join(message.role for message in messages) or "none"
        raise DataError(
            f"{row.source}: nothing to train on (roles: {roles}). "
            "At least one assistant turn with a weight above 0 is needed."
        )
    kept = messages[: last + 1]
    if kept[0].role == "assistant" and all(message.role == "assistant" for message in kept):
        raise DataError(
            f"{row.source}: the assistant speaks and nobody did before (roles: "
            f"{', '.join(m.role for m in messages)}). "
            "Put the user turn that it answers first."
        )
    return Example(tuple(kept), row.source, tools)


def openai_turns(row: Row, field: str, value: object, *, trained: bool = True) -> list[Message]:
    """Messages from role/content turns; where not `trained`, only those with a weight of their own are."""
    turns = enumerate(_turns(row, field, value))
    return [_plain_turn(row, t, trained) or _openai_turn(row, f"{field}[{n}]", t, trained) for n, t in turns]


def sharegpt_turns(row: Row, field: str, value: object) -> list[Message]:
    """Messages from from/value turns."""
    return [_sharegpt_turn(row, f"{field}[{n}]", turn) for n, turn in enumerate(_turns(row, field, value))]


def _turns(row: Row, field: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        fail(row, field, value, "It must be a list with at least one turn.")
    for index, turn in enumerate(value):
        if not isinstance(turn, dict):
            fail(row, f"{field}[{index}]", turn, "A turn is an object.")
    return value


def _plain_turn(row: Row, turn: dict[str, Any], trained: bool) -> Message | None:
    """The message of a turn with a role and some text and nothing beside them; else None."""
    if len(turn) == 2:
        said, role = turn.get("content"), turn.get("role")
        if isinstance(said, str) and isinstance(role, str) and role in OPENAI_ROLES and not said.isspace() and said:
            role = OPENAI_ROLES[role]
            return Message(role, said, row.role_weights.get(role, 0.0) if trained else 0.0)
    return None


def _openai_turn(row: Row, where: str, turn: dict[str, Any], trained: bool) -> Message:
    if "role" not in turn:
        if "from" in turn:
            _other_format(row, where, "from/value", "sharegpt", "conversations")
        missing(row, where, "role", turn, _TURN_FIELDS)
    role = _role(row, f"{where}.role", turn["role"], OPENAI_ROLES)
    calls = _calls(row, where, turn)
    if calls and role != "assistant":
        fail(
            row,
            f"{where}.tool_calls",
            turn.get("tool_calls"),
            f"Only an assistant turn calls tools, not {role!r}.",
        )
    if "content" not in turn and not calls:
        missing(row, where, "content", turn, _TURN_FIELDS)
    name = turn.get("name")
    if name is not None:
        name = text(row, f"{where}.name", name)
    weight = _weight(row, where, turn, role, trained)
    content = _content(row, f"{where}.content", turn.get("content"), may_be_null=bool(calls))
    _refuse_empty(row, f"{where}.content", content, role, weight, calls)
    return Message(role, content, weight, calls, name)


def _sharegpt_turn(row: Row, where: str, turn: dict[str, Any]) -> Message:
    if "from" not in turn and "role" in turn:
        _other_format(row, where, "role/content", "messages", "messages")
    for key in ("from", "value"):
        if key not in turn:
            missing(row, where, key, turn, _TURN_FIELDS)
    role = _role(row, f"{where}.from", turn["from"], SHAREGPT_ROLES)
    weight = _weight(row, where, turn, role, True)
    value = text(row, f"{where}.value", turn["value"], may_be_empty=True)
    if turn["from"] in ("function_call", "tool_call"):
        calls = _as_calls(row, f"{where}.value", _json(row, f"{where}.value", value))
        return Message(role, "", weight, calls)
    _refuse_empty(row, f"{where}.value", value, role, weight, ())
    return Message(role, value, weight)


def _other_format(row: Row, where: str, keys: str, name: str, field: str) -> NoReturn:
    own = where.partition("[")[0]
    raise DataError(
        f"{row.source}: {where!r} is written as {keys}, which is format {name!r}. "
        f"Rename the field {own!r} to {field!r} (columns: {{{field}: {own}}})."
    )


def _role(row: Row, field: str, value: object, roles: Mapping[str, str]) -> str:
    if not isinstance(value, str):
        fail(row, field, value, f"A role is one of {', '.join(roles)}.")
    if value not in roles:
        name = value.strip().lower()
        guess = name if name in roles else _OTHER_NAMES.get(name)
        guess = guess if guess in roles else nearest(name, roles)
        hint = f" Did you mean {guess!r}?" if guess else ""
        fail(row, field, value, f"Not a role.{hint} Roles: {', '.join(roles)}.")
    return roles[value]


def _weight(row: Row, where: str, turn: dict[str, Any], role: str, trained: bool) -> float:
    value = turn.get("weight")
    if value is None:
        return row.role_weights.get(role, 0.0) if trained else 0.0
    field = f"{where}.weight"
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail(row, field, value, "It must be a number, 0 to mask the turn or above 0 to train on it.")
    if not 0 <= value < math.inf or value > 1e6:
        fail(row, field, value, "It must be a finite number from 0 to 1e6; 0 masks the turn.")
    if value and not row.role_weights.get(role):
        trained_on = " and ".join(name for name, of_role in row.role_weights.items() if of_role)
        fail(row, field, value, f"Only {trained_on} turns are trained on; set data.role_weights.{role}, or weight 0.")
    return float(value) * row.role_weights.get(role, 0.0)


def _content(row: Row, field: str, value: object, *, may_be_null: bool) -> str:
    if value is None and may_be_null:
        return ""
    if value is None:
        fail(row, field, value, "It must be a string; null is allowed only next to tool_calls.")
    if not isinstance(value, list):
        return text(row, field, value, may_be_empty=True)
    parts = []
    for index, part in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(part, dict):
            fail(row, place, part, 'A part is an object: {"type": "text", "text": "..."}.')
        if part.get("type") != "text":
            fail(row, f"{place}.type", part.get("type"), "Only parts of type 'text' can be read here.")
        parts.append(text(row, f"{place}.text", part.get("text"), may_be_empty=True))
    return "".join(parts)


def _refuse_empty(row: Row, field: str, content: str, role: str, weight: float, calls: Calls) -> None:
    """Only what is asked and what is trained must hold text; a tool may answer nothing."""
    if not content.strip() and (role == "user" or (role == "assistant" and weight > 0 and not calls)):
        article = "An" if role == "assistant" else "A"
        fail(row, field, content, f"{article} {role} turn must hold some text. Fill it or remove the row.")


def _json(row: Row, field: str, value: str) -> Any:
    """The JSON inside a string field."""
    start = len(value) - len(value.lstrip())
    found, end = value_at(value, start, lambda _: f"{row.source}: field {field!r} holds JSON text")
    if value[end:].strip():
        fail(row, field, value, "It must hold one JSON value and nothing after it.")
    return found


def _calls(row: Row, where: str, turn: dict[str, Any]) -> Calls:
    """The tool calls of an OpenAI turn, its older `function_call` included."""
    if turn.get("tool_calls"):
        return _as_calls(row, f"{where}.tool_calls", turn["tool_calls"])
    if turn.get("function_call"):
        return _as_calls(row, f"{where}.function_call", turn["function_call"])
    return ()


def _as_calls(row: Row, field: str, value: object) -> Calls:
    """Calls in one shape: {"type": "function", "function": {"name", "arguments": {}}}, with "id" if given."""
    items = value if isinstance(value, list) else [value]
    if not items:
        fail(row, field, value, "It must hold at least one call.")
    calls = []
    for index, item in enumerate(items):
        place = f"{field}[{index}]" if isinstance(value, list) else field
        if not isinstance(item, dict):
            fail(row, place, item, 'A call is an object: {"name": "...", "arguments": {...}}.')
        inner = item.get("function", item)
        if not isinstance(inner, dict):
            fail(row, f"{place}.function", inner, 'It must be an object: {"name": "...", "arguments": {...}}.')
        for key in ("name", "arguments"):
            if key not in inner:
                missing(row, place, key, inner, ("name", "arguments", "id", "type"))
        arguments = inner["arguments"]
        if isinstance(arguments, str):
            arguments = _json(row, f"{place}.arguments", arguments)
        if not isinstance(arguments, dict):
            fail(
                row,
                f"{place}.arguments",
                arguments,
                "It must be an object, or a string that holds one as JSON.",
            )
        function = {"name": text(row, f"{place}.name", inner["name"]), "arguments": arguments}
        call: dict[str, Any] = {"type": "function", "function": function}
        if item.get("id") is not None:
            call["id"] = text(row, f"{place}.id", item["id"])
        calls.append(call)
    return tuple(calls)


def tools(row: Row) -> Calls:
    """The row's `tools` in one shape, {"type": "function", "function": {...}}; a JSON string is read too.

    `functions` is what OpenAI called them before.
    """
    field = "functions" if row.value.get("functions") and not row.value.get("tools") else "tools"
    value = row.value.get(field)
    if isinstance(value, str) and value.strip():
        value = _json(row, field, value)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        fail(row, field, value, "It must be a list of tools, or a string that holds one as JSON.")
    found = []
    for index, item in enumerate(value):
        inner = item.get("function", item) if isinstance(item, dict) else item
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            fail(
                row,
                f"{field}[{index}]",
                item,
                'A tool is {"type": "function", "function": {"name": "...", ...}}.',
            )
        found.append({"type": "function", "function": inner})
    return tuple(found)
