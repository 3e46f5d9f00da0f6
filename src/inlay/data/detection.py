"""Which format a file is in, from the fields of its first rows."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from inlay.data.formats import FORMATS, Format, written_as
from inlay.data.strictjson import listed
from inlay.data.types import Row
from inlay.errors import DataError, nearest

PREVIEW: Final = 100
"""How many rows are looked at."""

_CONTENT: Final = ("context", "passage", "document", "article", "options", "choices", "input")
"""Fields that belong to the question in every set we know: leaving them out would train a different task."""


@dataclass(frozen=True, slots=True)
class DetectedFormat:
    """The format of a file and the reason in one line."""

    name: str
    why: str
    ignored: tuple[str, ...] = ()
    """Fields of the rows that the format does not read."""


def detect(rows: Sequence[Row]) -> DetectedFormat:
    """The one format that the first rows are written in.

    Raises:
        DataError: no format fits, several do, rows are in different formats, or they judge their answers.
    """
    rows = rows[:PREVIEW]
    if not rows:
        raise DataError("no rows to detect a format from. Give at least one row.")
    fields = list(dict.fromkeys(name for row in rows for name in row.value))
    _refuse_judged(rows, fields)
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
            f"({', '.join(found)}). Say which with format, for example format={found[0]}."
        )
    chosen = FORMATS[found[0]]
    _refuse_mixture(rows, chosen)
    ignored = tuple(name for name in fields if name not in chosen.fields)
    _refuse_lost_content(rows, chosen, ignored)
    present = ", ".join(name for name in fields if name in chosen.fields)
    why = f"{best} of the first {len(rows)} rows have the fields {present}"
    why += f"; {chosen.trains}" if chosen.trains else ""
    return DetectedFormat(chosen.name, why + (f"; ignored: {listed(ignored)}" if ignored else ""), ignored)


def _refuse_judged(rows: Sequence[Row], fields: list[str]) -> None:
    judged = next((row for row in rows if isinstance(row.value.get("label"), bool)), None)
    if judged and any(name in fields for name in ("messages", "conversations", "completion")):
        raise DataError(
            f"{judged.source}: rows judged good or bad (field 'label' is true or false). "
            "Training on all of them would teach the bad ones: keep the rows with true, "
            "or name the format to train on every row."
        )


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


def _refuse_lost_content(rows: Sequence[Row], chosen: Format, ignored: tuple[str, ...]) -> None:
    """A question is not asked without the text it is about, unless the user says so."""
    if chosen.name in ("messages", "sharegpt", "preference", "text"):
        return
    lost = [(row, name) for name in _CONTENT if name in ignored for row in rows if row.value.get(name)]
    if not lost:
        return
    row, name = lost[0]
    question = chosen.required[0]
    answer = next((n for n in chosen.required[-1].split("|") if n in row.value), "COLUMN")
    raise DataError(
        f"{row.source}: the fields fit {chosen.name!r}, which would leave {name!r} out of the question. "
        f"Take it in (columns: {{instruction: {question}, input: {name}, output: {answer}}}), "
        f"or leave it out by naming the format (format={chosen.name})."
    )


def _unknown(row: Row, fields: list[str]) -> NoReturn:
    has = listed(fields)
    if "text" in fields:
        others = [name for name in fields if name != "text"]
        other = next((name for name in others if isinstance(row.value.get(name), str)), others[0])
        raise DataError(
            f"{row.source}: the fields {has} could be a text with its label (columns: {{label: {other}}}), "
            f"a prompt with its answer (columns: {{prompt: text, completion: {other}}}), or a plain document "
            "(format=text). Say which."
        )
    needs = "; ".join(f"{f.name} needs {' and '.join(f.required)}" for f in FORMATS.values()).replace("|", " or ")
    near = max((f for f in FORMATS.values() if f.missing(set(fields))), key=lambda f: _closeness(f, fields))
    if not _closeness(near, fields):
        raise DataError(
            f"{row.source}: no format fits the fields {has}. Say which column is which "
            f"(columns: {{prompt: COLUMN, completion: COLUMN}}). Formats: {needs}."
        )
    lacks = {choice.partition("|")[0]: _slip(choice.partition("|")[0], fields) for choice in near.missing(set(fields))}
    hint = "".join(f" Did you mean {name!r} where it says {slip!r}?" for name, slip in lacks.items() if slip)
    pairs = ", ".join(f"{name}: {slip or 'COLUMN'}" for name, slip in lacks.items())
    raise DataError(
        f"{row.source}: no format fits the fields {has}. Nearest is {near.name!r}, which lacks "
        f"{', '.join(lacks)}.{hint} Rename (columns: {{{pairs}}}). Formats: {needs}."
    )


def _slip(name: str, fields: list[str]) -> str | None:
    """The field that is `name` misspelt or in other case."""
    close = difflib.get_close_matches(name, {field.lower(): field for field in fields}, n=1, cutoff=0.8)
    return next((field for field in fields if field.lower() == close[0]), None) if close else None


def _closeness(candidate: Format, fields: list[str]) -> float:
    """The share of required fields that are there; a misspelt one counts nearly whole."""
    names = [choice.partition("|")[0] for choice in candidate.required]
    shares = [1.0 if name in fields else 0.9 if _slip(name, fields) else 0.0 for name in names]
    return sum(shares) / len(shares)
