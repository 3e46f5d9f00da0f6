"""From a data file to the ids that are trained and held out, with an account of every row on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inlay.config.settings import DataConfig
from inlay.data.checks.quick import EvenSample, QuickCheck, code_digest, quick_check
from inlay.data.datafile import DataFile
from inlay.data.encode import Encoder
from inlay.data.read import as_lines, from_lines
from inlay.data.splits import by_fold, by_key, draw, leaked
from inlay.data.tokencache import Bar, TokenizedFile, cached, tokenized
from inlay.data.tokens import TokenSet
from inlay.data.types import Example
from inlay.errors import DataCheckError, DataError, StorageError
from inlay.storage import cache_folder, write_file

_SAMPLE = 4


@dataclass(frozen=True, slots=True)
class Lengths:
    """What `max_length` did to one set of sequences."""

    kept: int
    cut: int
    dropped: int
    untrainable: int
    """Of the dropped: cut to where nothing trained was left."""
    trained_tokens_lost: int

    @property
    def total(self) -> int:
        return self.kept + self.dropped


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Everything that training and comparison need of the data."""

    train: TokenSet
    train_sample: tuple[Example, ...]
    """The examples behind a few rows of `train` that were not cut."""
    heldout: TokenSet
    heldout_examples: tuple[Example, ...]
    """The examples behind `heldout`, each once, in its order."""
    heldout_available: int
    """Held-out examples before `data.max_length` and `eval.max_rows` were applied."""
    heldout_fitting: int
    """Those that `data.max_length` left; more than `eval.max_rows` of them are drawn from."""
    leaked: int
    """Held-out examples that ask what a training row asks; 0 where the split is by content."""
    check: QuickCheck | None
    """What the check before training found; None where it is off."""
    rows: int
    format: str
    format_reason: str
    max_length: int
    max_length_reason: str
    train_lengths: Lengths
    heldout_lengths: Lengths
    data_hash: str

    @property
    def trained_share(self) -> float:
        """Share of the training tokens that count in the loss."""
        return self.train.trained_tokens / max(1, self.train.token_count)


def prepare(
    config: DataConfig, encoder: Encoder, context_length: int, max_rows: int, seed: int, bar: Bar | None = None
) -> PreparedData:
    """Reads, checks and tokenizes, or takes up what an earlier start has made; memory does not grow with the files.

    Raises: DataError for a row that cannot be used, DataCheckError for data that would not train as meant.
    """
    _use_threads(config.workers)
    file = DataFile(config.train, config.format, config.columns)
    other = DataFile(config.eval, config.format, config.columns) if config.eval else None
    files = [file, *([other] if other else [])]
    made, check = _tokenized(files, config, encoder, bar)
    whole = TokenSet.of(made[0].stored)
    if other is None:
        train_rows, heldout_rows = _split(made[0].asked, config)
        train, heldout = _of_examples(whole, train_rows), _of_examples(whole, heldout_rows)
    else:
        train, heldout = whole, TokenSet.of(made[1].stored)
    max_length, reason = _max_length(config, train, context_length)
    train, train_lengths = apply_max_length(train, max_length, config.overlong)
    available = len(np.unique(heldout.examples))
    heldout, heldout_lengths = apply_max_length(heldout, max_length, config.overlong)
    limit = f"{max_length} tokens ({reason})"
    _require_enough(config, config.train, "training", train_lengths, limit)
    _require_enough(config, config.eval or config.train, "held-out", heldout_lengths, limit)
    if len(train) == 0:
        raise DataCheckError(f"{config.train}: no training rows are left at data.max_length {max_length}.")
    if len(heldout) == 0:
        raise DataError(f"{config.eval or config.train}: no held-out rows are left to measure with. Add rows.")
    fitting = np.unique(heldout.examples)
    chosen = fitting[draw(len(fitting), max_rows, seed)]
    drawn = _of_examples(heldout, chosen)
    return PreparedData(
        train=train,
        train_sample=_examples_of(file, train, _sample(train, max_length), config.cache),
        heldout=drawn,
        heldout_examples=_examples_of(other or file, drawn, _firsts(drawn), config.cache),
        heldout_available=available,
        heldout_fitting=len(fitting),
        check=check,
        leaked=leaked(made[0].asked, made[1].asked[chosen]) if other else 0,
        rows=len(made[0].asked),
        format=file.format,
        format_reason=file.why,
        max_length=max_length,
        max_length_reason=reason,
        train_lengths=train_lengths,
        heldout_lengths=heldout_lengths,
        data_hash=file.digest,
    )


def _tokenized(
    files: Sequence[DataFile], config: DataConfig, encoder: Encoder, bar: Bar | None
) -> tuple[list[TokenizedFile], QuickCheck | None]:
    """Each file's sequences, and what the check of their rows found; no row is read of what is known already."""
    found = [cached(file, encoder) if config.cache else None for file in files]
    note = _note("checks", [code_digest(), [[file.path, *file.key] for file in files]])
    wanted = config.check != "off"
    check = noted = _noted_check(note) if wanted and config.cache else None
    readings = [Reading(file) for file in files]
    if wanted:
        # what is wrong with the first rows is said before the others are tokenized
        early = noted or _checked([reading.first() for reading in readings], readings)
        _judge(early, config)
        if all(reading.is_whole for reading in readings):
            check = early
    made = [
        known or tokenized(file, reading.examples, encoder, config.cache, bar)
        for known, file, reading in zip(found, files, readings, strict=True)
    ]
    if wanted and check is None:
        check = _checked([reading.sampled() for reading in readings], readings)
        _judge(check, config)
    if check and not noted and config.cache:
        _write_note(note, json.dumps(check.to_json()))
    return made, check


class Reading:
    """One pass over a file that keeps an even sample of its rows; the first rows can be looked at before the others."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._rest: Iterator[Example] | None = None
        self._head: list[Example] = []
        self.sample = EvenSample()
        self.is_whole = False
        """Whether all rows have been seen."""

    def first(self) -> list[Example]:
        """All rows, or as many of the first as may be looked at."""
        self._rest = self._file.examples()
        for example in self._rest:
            self._head.append(example)
            self.sample.add(example)
            if self.sample.stride > 1:
                return self._head
        self.is_whole = True
        return self._head

    def sampled(self) -> list[Example]:
        """As many as may be looked at, spread evenly over all rows."""
        if not self.is_whole:
            for _ in self.examples():
                pass
        return self.sample.examples

    def examples(self) -> Iterator[Example]:
        """All rows; a second pass reads the file again."""
        if self._rest is None:
            self.sample, self._rest = EvenSample(), self._file.examples()
        head, rest = self._head, self._rest
        self._head, self._rest = [], None
        yield from head
        head.clear()
        for example in rest:
            self.sample.add(example)
            yield example
        self.is_whole = True


def _checked(sides: Sequence[list[Example]], readings: Sequence[Reading]) -> QuickCheck:
    train, *held_out = sides
    return quick_check(train, held_out[0] if held_out else (), sum(reading.sample.seen for reading in readings))


def _judge(check: QuickCheck, config: DataConfig) -> None:
    if config.check == "refuse":
        check.refuse_errors(config.train)


def _note(kind: str, key: Any) -> Path:
    return cache_folder(kind) / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _noted_check(note: Path) -> QuickCheck | None:
    try:
        return QuickCheck.from_json(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_note(note: Path, text: str) -> None:
    with contextlib.suppress(StorageError):  # a cache that cannot be written costs time, nothing else
        write_file(note, text)


def _examples_of(file: DataFile, tokens: TokenSet, rows: Sequence[int], use_cache: bool) -> tuple[Example, ...]:
    """The examples that these sequences were made from, read again by their lines."""
    lines = [tokens.source(i).line for i in rows]
    note = _note("rows", [file.name, *file.key, lines])
    if use_cache:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            kept = from_lines(note.read_text(encoding="utf-8"))
            if [example.source.line for example in kept] == lines:
                return kept
    found = file.at(set(lines))
    examples = tuple(found[line] for line in lines)
    if use_cache:
        _write_note(note, as_lines(examples))
    return examples


def _firsts(tokens: TokenSet) -> list[int]:
    """The first sequence of each example, in order."""
    return [int(i) for i in np.unique(tokens.examples, return_index=True)[1]]


def _sample(train: TokenSet, max_length: int) -> list[int]:
    """The first sequences of a few examples that were not cut."""
    whole = np.flatnonzero(train.lengths < max_length)
    found: dict[int, int] = {}
    for i in whole[:: max(1, len(whole) // _SAMPLE)][:_SAMPLE]:
        found.setdefault(int(train.examples[i]), int(i))
    return list(found.values())


def _use_threads(workers: int) -> None:
    # the tokenizers library reads these when it first works in parallel
    if workers:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(workers)


def _split(asked: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    if config.fold:
        train, heldout = by_fold(asked, *map(int, config.fold.split("/")))
    else:
        train, heldout = by_key(asked, config.eval_fraction)
    if not len(train) or not len(heldout):
        how = f"data.fold {config.fold}" if config.fold else f"data.eval_fraction {config.eval_fraction}"
        raise DataError(
            f"{config.train}: {len(asked)} rows cannot be split into training and held-out rows "
            f"({how}). Add rows with other prompts, or give data.eval a file."
        )
    return train, heldout


def _of_examples(tokens: TokenSet, wanted: np.ndarray) -> TokenSet:
    """The sequences of the named examples, in the order they are in."""
    return tokens.take(np.flatnonzero(np.isin(tokens.examples, wanted)))


def _max_length(config: DataConfig, train: TokenSet, context_length: int) -> tuple[int, str]:
    if config.max_length != "auto":
        if config.max_length > context_length:
            raise DataError(
                f"data.max_length: {config.max_length} is longer than the base's context of {context_length} tokens."
            )
        return config.max_length, "as set"
    percentile = int(np.percentile(train.lengths, 99, method="higher"))
    if percentile <= context_length:
        return max(8, percentile), f"99th percentile of {len(train)} sequences"
    return context_length, f"the base's context; the 99th percentile is {percentile}"


def apply_max_length(tokens: TokenSet, max_length: int, overlong: str) -> tuple[TokenSet, Lengths]:
    """The sequences that fit, with those that do not dropped or cut, and an account. Raises: DataError on `error`."""
    too_long = tokens.lengths > max_length
    if overlong == "error" and too_long.any():
        first = int(np.flatnonzero(too_long)[0])
        raise DataError(
            f"{tokens.source(first)}: {tokens.lengths[first]} tokens, longer than data.max_length {max_length} "
            f"({int(too_long.sum())} rows in all). Raise it, or set data.overlong to drop or cut."
        )
    if overlong == "cut":
        cut = TokenSet(tokens.parts, tokens.chosen, max_length)
        result = cut.take(np.flatnonzero(cut.trained_counts))
    else:
        result = tokens.take(np.flatnonzero(~too_long))
    shortened = int((too_long & (cut.trained_counts > 0)).sum()) if overlong == "cut" else 0
    dropped = len(tokens) - len(result)
    lost = tokens.trained_tokens - result.trained_tokens
    return result, Lengths(len(result), shortened, dropped, dropped if overlong == "cut" else 0, lost)


def _require_enough(config: DataConfig, path: str, kind: str, lengths: Lengths, limit: str) -> None:
    lost = lengths.dropped + lengths.cut
    if lengths.total and lost / lengths.total > config.max_lost_share:
        raise DataCheckError(
            f"{path}: {lost} of {lengths.total} {kind} rows are longer than {limit}; "
            f"{lengths.trained_tokens_lost} trained tokens would be lost. Raise data.max_length, shorten the rows, "
            f"or allow it with --set data.max_lost_share={min(1.0, round(lost / lengths.total + 0.01, 2))}."
        )
