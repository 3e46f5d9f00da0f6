"""Word by word, a text has the ids that the tokenizer gives it as a whole."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import toys
from inlay.data.encoding import word_cache
from inlay.data.encoding.piece_tokenizer import PieceTokenizer
from inlay.data.encoding.word_cache import WordTokenizer, breaks_at_spaces

SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT_4 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + REST
QWEN = GPT_4.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + SHORT + "?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + SHORT + "?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + REST
)
SAID = (
    "the hello world\n\n  it's  a  12 345  \t x\n  the\n the ,,  !! don't we'll  I'M   naïve e\u0301e 中文 中 文 a\u3000b\n"
    * 3
    + "".join(f" the{k} {k} hello,{k}.\n" for k in range(40))
)
CONTROL = [AddedToken(t, normalized=False, special=True) for t in ("<s>", "</s>", "<|x|>", "<<s>", "|><|")]


def byte_level(*splits: Any, normalizer: Any = None, add_prefix_space: bool = False, **options: Any) -> Tokenizer:
    """A byte-level BPE, with tokens for words and for runs of spaces."""
    last = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space, use_regex=not splits or options.pop("regex", False)
    )
    found = Tokenizer(models.BPE(**options))
    found.normalizer = normalizer
    found.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    return _trained(found, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def marked(splits: Any, normalizer: Any = None, also: str = "", **options: Any) -> Tokenizer:
    """One of SentencePiece's kind, with a mark in place of a space."""
    found = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, **options))
    found.normalizer, found.pre_tokenizer = normalizer, splits
    if not also:  # otherwise tokens go on over spaces
        found.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=True)
        found.normalizer = None
    found = _trained(found, special_tokens=["<unk>"], initial_alphabet=["▁"])
    found.normalizer, found.pre_tokenizer = normalizer, splits
    return found


def _trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    tokenizer.train_from_iterator([SAID], trainers.BpeTrainer(vocab_size=600, show_progress=False, **options))
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def split(pattern: str, how: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), how)


def metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)


REPLACE = normalizers.Replace(" ", "▁")
BY_WORD = {
    "nano": lambda: toys.nano().backend_tokenizer,
    "GPT-2": byte_level,
    "a space before a text": lambda: byte_level(add_prefix_space=True),
    "GPT-4, Llama 3": lambda: byte_level(split(GPT_4), ignore_merges=True),
    "Qwen": lambda: byte_level(split(QWEN), normalizer=normalizers.NFC()),
    "GPT-4o": lambda: byte_level(split(GPT_4O)),
    "SmolLM": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True),
    "DeepSeek": lambda: byte_level(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(GPT_4)),
    "Mistral, a mark first": lambda: marked(metaspace("first")),
    "a mark always": lambda: marked(metaspace("always")),
    "no mark": lambda: marked(metaspace("never")),
    "Gemma": lambda: marked(pre_tokenizers.Split(" ", "merged_with_previous"), REPLACE),
}
AS_A_WHOLE = {
    "a mark before what follows a special token": lambda: toys.sentencepiece().backend_tokenizer,
    "tokens of several words": lambda: marked(None, REPLACE, also="several words"),
    "an unknown pattern": lambda: byte_level(split(r"\S+ ?|\s+")),
    "a pattern that leaves text out": lambda: byte_level(split(QWEN, "removed")),
    "no split": lambda: byte_level(split("x|[一-龥぀-ゟ゠-ヿ]+")),
    "words of Unicode": lambda: byte_level(pre_tokenizers.UnicodeScripts(), regex=True),
    "merges are not asked": lambda: marked(metaspace("first"), ignore_merges=True),
    "dropout": lambda: byte_level(dropout=0.5),
    "another normalizer": lambda: byte_level(normalizer=normalizers.NFKC()),
    "another model": lambda: Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
    "a special token that takes spaces": lambda: with_token(AddedToken("<y>", lstrip=True)),
    "a special token with a space": lambda: with_token(AddedToken("<y> z")),
    "a special token that is a word": lambda: with_token(AddedToken("y", single_word=True)),
}
TEXTS = st.text(max_size=20) | st.lists(
    st.sampled_from([*"  \n\t\r\u00a0\u2003\u3000▁\x1c\x0b\x85\u180e\u200b.!'/_12٣é中", "the", "hello", " the", "e\u0301",
                     "\u0301", "the\nhello", "\nhello", ".\n", "\n/", "'s", "'LL", "Don't", "345", ",,", "<s>", "</s>", "<|x|>", "<", "|", "|>", "文", "🙂", "  ", "\ue000", "İ"]),
    max_size=16,
).map("".join)  # fmt: skip


def with_token(token: AddedToken) -> Tokenizer:
    found = byte_level()
    found.add_tokens([token])
    return found


@pytest.mark.parametrize("kind", BY_WORD)
def test_a_text_has_the_ids_of_the_whole(kind: str) -> None:
    backend = BY_WORD[kind]()
    by_word, whole = WordTokenizer(backend), PieceTokenizer(backend)
    assert by_word.is_by_word

    @settings(max_examples=40)  # of twelve texts each
    @given(st.lists(st.tuples(TEXTS, st.booleans()), max_size=12))
    @example(
        [
            (text, start)
            for text in ("</s> a", "a \n b", "\n", "\n a", " ", "", "▁ a", "a ▁b", "0\n's")
            for start in (True, False)
        ]
    )
    def holds(asked: list[tuple[str, bool]]) -> None:
        texts, starts = [text for text, _ in asked], [start for _, start in asked]
        found = [ids.tolist() for ids in by_word(texts, starts)]
        assert found == whole(texts, starts)
        assert found == [ids.tolist() for ids in by_word(texts, starts)]  # now they are known
        expected = {text: backend.encode(text, add_special_tokens=False).ids for text, start in asked if start}
        assert {text: ids for text, start, ids in zip(texts, starts, found, strict=True) if start} == expected

    holds()


@pytest.mark.parametrize("kind", AS_A_WHOLE)
def test_a_tokenizer_that_may_join_over_spaces_is_given_whole_texts(kind: str) -> None:
    backend = AS_A_WHOLE[kind]()
    assert not breaks_at_spaces(backend)
    by_word = WordTokenizer(backend)
    assert not by_word.is_by_word
    if kind != "dropout":
        texts = ["the hello world", "</s> <y> z, a y b"]
        assert [ids.tolist() for ids in by_word(texts, [True, True])] == PieceTokenizer(backend)(texts, [True, True])


def test_a_tokenizer_that_does_not_do_what_it_seems_to_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "breaks_at_spaces", lambda _: True)
    found_out = ("a mark before what follows a special token", "tokens of several words", "an unknown pattern")
    assert [WordTokenizer(AS_A_WHOLE[kind]()).is_by_word for kind in found_out] == [False] * 3


def test_words_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    by_word, text = WordTokenizer(byte_level()), "the hello world"
    before = by_word([text], [True])[0].tolist()
    monkeypatch.setattr(word_cache, "_MOST_BYTES", 2000)
    for k in range(50):
        by_word([f"the{k} hello {text}"], [True])
        assert by_word.held_bytes <= 2000
    assert by_word([text], [True])[0].tolist() == before


class Never(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        return Future()


def test_words_that_another_caller_has_asked_for_and_not_got_are_not_waited_for() -> None:
    backend, text = byte_level(), "the hello world, the hello"
    by_word = WordTokenizer(backend)
    by_word.begin([text], [True], Never())
    assert by_word([text], [True])[0].tolist() == PieceTokenizer(backend)([text], [True])[0]
