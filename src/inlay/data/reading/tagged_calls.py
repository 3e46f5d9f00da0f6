"""Tool calls and tool answers that a row writes as text, in the tags of Hermes and Qwen, lifted to calls and tool turns.

A chat template that knows tools writes the tags itself, or other ones. Each lifted turn keeps the text as it was written,
for a template that knows no tools.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import replace
from typing import Any, Final, NoReturn

from inlay.data.reading.tool_calls import Calls, as_calls
from inlay.data.reading.values import json_in
from inlay.data.types import Message, Row
from inlay.errors import DataError

TAG: Final = "<tool_"
"""Stands in every text that is changed here."""
_CALL: Final = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>\s*", re.DOTALL)
_CALLS: Final = re.compile(rf"(?:{_CALL.pattern})+", re.DOTALL)
_ANSWER: Final = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
_BEGINS: Final = re.compile(r"(?:\A|\n|>)\s*(?=<tool_call>\s*[{\[<])")
"""The place before a call. A tag within a line, or before other text, is only mentioned."""
_WRITE: Final = (
    'Write it as tool_calls of the turn ({"name": …, "arguments": {…}}), with the text before it as its content, or take the '
    "row out."
)


def lifted(row: Row, messages: list[Message]) -> list[Message]:
    """The messages, with calls in `<tool_call>` as calls and answers in `<tool_response>` as tool turns.

    Raises:
        DataError: a turn has such a tag, and what belongs to it cannot be told.
    """
    turns: list[Message] = []
    for n, message in enumerate(messages, 1):
        before = turns[-1] if turns else None
        if TAG not in message.content:
            turns.append(message)
        elif message.role == "assistant":
            called = _with_calls(row, n, message)
            if before is not None and called.written and not called.content and _is_one_answer(before, called):
                turns[-1] = _joined(before, called)
            else:
                turns.append(called)
        elif message.role == "tool" or (
            message.role == "user" and before is not None and (before.tool_calls or before.role == "tool")
        ):
            turns += _answers(row, n, message)
        else:
            turns.append(message)
    return turns


def as_written(messages: list[Message]) -> list[Message]:
    """The messages with the texts that were lifted as they were written."""
    found = []
    for message in messages:
        if message.written is None:
            found.append(message)
        elif message.written != _WRITTEN_BEFORE:
            role, text = message.written
            found.append(replace(message, role=role, content=text, tool_calls=(), written=None))
    return found


_WRITTEN_BEFORE: Final = ("", "")
"""The text of a tool turn whose text stands in the turn before: one turn may hold several answers."""


def _with_calls(row: Row, n: int, message: Message) -> Message:
    text = message.content
    begin = _BEGINS.search(text, max(text.rfind("</think>"), 0))
    if begin is None or text.count("```", 0, begin.end()) % 2:
        return message
    place = f"turn {n}.<tool_call>"
    if message.tool_calls:
        raise DataError(f"{row.source}: turn {n} has calls and a <tool_call> in its text, too. Keep one of the two.")
    if not _CALLS.fullmatch(text, begin.end()):
        _refuse(row, n, "a <tool_call> in its text that is not closed, or that other text follows")
    calls: Calls = ()
    for written in _CALL.findall(text, begin.end()):
        if written.startswith("<"):
            _refuse(row, n, "a <tool_call> in its text that holds no JSON")
        calls += as_calls(row, place, _opened(row, place, written))
    before = text[: begin.end()].rstrip()
    return replace(message, content=before, tool_calls=calls, written=(message.role, text))


def _refuse(row: Row, n: int, what: str) -> NoReturn:
    raise DataError(f"{row.source}: turn {n} (assistant) has {what}, so it cannot be read as a call. {_WRITE}")


def _opened(row: Row, place: str, text: str) -> Any:
    """The call in the text: JSON, or the same as Python prints it, as Hermes' own data set has it."""
    try:
        return json_in(row, place, text)
    except DataError as error:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in its strings
                value = ast.literal_eval(text)
            return json.loads(json.dumps(value, allow_nan=False))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise DataError(f"{error} {_WRITE}") from None


def _answers(row: Row, n: int, message: Message) -> list[Message]:
    """The tool turns of a turn that is nothing but answers in their tags; else the turn itself."""
    text, at, found = message.content, 0, []
    if not text.lstrip().startswith("<tool_response>"):
        return [message]
    while at < len(text):
        one = _ANSWER.match(text, at)
        if one is None or "<tool_response>" in one[1]:
            raise DataError(
                f"{row.source}: turn {n} ({message.role}) has a <tool_response> that is not closed, or that other text "
                "follows. Write the text of each answer alone, as a turn of role tool."
            )
        found.append(one[1])
        at = one.end()
    if message.role == "tool" and message.tool_call_id and len(found) > 1:
        raise DataError(
            f"{row.source}: turn {n} (tool) holds {len(found)} answers for one call. Write a turn for each."
        )
    weight = row.role_weights.get("tool", 0.0) if message.role == "user" else message.weight
    written = [(message.role, text), *[_WRITTEN_BEFORE] * (len(found) - 1)]
    return [
        replace(message, role="tool", content=answer, weight=weight, written=kept)
        for answer, kept in zip(found, written, strict=True)
    ]


def _is_one_answer(before: Message, after: Message) -> bool:
    """Whether calls that follow an assistant turn are a part of it."""
    return before.role == "assistant" and before.weight == after.weight and not (before.thought and after.thought)


def _joined(before: Message, after: Message) -> Message:
    text = before.written[1] if before.written else before.content
    return replace(
        before,
        tool_calls=before.tool_calls + after.tool_calls,
        thought=before.thought or after.thought,
        thought_field=before.thought_field or after.thought_field,
        written=("assistant", f"{text}\n{after.written[1] if after.written else ''}"),
    )
