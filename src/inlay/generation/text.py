"""The text of an answer while it comes, token by token: the same text that decoding the whole answer gives.

Half a character is held back, and so is what may become a stop string.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
_OPEN_TO_CLEANING: Final = " 'nvr"
"""Characters that may stand before the last one of what transformers' cleaning of spaces looks for."""


class Detokenizer:
    """Texts of answers by one tokenizer. Special tokens have no text."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is a fast one of transformers."""
        backend = tokenizer.backend_tokenizer
        self._tokenizer, self._backend = tokenizer, backend
        self._special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        stages = decoder_stages(backend)
        self._is_byte_level = bool(stages) and json.loads(stages).get("type") == "ByteLevel"
        self._joins_bytes, self._has_byte_level = '"ByteFallback"' in stages, '"ByteLevel"' in stages
        corrupts = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        is_bpe = type(backend.model).__name__ == "BPE"
        self._cleans = tokenizer.clean_up_tokenization_spaces and (not is_bpe or getattr(tokenizer, corrupts, False))
        self._bytes: dict[int, bytes] = {}

    def answer(self, stop: Sequence[str] = ()) -> AnswerText:
        """The text of a new answer. It ends before the stop string that is complete first, the longest of several."""
        text: _Part = _ByteText(self) if self._is_byte_level else _WindowText(self)
        return AnswerText([text, _CleanText(self._tokenizer)] if self._cleans else [text], stop)

    def is_special(self, id_: int) -> bool:
        """Whether it has no text."""
        return id_ in self._special

    def token_bytes(self, id_: int) -> bytes:
        """The bytes of a token of a byte-level tokenizer."""
        found = self._bytes.get(id_)
        if found is None:
            token = self._backend.id_to_token(id_) or ""
            known = [BYTE_OF.get(c) for c in token]
            found = token.encode() if None in known else bytes(b for b in known if b is not None)
            self._bytes[id_] = found
        return found

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of these tokens alone, before spaces are cleaned."""
        return str(self._backend.decode(ids, skip_special_tokens=True))

    def waits(self, id_: int) -> bool:
        """Whether what follows decides the text of this token: bytes that a run of such tokens spells together."""
        return self._joins_bytes and bool(_BYTE.fullmatch(self._backend.id_to_token(id_) or ""))

    def may_change(self, text: str) -> bool:
        """Whether the end of the text may be part of a character."""
        return self._has_byte_level and text.endswith("\ufffd")


def decoder_stages(backend: Any) -> str:
    """The decoder of a tokenizer as JSON; empty without one."""
    return "" if backend.decoder is None else str(backend.decoder.__getstate__().decode())


class AnswerText:
    """The text of one answer, from its tokens one by one."""

    def __init__(self, parts: Sequence[_Part], stop: Sequence[str]) -> None:
        """`parts` turn ids into text that is final, one after the other; made by `Detokenizer.answer`."""
        self._first, *self._rest = parts
        self._stops = [_Search(string) for string in stop if string]
        self._held = ""
        self.stopped = False
        """Whether a stop string has ended it; later tokens have no text."""

    def add(self, id: int) -> str:  # noqa: A002
        """The text that is final with this token, and was not before."""
        return "" if self.stopped else self._taken(self._first.add(id))

    def end(self) -> str:
        """The rest of the text, where the answer ends here."""
        if self.stopped:
            return ""
        text = self._taken(self._first.end())
        for n, part in enumerate(self._rest):
            text += self._taken(part.end(), n + 1)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _taken(self, text: str, first: int = 0) -> str:
        """The part of new text that is final, after the parts from `first` on and the search for stop strings."""
        for part in self._rest[first:]:
            text = part.add(text)
        if not text or self.stopped:
            return ""
        whole = self._held + text
        found = [(end, end - search.length) for search in self._stops if (end := search.end_in(text)) is not None]
        if found:
            self.stopped, kept = True, whole[: len(self._held) + min(found)[1]]
            self._held = ""
            return kept
        count = len(whole) - max((search.matched for search in self._stops), default=0)
        self._held = whole[count:]
        return whole[:count]


class _Part(Protocol):
    """Takes tokens or text one by one; gives text that is final."""

    def add(self, given: Any) -> str:
        raise NotImplementedError

    def end(self) -> str:
        raise NotImplementedError


class _ByteText:
    """Text of a byte-level tokenizer: the bytes of all tokens, read as UTF-8."""

    def __init__(self, tokens: Detokenizer) -> None:
        self._tokens = tokens
        self._reader = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, given: int) -> str:
        """Whole characters."""
        return "" if self._tokens.is_special(given) else self._reader.decode(self._tokens.token_bytes(given))

    def end(self) -> str:
        """U+FFFD for half a character."""
        return self._reader.decode(b"", True)


class _WindowText:
    """Text of any other tokenizer: that of the last few tokens, without that of the ones among them that are final.

    These stand before the new ones, so that the beginning of a text, where a decoder drops a space, is not theirs.
    """

    def __init__(self, tokens: Detokenizer) -> None:
        self._tokens = tokens
        self._final: list[int] = []
        self._final_text = ""
        self._new: list[int] = []

    def add(self, given: int) -> str:
        """The text of the tokens whose text is final now."""
        if self._tokens.is_special(given):
            return ""
        self._new.append(given)
        return "" if self._tokens.waits(given) else self._flushed(is_end=False)

    def end(self) -> str:
        """The text of all others."""
        return self._flushed(is_end=True) if self._new else ""

    def _flushed(self, is_end: bool) -> str:
        whole = self._tokens.decoded(self._final + self._new)
        if not is_end and (not whole.startswith(self._final_text) or self._tokens.may_change(whole)):
            return ""
        text = whole[len(self._final_text) :]
        alone = self._tokens.decoded(self._new)
        # tokens without text cannot stand before others: a decoder may still take the next for the first
        self._final, self._final_text = (self._new, alone) if alone else (self._final + self._new, whole)
        self._new = []
        return text


class _CleanText:
    """Text without the spaces that transformers takes out before some signs, where a tokenizer wants that."""

    def __init__(self, tokenizer: Any) -> None:
        self._clean = tokenizer.clean_up_tokenization
        self._open = ""

    def add(self, given: str) -> str:
        """Everything up to where later text could still change it."""
        whole = self._open + given
        count = len(whole.rstrip(_OPEN_TO_CLEANING))
        self._open = whole[count:]
        return str(self._clean(whole[:count]))

    def end(self) -> str:
        """The rest."""
        return str(self._clean(self._open))


class _Search:
    """Looks for one string in a text that comes piece by piece (Knuth, Morris, Pratt)."""

    def __init__(self, string: str) -> None:
        self._string = string
        self._shorter = [0]
        """For each beginning of the string, the length of the longest shorter one that it ends in."""
        for char in string[1:]:
            self._shorter.append(self._next(self._shorter[-1], char))
        self.matched = 0
        """Characters of the string that the text so far ends in."""

    @property
    def length(self) -> int:
        """Characters of the string."""
        return len(self._string)

    def end_in(self, text: str) -> int | None:
        """The place in this next piece where the string first ends; None where it does not."""
        n = 0
        while n < len(text):
            if not self.matched:
                n = text.find(self._string[0], n)  # much faster than a step for each character
                if n < 0:
                    return None
            self.matched = self._next(self.matched, text[n])
            n += 1
            if self.matched == len(self._string):
                return n
        return None

    def _next(self, matched: int, char: str) -> int:
        while matched and self._string[matched] != char:
            matched = self._shorter[matched - 1]
        return matched + (self._string[matched] == char)


def _byte_characters() -> Iterator[tuple[str, int]]:
    """(character, byte) of the alphabet in which byte-level vocabularies are written; GPT-2's."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from ((chr(byte), byte) for byte in printable)
    yield from ((chr(256 + n), byte) for n, byte in enumerate(b for b in range(256) if b not in printable))


BYTE_OF: Final = dict(_byte_characters())
"""Byte of each character in the vocabulary of a byte-level tokenizer."""
