"""Preference rows to Examples: the preferred answer is trained; the other one only helps to find the question."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any, Final

from inlay.data.reading import conversation, values
from inlay.data.reading.rendered_text import Turns, turns_of, turns_of_pair
from inlay.data.reading.row_fields import is_empty
from inlay.data.reading.settings_to_type import columns_to_type
from inlay.data.reading.strict_json import shown
from inlay.data.reading.tool_calls import tools as tools_of
from inlay.data.types import Example, Message, Row
from inlay.errors import DataError

_INPUT: Final = ("messages", "tools", "functions", "parallel_tool_calls")


def preference(row: Row) -> Example:
    """The Example of a prompt, chosen and rejected; or of two whole conversations, whose shared turns are the prompt."""
    prompt = _prompt(row)
    tools = tools_of(row)
    if not isinstance(row.value["rejected"], str | list | dict):
        values.refuse_field(
            row, "rejected", row.value["rejected"], "It must be a string, or turns. Fill it or remove the row."
        )
    chosen = row.value["chosen"]
    if isinstance(chosen, str):
        if cut := turns_of_pair(row.value.get("prompt"), chosen):
            return conversation.example(row, conversation.last_trained(row, cut), tools)
        if written := turns_of(chosen):
            whole = _written_turns(row, written)
            return conversation.example(
                row, _answered(whole, _rejected(row), _prompt_length(row, prompt, whole)), tools
            )
        if not prompt:
            raise DataError(
                f"{row.source}: field 'chosen' is {shown(chosen)} and there is no prompt that it answers. "
                f"Map the question ({columns_to_type({'prompt': 'COLUMN'})}), or write chosen and rejected as lists of turns."
            )
        return conversation.example(row, [*prompt, _answer(row, "chosen", chosen)], tools)
    turns = _turns(row, "chosen", chosen)
    if turns[0].role == "assistant":
        return conversation.example(row, [*prompt, *turns], tools)
    return conversation.example(row, _answered(turns, _rejected(row), _prompt_length(row, prompt, turns)), tools)


def openai_preference(row: Row) -> Example:
    """The Example of a row of OpenAI's preference files: input.messages, preferred_output, non_preferred_output."""
    value = row.value["input"]
    if not isinstance(value, dict):
        values.refuse_field(row, "input", value, 'It must be an object: {"messages": [...]}.')
    if "messages" not in value:
        values.refuse_missing_field(row, "input", "messages", value, _INPUT)
    for name in value.keys() - set(_INPUT):
        if not is_empty(value[name]):
            values.refuse_field(
                row, f"input.{name}", value[name], f"Of the input only {', '.join(_INPUT)} are read. Take it out."
            )
    prompt = conversation.openai_turns(row, "input.messages", value["messages"], trained=False)
    answer = conversation.openai_turns(row, "preferred_output", row.value["preferred_output"])
    conversation.openai_turns(row, "non_preferred_output", row.value["non_preferred_output"], trained=False)
    return conversation.example(row, prompt + answer, tools_of(Row(value, row.source)))


def _prompt(row: Row) -> list[Message]:
    """The turns of the question, as far as they have fields of their own. None of them is trained."""
    named = [name for name in ("prompt", "question", "instruction", "conversations") if row.value.get(name) is not None]
    if len(named) > 1:
        raise DataError(f"{row.source}: {' and '.join(map(repr, named))} are both the question. Keep one of them.")
    if named != ["instruction"] and not is_empty(context := row.value.get("input")):
        values.refuse_field(
            row, "input", context, "It is a part of an 'instruction', and there is none. Write it into the question."
        )
    if not named:
        return []
    field, value = named[0], row.value[named[0]]
    if isinstance(value, str):
        question = values.text(row, field, value)
        if field == "instruction" and (context := values.optional_text(row, "input")).strip():
            question = f"{question}\n\n{context}"
        return [Message("user", question)]
    return [replace(turn, weight=0.0) for turn in _turns(row, field, value)]


def _turns(row: Row, field: str, value: Any) -> list[Message]:
    """Turns as role/content or from/value; one turn may stand without its list."""
    listed = [value] if isinstance(value, dict) else value
    from_value = isinstance(listed, list) and listed and isinstance(listed[0], dict) and "from" in listed[0]
    read = conversation.sharegpt_turns if from_value else conversation.openai_turns
    return read(row, field, listed)


def _rejected(row: Row) -> list[Message]:
    value = row.value["rejected"]
    if isinstance(value, str) and (written := turns_of(value)):
        return _written_turns(row, written)
    if isinstance(value, str):
        values.refuse_field(row, "rejected", value, "It must be a list of turns, as 'chosen' is.")
    return _turns(row, "rejected", value)


def _written_turns(row: Row, turns: Turns) -> list[Message]:
    return [conversation.turn(row, role, text) for role, text in turns]


def _answer(row: Row, field: str, value: str) -> Message:
    return conversation.turn(row, "assistant", values.text(row, field, value))


def _prompt_length(row: Row, prompt: list[Message], turns: list[Message]) -> int:
    """Number of turns of the whole conversation that are the prompt of a field of its own. Raises: DataError."""
    wanted = [(turn.role, turn.content.strip()) for turn in prompt if turn.role != "system"]
    has = [(turn.role, turn.content.strip()) for turn in turns]
    places = [n for n in range(len(has)) if has[n : n + len(wanted)] == wanted]
    if wanted and not places:
        raise DataError(
            f"{row.source}: 'chosen' is a whole conversation, and the prompt beside it is not a part of it. "
            "Leave the question out of one of the two."
        )
    return places[0] + len(wanted) if wanted else 0


def _answered(chosen: list[Message], rejected: list[Message], prompt_length: int) -> list[Message]:
    """The chosen conversation, trained from where it departs from the rejected one, or else its last turn alone."""
    same = sum(
        1 for _ in takewhile(lambda pair: _compared(pair[0]) == _compared(pair[1]), zip(chosen, rejected, strict=False))
    )
    first = max(prompt_length, min(same, len(chosen) - 1))
    return [replace(turn, weight=0.0) if n < first else turn for n, turn in enumerate(chosen)]


def _compared(turn: Message) -> tuple[Any, ...]:
    return turn.role, turn.content, turn.tool_calls
