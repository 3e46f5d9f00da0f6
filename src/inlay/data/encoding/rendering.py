"""A conversation rendered by its chat template: each prefix of its turns once, and the places of the answers in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from inlay.data.encoding.reasoning_prefix import (
    LostThoughtError,
    continuation,
    count_of_ends,
    ends_before,
    opened_by,
    parted,
    shared,
    with_opening,
)
from inlay.data.encoding.refusals import RefusedConversationError, explained
from inlay.data.encoding.special_tokens import SpecialTokens
from inlay.data.encoding.template_cache import TemplateCache
from inlay.data.encoding.template_kwargs import head_of, switches_read, thinking_switches
from inlay.data.reading.tagged_calls import as_written
from inlay.data.reading.turn_fields import THOUGHTS
from inlay.data.types import Message, Source, Tool
from inlay.errors import DataError
from inlay.typed_json import JsonObject

TODAY = datetime(2024, 7, 26)
"""The date that `strftime_now` gives to a chat template, on every day. Some templates write the date into the system turn:
with the real one, the same prompt would have other ids tomorrow than in training. Llama 3's template writes this date by
default."""

MARK = "\ue0f4"
"""Marks the end of a turn's text, to find the place in a rendering."""

_QUESTION = "\ue0f5"
"""Stands for the text of a user turn, likewise."""

_FUNCTION = "inlay_probe"
"""The name of a function in a call, likewise."""

_QUOTED = 60
"""Characters of a rendering that a message quotes at most."""

_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, special: SpecialTokens, head: str = "") -> None:
        """`head` is put before the template; see `template_kwargs.head_of`."""
        self._tokenizer, self._head = tokenizer, head
        self._plain = head + _dated(tokenizer.get_chat_template(tools=None))
        self._epilogue = ""
        self._epilogue = self._find_epilogue(tokenizer, special)
        self._opening = self._find_opening()
        self.opens_thought = self._opening is not None
        self.cache = TemplateCache(self._plain, self.render)

    @cached_property
    def way_to_think(self) -> str:
        """The way out for a row whose thought has no place in this template, as a sentence."""
        template = self._tokenizer.chat_template
        switch = next((name for name in thinking_switches(template) if self._thinks_with(name)), None)
        others = [name for name in switches_read(template) if name != switch]
        turn_on = f"Turn thoughts on (data.template_kwargs: {{{switch}: true}}), take the thought" if switch else ""
        also = f" Its {'other ' if switch else ''}switches: {', '.join(others)}."
        return (
            f"{turn_on or 'Take the thought'} out of the row, or use a template that opens it (model.chat_template)."
            f"{also if others else ''}"
        )

    def _thinks_with(self, switch: str) -> bool:
        """Whether a prompt opens a thought, or no longer ends an empty one, where the switch is on."""
        turns: list[JsonObject] = [{"role": "user", "content": "a"}]
        prompts = []
        for head in ("", head_of([(switch, True)])):
            try:
                prompts.append(
                    self._tokenizer.apply_chat_template(
                        turns, chat_template=head + self._plain, tokenize=False, add_generation_prompt=True
                    )
                )
            except _TEMPLATE_ERRORS:  # a switch of another kind
                return False
        off, on = prompts
        return on != off and (opened_by(on) is not None or count_of_ends(on) < count_of_ends(off))

    def render(self, turns: list[JsonObject], opens_turn: bool, tools: list[Tool] | None = None) -> str:
        """The text that the template makes of these turns. Raises: what the template or jinja raises."""
        template = self._head + _dated(self._tokenizer.get_chat_template(tools=tools)) if tools else self._plain
        text = str(
            self._tokenizer.apply_chat_template(
                turns, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=opens_turn
            )
        )
        return text if opens_turn else text.removesuffix(self._epilogue)

    def placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, with each thought where the template shows it.

        That is the field of the row or another field; the content, where the template shows thoughts only there; or a
        field in place of the content, where the template would write an empty thought before it. Calls and tool answers that
        the row wrote as text are that text again where the template knows no calls.
        """
        if any(m.written for m in messages) and not self._shows_calls:
            messages = as_written(list(messages))
        has_more = self._takes_thoughts_apart or any(m.thought for m in messages)
        return [self._placed(m) for m in messages] if has_more else messages

    def _placed(self, message: Message) -> Message:
        shown = self._thoughts_shown
        if self._takes_thoughts_apart and message.role == "assistant" and not message.thought:
            thought, rest = parted(message.content)
            return (
                replace(message, content=rest.lstrip(), thought=thought, thought_field=shown[0]) if thought else message
            )
        if not message.thought or message.thought_field in shown:
            return message
        if shown:
            return replace(message, thought_field=shown[0])
        if "</think>" not in self._plain:  # it is left out, and refused later
            return message
        content = f"<think>\n{message.thought.strip()}\n</think>\n\n{message.content}"
        return replace(message, content=content, thought="", thought_field="")

    @cached_property
    def _shows_calls(self) -> bool:
        """Whether the template writes the calls of an answer."""
        call = {"type": "function", "id": "abcdefghi", "function": {"name": _FUNCTION, "arguments": {}}}
        answer: JsonObject = {"role": "assistant", "content": "", "tool_calls": [call]}
        turns: list[JsonObject] = [{"role": "user", "content": "a"}, answer]
        tool: Tool = {
            "type": "function",
            "function": {"name": "other", "description": "", "parameters": {"type": "object"}},
        }
        for tools in (None, [tool]):
            with contextlib.suppress(*_TEMPLATE_ERRORS):
                if _FUNCTION in self.render(turns, False, tools):
                    return True
        return False

    @cached_property
    def _takes_thoughts_apart(self) -> bool:
        """Whether the template shows thoughts of a field, and ends an empty one before a thought in the content, or shows
        that thought as text beside marks of its own."""
        turns = [
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": f"<think>\n{MARK}\n</think>\n\nb"},
        ]
        try:
            shown = self.render(turns, False).partition(_QUESTION)[2]
        except _TEMPLATE_ERRORS:  # reported for the first conversation that meets it
            return False
        return bool(self._thoughts_shown) and (ends_before(shown, MARK) or self._has_other_marks(shown))

    def _has_other_marks(self, shown: str) -> bool:
        """Whether the template writes the thought of a field without the tags that it leaves in the content as `shown`."""
        answer = {"role": "assistant", "content": "b", self._thoughts_shown[0]: MARK}
        of_field = self.render([{"role": "user", "content": _QUESTION}, answer], False).partition(_QUESTION)[2]
        return "<think>" in shown.partition(MARK)[0] and "think>" not in of_field

    @cached_property
    def _thoughts_shown(self) -> tuple[str, ...]:
        """The fields of an answer that the template shows as its thought."""
        shown = []
        for name in THOUGHTS:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", name: MARK}]
            with contextlib.suppress(*_TEMPLATE_ERRORS):
                if name in self._plain and MARK in self.render(turns, False):
                    shown.append(name)
        return tuple(shown)

    def opened(self, answer: str) -> str:
        """The text of an answer, with the opening of a thought that it only ends, where every prompt opens one."""
        return with_opening(answer, self._opening) if self._opening else answer

    def _find_opening(self) -> tuple[str, str] | None:
        try:
            return opened_by(self.render([{"role": "user", "content": "a"}], True))
        except _TEMPLATE_ERRORS:  # reported for the first conversation that meets it
            return None

    def _find_epilogue(self, tokenizer: Any, special: SpecialTokens) -> str:
        """The text after the end of an answer that the template writes only because nothing follows: one more special token,
        or the opening of the next answer although none is wanted."""
        turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", MARK), ("user", "b"))]
        try:
            last, between = (self.render(turns[:n], False).partition(MARK)[2] for n in (2, 3))
        except _TEMPLATE_ERRORS:  # reported for the first conversation that meets it
            return ""
        common, eos = last[: shared(last, between)], tokenizer.eos_token
        end = common.index(eos) + len(eos) if eos in common else special.last_end(common)
        return last[end:] if end and last[end:].strip() else ""


class RenderedConversation:
    """The renderings of all prefixes of a conversation, each made once."""

    def __init__(self, template: Template, messages: Sequence[Message], tools: Sequence[Tool], source: Source) -> None:
        messages = template.placed(messages)
        self.messages, self.tools, self.source = messages, tools, source
        self._template = template
        self._roles, self._texts = tuple([m.role for m in messages]), [m.content for m in messages]
        self._is_plain = not tools and not any(not m.content.strip() or m.has_more for m in messages)
        self._rendered: dict[tuple[int, bool], str] = {}

    def prompt(self, count: int) -> str:
        """The first `count` turns and the opening of an answer. Raises: DataError when the template refuses."""
        return self._render(count, opens_turn=True)

    def rendered(self, count: int) -> str:
        """The first `count` turns. Raises: DataError when the template refuses."""
        return self._render(count, opens_turn=False)

    def try_rendered(self, count: int) -> str | None:
        """`rendered`, or None where the template refuses."""
        try:
            return self.rendered(count)
        except DataError:
            return None

    def boundaries(self, text: str, count: int, roles: Collection[str]) -> list[tuple[int, int, int]]:
        """(turn, start, end) of each of the first `count` turns that has one of the roles and is unchanged in the text."""
        found: list[tuple[int, int, int]] = []
        for n in range(count):
            if self.messages[n].role not in roles or (n == 0 and self.messages[n].role == "assistant"):
                continue
            try:
                opening, closing = self._opening(n), self.rendered(n + 1)
            except DataError:  # a conversation that cannot end here: no cut, and its own sequence would be refused
                continue
            if opening is None or (found and len(opening) < found[-1][2]):
                continue
            if text.startswith(closing) and closing.startswith(opening):
                found.append((n, len(opening), len(closing)))
        return found

    def _opening(self, turn: int) -> str | None:
        """The rendering before a turn's text; None where its place is unknown.

        Raises: DataError when the template refuses the conversation up to there.
        """
        if self.messages[turn].role == "assistant":
            return self.prompt(turn)
        marked = [*self.messages[:turn], replace(self.messages[turn], content=MARK + self._texts[turn])]
        shown = RenderedConversation(self._template, marked, self.tools, self.source).rendered(turn + 1)
        return shown.partition(MARK)[0] if shown.count(MARK) == 1 else None

    def lacks_thought(self, turn: int, answer: str) -> bool:
        """Whether the prompt opens a thought, and the template's rendering of the answer shows none where the row has one."""
        return self._template.opens_thought and parted(self._texts[turn])[0] not in answer

    def continuation(self, turn: int) -> str:
        """The continuation of the prompt of an answer that the template shows otherwise than it opens it.

        Raises: DataError where there is no such continuation.
        """
        marked = [*self.messages[: turn - 1], replace(self.messages[turn - 1], content=self._texts[turn - 1] + MARK)]
        beside = RenderedConversation(self._template, [*marked, self.messages[turn]], self.tools, self.source)
        opening, shown = (text.partition(MARK)[2] for text in (beside.prompt(turn), beside.rendered(turn + 1)))
        try:
            found = continuation(opening, shown, self._texts[turn])
        except LostThoughtError:
            raise DataError(
                f"{self.source}: the chat template ends the thought before turn {turn + 1} is answered "
                f"({_tail(opening)!r}), so the thought in it could not be trained. {self._template.way_to_think}"
            ) from None
        if not found:
            raise DataError(
                f"{self.source}: the chat template renders turn {turn + 1} differently when it is answered "
                f"({_head(shown)!r}) than when it is opened ({_tail(opening)!r}), so the trained ids could not be served. "
                "Use another template (model.chat_template)."
            )
        return found

    def _render(self, count: int, *, opens_turn: bool) -> str:
        key = (count, opens_turn)
        if key not in self._rendered:
            messages, texts = self.messages, self._texts
            if self._template.opens_thought and not opens_turn and self._roles[count - 1] == "assistant":
                messages, texts = self._answered(count)
            text = self._template.cache.fill(self._roles[:count], texts, opens_turn) if self._is_plain else None
            self._rendered[key] = self._render_whole(messages[:count], opens_turn) if text is None else text
        return self._rendered[key]

    def _answered(self, count: int) -> tuple[Sequence[Message], list[str]]:
        """(messages, texts) of the first turns, whose last answer opens the thought that it ends."""
        own = self._texts[count - 1]
        answer = self._template.opened(own)
        if answer == own:
            return self.messages, self._texts
        messages = [*self.messages[: count - 1], replace(self.messages[count - 1], content=answer)]
        return messages, [m.content for m in messages]

    def explained(self, refusal: RefusedConversationError) -> DataError:
        """The template's refusal of this conversation, with the turn and the way out."""
        return explained(refusal, self.messages, self._refusal_of)

    def _refusal_of(self, count: int) -> str | None:
        """The template's reason against the first `count` turns; None where it takes them."""
        try:
            self._render_whole(self.messages[:count], False)
        except RefusedConversationError as refusal:
            return refusal.reason
        return None

    def _render_whole(self, messages: Sequence[Message], opens_turn: bool) -> str:
        try:
            return self._template.render([_turn(m) for m in messages], opens_turn, list(self.tools) or None)
        except _TEMPLATE_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise RefusedConversationError(self.source, reason, len(messages)) from None


def _tail(text: str) -> str:
    """The end of a text, from the beginning of a mark or a word."""
    if len(text) <= _QUOTED:
        return text
    found = re.compile(r"[<\[]|\s").search(text, len(text) - _QUOTED)
    return f"…{text[found.start() if found else -_QUOTED :]}"


def _head(text: str) -> str:
    """The beginning of a text, to the end of a mark or a word."""
    if len(text) <= _QUOTED:
        return text
    ends = [found.end() for found in re.finditer(r"[>\]]|(?=\s)", text[:_QUOTED])]
    return f"{text[: ends[-1] if ends and ends[-1] else _QUOTED]}…"


def _dated(template: str) -> str:
    """The template, with `strftime_now` giving the date of `TODAY`."""
    # a function cannot be handed over: transformers shows templates plain values only
    return _STRFTIME_TODAY + template if "strftime_now" in template else template


def _strftime_today() -> str:
    """A Jinja macro that formats `TODAY` as strftime does, and leaves no white space before what follows it."""
    texts = {f"%{code}": TODAY.strftime(f"%{code}") for code in "aAbBcdDeFGHIjmMpRSTuUVwWxXyYzZ"}
    texts["%f"] = f"{TODAY.microsecond:06}"
    texts |= {f"%-{code}": texts[f"%{code}"].lstrip("0") or "0" for code in "dHIjmMSUWy"}
    steps = [("%%", "\0"), *texts.items(), ("\0", "%")]
    replaced = "".join(f"|replace({code!r}, {text!r})" for code, text in steps)
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}\n"


_STRFTIME_TODAY = _strftime_today()


def _turn(message: Message) -> JsonObject:
    turn: JsonObject = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    if message.name:
        turn["name"] = message.name
    if message.thought:
        turn[message.thought_field] = message.thought
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn
