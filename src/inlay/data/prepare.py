"""Data files to the token ids that are trained and held out, with a count of every row that is lost on the way."""

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

from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data.checks.quick import QuickCheck, code_digest
from inlay.data.encoding.encoder import CODE_VERSION, Encoder
from inlay.data.encoding.token_arrays import TokenSet, drawn
from inlay.data.encoding.token_cache import TokenizedFile, cached, tokenized
from inlay.data.encoding.worker_pool import process_count
from inlay.data.file_progress import ProgressBar
from inlay.data.first_rows_check import FirstRowsCheck, SampledReading, check_samples, refuse_errors
from inlay.data.reading.data_file import DataFile
from inlay.data.reading.read import as_lines, from_lines
from inlay.data.splits import as_keys, by_fold, by_key, draw, leaked, least, prompt_key
from inlay.data.truncation import TruncationCounts, apply_max_length, choose_max_length, require_enough
from inlay.data.types import Example
from inlay.errors import DataCheckError, DataError, StorageError, count_shown
from inlay.storage import cache_folder, write_file

_SAMPLE = 4
MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Training rows and held-out rows as token ids, and how they were made."""

    train: TokenSet
    train_sample: tuple[Example, ...]
    """The examples behind a few rows of `train` that were not cut."""
    heldout: TokenSet
    heldout_examples: tuple[Example, ...]
    """The examples behind `heldout`, each once, in its order."""
    heldout_available: int
    """Held-out examples before `data.max_length` and `eval.max_rows` were applied."""
    heldout_fitting: int
    """Held-out examples within `data.max_length`; at most `eval.max_rows` of them are drawn and scored."""
    leaked: int
    """Held-out examples whose prompt is also in a training row; 0 where the split is by content."""
    check: QuickCheck | None
    """The findings of the check before training; None where it is off."""
    rows: int
    mixture: str
    """Summary of a mixture: how many rows of each file an epoch draws; empty for one plain file."""
    format: str
    """`MIXED` where files differ."""
    format_reason: str
    max_length: int
    max_length_reason: str
    train_lengths: TruncationCounts
    heldout_lengths: TruncationCounts
    data_hash: str

    @property
    def trained_share(self) -> float:
        """Share of the training tokens that count in the loss."""
        return self.train.trained_tokens / max(1, self.train.token_count)


def prepare(
    config: DataConfig, encoder: Encoder, context_length: int, max_rows: int, seed: int, bar: ProgressBar | None = None
) -> PreparedData:
    """The prepared data of a run: read, checked, tokenized or taken from the cache, split and truncated.

    Memory does not grow with the files.

    Raises: DataError for a row that cannot be used, DataCheckError for data that would not train as intended.
    """
    _use_threads(config.workers)
    parts = config.train_files
    files = training_files(config)
    other = heldout_file(config)
    made, check = _tokenized(files, other, config, encoder, bar)
    trained = made[: len(files)]
    whole = TokenSet.of(*(one.stored for one in trained))
    keys = np.concatenate([one.prompt_keys for one in trained])
    used = _within_caps([one.prompt_keys for one in trained], parts)
    if other is None:
        train_rows, heldout_rows = (used[rows] for rows in _split(keys[used], config))
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
        leaked=leaked(keys[used], made[-1].prompt_keys[chosen]) if other else 0,
        rows=len(used),
        mixture="" if plain else _mixture_summary(train, parts),
        format=files[0].format if len(formats) == 1 else MIXED,
        format_reason=files[0].why if len(formats) == 1 else ", ".join(formats),
        max_length=max_length,
        max_length_reason=reason,
        train_lengths=train_lengths,
        heldout_lengths=heldout_lengths,
        data_hash=_hash(files, config),
    )


def training_files(config: DataConfig) -> list[DataFile]:
    """The training files, in the order of the mixture. Raises: DataError."""
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
    """The file of `data.eval`, or None where the held-out rows are split from the training files. Raises: DataError."""
    return DataFile(config.eval, config.format, config.columns, config.weights_of_roles) if config.eval else None


def sides(config: DataConfig) -> tuple[list[Example], list[Example]]:
    """(training rows, held-out rows) of the same split as `prepare`, before `max_length`. Raises: DataError."""
    files = training_files(config)
    read = [list(file.examples()) for file in files]
    keys = [as_keys(prompt_key(example) for example in one) for one in read]
    every, used = [example for one in read for example in one], _within_caps(keys, config.train_files)
    other = heldout_file(config)
    if other is not None:
        return [every[n] for n in used], list(other.examples())
    train, heldout = _split(np.concatenate(keys)[used], config)
    return [every[n] for n in used[train]], [every[n] for n in used[heldout]]


def data_hash(config: DataConfig) -> str:
    """`PreparedData.data_hash` of these settings, without reading all rows. Raises: DataError."""
    return _hash(training_files(config), config)


def _hash(files: Sequence[DataFile], config: DataConfig) -> str:
    plain = not isinstance(config.train, list) and config.max_rows is None
    return files[0].digest if plain else _mixture_hash(files, config.train_files)


def _within_caps(keys: Sequence[np.ndarray], parts: Sequence[TrainFile]) -> np.ndarray:
    """The examples that are used, numbered through all files. Of a file with a cap these are the ones whose prompts have
    the lowest digests, read from behind, where the split does not look. `keys`: each file's (N, 2) prompt keys."""
    used, first = [], 0
    for own, part in zip(keys, parts, strict=True):
        used.append(first + least(own, part.max_rows))
        first += len(own)
    return np.concatenate(used)


def _within_cap(file: DataFile, examples: Callable[[], Iterable[Example]], most: int) -> Iterator[Example]:
    """The file's examples within a cap. All `examples` are read to choose them, and the chosen ones once more."""
    rows, prompts = array("q"), bytearray()
    for example in examples():
        rows.append(file.row_key(example.source))
        prompts += prompt_key(example)
    yield from file.examples({rows[n] for n in least(as_keys([bytes(prompts)]), most)})


def _mixture_hash(files: Sequence[DataFile], parts: Sequence[TrainFile]) -> str:
    """Hex digest of all that decides how often each row is drawn."""
    deciding = [[*file.key, part.weight, part.max_rows] for file, part in zip(files, parts, strict=True)]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()


def _mixture_summary(train: TokenSet, parts: Sequence[TrainFile]) -> str:
    """One line with the number of sequences that an epoch draws from each file."""
    named = zip(train.shares, parts, strict=True)
    each = [f"{drawn(((count, w),))} of {Path(part.path).name} ({count} × {w:g})" for (count, w), part in named]
    return f"an epoch draws {train.drawn}: {', '.join(each)}"


def _tokenized(
    train: Sequence[DataFile], held_out: DataFile | None, config: DataConfig, encoder: Encoder, bar: ProgressBar | None
) -> tuple[list[TokenizedFile], QuickCheck | None]:
    """Each file's sequences, and the findings in their rows. A file whose ids are cached is not read again."""
    files = [*train, *([held_out] if held_out else [])]
    caps = [part.max_rows for part in config.train_files] + [None] * bool(held_out)
    found = [cached(file, encoder, cap) if config.cache else None for file, cap in zip(files, caps, strict=True)]
    note = _note("checks", [code_digest(), bool(held_out), [[file.files, *file.key] for file in files]])
    wanted = config.check != "off"
    check = noted = _noted_check(note) if wanted and config.cache else None
    readings = [SampledReading(file) for file in files]
    if noted:
        refuse_errors(noted, config)
    first_rows = FirstRowsCheck(readings, held_out is not None, config) if wanted and not noted else None
    try:
        if first_rows and found[0]:
            first_rows.finish()
        made = []
        for n, (known, file, cap) in enumerate(zip(found, files, caps, strict=True)):
            every = first_rows.along if first_rows and not n else readings[n].examples
            rows = every if cap is None else partial(_within_cap, file, every, cap)
            processes = process_count(config.workers, file.size_bytes)
            made.append(known or tokenized(file, rows, encoder, config.cache, bar, processes, cap))
    except DataError:
        if first_rows:
            first_rows.finish()  # what is wrong with the first rows is reported first
        raise
    if first_rows:
        first_rows.finish()
        check = first_rows.found if first_rows.saw_all else None
    if wanted and check is None:
        check = check_samples(readings, held_out is not None)
        refuse_errors(check, config)
    if check and not noted and config.cache:
        _write_note(note, json.dumps(check.to_json()))
    return made, check


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
    note = _note("rows", [CODE_VERSION, [[file.files, *file.key] for file in files], wanted])
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


def require_folds(config: DataConfig, count: int) -> None:
    """Raises: DataError where one of so many folds would have no row to train on, or none to hold out."""
    keys = [as_keys(map(prompt_key, file.examples())) for file in training_files(config)]
    used = np.concatenate(keys)[_within_caps(keys, config.train_files)]
    for part in range(1, count + 1):
        _split(used, config.model_copy(update={"fold": f"{part}/{count}"}))


def _use_threads(workers: int) -> None:
    # the tokenizers library reads these when it first works in parallel
    if workers:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(workers)


def _split(keys: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """(training positions, held-out positions) of rows with these (N, 2) prompt keys. Raises: DataError."""
    if config.fold:
        train, heldout = by_fold(keys, *map(int, config.fold.split("/")))
    else:
        train, heldout = by_key(keys, config.eval_fraction)
    if not len(train) or not len(heldout):
        how = f"data.fold {config.fold}" if config.fold else f"data.eval_fraction {config.eval_fraction}"
        raise DataError(
            f"{config.train_name}: {count_shown(len(keys), 'row')} cannot be split into training and held-out rows "
            f"({how}). Add rows with other prompts, or {'make fewer folds' if config.fold else 'give data.eval a file'}."
        )
    return train, heldout


def _of_examples(tokens: TokenSet, wanted: np.ndarray) -> TokenSet:
    """The sequences of the named examples, in the order they are in."""
    return tokens.take(np.flatnonzero(np.isin(tokens.examples, wanted)))
