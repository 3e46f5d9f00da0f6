"""Passages for retrieval: training rows shown as turns, or parts of documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from inlay.data.types import Example, Message
from inlay.errors import ConfigError, DataError
from inlay.evaluation.metrics import word_tokens

DOCUMENT_TYPES: Final = (".md", ".rst", ".txt")
_LONGEST: Final = 120
"""Words of a passage; a longer paragraph is cut at the ends of its sentences."""
_RUN: Final = 3
_SAME: Final = 0.8
"""From which share of its runs of three words a text counts as repeated."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One entry of an index."""

    text: str
    """The text that is searched; a document's passage is also shown so."""
    source: str
    turns: tuple[Message, ...] = ()
    """Question and answer of a training row, as they are shown; empty for a document."""


def of_rows(examples: Iterable[Example]) -> list[Passage]:
    """Each training row up to its last answer, found by its question and answer; the system turn is left out."""
    found = []
    for example in examples:
        before = example.prompt
        turns = (*before, example.messages[len(before)])
        shown = tuple(replace(m, weight=0.0) for m in turns if m.role != "system")
        found.append(Passage("\n".join(m.content for m in shown), str(example.source), shown))
    return found


def of_documents(folder: Path) -> tuple[list[Passage], int]:
    """(passages of the text files under a folder, how many files of other types were passed over).

    Raises: DataError for a folder without text, or a file that is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. --documents takes a folder with {', '.join(DOCUMENT_TYPES)} files.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix.lower() in DOCUMENT_TYPES]
    found = []
    for path in texts:
        try:
            whole = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error}). Convert it, or move it away.") from None
        found += [Passage(text, f"{path}#{n}") for n, text in enumerate(_cut(whole), 1)]
    if not found:
        raise DataError(f"{folder}: no text to retrieve from. Put {', '.join(DOCUMENT_TYPES)} files there.")
    return found, len(files) - len(texts)


def _cut(text: str) -> list[str]:
    """Neighbouring paragraphs together up to the longest passage; longer ones cut into sentences, then words."""
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        words = len(paragraph.split())
        for piece in [paragraph] if words <= _LONGEST else re.split(r"(?<=[.!?。！？])\s+", paragraph):
            split = piece.split()
            pieces += [" ".join(split[n : n + _LONGEST]) for n in range(0, len(split), _LONGEST)]
    passages: list[str] = []
    for piece in pieces:
        joined = f"{passages[-1]}\n{piece}" if passages else piece
        if passages and len(joined.split()) <= _LONGEST:
            passages[-1] = joined
        else:
            passages.append(piece)
    return passages


class Index:
    """BM25 over the words of the passages."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        """Raises: ConfigError where the retrieval extra is not installed."""
        try:
            from bm25s import BM25
        except ImportError:
            raise ConfigError('advise: retrieval needs bm25s: pip install "inlay[retrieval]".') from None
        self.passages = tuple(passages)
        self.left_out: frozenset[int] = frozenset()
        """Passages that are never found, because a held-out row stands in them."""
        self._words = [word_tokens(passage.text) for passage in passages]
        self._bm25 = BM25()
        self._bm25.index([words or [""] for words in self._words], show_progress=False)

    def nearest(self, text: str, count: int) -> list[int]:
        """Up to `count` passages that share a word with the text, the best first; equal ones in their order."""
        words = word_tokens(text)
        if not words:
            return []
        scores = self._bm25.get_scores(words)
        ranked = np.argsort(-scores, kind="stable")[: count + len(self.left_out)].tolist()
        return [n for n in ranked if scores[n] > 0 and n not in self.left_out][:count]

    def leave_out_repeated(self, rows: Iterable[tuple[str, str]]) -> None:
        """Takes out the passages in which a (question, answer) of these rows stands, word for word or nearly so.

        A passage with the answer but without the question stays: to find it is the purpose of retrieval.
        """
        repeated = set()
        for prompt, answer in rows:
            for n in self.nearest(f"{prompt} {answer}", 10):
                if min(self._holds(n, prompt), self._holds(n, answer)) >= _SAME:
                    repeated.add(n)
        self.left_out = frozenset(repeated)

    def coverage(self, passages: Iterable[int], answer: str, prompt: str) -> float | None:
        """Share of the answer's words that stand in these passages, of those that the prompt lacks; None without any."""
        wanted = set(word_tokens(answer)) - set(word_tokens(prompt))
        present = {word for n in passages for word in self._words[n]}
        return len(wanted & present) / len(wanted) if wanted else None

    def _holds(self, passage: int, text: str) -> float:
        words = word_tokens(text)
        size = min(_RUN, len(words))
        if not size:
            return 1.0
        runs = _runs(words, size)
        return len(runs & _runs(self._words[passage], size)) / len(runs)


def _runs(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[n : n + size]) for n in range(len(words) - size + 1)}
