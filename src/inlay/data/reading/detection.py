"""The format of a file, found from the fields of its first rows."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from inlay.data.reading import known_shapes, row_fields
from inlay.data.reading.formats import FORMATS, LISTS, Format, written_as
from inlay.data.reading.rendered_text import turns_of, turns_of_pair
from inlay.data.reading.settings_to_type import columns_to_type, format_to_type
from inlay.data.reading.strict_json import listed, turns_field
from inlay.data.types import Row
from inlay.errors import DataError, count_shown, nearest

PREVIEW: Final = 100
"""Number of rows that decide the format."""


_QUESTIONS: Final = (
    "question",
    "query",
    "prompt",
    "problem",
    "instruction",
    "input",
    "ask",
    "user",
    "utterance",
    "task",
)
_ANSWERS: Final = ("answer", "response", "completion", "output", "solution", "reply", "target", "assistant", "chosen")
"""Usual names of columns with questions and with answers."""
_PAIRS: Final = ("question_answer", "prompt_completion", "input_output", "source_target")
"""Formats of a question and its answer with no place for a text beside them."""


@dataclass(frozen=True, slots=True)
class DetectedFormat:
    """The format of a file and the reason in one line."""

    name: str
    why: str
    ignored: tuple[str, ...] = ()
    """Fields of the rows that the format does not read."""


def detect(rows: Sequence[Row]) -> DetectedFormat:
    """The format of the first rows.

    Raises:
        DataError: no format fits, several do, rows are in different formats, or they judge their answers.
    """
    rows = rows[:PREVIEW]
    if not rows:
        raise DataError("no rows to detect a format from. Give at least one row.")
    fields = list(dict.fromkeys(name for row in rows for name in row.value))
    counts = Counter({name: sum(f.matches(row.value.keys()) for row in rows) for name, f in FORMATS.items()})
    if _slip("instruction", fields):
        del counts["input_output"]  # alpaca rows with a misspelt field
    best = max(counts.values())
    if not best:
        _unknown(rows[0], fields)
    found = [name for name in FORMATS if counts[name] == best]
    if "instruction_output" in found and "alpaca" in found:
        found.remove("alpaca")  # it reads those rows too
    if "preference" in found:
        found = ["preference"]  # turns beside a pair are its question, or the chosen answer once more
    if len(found) > 1 and any(all(FORMATS[name].matches(row.value.keys()) for name in found) for row in rows):
        raise DataError(
            f"{rows[0].source}: the fields {listed(fields)} fit {len(found)} formats "
            f"({', '.join(found)}). Say which (for example {format_to_type(found[0])})."
        )
    chosen = FORMATS[found[0]]
    _refuse_mixture(rows, chosen)
    present = ", ".join(name for name in fields if name in chosen.known)
    return _detected(
        chosen, f"{best} of the first {count_shown(len(rows), 'row')} have the fields {present}", fields, rows[0]
    )


def named(format_name: str, rows: Sequence[Row]) -> DetectedFormat:
    """The format that the caller named, with the fields of these rows that it ignores."""
    fields = list(dict.fromkeys(name for row in rows for name in row.value))
    return _detected(FORMATS[format_name], "named by the caller", fields, rows[0] if rows else None)


def _detected(chosen: Format, why: str, fields: list[str], first: Row | None) -> DetectedFormat:
    ignored = tuple([name for name in fields if name not in chosen.known])
    why += f"; {chosen.trains}" if chosen.trains else ""
    if first and _is_one_text(chosen.name, first):
        why += "; texts that are nothing but turns are read as their turns, and only answers are trained"
    return DetectedFormat(chosen.name, why + (f"; ignored: {row_fields.summary(ignored)}" if ignored else ""), ignored)


def _is_one_text(format_name: str, row: Row) -> bool:
    """Whether the row is a conversation written as one text, or cut from one."""
    text, prompt, answer = (row.value.get(name) for name in ("text", "prompt", "completion"))
    if format_name == "preference":
        answer = row.value.get("chosen")
        return isinstance(answer, str) and (turns_of(answer) or turns_of_pair(prompt, answer)) is not None
    if format_name == "text":
        return isinstance(text, str) and turns_of(text) is not None
    return isinstance(answer, str) and turns_of_pair(prompt, answer) is not None


def _refuse_mixture(rows: Sequence[Row], chosen: Format) -> None:
    for row in rows:
        keys = row.value.keys()
        if chosen.matches(keys) or nearest(chosen.required[0], keys):
            continue
        if other := written_as(keys):
            raise DataError(
                f"{row.source}: this row is written as {other!r} ({listed(keys)}), "
                f"the others as {chosen.name!r}. Keep one format in a file."
            )


def _unknown(row: Row, fields: list[str]) -> NoReturn:
    has = listed(fields)
    if shape := known_shapes.described(row):
        raise DataError(f"{row.source}: no format fits the fields {has}. This is {shape}.")
    for role, text, field in (("role", "content", "messages"), ("from", "value", "conversations")):
        if role in fields and text in fields:
            raise DataError(
                f"{row.source}: the fields {has} are those of one turn, and turns are no rows. Write each conversation as "
                f'a row: {{"{field}": [{{"{role}": "…", "{text}": "…"}}, …]}}.'
            )
    for name, value in row.value.items():
        if of := turns_field(value):
            raise DataError(
                f"{row.source}: no format fits the fields {has}. {name!r} holds turns. Read it as "
                f"{of!r} ({columns_to_type({of: name})})."
            )
    if "input_ids" in fields:
        raise DataError(
            f"{row.source}: the fields {has} are rows of tokens, made by another program. Give the texts or turns they "
            "were made of; inlay tokenizes them for the base that is trained."
        )
    if "text" in fields:
        others = [name for name in fields if name != "text"]
        other = next((name for name in others if isinstance(row.value.get(name), str)), others[0])
        raise DataError(
            f"{row.source}: the fields {has} could be a text with its label ({columns_to_type({'label': other})}), "
            f"a prompt with its answer ({columns_to_type({'prompt': 'text', 'completion': other})}), or a plain document "
            f"({format_to_type('text')}). Say which."
        )
    texts = [name for name in fields if not isinstance(row.value.get(name), list | dict)]
    needs = "; ".join(f"{f.name} needs {' and '.join(f.required)}" for f in FORMATS.values()).replace("|", " or ")
    near = max((f for f in FORMATS.values() if f.missing(set(fields))), key=lambda f: _closeness(f, fields))
    lacking = [choice.partition("|")[0] for choice in near.missing(set(fields))]
    lacks = {name: _slip(name, fields if name in LISTS else texts) for name in lacking}
    question, answer = (next((name for name in usual if name in texts), None) for usual in (_QUESTIONS, _ANSWERS))
    context = _context(row)
    if question and answer and not any(lacks.values()):
        which = ", which the answer, and which the text they are about" if context else " and which the answer"
        columns = _with_context(question, answer, context) if context else {"prompt": question, "completion": answer}
        raise DataError(
            f"{row.source}: no format fits the fields {has}. Say which is the question{which} "
            f"({columns_to_type(columns)}). Formats: {needs}."
        )
    if not any(isinstance(value, str) for value in row.value.values()):
        raise DataError(
            f"{row.source}: no format fits the fields {has}, and none of them is a text. Write each conversation as a row: "
            f'{{"messages": [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}]}}. '
            f"Formats: {needs}."
        )
    if not _closeness(near, fields):
        raise DataError(
            f"{row.source}: no format fits the fields {has}. Say which column is which "
            f"({columns_to_type({'prompt': 'COLUMN', 'completion': 'COLUMN'})}). Formats: {needs}."
        )
    hint = "".join(f" Did you mean {name!r} where it says {slip!r}?" for name, slip in lacks.items() if slip)
    columns = {name: slip or "COLUMN" for name, slip in lacks.items()}
    about = ""
    if context and near.name in _PAIRS and all(lacks.values()):
        first, last = near.required
        columns = _with_context(columns.get(first, first), columns.get(last, last), context)
        about = f", with {context!r} as the text that the question is about"
    known = "" if about else f" Formats: {needs}."
    raise DataError(
        f"{row.source}: no format fits the fields {has}. Nearest is {near.name!r}, which lacks "
        f"{', '.join(lacks)}.{hint} Rename{about} ({columns_to_type(columns)}).{known}"
    )


def _context(row: Row) -> str | None:
    """The column that by its name and value holds the text that a question is about."""
    named = (name for name in row.value if name.lower() in row_fields.CONTEXTS)
    return next((name for name in named if isinstance(text := row.value[name], str) and text.strip()), None)


def _with_context(question: str, answer: str, context: str) -> dict[str, str]:
    """Columns of the format that has a place for the text beside the question."""
    return {"instruction": question, "input": context, "output": answer}


def _slip(name: str, fields: list[str]) -> str | None:
    """The field that is `name` misspelt or in other case."""
    close = difflib.get_close_matches(name, {field.lower(): field for field in fields}, n=1, cutoff=0.8)
    return next((field for field in fields if field.lower() == close[0]), None) if close else None


def _closeness(candidate: Format, fields: list[str]) -> float:
    """The share of required fields that are there; a misspelt one counts nearly whole."""
    names = [choice.partition("|")[0] for choice in candidate.required]
    shares = [1.0 if name in fields else 0.9 if _slip(name, fields) else 0.0 for name in names]
    return sum(shares) / len(shares)
