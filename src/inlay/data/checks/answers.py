"""Answers that teach nothing: blank, echoes, loops, placeholders, all the same."""

from __future__ import annotations

import re
import zlib
from typing import Final

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.row import CheckedRow

NO_WORDS: Final = Kind(
    "answer-without-words", "warning", "answers without a letter or a digit",
    "Look whether the answer was lost; remove the row if it was.",
)  # fmt: skip
NOTHING: Final = Kind(
    "answer-says-nothing", "warning", "answers that stand for a missing value (None, N/A, null, TODO)",
    "Fill in the answer or remove the row.",
)  # fmt: skip
ECHO: Final = Kind(
    "answer-is-the-question", "warning", "answers that repeat the question word for word",
    "Look whether two columns were mixed up (data.columns).",
)  # fmt: skip
REPEATS: Final = Kind(
    "repeating-answer", "warning", "answers that repeat the same words over and over",
    "Such loops come from generated answers; remove them, a model learns them fast.",
)  # fmt: skip
PLACEHOLDER: Final = Kind(
    "placeholder", "warning", "answers with a placeholder that was never filled in",
    "Fill it in, or remove the row: the model would answer with the placeholder.",
)  # fmt: skip
OPEN_FENCE: Final = Kind(
    "unclosed-code-fence", "warning", "answers that open a code block and do not close it",
    "Look whether the answer was cut off; close the block (```) or remove the row.",
)  # fmt: skip
UNOPENED: Final = Kind(
    "unopened-thought", "warning", "answers that end a thought (</think>) and do not begin it",
    "Write <think> before the reasoning. Leave it as it is only where the base's chat template opens a thought in every "
    "prompt: `inlay data show` shows that.",
)  # fmt: skip
ASSISTANT: Final = Kind(
    "assistant-boilerplate", "note", "answers that say “as an AI language model”",
    "Keep them if that is part of the task; otherwise the model learns to say so.",
)  # fmt: skip
ALL_SAME: Final = Kind(
    "all-answers-equal", "warning", "all answers are the same", "Check the column that the answer is read from."
)

_NOTHING = frozenset({"none", "null", "nan", "n/a", "na", "nil", "undefined", "todo", "tbd", "[deleted]", "[removed]"})
_PLACEHOLDER = re.compile(
    r"\{\{ ?\w+ ?\}\}|\[(?:insert|your|enter)\b[^\]\n]{0,40}\]|<(?:insert|your|enter) [^>\n]{1,40}>|lorem ipsum", re.I
)
_ASSISTANT = re.compile(r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b", re.I)
_AS_MODEL: Final = ("language model", "as an ai", "as a ai", "artificial intelligence")  # one stands in every match
_FENCE = re.compile(r"^[ \t>]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?(`{3,}|~{3,})([^\n]*)", re.M)
_UNOPENED = re.compile(r"(?s)\A(?!.*<think>).*?\S.*?(\n</think>|</think>\s*\n)")
_HAS_WORD = re.compile(r"\w")
_ENOUGH: Final = 20  # answers before "all the same" means something
_TAIL, _TIMES, _COMPRESSED = 24, 8, 0.12


class Answers:
    """Finds faults in the trained turns of conversations."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._first: CheckedRow | None = None
        self._seen = 0
        self._differ = False

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        if row.is_document:
            return
        self._seen += 1
        if self._first is None:
            self._first = row
        elif not self._differ:
            self._differ = row.normal[-1] != self._first.normal[-1]
        found: dict[Kind, tuple[str, int]] = {}
        for n, text in row.trained():
            question = row.normal[n - 1][1] if n else ""
            for kind, at in faults(text, row.normal[n][1], question):
                found.setdefault(kind, (text, at))
            if (at := open_fence(text)) >= 0 and not (n and open_fence(row.texts[n - 1]) >= 0):
                found.setdefault(OPEN_FENCE, (text, at))
            if "</think>" in text and (match := _UNOPENED.search(text)):
                found.setdefault(UNOPENED, (text, match.start(1)))
        for kind, (text, at) in found.items():
            self._tally.add(kind, row.source, text, at)

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        found = self._tally.findings()
        if self._first and not self._differ and self._seen >= _ENOUGH:
            tally = Tally()
            tally.add(ALL_SAME, self._first.source, self._first.answer)
            found += tally.findings()
        return found


def faults(answer: str, normal: str, question: str) -> list[tuple[Kind, int]]:
    """(fault, position) of an answer's faults; `normal` and `question` are normalised."""
    if normal in _NOTHING:
        return [(NOTHING, 0)]
    found = []
    if len(normal) < 40 and not _HAS_WORD.search(normal):
        found.append((NO_WORDS, 0))
    if normal == question and len(normal) > 40:
        found.append((ECHO, 0))
    if repeats(answer):
        found.append((REPEATS, max(0, len(answer) - 40)))
    if ("{{" in answer or "[" in answer or "<" in answer or "orem" in answer) and (m := _PLACEHOLDER.search(answer)):
        found.append((PLACEHOLDER, m.start()))
    if any(words in normal for words in _AS_MODEL) and (m := _ASSISTANT.search(answer)):
        found.append((ASSISTANT, m.start()))
    return found


def open_fence(text: str) -> int:
    """Position of a code fence that is not closed; -1 for none."""
    if "```" not in text and "~~~" not in text:
        return -1
    opened, at = "", -1
    for match in _FENCE.finditer(text):
        fence, behind = match[1], match[2].strip()
        if not opened:
            if fence[0] == "~" or "`" not in behind:  # else it is code within a line
                opened, at = fence, match.start()
        elif fence.startswith(opened) and not behind:
            opened = ""
    return at if opened else -1


def repeats(text: str) -> bool:
    """Whether the text ends in a loop: its last characters stand in it many times, and it packs to nearly nothing."""
    tail = text.rstrip()[-_TAIL:]
    if len(text) < _TAIL * _TIMES or text.count(tail) < _TIMES:
        return False
    packed = text.encode("utf-8", "replace")
    return len(zlib.compress(packed, 1)) < _COMPRESSED * len(packed)
