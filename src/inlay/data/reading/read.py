"""Examples of a data file, in one call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeVar

from inlay.data.reading import formats, sources
from inlay.data.reading.detection import PREVIEW, DetectedFormat, detect, named
from inlay.data.reading.folders import parts_beside
from inlay.data.reading.row_fields import BY_FILE, OneSplit
from inlay.data.types import ASSISTANT, Example, Hash, Message, OnFault, Row, Source
from inlay.errors import DataError
from inlay.typed_json import JsonObject

Changed = TypeVar("Changed")
_MORE = {"name": None, "thought": "", "thought_field": "", "tool_call_id": None, "written": None}
"""Fields of few messages, with their value in the others."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A whole file, read."""

    examples: tuple[Example, ...]
    format: str
    why: str
    """The reason for the format, in one line."""
    hash: str
    """Hex sha256 of the file's bytes."""


def read_examples(
    path: str,
    format: str = "auto",  # noqa: A002
    columns: Mapping[str, str] | None = None,
    role_weights: Mapping[str, float] = ASSISTANT,
) -> ReadResult:
    """Every example of a file. `columns` maps a field of the format to the file's name for it.

    Raises:
        DataError: the file is damaged, no format fits, or a row cannot be trained on.
    """
    sha = hashlib.sha256()
    found, examples = stream_examples(path, format, columns, sha, None, role_weights)
    return ReadResult(tuple(examples), found.name, found.why, sha.hexdigest())


def stream_examples(
    path: str,
    format: str = "auto",  # noqa: A002
    columns: Mapping[str, str] | None = None,
    sha: Hash | None = None,
    on_fault: OnFault | None = None,
    role_weights: Mapping[str, float] = ASSISTANT,
) -> tuple[DetectedFormat, Iterator[Example]]:
    """The format and the examples one by one; only the rows that decide the format are held at once.

    With `on_fault`, a row that cannot be used is passed to it and left out.

    Raises:
        DataError: as `read_examples`, for a row when the iterator reaches it.
    """
    if format != "auto":
        formats.named(format)
    if columns:
        formats.check_columns(columns, format)
    rows = _seen_as(sources.rows(path, sha, on_fault), columns, on_fault, role_weights)
    first, rows = _preview(rows, on_fault)
    found = detect(first) if format == "auto" else named(format, first)
    if beside := parts_beside(path):
        found = replace(found, why=f"{found.why}; {beside}")
    return found, _each(rows, _parser(found.name, OneSplit() if format == "auto" else None), on_fault)


def examples_again(
    path: str,
    format: str,  # noqa: A002
    columns: Mapping[str, str],
    sha: Hash | None = None,
    only: Set[int] | None = None,
    role_weights: Mapping[str, float] = ASSISTANT,
    *,
    split: OneSplit | None = None,
) -> Iterator[Example]:
    """The examples of one file whose format is known; with `only`, those of these lines, the others being passed over.

    `split` where the format was found, not named: what it does not read is then refused where it carries meaning."""
    rows = _seen_as(sources.rows_of_file(path, sha, None, only), columns, None, role_weights)
    return _each(rows, _parser(format, split), None)


def _parser(format_name: str, split: OneSplit | None) -> Callable[[Row], Example]:
    parse = formats.FORMATS[format_name].parse
    if split is None:
        return parse

    def parsed(row: Row) -> Example:
        if not BY_FILE.isdisjoint(row.value):
            split.see(row, format_name)
        return parse(row, strict=True)

    return parsed


def _seen_as(
    rows: Iterator[Row], columns: Mapping[str, str] | None, on_fault: OnFault | None, role_weights: Mapping[str, float]
) -> Iterator[Row]:
    """The rows with the fields and the weights that the settings give them."""
    if role_weights != ASSISTANT:
        rows = (replace(row, role_weights=role_weights) for row in rows)
    return _each(rows, lambda row: formats.rename(row, columns), on_fault) if columns else rows


def _preview(rows: Iterator[Row], on_fault: OnFault | None) -> tuple[list[Row], Iterator[Row]]:
    """The first rows, and all rows. With `on_fault` damage that ends the file is met where it stands, not here."""
    first: list[Row] = []
    try:
        for row in islice(rows, PREVIEW):
            first.append(row)
    except DataError as error:
        if on_fault is None or not first:
            raise
        rows = _ends_in(error)
    return first, chain(first, rows)


def _ends_in(error: DataError) -> Iterator[Row]:
    raise error
    yield


def _each(rows: Iterator[Row], change: Callable[[Row], Changed], on_fault: OnFault | None) -> Iterator[Changed]:
    for row in rows:
        try:
            changed = change(row)
        except DataError as error:
            if on_fault is None:
                raise
            on_fault(error)
        else:
            yield changed


def as_lines(examples: Iterable[Example]) -> str:
    """The examples as JSON lines that `from_lines` reads back unchanged."""
    lines = []
    for example in examples:
        turns = [
            {"role": m.role, "content": m.content, "weight": m.weight}
            | ({"tool_calls": list(m.tool_calls)} if m.tool_calls else {})
            | {name: value for name, usual in _MORE.items() if (value := getattr(m, name)) != usual}
            for m in example.messages
        ]
        row = {
            "file": example.source.file,
            "line": example.source.line,
            "messages": turns,
            "tools": list(example.tools),
        } | ({"switches": [list(one) for one in example.switches]} if example.switches else {})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def from_lines(text: str) -> tuple[Example, ...]:
    """The examples that `as_lines` wrote. Raises: ValueError, LookupError or TypeError for any other text."""
    return tuple(_example(json.loads(line)) for line in text.split("\n") if line)


def _example(row: JsonObject) -> Example:
    messages = tuple([_message(turn) for turn in row["messages"]])
    switches = tuple([(name, value) for name, value in row.get("switches", ())])
    return Example(messages, Source(row["file"], row["line"]), tuple(row["tools"]), switches)


def _message(turn: JsonObject) -> Message:
    more = {name: turn[name] for name in _MORE if name in turn}
    if "written" in more:
        more["written"] = tuple(more["written"])
    return Message(turn["role"], turn["content"], turn["weight"], tuple(turn.get("tool_calls", ())), **more)
