"""Messages from turns, as datasets write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NoReturn

from inlay.data.reading import part_ways, tagged_calls, turn_fields
from inlay.data.reading.row_fields import GREETING, SYSTEMS, UNANSWERED, is_empty
from inlay.data.reading.settings_to_type import columns_to_type
from inlay.data.reading.tool_calls import CALLS, Calls, as_calls, calls_of_turn
from inlay.data.reading.values import json_in, refuse_field, refuse_missing_field, text
from inlay.data.types import Example, Message, Row, Switches, Tool
from inlay.errors import DataError, nearest
from inlay.typed_json import JsonObject

OPENAI_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_call": "assistant",
    "tool_response": "tool",
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
GEMINI_ROLES: Final = {"user": "user", "model": "assistant", "system": "system"}
_CALL_ROLES: Final = ("function_call", "tool_call")
"""Roles of turns whose text is a call, or a list of calls, as JSON."""
_PLAIN_ROLES: Final = {name: role for name, role in OPENAI_ROLES.items() if name not in _CALL_ROLES}
_OTHER_NAMES: Final = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "agent": "assistant",
}

_LANGCHAIN: Final = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
"""Types of the turns that LangChain writes, and their roles."""


def turn(row: Row, role: str, content: str) -> Message:
    """A message with the weight of its role."""
    return Message(role, content, row.role_weights.get(role, 0.0))


def last_trained(row: Row, turns: Sequence[tuple[str, str]]) -> list[Message]:
    """Messages of (role, text) turns, of which only the last one may be trained."""
    return [*(Message(role, text) for role, text in turns[:-1]), turn(row, *turns[-1])]


def example(row: Row, messages: list[Message], tools: tuple[Tool, ...] = ()) -> Example:
    """The conversation up to its last trained answer.

    Raises:
        DataError: no turn is trained, or none comes before the assistant's.
    """
    for message in messages:
        if "<" in message.content and tagged_calls.TAG in message.content:  # one character is found faster
            messages = tagged_calls.lifted(row, messages)
            break
    last = len(messages) - 1
    while last >= 0 and not (messages[last].role == "assistant" and messages[last].weight > 0):
        last -= 1
    if last < 0:
        roles = ", ".join(message.role for message in messages) or "none"
        raise DataError(
            f"{row.source}: nothing to train on (roles: {roles}). "
            "At least one assistant turn with a weight above 0 is needed."
        )
    kept, after = messages[: last + 1], messages[last + 1 :]
    unread = (UNANSWERED,) if after and all(m.role != "assistant" for m in after) else ()
    if kept[0].role != "assistant":
        return Example(tuple(kept), row.source, tools, unread=unread)
    if all(message.role == "assistant" for message in kept):
        raise DataError(
            f"{row.source}: the assistant speaks and nobody did before (roles: "
            f"{', '.join(m.role for m in messages)}). "
            "Put the user turn that it answers first."
        )
    greeting = kept[0].weight > 0
    kept[0] = replace(kept[0], weight=0.0)  # no model is ever prompted with nothing
    return Example(tuple(kept), row.source, tools, unread=(GREETING, *unread) if greeting else unread)


def with_system(row: Row, example: Example, masked: bool) -> Example:
    """The example with the system turn that stands beside the others in front of them.

    Raises:
        DataError: it is no text, or there are two that differ.
    """
    given = {name: row.value[name] for name in SYSTEMS if not is_empty(row.value.get(name))}
    if not given:
        return example
    given = {name: value["parts"] if _has_parts(value) else value for name, value in given.items()}
    texts = {name: _content(row, name, value, "system", may_be_null=False) for name, value in given.items()}
    (name, system), first = next(iter(texts.items())), example.messages[0]
    if len(set(texts.values())) > 1:
        raise DataError(
            f"{row.source}: fields {' and '.join(map(repr, texts))} are two system prompts. Keep one of them."
        )
    if first.role == "system":
        if first.content.strip() != system.strip():
            refuse_field(row, name, system, "The first turn is a system turn too. Keep one of the two.")
        return example
    message = Message("system", system) if masked else turn(row, "system", system)
    return replace(example, messages=(message, *example.messages))


def switches(row: Row) -> Switches:
    """The switches that the row sets for its chat template. Raises: DataError for a value that is no plain one."""
    given = row.value.get("chat_template_kwargs")
    given = {} if is_empty(given) else given
    given = json_in(row, "chat_template_kwargs", given) if isinstance(given, str) else given
    if not isinstance(given, dict):
        refuse_field(row, "chat_template_kwargs", given, 'It must be an object, such as {"enable_thinking": true}.')
    found = {f"chat_template_kwargs.{name}": (name, value) for name, value in given.items()}
    if "enable_thinking" in row.value:
        found["enable_thinking"] = "enable_thinking", row.value["enable_thinking"]
    found = {field: one for field, one in found.items() if not is_empty(one[1])}
    for field, (name, value) in found.items():
        if not name.isidentifier() or not isinstance(value, bool | int | float | str):
            refuse_field(row, field, value, "A switch of a chat template is true, false, a number or a text.")
    if len(set(found.values())) > len({name for name, _ in found.values()}):
        raise DataError(f"{row.source}: 'chat_template_kwargs' and 'enable_thinking' contradict each other. Keep one.")
    return tuple(sorted(set(found.values())))


def openai_turns(row: Row, field: str, value: object, *, trained: bool = True) -> list[Message]:
    """Messages from role/content turns; where not `trained`, only those with a weight of their own are."""
    turns = enumerate(_turns(row, field, value))
    return _joined(
        row, field, [_plain_turn(row, t, trained) or _openai_turn(row, f"{field}[{n}]", t, trained) for n, t in turns]
    )


def sharegpt_turns(row: Row, field: str, value: object) -> list[Message]:
    """Messages from from/value turns."""
    return _joined(
        row, field, [_sharegpt_turn(row, f"{field}[{n}]", turn) for n, turn in enumerate(_turns(row, field, value))]
    )


def gemini_turns(row: Row, field: str, value: object) -> list[Message]:
    """Messages from role/parts turns, as Gemini and Vertex have them."""
    return [_gemini_turn(row, f"{field}[{n}]", turn) for n, turn in enumerate(_turns(row, field, value))]


def _joined(row: Row, field: str, messages: list[Message]) -> list[Message]:
    """The messages, with calls that follow an assistant turn being a part of it: it ends after the last one."""
    if not [m for m in messages if m.tool_calls]:
        return messages
    joined: list[Message] = []
    for n, message in enumerate(messages):
        before = joined[-1] if joined else None
        differ = before is not None and before.weight != message.weight
        if before is None or before.role != "assistant" or not message.tool_calls or message.content:
            joined.append(message)
            continue
        if differ and not before.tool_calls:
            joined.append(message)  # an answer, and a call that has a weight of its own
            continue
        if differ or (before.thought and message.thought):
            raise DataError(
                f"{row.source}: {field}[{n - 1}] and {field}[{n}] are one answer, calls included, but have different "
                "weights or a thought each. Give them one weight and one thought."
            )
        joined[-1] = replace(
            before,
            tool_calls=before.tool_calls + message.tool_calls,
            thought=before.thought or message.thought,
            thought_field=before.thought_field or message.thought_field,
        )
    return joined


def _turns(row: Row, field: str, value: object) -> list[JsonObject]:
    if not isinstance(value, list) or not value:
        refuse_field(row, field, value, "It must be a list with at least one turn.")
    for index, turn in enumerate(value):
        if not isinstance(turn, dict):
            refuse_field(row, f"{field}[{index}]", turn, "A turn is an object.")
    return value


def _plain_turn(row: Row, turn: JsonObject, trained: bool) -> Message | None:
    """The message of a turn with a role and some text and nothing beside them; else None."""
    if len(turn) == 2:
        text, role = turn.get("content"), turn.get("role")
        if isinstance(text, str) and isinstance(role, str) and role in _PLAIN_ROLES and not text.isspace() and text:
            role = _PLAIN_ROLES[role]
            return Message(role, text, row.role_weights.get(role, 0.0) if trained else 0.0)
    return None


def _openai_turn(row: Row, where: str, turn: JsonObject, trained: bool) -> Message:
    if "role" not in turn:
        if "from" in turn:
            _other_format(row, where, "from/value", "sharegpt", "conversations")
        if turn.get("type") in _LANGCHAIN and ("content" in turn or isinstance(turn.get("data"), dict)):
            _langchain(row, where, turn)
        refuse_missing_field(row, where, "role", turn, turn_fields.READ)
    role = _role(row, f"{where}.role", turn["role"], OPENAI_ROLES)
    if turn["role"] in _CALL_ROLES:
        return _call_turn(row, where, "content", turn, trained)
    calls = calls_of_turn(row, where, turn)
    if "content" not in turn and not calls:
        if "parts" in turn:
            _other_format(row, where, "role/parts", "gemini", "contents")
        refuse_missing_field(row, where, "content", turn, turn_fields.READ)
    content = _content(row, f"{where}.content", turn.get("content"), role, may_be_null=bool(calls))
    return _message(row, where, "content", turn, Message(role, content, tool_calls=calls), trained)


def _sharegpt_turn(row: Row, where: str, turn: JsonObject) -> Message:
    if "from" not in turn and "role" in turn:
        _other_format(row, where, "role/content", "messages", "messages")
    for key in ("from", "value"):
        if key not in turn:
            refuse_missing_field(row, where, key, turn, turn_fields.READ)
    role = _role(row, f"{where}.from", turn["from"], SHAREGPT_ROLES)
    if turn["from"] in _CALL_ROLES:
        return _call_turn(row, where, "value", turn, True)
    calls = calls_of_turn(row, where, turn)
    content = _content(row, f"{where}.value", turn["value"], role, may_be_null=bool(calls))
    return _message(row, where, "value", turn, Message(role, content, tool_calls=calls), True)


def _gemini_turn(row: Row, where: str, turn: JsonObject) -> Message:
    for key in ("role", "parts"):
        if key not in turn:
            if "content" in turn:
                _other_format(row, where, "role/content", "messages", "messages")
            refuse_missing_field(row, where, key, turn, turn_fields.READ)
    role = _role(row, f"{where}.role", turn["role"], GEMINI_ROLES)
    content = _content(row, f"{where}.parts", turn["parts"], role, may_be_null=False)
    return _message(row, where, "parts", turn, Message(role, content), True)


def _call_turn(row: Row, where: str, key: str, turn: JsonObject, trained: bool) -> Message:
    """The message of a turn whose text is the call."""
    value = turn.get(key)
    for name in CALLS:
        if not is_empty(turn.get(name)):
            refuse_field(
                row, f"{where}.{name}", turn[name], f"The call stands in {key!r} of such a turn. Keep one of the two."
            )
    if not isinstance(value, dict | list):
        value = json_in(row, f"{where}.{key}", text(row, f"{where}.{key}", value))
    message = Message("assistant", "", tool_calls=as_calls(row, f"{where}.{key}", value))
    return _message(row, where, key, turn, message, trained)


def _message(row: Row, where: str, key: str, turn: JsonObject, bare: Message, trained: bool) -> Message:
    """The `bare` message (its text in field `key`), with the other fields of the turn. Raises: DataError."""
    turn_fields.refuse_unknown(row, where, turn, key)
    role, calls = bare.role, bare.tool_calls
    if calls and role != "assistant":
        field = next(name for name in CALLS if turn.get(name))
        refuse_field(row, f"{where}.{field}", turn[field], f"Only an assistant turn calls tools, not {role!r}.")
    name = turn.get("name")
    name = None if is_empty(name) else text(row, f"{where}.name", name)
    weight = turn_fields.weight(row, where, turn, role, trained=trained)
    thought, thought_field = turn_fields.thought(row, where, turn, role)
    _refuse_empty(row, f"{where}.{key}", bare.content, role, weight, calls)
    call_id = turn_fields.tool_call_id(row, where, turn, role)
    return Message(role, bare.content, weight, calls, name, thought, thought_field, call_id)


def _other_format(row: Row, where: str, keys: str, name: str, field: str) -> NoReturn:
    own = where.partition("[")[0]
    raise DataError(
        f"{row.source}: {where!r} is written as {keys}, which is format {name!r}. "
        f"Rename the field {own!r} to {field!r} ({columns_to_type({field: own})})."
    )


def _langchain(row: Row, where: str, turn: JsonObject) -> NoReturn:
    text = "content" if "content" in turn else "data.content"
    raise DataError(
        f"{row.source}: {where!r} is a turn as LangChain writes it, with 'type' for the role. Write it as "
        f'{{"role": "{_LANGCHAIN[turn["type"]]}", "content": the text of {text}}}, and the others likewise: '
        f"{', '.join(f'{name} is {role}' for name, role in _LANGCHAIN.items())}."
    )


def _role(row: Row, field: str, value: object, roles: Mapping[str, str]) -> str:
    if not isinstance(value, str):
        refuse_field(row, field, value, f"A role is one of {', '.join(roles)}.")
    if value not in roles:
        name = value.strip().lower()
        guess = name if name in roles else _OTHER_NAMES.get(name)
        guess = guess if guess in roles else nearest(name, roles)
        hint = f" Did you mean {guess!r}?" if guess else ""
        refuse_field(row, field, value, f"Not a role.{hint} Roles: {', '.join(roles)}.")
    return roles[value]


def _content(row: Row, field: str, value: object, role: str, *, may_be_null: bool) -> str:
    """The text of a turn: a string, parts of text, or the result of a tool as JSON."""
    if isinstance(value, str):
        return value
    if value is None and (may_be_null or role == "tool"):
        return ""
    if value is None:
        refuse_field(row, field, value, "It must be a string; null is allowed only next to tool_calls and from a tool.")
    if isinstance(value, list) and (role != "tool" or all(map(_is_part, value))):
        return "".join([_part(row, f"{field}[{index}]", part) for index, part in enumerate(value)])
    if role == "tool":
        return json.dumps(value, ensure_ascii=False)
    return text(row, field, value, may_be_empty=True)


_TEXTS: Final = ("text", "input_text", "output_text")
_PART_FIELDS: Final = ("type", "text", "annotations", "cache_control")


def _has_parts(value: object) -> bool:
    """Whether a value is a turn as Gemini has it."""
    return isinstance(value, dict) and value.keys() <= {"role", "parts"} and "parts" in value


def _is_part(value: object) -> bool:
    return isinstance(value, dict) and ("type" in value or value.keys() == {"text"})


def _part(row: Row, place: str, part: object) -> str:
    """The text of one part of a turn."""
    if not isinstance(part, dict):
        refuse_field(row, place, part, 'A part is an object: {"type": "text", "text": "..."}.')
    if part.get("type", "text") not in _TEXTS:
        way = part_ways.way_out(part["type"])
        refuse_field(row, f"{place}.type", part["type"], f"Only parts of type 'text' can be read here.{way}")
    for key, value in part.items():
        if key not in _PART_FIELDS and value not in (None, "", [], {}):
            way = part_ways.way_out(key) or " Take the field or the row out."
            refuse_field(row, f"{place}.{key}", value, f"Only the text of a part is read.{way}")
    return text(row, f"{place}.text", part.get("text"), may_be_empty=True)


def _refuse_empty(row: Row, field: str, content: str, role: str, weight: float, calls: Calls) -> None:
    """Raises: DataError for a user turn or a trained answer without text; a tool may answer nothing."""
    if not content.strip() and (role == "user" or (role == "assistant" and weight > 0 and not calls)):
        article = "An" if role == "assistant" else "A"
        refuse_field(row, field, content, f"{article} {role} turn must hold some text. Fill it or remove the row.")
