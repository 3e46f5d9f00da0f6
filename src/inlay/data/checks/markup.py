"""Marks in a text that another program would have replaced: images, videos and sounds, and conversations in documents."""

from __future__ import annotations

import re
from typing import Final

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.row import CheckedRow

MEDIA: Final = Kind(
    "media-placeholder", "warning", "rows with a mark for an image, a video or sound, such as <image>",
    "The model gets only the mark, as text, and would learn to answer without what it stands for. Remove these rows, or "
    "the mark where the text needs no image.",
)  # fmt: skip
TURNS: Final = Kind(
    "conversation-in-a-document", "warning", "documents that look like conversations, such as “### Human: … ### Assistant: …”",
    "They are trained whole, questions and marks included. Write them as messages with role and content, so that only the "
    "answers are trained.",
)  # fmt: skip

NEARLY_ALL: Final = 0.9
"""Share of rows with a mark from which the data is made for another kind of model: an error."""
_ENOUGH: Final = 5

_MEDIA = re.compile(
    r"<\|?(?:image|video|audio)(?:_pad|_placeholder|_soft_token|_\d+)?\|?>|<\|vision_start\|>|<start_of_(?:image|audio)>"
    r"|<\|AUDIO\|>|\[IMG\]|<im_start>|<ImageHere>|<image_soft_token>"
)
_CLOSED = re.compile(r"</(?:image|video|audio)>")
"""The end of such an element of HTML or SVG, which is code and stands for nothing."""
_USER = re.compile(r"### ?(?:Human|User|Instruction|Question|Input):|(?:^|\n)(?:Human|User|USER): ")
_ASSISTANT = re.compile(r"### ?(?:Assistant|Response|Answer|Output):|(?:^|\s)(?:Assistant|ASSISTANT): ")


class Markup:
    """Counts a row once for each kind."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._seen = 0

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        self._seen += 1
        text = row.text
        if ("<" in text or "[IMG]" in text) and (mark := _MEDIA.search(text)) and not _CLOSED.search(text):
            self._tally.add(MEDIA, row.source, text, mark.start())
        if row.is_document and ":" in text and (mark := _ASSISTANT.search(text)) and _USER.search(text):
            self._tally.add(TURNS, row.source, text, mark.start())

    def findings(self) -> list[Finding]:
        """The findings in all rows seen; marks in nearly every row are an error."""
        count = self._tally.count(MEDIA)
        is_most = self._seen >= _ENOUGH and count >= NEARLY_ALL * self._seen
        return [
            self._tally.finding(kind, "error" if kind is MEDIA and is_most else None) for kind in self._tally.counts
        ]
