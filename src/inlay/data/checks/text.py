"""Damage to text: wrong decoding, lost characters, control characters, leftovers of markup."""

from __future__ import annotations

import re
from typing import Final

from inlay.data.checks.findings import Finding, Kind, Tally
from inlay.data.checks.row import CheckedRow

NUL: Final = Kind(
    "nul-character", "error", "rows with the character NUL",
    "Find what wrote it (binary data, a fixed-width field) and remove it; a model would learn to write it.",
)  # fmt: skip
REPLACEMENT: Final = Kind(
    "replacement-character", "warning", "rows with �, the mark of a character that was lost in decoding",
    "Decode the original file again with its right encoding; what was lost cannot be brought back from here.",
)  # fmt: skip
MOJIBAKE: Final = Kind(
    "mojibake", "warning", "rows with UTF-8 that was read as another encoding, such as Ã© for é",
    "Read the original as UTF-8, or undo it: text.encode('cp1252').decode('utf-8').",
)  # fmt: skip
CONTROL: Final = Kind(
    "control-character", "warning", "rows with invisible control characters",
    "Remove them; terminal colours (ESC) and form feeds come from copied output.",
)  # fmt: skip
BIDI: Final = Kind(
    "bidi-control", "warning", "rows with characters that reverse the order in which text is shown",
    "Remove them: what a reader sees is not what is trained. Arabic and Hebrew need no overrides.",
)  # fmt: skip
TAGS: Final = Kind(
    "tag-character", "warning", "rows with invisible tag characters, which can hold hidden text",
    "Remove them; besides the flags of a few regions nothing needs them.",
)  # fmt: skip
INVISIBLE: Final = Kind(
    "invisible-character", "note", "rows with invisible characters, such as zero-width spaces, byte order marks and soft hyphens",
    "Remove them; they come from web pages and joined files, and split words into other tokens.",
)  # fmt: skip
ENTITIES: Final = Kind(
    "html-entity", "note", "rows with HTML entities such as &amp;",
    "If they are rests of a web page: html.unescape(text).",
)  # fmt: skip

_CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")
_RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
_BIDI = re.compile("[\u202d\u202e]")
_BIDI_LATIN = re.compile("[\u202a-\u202e\u2066-\u2069]")  # in a text without letters from right to left
_HAS_RIGHT_TO_LEFT = re.compile(f"[{_RIGHT_TO_LEFT}]")
_TAG = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007e])[\U000e0000-\U000e007f]")  # behind a black flag they are one
_INVISIBLE = re.compile("[\xad\u200b\u2060-\u2064\ufeff]")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # scripts that mark words by zero-width spaces
_ORDINARY_ASCII: Final = b"\t\n\r" + bytes(range(0x20, 0x7F))  # every ASCII character but NUL and those of _CONTROL
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#39|#x27|#\d{2,5});")

# the characters that bytes 0x80-0xBF become when cp1252 or latin-1 reads them
_CP1252 = "".join(bytes([b]).decode("cp1252", "ignore") for b in range(0x80, 0xC0))
_NEXT = f"[\x80-\xbf{re.escape(_CP1252)}]"
_QUOTES = "»«“”‘’–—…›‹"  # what may really stand behind a capital letter
_MOJIBAKE = re.compile(
    f"[ÃÄÅ](?:(?![{_QUOTES}]){_NEXT}|[{_QUOTES}](?=[a-z]))"
    f"|Â(?![{_QUOTES}]){_NEXT}|â€{_NEXT}|ðŸ{_NEXT}{_NEXT}|(?:[ÐÑ]{_NEXT}){{2,}}|(?:[×ØÙ]{_NEXT}){{3,}}"
    f"|(?:[ä-é]{_NEXT}{_NEXT}){{2,}}"
)


class TextDamage:
    """A row counts once for each kind."""

    def __init__(self) -> None:
        self._tally = Tally()

    def see(self, row: CheckedRow) -> None:
        """Looks at one row."""
        for kind, at in damage(row.text):
            self._tally.add(kind, row.source, row.text, at)

    def findings(self) -> list[Finding]:
        """The findings in all rows seen."""
        return self._tally.findings()


def damage(text: str) -> list[tuple[Kind, int]]:
    """Each kind of damage in the text, with the position of the first."""
    found = []
    is_ascii = text.isascii()
    if not is_ascii or text.encode().translate(None, _ORDINARY_ASCII):
        if (at := text.find("\0")) >= 0:
            found.append((NUL, at))
        if (match := _CONTROL.search(text)) is not None:
            found.append((CONTROL, match.start()))
    if "&" in text and (match := _ENTITY.search(text)):
        found.append((ENTITIES, match.start()))
    if not is_ascii:
        if (at := text.find("�")) >= 0:
            found.append((REPLACEMENT, at))
        if (at := mojibake(text)) >= 0:
            found.append((MOJIBAKE, at))
        found += [one for one in _unseen(text) if one[0] is not INVISIBLE or at < 0]  # mojibake has soft hyphens
    return found


def _unseen(text: str) -> list[tuple[Kind, int]]:
    """(kind, position) of text that a reader does not see, or sees in another order."""
    found = []
    if (match := _BIDI_LATIN.search(text)) and _HAS_RIGHT_TO_LEFT.search(text):
        match = _BIDI.search(text)
    if match:
        found.append((BIDI, match.start()))
    if match := _TAG.search(text):
        found.append((TAGS, match.start()))
    if (match := _INVISIBLE.search(text)) and not _UNSPACED.search(text):
        found.append((INVISIBLE, match.start()))
    return found


def mojibake(text: str) -> int:
    """Position of UTF-8 bytes that were read as cp1252 or latin-1; -1 for none."""
    return next((m.start() for m in _MOJIBAKE.finditer(text) if _decodes(m.group())), -1)


def _decodes(run: str) -> bool:
    try:
        raw = b"".join(c.encode("cp1252") if c in _CP1252 else c.encode("latin-1") for c in run)
        return len(raw.decode("utf-8")) < len(run)
    except UnicodeError:
        return False
