"""Texts to ids where a row quotes a special token: quoted ones become ids of ordinary text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from tokenizers import Tokenizer

from inlay.data.encoding.special_tokens import MARK, quoted
from inlay.data.encoding.word_cache import AtOnce, Tokenized, WordTokenizer


class EscapingTokenizer:
    """A WordTokenizer that encodes quoted special tokens as ordinary text."""

    def __init__(self, backend: Tokenizer, strings: Sequence[str]) -> None:
        """`strings` are the special tokens, the longest first."""
        self._backend, self._tokenize = backend, WordTokenizer(backend)
        self._plain: WordTokenizer | None = None
        self._quoted = re.compile(f"({'|'.join(re.escape(quoted(s)) for s in strings) or '(?!)'})")

    def __call__(self, texts: Sequence[str], starts: Sequence[bool]) -> list[np.ndarray]:
        """The ids (L,) int32 of each text; quoted special tokens have ids of ordinary text."""
        return self.begin(texts, starts, AtOnce())()

    def begin(self, texts: Sequence[str], starts: Sequence[bool], beside: Executor) -> Tokenized:
        """See `WordTokenizer.begin`."""
        if any(MARK in text for text in texts):
            found = self._with_quotes(texts, starts)
            return lambda: found
        return self._tokenize.begin(texts, starts, beside)

    def _with_quotes(self, texts: Sequence[str], starts: Sequence[bool]) -> list[np.ndarray]:
        parts = [(n, k, part) for n, text in enumerate(texts) for k, part in enumerate(self._quoted.split(text))]
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        by_kind = [[(n, part) for n, k, part in parts if k % 2 == kind] for kind in (0, 1)]
        begin = [starts[n] and k == 0 for n, k, _ in parts if k % 2 == 0]
        others = iter(self._tokenize([part for _, part in by_kind[0]], begin))
        quoted = iter(self._ordinary([part.replace(MARK, "") for _, part in by_kind[1]]))
        for n, k, _ in parts:
            ids[n].append(next(quoted if k % 2 else others))
        return [np.concatenate(found) for found in ids]

    def _ordinary(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._plain is None:  # a copy: a large tokenizer takes a moment, and few rows quote
            copied = Tokenizer.from_str(self._backend.to_str())
            copied.encode_special_tokens = True
            self._plain = WordTokenizer(copied)
        return self._plain(texts, [False] * len(texts))
