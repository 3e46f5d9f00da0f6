"""Pieces of one text to ids, so that the ids of the pieces in a row are those of a text that goes on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_MARKS = ("\ue000", "\u241e", "\x01", "\n")
"""Characters to put before a piece that does not start the text; the first that no tokenizer rule joins to it."""
_PROBES = ("a", " a", "  a", "é", "\n", "7", ".", "<")


class PieceTokenizer:
    """Texts to ids without special tokens around them.

    A SentencePiece tokenizer puts a space before every text. A piece that goes on where another stopped gets none:
    it is tokenized after a mark whose ids are then taken away.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.mark, self._mark_ids = self._find_mark()

    def __call__(self, texts: Sequence[str], starts: Sequence[bool]) -> list[list[int]]:
        """The ids of each text; `starts` is true for those that begin a text of their own."""
        if not self.mark:
            return self._encode(texts)
        skip = len(self._mark_ids)
        marked = [t if start or not t else self.mark + t for t, start in zip(texts, starts, strict=True)]
        found = self._encode(marked)
        for n, (text, start) in enumerate(zip(texts, starts, strict=True)):
            if text and not start:
                joined = found[n][:skip] != self._mark_ids
                found[n] = self._encode([text])[0] if joined else found[n][skip:]
        return found

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend.truncation is not None:  # set only where it must be: another thread may be at work with it
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _find_mark(self) -> tuple[str, list[int]]:
        plain = self._encode(_PROBES)
        for mark in _MARKS:
            ids = self._encode([mark])[0]
            after = self._encode([mark + probe for probe in _PROBES])
            if ids and all(found[: len(ids)] == ids for found in after):
                rest = [found[len(ids) :] for found in after]
                return ("", []) if rest == plain else (mark, ids)
        return "", []
