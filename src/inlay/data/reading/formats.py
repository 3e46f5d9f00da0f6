"""Row formats: the table of them, and the reader of each, which makes an Example of a row.

To add one: a function from Row to Example and a line in FORMATS; the contract test then runs on its row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from inlay.data.reading import conversation, known_shapes, preferences, row_fields, values
from inlay.data.reading.rendered_text import lacks_end, turns_of, turns_of_pair
from inlay.data.reading.settings_to_type import columns_to_type
from inlay.data.reading.strict_json import listed
from inlay.data.reading.tool_calls import tools as tools_of
from inlay.data.types import Example, Message, Row
from inlay.errors import DataError, nearest, unknown_name
from inlay.typed_json import JsonObject


@dataclass(frozen=True)
class Format:
    """One way to write a training row."""

    name: str
    about: str
    required: tuple[str, ...]
    """Fields every row has; `a|b` where either will do."""
    optional: tuple[str, ...]
    read: Callable[[Row], Example]
    example: JsonObject
    """A row as a user writes it; docs and the contract test take it from here."""
    without: tuple[str, ...] = ()
    """Fields a row of this format does not have: they make it another format's row."""
    only: frozenset[str] | None = None
    """When set, the fields a row may have besides the required ones."""
    masks_prompt: bool = False
    """Whether nothing before the answer is trained, whatever the roles."""
    trains: str = ""
    """The trained part of a row, where a reader of the file might think otherwise; shown with the reason."""

    def matches(self, keys: Set[str]) -> bool:
        """Whether a row with these fields is written in this format."""
        return (
            all(any(name in keys for name in choice.split("|")) for choice in self.required)
            and not any(name in keys for name in self.without)
            and (self.only is None or keys <= {*self.required, *self.optional} | self.only)
        )

    def missing(self, keys: Set[str]) -> list[str]:
        """The required fields that are not among `keys`."""
        return [choice for choice in self.required if not any(name in keys for name in choice.split("|"))]

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that the format reads."""
        return (*(name for choice in self.required for name in choice.split("|")), *self.optional)

    def parse(self, row: Row, *, strict: bool = False) -> Example:
        """The Example of a row. With `strict` a field that it does not read is refused where it carries meaning.

        Raises:
            DataError: a field is missing, of the wrong type or empty, or nothing would be trained.
        """
        row = _decoded(row)
        for choice in [] if all(map(row.value.__contains__, self.required)) else self.missing(row.value.keys()):
            name = choice.partition("|")[0]
            other = written_as(row.value.keys())
            if other and not nearest(name, row.value):
                raise DataError(
                    f"{row.source}: format {self.name!r} needs field {name!r}; "
                    f"this row is written as {other!r} "
                    f"({listed(row.value)}). Keep one format in a file."
                )
            values.refuse_missing_field(row, "", name, row.value, self.fields)
        example = self.read(row)
        return example if row.value.keys() <= self.reads else self._with_the_rest(row, example, strict)

    @cached_property
    def reads(self) -> frozenset[str]:
        """The fields that `read` takes itself."""
        return frozenset(self.fields) - frozenset(row_fields.SYSTEMS)

    def question_and_answer(self, row: Row) -> tuple[str, str]:
        """The row's fields of question and answer."""
        first, last = (choice.split("|") for choice in (self.required[0], self.required[-1]))
        return first[0], next((name for name in last if name in row.value), last[0])

    @cached_property
    def known(self) -> frozenset[str]:
        """Every field that has an effect."""
        beside = frozenset((*row_fields.SYSTEMS, *row_fields.SWITCHES))
        return frozenset(self.fields) | (frozenset() if self.name == "text" else beside)

    def _with_the_rest(self, row: Row, example: Example, strict: bool) -> Example:
        """The example with the system turn and the switches beside the turns, and the names of the fields not read."""
        if self.name != "text":
            example = conversation.with_system(row, example, self.masks_prompt)
            if switches := conversation.switches(row):
                example = replace(example, switches=switches)
        unread = row_fields.unread(row, self.name, self.known, self.question_and_answer(row), strict=strict)
        return replace(example, unread=(*example.unread, *unread)) if unread else example


def written_as(keys: Set[str]) -> str | None:
    """The first format that a row with these fields fits."""
    return next((f.name for f in FORMATS.values() if f.matches(keys)), None)


_JSON_TURNS: Final = frozenset({"messages", "conversations", "contents", "chosen", "rejected", "prompt", "completion"})
"""Fields whose turns may be written as JSON text, which is the only way that a table has."""
_LOOKS_LIKE_TURNS: Final = re.compile(r"\s*\[?\s*\{\s*[\"'](role|from|content|value|parts)[\"']\s*:")


def _decoded(row: Row) -> Row:
    """The row with turns that are JSON text as turns. Raises: DataError where they are no JSON."""
    found = {}
    for name, value in row.value.items():
        if isinstance(value, str) and name in _JSON_TURNS and _LOOKS_LIKE_TURNS.match(value):
            found[name] = values.json_in(row, name, value)
    return replace(row, value=row.value | found) if found else row


def _two_turns(row: Row, question: str, answer: str) -> Example:
    return conversation.example(
        row, [conversation.turn(row, "user", question), conversation.turn(row, "assistant", answer)]
    )


def _instruction(row: Row) -> Example:
    """The pairs of history, then instruction and input parted by an empty line."""
    messages = []
    for question, answer in _history(row):
        messages += [conversation.turn(row, "user", question), conversation.turn(row, "assistant", answer)]
    question = values.text(row, "instruction", row.value["instruction"])
    if (context := values.optional_text(row, "input")).strip():
        question = f"{question}\n\n{context}"
    field = "output" if "output" in row.value else "response"
    if field == "output" and not row_fields.is_empty(other := row.value.get("response")):
        values.refuse_field(row, "response", other, "The answer stands in 'output'. Keep one of the two.")
    if isinstance(row.value[field], list):
        values.refuse_field(row, field, row.value[field], known_shapes.ANSWERS)
    answer = values.text(row, field, row.value[field])
    messages += [conversation.turn(row, "user", question), conversation.turn(row, "assistant", answer)]
    return conversation.example(row, messages)


def _history(row: Row) -> list[tuple[str, str]]:
    value = row.value.get("history")
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        values.refuse_field(row, "history", value, "It must be a list of [question, answer] pairs.")
    pairs = []
    for index, pair in enumerate(value):
        place = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            values.refuse_field(row, place, pair, "It must be a pair: [question, answer].")
        pairs.append((values.text(row, f"{place}[0]", pair[0]), values.text(row, f"{place}[1]", pair[1])))
    return pairs


def _sharegpt(row: Row) -> Example:
    turns = conversation.sharegpt_turns(row, "conversations", row.value["conversations"])
    return conversation.example(row, turns, tools_of(row))


def _messages(row: Row) -> Example:
    turns = conversation.openai_turns(row, "messages", row.value["messages"])
    return conversation.example(row, turns, tools_of(row))


def _gemini(row: Row) -> Example:
    turns = conversation.gemini_turns(row, "contents", row.value["contents"])
    return conversation.example(row, turns, tools_of(row))


def _prompt_completion(row: Row) -> Example:
    prompt, completion = row.value["prompt"], row.value["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = conversation.openai_turns(row, "prompt", prompt, trained=False)
        answered = conversation.openai_turns(row, "completion", completion)
        return conversation.example(row, before + answered, tools_of(row))
    if isinstance(prompt, list) != isinstance(completion, list):
        field = "completion" if isinstance(prompt, list) else "prompt"
        values.refuse_field(
            row, field, row.value[field], "prompt and completion are both strings or both lists of turns."
        )
    question, answer = values.text(row, "prompt", prompt), values.text(row, "completion", completion)
    if cut := turns_of_pair(question, answer):
        return conversation.example(row, conversation.last_trained(row, cut), tools_of(row))
    turns = [Message("user", question), conversation.turn(row, "assistant", answer)]
    return conversation.example(row, turns, tools_of(row))


def _question_answer(row: Row) -> Example:
    return _pair(row, "question", "answer")


def _input_output(row: Row) -> Example:
    return _pair(row, "input", "output")


def _source_target(row: Row) -> Example:
    return _pair(row, "source", "target")


def _pair(row: Row, question: str, answer: str) -> Example:
    return _two_turns(row, values.text(row, question, row.value[question]), values.text(row, answer, row.value[answer]))


def _classification(row: Row) -> Example:
    label = row.value["label"]
    if isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label):
        label = json.dumps(label)
    if not isinstance(label, str):
        values.refuse_field(row, "label", label, "A label is a string or a number.")
    return _two_turns(row, values.text(row, "text", row.value["text"]), values.text(row, "label", label))


def _text(row: Row) -> Example:
    document = values.text(row, "text", row.value["text"])
    if turns := turns_of(document):
        return conversation.example(row, [conversation.turn(row, role, text) for role, text in turns])
    if end := lacks_end(document):
        values.refuse_field(row, "text", document, f"A chat template wrote it, and its last turn has no end ({end!r}). Write {end} "
                    "after the last answer, or remove the row where that answer was cut off.")  # fmt: skip
    return Example((Message("text", document, 1.0),), row.source)


_WEATHER: Final = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

FORMATS: Final[dict[str, Format]] = {
    f.name: f
    for f in (
        Format(
            "messages",
            "OpenAI chat: role and content, optional weight, tool_calls and name; tools beside it.",
            ("messages",),
            ("tools", "functions", "parallel_tool_calls", "system"),
            _messages,
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
        ),
        Format(
            "sharegpt",
            "Turns as from/value: system, human, gpt, function_call, observation or tool.",
            ("conversations",),
            ("system", "tools", "functions"),
            _sharegpt,
            {
                "conversations": [
                    {"from": "human", "value": "Weather in Oslo?"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                    {"from": "observation", "value": '{"celsius": 4}'},
                    {"from": "gpt", "value": "4 degrees."},
                ],
                "tools": [_WEATHER],
            },
        ),
        Format(
            "gemini",
            "Turns as Gemini and Vertex have them: role user or model, and parts of text.",
            ("contents",),
            ("tools", "functions", "system"),
            _gemini,
            {
                "contents": [
                    {"role": "user", "parts": [{"text": "Hi"}]},
                    {"role": "model", "parts": [{"text": "Hello!"}]},
                ]
            },
        ),
        Format(
            "prompt_completion",
            "A prompt and its completion: two strings, or two lists of role/content turns.",
            ("prompt", "completion"),
            ("tools", "functions", "system"),
            _prompt_completion,
            {"prompt": "The capital of France?", "completion": "Paris"},
            masks_prompt=True,
        ),
        Format(
            "question_answer",
            "A question and its answer.",
            ("question", "answer"),
            ("system",),
            _question_answer,
            {"question": "What is 2 + 3?", "answer": "5"},
        ),
        Format(
            "instruction_output",
            "An instruction and its output (or response), without input.",
            ("instruction", "output|response"),
            ("system", "history"),
            _instruction,
            {"instruction": "Name a primary colour.", "output": "Red"},
            without=("input",),
        ),
        Format(
            "alpaca",
            "Instruction, input (may be empty) and output; optional system and history.",
            ("instruction", "output"),
            ("input", "system", "history"),
            _instruction,
            {"instruction": "Translate to German.", "input": "Good morning", "output": "Guten Morgen"},
        ),
        Format(
            "classification",
            "A text and its label (string or number), read as a user turn and the answer to it.",
            ("text", "label"),
            ("system",),
            _classification,
            {"text": "Where is my card?", "label": "card_arrival"},
        ),
        Format(
            "input_output",
            "An input and its output, read as a user turn and the answer to it.",
            ("input", "output"),
            ("system",),
            _input_output,
            {"input": "Good morning", "output": "Guten Morgen"},
            without=("instruction",),
        ),
        Format(
            "source_target",
            "A source text and its target text, read as a user turn and the answer to it.",
            ("source", "target"),
            ("system",),
            _source_target,
            {"source": "Good morning", "target": "Guten Morgen"},
        ),
        Format(
            "preference",
            "A prompt with a chosen and a rejected answer; the chosen one is trained.",
            ("chosen", "rejected"),
            ("prompt", "question", "instruction", "input", "conversations", "system", "tools", "functions"),
            preferences.preference,
            {"prompt": "The capital of France?", "chosen": "Paris", "rejected": "Lyon"},
            masks_prompt=True,
            trains="the chosen answer is trained, the rejected one is not",
        ),
        Format(
            "openai_preference",
            "OpenAI's preference files: input.messages with two outputs; the preferred one is trained.",
            ("input", "preferred_output", "non_preferred_output"),
            ("system",),
            preferences.openai_preference,
            {
                "input": {"messages": [{"role": "user", "content": "Hi"}]},
                "preferred_output": [{"role": "assistant", "content": "Hello!"}],
                "non_preferred_output": [{"role": "assistant", "content": "What?"}],
            },
            masks_prompt=True,
            trains="the preferred answer is trained, the other one is not",
        ),
        Format(
            "text",
            "A plain document; every token is trained on.",
            ("text",),
            (),
            _text,
            {"text": "Once upon a time there was a fox."},
            without=("label",),
            only=row_fields.TEXT_NOTES,
        ),
    )
}
"""Every format by name. Order is precedence only between a format and one that also reads its rows."""


def parse(row: Row, format_name: str, columns: Mapping[str, str] | None = None) -> Example:
    """The Example of a row in the named format, after `columns` (field of the format: column of the row).

    Raises:
        DataError: the format or a column is unknown, or the row cannot be trained on as it is.
    """
    return named(format_name).parse(rename(row, columns) if columns else row)


def named(format_name: str) -> Format:
    """The format of that name."""
    if format_name not in FORMATS:
        raise DataError(unknown_name("format", format_name, FORMATS))
    return FORMATS[format_name]


LISTS: Final = frozenset(
    {"messages", "conversations", "contents", "tools", "functions", "history", "chosen", "rejected"}
)
"""Fields that are lists by nature or may hold turns; every other mapped field becomes text."""


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with columns under the names a format knows.

    A mapped number, object or list becomes its JSON text, as the user chose that column as the text.

    Raises:
        DataError: the row lacks a column.
    """
    for column in columns.values():
        if column not in row.value:
            raise DataError(f"{row.source}: columns: {unknown_name('column', column, row.value)}")
    kept = {name: value for name, value in row.value.items() if name not in columns.values()}
    mapped = {
        field: row.value[column] if field in LISTS else _as_text(row.value[column]) for field, column in columns.items()
    }
    return replace(row, value=kept | mapped)


def _as_text(value: Any) -> Any:
    turns = isinstance(value, list) and value and all(isinstance(v, dict) and "role" in v for v in value)
    if value is None or isinstance(value, str) or turns:
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return value


def check_columns(columns: Mapping[str, str], format_name: str) -> None:
    """Refuses a mapping to a field that the format ("auto": any format) does not read."""
    known = {name for f in FORMATS.values() for name in f.fields}
    if format_name != "auto":
        known = set(named(format_name).fields)
    for field in columns:
        if field not in known:
            raise DataError(
                f"columns: {unknown_name('field', field, known)} Write {columns_to_type({'FIELD': 'COLUMN'})}."
            )
