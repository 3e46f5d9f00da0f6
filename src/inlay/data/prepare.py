"""From a data file to the ids that are trained and held out, with an account of every row on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inlay.config.settings import DataConfig, TrainFile
from inlay.data.checks.quick import EvenSample, QuickCheck, RunningCheck, code_digest, quick_check
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import TokenSet, drawn
from inlay.data.encoding.token_cache import TokenizedFile, cached, tokenized
from inlay.data.encoding.worker_pool import process_count
from inlay.data.max_length import Lengths, apply_max_length, choose_max_length, require_enough
from inlay.data.percent import Bar
from inlay.data.reading.data_file import DataFile
from inlay.data.reading.read import as_lines, from_lines
from inlay.data.splits import as_keys, by_fold, by_key, draw, leaked, least, prompt_key
from inlay.data.types import Example
from inlay.errors import DataCheckError, DataError, StorageError
from inlay.storage import cache_folder, write_file

_SAMPLE = 4
MIXED = "mixed"


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
    mixture: str
    """How many rows of each file an epoch draws; empty for one plain file."""
    format: str
    """`MIXED` where files differ."""
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
    parts = config.train_files
    files = training_files(config)
    other = heldout_file(config)
    made, check = _tokenized(files, other, config, encoder, bar)
    trained = made[: len(files)]
    whole = TokenSet.of(*(one.stored for one in trained))
    asked = np.concatenate([one.asked for one in trained])
    used = _within_caps([one.asked for one in trained], parts)
    if other is None:
        train_rows, heldout_rows = (used[rows] for rows in _split(asked[used], config))
        train, heldout = _of_examples(whole, train_rows), _of_examples(whole, heldout_rows)
    else:
        train, heldout = _of_examples(whole, used), TokenSet.of(made[-1].stored)
    max_length, reason = choose_max_length(config, train, heldout, context_length)
    train, train_lengths = apply_max_length(train, max_length, config.overlong)
    available = len(np.unique(heldout.examples))
    heldout, heldout_lengths = apply_max_length(heldout, max_length, config.overlong)
    limit = f"{max_length} tokens ({reason})"
    require_enough(config, config.train_name, "training", train_lengths, limit)
    require_enough(config, config.eval or config.train_name, "held-out", heldout_lengths, limit)
    if len(train) == 0:
        raise DataCheckError(f"{config.train_name}: no training rows are left at data.max_length {max_length}.")
    if len(heldout) == 0:
        raise DataError(f"{config.eval or config.train_name}: no held-out rows are left to measure with. Add rows.")
    fitting = np.unique(heldout.examples)
    chosen = fitting[draw(len(fitting), max_rows, seed)]
    scored = _of_examples(heldout, chosen)
    train = replace(train, weights=tuple(part.weight for part in parts))
    formats = {file.format: file.why for file in files}
    plain = not isinstance(config.train, list)
    return PreparedData(
        train=train,
        train_sample=_examples_of(files, train, _sample(train, max_length), config.cache),
        heldout=scored,
        heldout_examples=_examples_of([other] if other else files, scored, _firsts(scored), config.cache),
        heldout_available=available,
        heldout_fitting=len(fitting),
        check=check,
        leaked=leaked(asked[used], made[-1].asked[chosen]) if other else 0,
        rows=len(used),
        mixture="" if plain else _told(train, parts),
        format=files[0].format if len(formats) == 1 else MIXED,
        format_reason=files[0].why if len(formats) == 1 else ", ".join(formats),
        max_length=max_length,
        max_length_reason=reason,
        train_lengths=train_lengths,
        heldout_lengths=heldout_lengths,
        data_hash=_hash(files, config),
    )


def training_files(config: DataConfig) -> list[DataFile]:
    """The files that are trained on, in the order of the mixture. Raises: DataError."""
    return [
        DataFile(
            p.path,
            p.format or config.format,
            config.columns if p.columns is None else p.columns,
            config.weights_of_roles,
        )
        for p in config.train_files
    ]


def heldout_file(config: DataConfig) -> DataFile | None:
    """`data.eval`, or None where the held-out rows are a part of the others. Raises: DataError."""
    return DataFile(config.eval, config.format, config.columns, config.weights_of_roles) if config.eval else None


def sides(config: DataConfig) -> tuple[list[Example], list[Example]]:
    """(training rows, held-out rows) of the same division as `prepare`, before `max_length`. Raises: DataError."""
    files = training_files(config)
    read = [list(file.examples()) for file in files]
    asked = [as_keys(prompt_key(example) for example in one) for one in read]
    every, used = [example for one in read for example in one], _within_caps(asked, config.train_files)
    other = heldout_file(config)
    if other is not None:
        return [every[n] for n in used], list(other.examples())
    train, heldout = _split(np.concatenate(asked)[used], config)
    return [every[n] for n in used[train]], [every[n] for n in used[heldout]]


def data_hash(config: DataConfig) -> str:
    """`PreparedData.data_hash`, without reading rows. Raises: DataError."""
    return _hash(training_files(config), config)


def _hash(files: Sequence[DataFile], config: DataConfig) -> str:
    plain = not isinstance(config.train, list) and config.max_rows is None
    return files[0].digest if plain else _mixture_hash(files, config.train_files)


def _within_caps(asked: Sequence[np.ndarray], parts: Sequence[TrainFile]) -> np.ndarray:
    """The examples that are used, numbered through all files: of a file with a cap those whose prompts have the least
    digests, read from behind, where the split does not look. `asked`: each file's (N, 2) keys."""
    used, first = [], 0
    for keys, part in zip(asked, parts, strict=True):
        count = len(keys)
        used.append(first + least(keys, part.max_rows))
        first += count
    return np.concatenate(used)


def _within_cap(file: DataFile, examples: Callable[[], Iterable[Example]], most: int) -> Iterator[Example]:
    """Those of all `examples` of the file that a cap leaves: all are read, and these then once more."""
    keys, asked = array("q"), bytearray()
    for example in examples():
        keys.append(file.row_key(example.source))
        asked += prompt_key(example)
    yield from file.examples({keys[n] for n in least(as_keys([bytes(asked)]), most)})


def _mixture_hash(files: Sequence[DataFile], parts: Sequence[TrainFile]) -> str:
    """Hex digest of all that decides which rows are drawn how often."""
    said = [[*file.key, part.weight, part.max_rows] for file, part in zip(files, parts, strict=True)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _told(train: TokenSet, parts: Sequence[TrainFile]) -> str:
    """How many sequences of each file an epoch draws."""
    named = zip(train.shares, parts, strict=True)
    each = [f"{drawn(((count, w),))} of {Path(part.path).name} ({count} × {w:g})" for (count, w), part in named]
    return f"an epoch draws {train.drawn}: {', '.join(each)}"


def _tokenized(
    train: Sequence[DataFile], held_out: DataFile | None, config: DataConfig, encoder: Encoder, bar: Bar | None
) -> tuple[list[TokenizedFile], QuickCheck | None]:
    """Each file's sequences, and what the check of their rows found; no row is read of what is known already."""
    files = [*train, *([held_out] if held_out else [])]
    most = [part.max_rows for part in config.train_files] + [None] * bool(held_out)
    found = [cached(file, encoder, cap) if config.cache else None for file, cap in zip(files, most, strict=True)]
    note = _note("checks", [code_digest(), bool(held_out), [[file.files, *file.key] for file in files]])
    wanted = config.check != "off"
    check = noted = _noted_check(note) if wanted and config.cache else None
    readings = [Reading(file) for file in files]
    if noted:
        _judge(noted, config)
    look = FirstLook(readings, held_out is not None, config) if wanted and not noted else None
    try:
        if look and found[0]:
            look.finish()
        made = []
        for n, (known, file, cap) in enumerate(zip(found, files, most, strict=True)):
            every = look.along if look and not n else readings[n].examples
            rows = every if cap is None else partial(_within_cap, file, every, cap)
            processes = process_count(config.workers, file.size_bytes)
            made.append(known or tokenized(file, rows, encoder, config.cache, bar, processes, cap))
    except DataError:
        if look:
            look.finish()  # what is wrong with the first rows is said first
        raise
    if look:
        look.finish()
        check = look.found if look.saw_all else None
    if wanted and check is None:
        check = _checked([reading.sampled() for reading in readings], readings, held_out is not None)
        _judge(check, config)
    if check and not noted and config.cache:
        _write_note(note, json.dumps(check.to_json()))
    return made, check


class Reading:
    """One pass over a file that keeps an even sample of its rows; the first rows can be looked at before the others."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        self._rest: Iterator[Example] | None = None
        self._head: list[Example] = []
        self.sample = EvenSample()
        self.is_whole = False
        """Whether all rows have been seen."""

    def first(self) -> Iterator[Example]:
        """All rows, or as many of the first as may be looked at, as they are read."""
        if self._rest is None:
            self._rest = self._file.examples()
        while self.sample.stride == 1:
            example = next(self._rest, None)
            if example is None:
                self.is_whole = True
                return
            self.sample.add(example)
            yield example

    def keep_first(self) -> Iterator[Example]:
        """`first`, held for `examples`."""
        for example in self.first():
            self._head.append(example)
            yield example

    def rest(self) -> Iterator[Example]:
        """Those behind the first."""
        for example in self._rest or ():
            self.sample.add(example)
            yield example
        self.is_whole = True

    def examples(self) -> Iterator[Example]:
        """All rows; a second pass reads the file again."""
        head, self._head = self._head, []
        if head:
            yield from head
        else:
            self.restart()
            yield from self.first()
        head.clear()
        yield from self.rest()

    def sampled(self) -> list[Example]:
        """As many as may be looked at, spread evenly over all rows."""
        if not self.is_whole:
            for _ in self.rest() if self._rest else self.examples():
                pass
        return self.sample.examples


class FirstLook:
    """The check of the first rows of all files, made while those of the first file are tokenized and ended before any
    other row is."""

    def __init__(self, readings: Sequence[Reading], last_is_held_out: bool, config: DataConfig) -> None:
        self._readings, self._last_is_held_out, self._config = readings, last_is_held_out, config
        self._check, self._is_over = RunningCheck(), False
        self.found: QuickCheck | None = None
        self.saw_all = False

    def along(self) -> Iterator[Example]:
        """All rows of the first file. Raises: DataError, DataCheckError."""
        if not self._is_over:
            self._check = RunningCheck()
        self._readings[0].restart()
        yield from self._looked_at(0, self._readings[0].first())
        self.finish()
        yield from self._readings[0].rest()

    def finish(self) -> None:
        """Looks at what has not been looked at. Raises: DataError, DataCheckError."""
        if self._is_over:
            return
        for n, reading in enumerate(self._readings):
            for _ in self._looked_at(n, reading.keep_first() if n else reading.first()):
                pass
        self._is_over, self.saw_all = True, all(reading.is_whole for reading in self._readings)
        self.found = self._check.found(sum(reading.sample.seen for reading in self._readings))
        _judge(self.found, self._config)

    def _looked_at(self, n: int, rows: Iterator[Example]) -> Iterator[Example]:
        held_out = self._last_is_held_out and n == len(self._readings) - 1
        try:
            for example in rows:
                if not self._is_over:
                    self._check.see(example, held_out)
                yield example
        except DataError:  # of the reading; it goes before what the check found
            self._is_over = True
            raise


def _checked(seen: Sequence[list[Example]], readings: Sequence[Reading], last_is_held_out: bool) -> QuickCheck:
    held_out = seen[-1] if last_is_held_out else []
    train = [example for one in (seen[:-1] if last_is_held_out else seen) for example in one]
    return quick_check(train, held_out, sum(reading.sample.seen for reading in readings))


def _judge(check: QuickCheck, config: DataConfig) -> None:
    if config.check == "refuse":
        check.refuse_errors(config.train_name)


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


def _examples_of(
    files: Sequence[DataFile], tokens: TokenSet, rows: Sequence[int], use_cache: bool
) -> tuple[Example, ...]:
    """The examples that these sequences were made from, read again by their lines."""
    wanted = [tokens.place(i) for i in rows]  # the part is the file's place among `files`
    note = _note("rows", [[[file.files, *file.key] for file in files], wanted])
    if use_cache:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            kept = from_lines(note.read_text(encoding="utf-8"))
            if [files[part].row_key(e.source) for e, (part, _) in zip(kept, wanted, strict=True)] == [
                key for _, key in wanted
            ]:
                return kept
    found = [file.at({key for part, key in wanted if part == p}) for p, file in enumerate(files)]
    examples = tuple(found[part][key] for part, key in wanted)
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
            f"{config.train_name}: {len(asked)} rows cannot be split into training and held-out rows "
            f"({how}). Add rows with other prompts, or give data.eval a file."
        )
    return train, heldout


def _of_examples(tokens: TokenSet, wanted: np.ndarray) -> TokenSet:
    """The sequences of the named examples, in the order they are in."""
    return tokens.take(np.flatnonzero(np.isin(tokens.examples, wanted)))
