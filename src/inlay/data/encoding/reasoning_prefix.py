"""The continuation of a served prompt, where a template opens an answer otherwise than it shows a given one.

Templates of reasoning models do: the prompt ends in `<think>`, and the answered turn shows no thought, or an empty one.
What is trained is the continuation of the prompt as it is served: the thought that the row has, else an empty one.

What a server gave after a prompt that opens a thought holds only the end of it: `reasoning</think>answer`. Such an answer
has a thought too, up to that mark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

THOUGHTS: Final = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
"""(mark before, mark after) a thought."""


_OPENS: Final = tuple(opens for opens, _ in THOUGHTS)
_ENDS: Final = re.compile("|".join(re.escape(closes) for _, closes in THOUGHTS))


class LostThoughtError(Exception):
    """A row's thought has no place after the prompt."""


@dataclass(frozen=True, slots=True)
class _Thought:
    thought: str
    rest: str


def parted(content: str) -> tuple[str, str]:
    """(thought, text after it) of a turn's text; the thought is empty where there is none."""
    if ">" not in content and "]" not in content:  # one of them stands in every mark of an end
        return "", content
    if not content.lstrip().startswith(_OPENS) and not _ENDS.search(content):
        return "", content
    for opens, closes in THOUGHTS:
        is_opened = content.lstrip().startswith(opens)
        if found := _leading(content, opens, closes) if is_opened else _unopened(content, opens, closes):
            return found.thought.strip(), found.rest
    return "", content


def ends_before(text: str, thought: str) -> bool:
    """Whether the text ends another thought, an empty one of the template, before it comes to this one."""
    at = text.find(thought.strip())
    return at > 0 and _ENDS.search(text, 0, at) is not None


def ended_by(prompt: str, content: str) -> bool:
    """Whether the prompt ends in the end of a thought, and the answer begins another one of the same marks."""
    stripped, begin = prompt.rstrip(), content.lstrip()
    return any(
        stripped.endswith(closes) and (begin.startswith(opens) or _unopened(content, opens, closes) is not None)
        for opens, closes in THOUGHTS
    )


def count_of_ends(text: str) -> int:
    """The number of marks in a text that end a thought."""
    return len(_ENDS.findall(text))


def opened_by(prompt: str) -> tuple[str, str] | None:
    """(mark, white space behind it) where the prompt ends in the opening of a thought, else None."""
    stripped = prompt.rstrip()
    mark = next((opens for opens in _OPENS if stripped.endswith(opens)), None)
    return (mark, prompt[len(stripped) :]) if mark else None


def with_opening(content: str, opening: tuple[str, str]) -> str:
    """The text of a turn behind the opening of the thought that it only ends; unchanged where it ends none."""
    for opens, closes in THOUGHTS:
        if opens == opening[0] and _unopened(content, opens, closes):
            return f"{opens}{opening[1]}{_unspaced(content, opening[1])}"
    return content


def continues(content: str, text: str) -> bool:
    """Whether the text has all of a turn's text but the opening of its thought, which the prompt has written."""
    stripped = content.lstrip()
    mark = next((opens for opens in _OPENS if stripped.startswith(opens)), None)
    return mark is not None and stripped[len(mark) :].lstrip() in text


def continuation(opening: str, shown: str, content: str) -> str | None:
    """The text after a prompt that ends in `opening`, where the answered turn is `shown`; None where they do not belong
    together.

    `opening` and `shown` are the template's text after the last turn before the answer. `content` is the answer's text.

    Raises: LostThoughtError when the prompt leaves no place for the thought in it.
    """
    for opens, closes in THOUGHTS:
        head, at, tail = opening.rpartition(opens)
        inside, closed, after = tail.partition(closes)
        if at and not inside.strip() and not after.strip():
            rest = _without(head, shown)
            return None if rest is None else _after_thought(rest, content, (opens, closes), inside, closed, after)
    return _without(opening, shown)


def _after_thought(rest: str, content: str, marks: tuple[str, str], inside: str, closed: str, after: str) -> str:
    opens, closes = marks
    shown = _leading(rest, opens, closes)
    own = _leading(content, opens, closes) or _unopened(content, opens, closes)
    thought = shown.thought if shown and shown.thought.strip() else own.thought if own else ""
    if closed:
        if thought.strip():
            raise LostThoughtError
        return _unspaced(shown.rest, after) if shown else rest
    if shown is None:  # the template leaves every thought out
        line = "\n" if inside.endswith("\n") else ""
        gap = "" if rest[:1].isspace() else own.rest[: _space(own.rest)] if own else line * 2
        return f"{_unspaced(thought, inside) or line}{closes}{gap}{rest}"
    return f"{_unspaced(thought, inside)}{closes}{shown.rest}"


def _leading(text: str, opens: str, closes: str) -> _Thought | None:
    """The thought that the text begins with, opened there or before it."""
    stripped = text.lstrip()
    if stripped.startswith(closes):
        return _Thought("", stripped[len(closes) :])
    thought, end, rest = stripped.removeprefix(opens).partition(closes) if stripped.startswith(opens) else ("", "", "")
    return _Thought(thought, rest) if end else None


def _unopened(text: str, opens: str, closes: str) -> _Thought | None:
    """The thought up to the only mark in the text, which ends it."""
    thought, end, rest = text.partition(closes)
    return _Thought(thought, rest) if end and thought.strip() and opens not in text and closes not in rest else None


def _without(head: str, text: str) -> str | None:
    """The text after the head that it begins with, other white space aside; None where it begins otherwise."""
    if text.startswith(head):
        return text[len(head) :]
    at = 0
    for character in head:
        if character.isspace():
            continue
        at += _space(text[at:])
        if not text.startswith(character, at):
            return None
        at += 1
    return _unspaced(text[at:], head[len(head.rstrip()) :])


def _unspaced(text: str, space: str) -> str:
    """The text without the white space at its start that has been written already."""
    return text[shared(text, space) :]


def shared(a: str, b: str) -> int:
    """The number of characters that both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _space(text: str) -> int:
    return len(text) - len(text.lstrip())
