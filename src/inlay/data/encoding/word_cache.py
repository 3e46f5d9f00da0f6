"""Texts to ids word by word, so that a word is tokenized once and from then on looked up.

That gives the ids of the whole text where the tokenizer never joins what stands before a space, unless that is white
space itself, with the space. Whether it does is read from its own parts, and then tried: see `breaks_at_spaces`.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, Future
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer, models

from inlay.data.encoding.piece_tokenizer import PieceTokenizer
from inlay.typed_json import JsonObject

_MARK: Final = "\u2581"
"""A SentencePiece tokenizer's mark for a space; in a text it counts as one."""
_BREAK: Final = re.compile(rf" (?<=[^\s{_MARK}] )")
_NO_BREAK: Final = re.compile(rf" (?<=[\s{_MARK}] )")
"""A space behind white space. Both begin with a space, which is searched for fast."""

_LINE_BREAK: Final = re.compile(r"(?<=\S\n)(?=[^\s/])")
"""Behind a line break that stands between two other things, of which the second is no slash."""
_SPACES: Final = ("\u0120", _MARK)
"""The marks for a space in tokens of byte-level and SentencePiece vocabularies."""
_JOINED: Final = 32  # words handed over in one text

_MOST_BYTES: Final = 64 << 20  # of what is remembered; then it is forgotten, as another text has other words
_ENTRY_BYTES: Final = 200  # of a word beside its characters

_Word = str | tuple[str, bool]
"""A word after a space; the beginning of a text, and whether the text starts with it."""

Tokenized = Callable[[], list[np.ndarray]]
"""The ids (L,) int32 of each text, once they are there."""


class AtOnce(Executor):
    """An executor without threads: work is done when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """The finished future of the call."""
        done: Future[Any] = Future()
        done.set_result(fn(*args, **named))
        return done


class WordTokenizer:
    """A `PieceTokenizer` that remembers words."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend, self._pieces = backend, PieceTokenizer(backend)
        self._known: dict[_Word, bytes] = {}
        self._being_learned: Set[_Word] = set()
        self.held_bytes = 0
        self.is_by_word = breaks_at_spaces(backend) and not self._pieces.mark.isspace()
        self.is_by_word = self.is_by_word and self._agrees()

    def __call__(self, texts: Sequence[str], starts: Sequence[bool]) -> list[np.ndarray]:
        """The ids (L,) int32 of each text; `starts` is true for those that begin a text of their own."""
        return self.begin(texts, starts, AtOnce())()

    def begin(self, texts: Sequence[str], starts: Sequence[bool], beside: Executor) -> Tokenized:
        """A function that returns the ids, to be called when `beside` has had time for the new words: looking up holds the
        interpreter, tokenizing does not."""
        if not self.is_by_word:
            whole = beside.submit(self._pieces, texts, starts)
            return lambda: [np.array(ids, np.int32) for ids in whole.result()]
        known = self._known  # another caller may begin a new one
        ids, late, unknown = [b""] * len(texts), [], set[_Word]()
        for n, (text, start) in enumerate(zip(texts, starts, strict=True)):
            words = _words(text, start)
            try:
                ids[n] = b"".join(map(known.__getitem__, words))
            except KeyError:
                late.append((n, words))
                unknown.update(words)
        unknown = _absent(unknown, known)
        new = unknown - self._being_learned
        self._being_learned |= new
        learning = beside.submit(self._learn, new, known)

        def finish() -> list[np.ndarray]:
            learning.result()
            if behind := _absent(unknown, known):  # another caller is still waiting for them
                self._learn(behind, known)
            for n, words in late:
                ids[n] = b"".join(map(known.__getitem__, words))
            return [np.frombuffer(found, np.int32) for found in ids]

        return finish

    def _learn(self, words: Set[_Word], known: dict[_Word, bytes]) -> None:
        parted = {word: parts for word in words if (parts := self._parts(word))}
        wanted = (words - parted.keys()) | _absent({part for parts in parted.values() for part in parts}, known)
        found = self._tokenized(wanted)
        self._remember(found, known)
        self._remember({word: b"".join([known[part] for part in parts]) for word, parts in parted.items()}, known)
        self._being_learned = self._being_learned - words
        if self.held_bytes > _MOST_BYTES:
            self._known, self._being_learned, self.held_bytes = {}, set(), 0

    def _remember(self, found: Mapping[_Word, bytes], known: dict[_Word, bytes]) -> None:
        known.update(found)
        lengths = [len(word if isinstance(word, str) else word[0]) + len(ids) for word, ids in found.items()]
        self.held_bytes += _ENTRY_BYTES * len(lengths) + sum(lengths)

    def _parts(self, word: _Word) -> list[_Word]:
        """The word parted where it can be; empty where it cannot."""
        text = word if isinstance(word, str) else word[0]
        cuts = {found.start() for found in self._special.finditer(text)}
        if "\n" in text and self._is_by_line:
            cuts |= {found.start() for found in _LINE_BREAK.finditer(text)}
        if not (cuts := cuts - {0}):
            return []
        first, *others = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
        return [first if isinstance(word, str) else (first, word[1]), *[(other, False) for other in others]]

    def _tokenized(self, words: Set[_Word]) -> dict[_Word, bytes]:
        """The ids of words. Those after a space are handed over many in a text, as a text costs as much as a word."""
        plain = [word for word in words if isinstance(word, str) and word and not _NO_WORD.search(word)]
        texts = [" " + " ".join(plain[k : k + _JOINED]) for k in range(0, len(plain), _JOINED)]
        found = self._parted(self._pieces(texts, [False] * len(texts)), plain) if len(plain) >= _JOINED else {}
        others = list(words - found.keys())
        spaced = [(f" {word}", False) if isinstance(word, str) else word for word in others]
        each = self._pieces([text for text, _ in spaced], [start for _, start in spaced])
        return found | {word: array("i", ids).tobytes() for word, ids in zip(others, each, strict=True)}

    def _parted(self, texts: list[list[int]], words: Sequence[str]) -> dict[_Word, bytes]:
        """The ids of each word, parted before each token of a space; empty if those are not as many."""
        ids = np.concatenate([np.array(text, np.int32) for text in texts])
        begins = np.flatnonzero(self._opens[ids])
        if len(begins) != len(words):
            return {}
        joined, places = ids.tobytes(), [*(ids.itemsize * begins).tolist(), ids.nbytes]
        return {word: joined[a:b] for word, (a, b) in zip(words, pairwise(places), strict=True)}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile(_begins_control(self._backend))

    @cached_property
    def _is_by_line(self) -> bool:
        return _breaks_at_lines(self._backend)

    @cached_property
    def _opens(self) -> np.ndarray:
        """(V,) whether a token begins with what the tokenizer makes of a space."""
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        opens = np.zeros(max(self._backend.get_vocab().values()) + 1, bool)
        opens[[number for token, number in vocabulary.items() if token.startswith(_SPACES)]] = True
        return opens

    def _agrees(self) -> bool:
        starts = [True, False] * len(_TRIED)
        tried = [text for text in _TRIED for _ in range(2)]
        by_word = [ids.tolist() for ids in self(tried, starts)]
        return by_word == self._pieces(tried, starts)


def _absent(words: Set[_Word], known: dict[_Word, bytes]) -> set[_Word]:
    return {word for word in words if word not in known}  # taking away `known.keys()` would go through all of them


def _words(text: str, start: bool) -> list[_Word]:
    needs_care = text.startswith(" ") or _NO_BREAK.search(text)
    words: list[Any] = _BREAK.split(text) if needs_care else text.split(" ")
    words[0] = words[0], start
    return words


_TRIED: Final = (
    "It's a word , two  words ,and 12 345.6 more!\n Then\t tabs  \n\n x ", " a", "  a", "\n \n a\n", "a \u00e9 \u0301e \u4e2d \u6587",
    "{ \"k\": [1, 2] } </s> <|x|> don 't 'S WE'LL", "\u2581 a \u2581b\u2581 c", "\u00a0 a\u3000 b \u00a0c", "",
)  # fmt: skip


def breaks_at_spaces(backend: Tokenizer) -> bool:
    """Whether the ids of a text are, by how the tokenizer is made, those of its parts in a row wherever it is parted
    before a space that stands behind something else than white space. False where that is not known."""
    model = backend.model
    added = backend.get_added_tokens_decoder().values()
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
    ):
        return False
    if any(one.lstrip or one.rstrip or one.single_word or _NO_WORD.search(one.content) for one in added):
        return False
    normalizer, splits = _state(backend.normalizer), _state(backend.pre_tokenizer)
    if normalizer in _LEAVE_SPACES and _splits_at_spaces(splits):
        return True
    marked = normalizer == _REPLACE if splits in _SPLIT_NOTHING else normalizer is None and _is_metaspace(splits)
    return marked and not model.ignore_merges and _no_token_goes_on_over_a_mark(backend)


def _begins_control(backend: Tokenizer) -> str:
    """The pattern of all special tokens: before one a text ends for the tokenizer. All are looked for at once, as of two
    that overlap it takes the first, and of those the longest."""
    if backend.encode_special_tokens:
        return "(?!)"
    added = (one.content for one in backend.get_added_tokens_decoder().values() if not one.normalized)
    return "|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)"


def _breaks_at_lines(backend: Tokenizer) -> bool:
    """Whether a tokenizer that breaks at spaces breaks where `_LINE_BREAK` is too. No known alternative of a splitting
    pattern goes on there; where none splits, a vocabulary decides."""
    splits = _state(backend.pre_tokenizer)
    if '"add_prefix_space": true' in json.dumps(splits):  # a part would begin with a space: "\n's" is no "\n 's"
        return False
    return _splits_at_spaces(splits) or not any(
        "\n" in token[:-1] for token in backend.get_vocab(with_added_tokens=False)
    )


_NO_WORD: Final = re.compile(rf"[\s{_MARK}]")
# not one that puts a mark before the text, as it does that again behind every special token
_REPLACE: Final = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
_LEAVE_SPACES: Final = (None, {"type": "NFC"})
_SPLIT_NOTHING: Final = (
    None, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
)  # fmt: skip


def _state(part: Any) -> JsonObject | None:
    """One part of the tokenizer, as its file describes it."""
    return None if part is None else json.loads(part.__getstate__())


def _is_metaspace(splits: JsonObject | None) -> bool:
    return splits is not None and splits["type"] == "Metaspace" and splits["replacement"] == _MARK


def _no_token_goes_on_over_a_mark(backend: Tokenizer) -> bool:
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return _MARK in vocabulary and not any(_MARK in token.lstrip(_MARK) for token in vocabulary)


def _splits_at_spaces(splits: JsonObject | None) -> bool:
    """Whether one of the stages breaks before each such space, and those before it look at no text beyond."""
    if splits is None:
        return False
    for stage in splits["pretokenizers"] if splits["type"] == "Sequence" else [splits]:
        if stage["type"] == "ByteLevel":
            return bool(stage["use_regex"])
        if stage["type"] == "Split":
            pattern, whole = stage["pattern"], stage["behavior"] == "Isolated" and not stage["invert"]
            alternatives = set(_alternatives(pattern.get("Regex", "")))
            is_word = "String" in pattern and " " not in pattern["String"]
            if not whole or not (is_word or alternatives <= _WITHIN_A_BREAK):
                return False
            if r"\s+" in alternatives:
                return True
        elif stage["type"] != "Digits":
            return False
    return False


_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_SHORT: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WITHIN_A_BREAK: Final = {
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _SHORT, "'(?i:[sdmt]|ll|ve|re)",
    r" ?\p{L}+", r" ?\p{N}+", r"\p{N}", r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    *(rf"[^\r\n\p{{L}}\p{{N}}]?{letters}{short}"
      for letters in (f"[{_UPPER}]*[{_LOWER}]+", f"[{_UPPER}]+[{_LOWER}]*") for short in ("", f"{_SHORT}?")),
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r"\s*[\r\n]", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
}  # fmt: skip
"""Alternatives of the patterns of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen, Mistral and DeepSeek. None takes a space after
something else than white space, and what one finds before such a space does not depend on what comes after it."""


def _alternatives(pattern: str) -> Iterator[str]:
    """The alternatives of a regular expression, outside of its brackets."""
    depth, begin, k = 0, 0, 0
    while k < len(pattern):
        if pattern[k] == "\\":
            k += 1
        elif pattern[k] in "([":
            depth += 1
        elif pattern[k] in ")]":
            depth -= 1
        elif pattern[k] == "|" and not depth:
            yield pattern[begin:k]
            begin = k + 1
        k += 1
    yield pattern[begin:]
