"""Calls of tools in answers: the form in which a chat template writes them, read back, and enforced.

A template that writes a call as a JSON object with its name and arguments, in text that begins and ends it, shows its form by
a call of a made-up tool. Other forms are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from inlay.data.types import Tool, ToolCall
from inlay.serving.engine import CallForm, Refusal
from inlay.serving.grammar import WHITE_SPACE, lark_grammar
from inlay.typed_json import JsonObject

_NAMES: Final = ("inlay_first_call", "inlay_second_call")
_ARGUMENTS: Final = {"inlay_argument": "inlay value"}
_READ: Final = json.JSONDecoder(strict=False)


class Call(NamedTuple):
    """One call in an answer."""

    name: str
    arguments: str
    """As JSON text."""


def made_up(count: int) -> tuple[list[ToolCall], list[Tool]]:
    """So many calls, one or two, and their tools, whose rendering `form_of` reads."""
    calls: list[ToolCall] = [
        {"type": "function", "id": f"inlaycal{n}", "function": {"name": name, "arguments": dict(_ARGUMENTS)}}
        for n, name in enumerate(_NAMES[:count])
    ]
    parameters = {"type": "object", "properties": {"inlay_argument": {"type": "string"}}}
    tools: list[Tool] = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}} for name in _NAMES
    ]
    return calls, tools


def form_of(rendered: Callable[[Sequence[ToolCall], Sequence[Tool]], str | None]) -> CallForm | None:
    """The form of calls by the answers that a template writes of calls, or None where it shows none as JSON.

    `rendered` gives the text of an answer with these calls, without special tokens.
    """
    one = rendered(*made_up(1))
    if one is None or (found := _object_with(_NAMES[0], one)) is None:
        return None
    start, end, value = found
    name_key = next((key for key, part in value.items() if part == _NAMES[0]), None)
    arguments_key = next((key for key, part in value.items() if part in (_ARGUMENTS, json.dumps(_ARGUMENTS))), None)
    if name_key is None or arguments_key is None:
        return None
    two = rendered(*made_up(2))
    second = _object_with(_NAMES[1], two) if two is not None else None
    first = _object_with(_NAMES[0], two) if two is not None else None
    between = two[first[1] : second[0]] if two is not None and first and second and first[1] <= second[0] else ""
    marks = one[:start].rstrip()
    opening = one[marks.rfind("\n") + 1 : start]  # a thought that the template writes before is not the call's
    return CallForm(opening, name_key, arguments_key, between, one[end:].rstrip())


def _object_with(name: str, text: str) -> tuple[int, int, JsonObject] | None:
    """(start, end, value) of the outermost JSON object that has the name as one of its values."""
    place = text.find(json.dumps(name))
    start = text.find("{")
    while 0 <= start < place:
        try:
            value, end = _READ.raw_decode(text, start)
        except ValueError:
            value, end = None, 0
        if isinstance(value, dict) and end > place:
            return (start, end, value) if name in value.values() else None
        start = text.find("{", start + 1)
    return None


def calls_grammar(form: CallForm, tools: Sequence[JsonObject], names: Collection[str]) -> str:
    """The grammar of an answer that is one call of one of these tools. It takes up to two seconds, as `json_grammar` does.

    Raises: Refusal 400 for parameters that are no schema, or one that is not supported.
    """
    rules, calls = [], []
    for n, tool in enumerate(tools):
        function = tool["function"]
        if function["name"] not in names:
            continue
        schema: JsonObject = dict(function.get("parameters") or {"type": "object"})
        head = f"{{{json.dumps(form.name_key)}: {json.dumps(function['name'])}, {json.dumps(form.arguments_key)}: "
        rules.append(f"arguments{n}: %json {json.dumps(schema | {'x-guidance': {'whitespace_pattern': WHITE_SPACE}})}")
        rules.append(f'call{n}: {_quoted(head)} arguments{n} "}}"')
        calls.append(f"call{n}")
    opening, closing = (f"{_quoted(text)} " if text else "" for text in (form.opening, form.closing))
    start = f"start: {opening}({' | '.join(calls)}) {closing}"
    return lark_grammar("\n".join([start, *rules]), [tool["function"].get("parameters") for tool in tools], "tools")


def _quoted(text: str) -> str:
    """A text as lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def require_form(form: CallForm | None) -> CallForm:
    """The form. Raises: Refusal 400 where there is none."""
    if form is None:
        message = "tools: this base's template shows no tool calls (as JSON objects). Leave tools out, or choose another base."
        raise Refusal(400, message, code="unsupported_parameter", param="tools")
    return form


@dataclass(slots=True)
class CallReader:
    """Takes an answer piece by piece, and tells text and calls apart. A call comes when it is whole."""

    form: CallForm
    names: Collection[str]
    """Tools that may be called; what names another is text."""
    most: int | None = None
    """Calls at most; further ones are left out."""
    count: int = 0
    """Calls so far."""
    _held: str = ""
    _is_after: bool = False
    _place: str = "text"
    """`text`, `call` where an opening was seen, `after` a call, and `plain` where no call can come any more."""

    def add(self, text: str) -> list[str | Call]:
        """Text that belongs to no call, and whole calls, in order."""
        self._held += text
        return list(self._pieces(is_end=False))

    def end(self) -> list[str | Call]:
        """The rest; a call that was cut off is text."""
        return list(self._pieces(is_end=True))

    def _pieces(self, is_end: bool) -> Iterator[str | Call]:
        while self._held:
            before, place = len(self._held), self._place
            piece = getattr(self, f"_{self._place}")(is_end)
            if isinstance(piece, Call):
                self.count += 1
                if self.most is None or self.count <= self.most:
                    yield piece
            elif piece:
                yield piece
            if len(self._held) == before and self._place == place:
                break

    def _plain(self, is_end: bool) -> str:
        return self._take(len(self._held))

    def _text(self, is_end: bool) -> str:
        if self._is_after:  # line breaks after a call are the template's
            self._held = self._held.lstrip()
            self._is_after = not self._held
        opening = self.form.opening
        if not opening.strip():
            if not self._held.strip():
                return self._take(len(self._held)) if is_end else ""
            self._place = "call" if self._held.lstrip().startswith("{") else "plain"
            return ""
        place = self._held.find(opening.strip())
        if place >= 0:
            self._place = "call"
            return self._take(place)
        return self._take(len(self._held) - (0 if is_end else _begun(self._held, opening.strip())))

    def _call(self, is_end: bool) -> str | Call:
        opening = self.form.opening.strip()
        skipped = len(opening) if self._held.startswith(opening) else 0
        rest = self._held[skipped:].lstrip()
        if rest.startswith("{") and "}" in rest:
            try:
                value, end = _READ.raw_decode(rest)
            except (ValueError, RecursionError):
                value, end = None, 0
            if end and (call := self._read(value)) is not None:
                self._place, self._is_after = "after", True
                self._take(len(self._held) - len(rest) + end)
                return call
            if end:
                return self._not_a_call(len(self._held) - len(rest) + end)
        if is_end or (rest and not rest.startswith("{")):
            return self._not_a_call(max(skipped, 1))
        return ""

    def _not_a_call(self, length: int) -> str:
        self._place = "text" if self.form.opening.strip() else "plain"
        return self._take(length)

    def _after(self, is_end: bool) -> str:
        rest = self._held.lstrip()
        for mark, place in ((self.form.closing.strip(), "text"), (self.form.between.strip(), "call")):
            if mark and rest.startswith(mark):
                self._place = place
                self._take(len(self._held) - len(rest) + len(mark))
                return ""
            if not is_end and mark.startswith(rest):
                return ""  # it may become the mark
        self._place = "text"
        return ""

    def _read(self, value: Any) -> Call | None:
        """The call that a JSON value is, if it is one."""
        if not isinstance(value, dict) or value.get(self.form.name_key) not in self.names:
            return None
        arguments = value.get(self.form.arguments_key, {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return None
        if not isinstance(arguments, dict):
            return None
        return Call(value[self.form.name_key], json.dumps(arguments, ensure_ascii=False))

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def _begun(text: str, mark: str) -> int:
    """Characters at the end of a text that may be the beginning of the mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
