"""A row exactly as training sees it: its ids and weights, and its steps and micro batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from inlay.config import Config
from inlay.data.batches import micro_batches, step_rows, steps_per_epoch
from inlay.data.curriculum import curriculum, difficulty
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.data.prepare import PreparedData, prepare, training_files
from inlay.data.reading.data_file import DataFile
from inlay.data.types import Example, Source, row_key
from inlay.errors import DataCheckError, DataError, unknown_name
from inlay.typed_json import JsonObject

IGNORED = -100
"""The label of a token that is not trained."""


@dataclass(frozen=True, slots=True)
class Landing:
    """The step and micro batch of a sequence in one epoch."""

    epoch: int  # from 1
    step: int  # from 1, through all epochs
    rows: int
    """Rows in the step."""
    micro_batch: int  # from 1, of this step, on one process
    micro_batches: int
    beside: int
    """Rows in the micro batch."""
    padded_to: int
    """Tokens of each of them, with padding."""


@dataclass(frozen=True, slots=True)
class ShownSequence:
    """A sequence of a row, with the text of its tokens."""

    tokens: TokenizedSequence
    pieces: tuple[str, ...]
    """The text of each token."""
    altered: tuple[str, ...]
    cut: int
    """Tokens that `data.max_length` cuts from its end."""
    landings: tuple[Landing, ...]
    texts: tuple[str, ...]
    """The text of each stretch of tokens of one weight."""

    @property
    def labels(self) -> np.ndarray:
        """(L,) the id to predict at each place, or -100."""
        return np.where(self.tokens.weights > 0, self.tokens.input_ids, IGNORED)

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """(first, end) of each stretch of tokens of one weight."""
        return _stretches(self.tokens)

    @property
    def spans(self) -> list[tuple[float, str]]:
        """(weight, text) of each stretch of tokens of one weight."""
        weights = [float(self.tokens.weights[start]) for start, _ in self.stretches]
        return list(zip(weights, self.texts, strict=True))

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        t = self.tokens
        columns = zip(self.pieces, t.input_ids.tolist(), self.labels.tolist(), t.weights.tolist(), strict=True)
        return {
            "length": len(t.input_ids),
            "trained": int((t.weights > 0).sum()),
            "weight": float(t.weights.sum(dtype=np.float64)),
            "altered": list(self.altered),
            "cut": self.cut,
            "lands": [{name: getattr(one, name) for name in Landing.__slots__} for one in self.landings],
            "tokens": [{"text": x, "id": i, "label": y, "weight": w} for x, i, y, w in columns],
        }


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row of a data file, and its part in training."""

    source: Source
    format: str
    side: str
    """The part of the row, in words: trained, held out, or the reason for neither."""
    sequences: tuple[ShownSequence, ...]
    micro_batch_note: str

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        return {
            "file": self.source.file,
            "line": self.source.line,
            "format": self.format,
            "side": self.side,
            "micro_batches": self.micro_batch_note,
            "sequences": [sequence.to_json() for sequence in self.sequences],
        }


Apart = Callable[[list[list[int]], np.ndarray], list[list[int]]]


def show_row(
    config: Config, encoder: Encoder, context_length: int, row: int | str | None, apart: Apart = lambda groups, _: groups
) -> ShownRow:  # fmt: skip
    """A row of the training file through the functions that `train` calls: the first, that at a line, or of a mixture
    that at `FILE:LINE`. `apart` divides micro batches of rows of these lengths where the base needs it.

    Raises: DataError when there is no such row, or for one that cannot be used.
    """
    file, key = _place(training_files(config.data), row)
    example = _row(file, key)
    whole = [tokens for _, tokens in encoder.examples([example])]
    try:
        data = prepare(config.data, encoder, context_length, config.eval.max_rows, config.train.seed)
    except (DataError, DataCheckError) as error:
        side, kept = f"not trained on: {error}", pack((0, t) for t in whole)
        landings: list[tuple[Landing, ...]] = []
    else:
        side, kept, landings = _found(config, data, example.source, apart)
    if not len(kept):
        kept = pack((0, t) for t in whole)
    taken = _matched(whole, kept)
    where = dict(zip(taken, landings, strict=True)) if landings else {}
    return ShownRow(
        source=example.source,
        format=file.format,
        side=side,
        sequences=tuple(_sequence(encoder, whole[n], kept.row(i), where.get(n, ())) for i, n in enumerate(taken)),
        micro_batch_note=_micro_batch_size(config)[1],
    )


def _place(files: Sequence[DataFile], row: int | str | None) -> tuple[DataFile, int | None]:
    if row is None:
        return files[0], None
    name, _, line = str(row).rpartition(":")
    if not line.isascii() or not line.isdigit() or line == "0":
        raise DataError(f"row {row!r}: a row is named by its line, from 1, or as FILE:LINE.")
    names = [(file, part, one) for file in files for part, one in enumerate(file.files)]
    found = [
        (file, part)
        for file, part, one in names
        if not name or name == one or Path(one).as_posix().endswith(f"/{name}")
    ]
    if not found:
        raise DataError(f"row {row!r}: {unknown_name('training file', name, [one for _, _, one in names])}")
    return found[0][0], row_key(found[0][1], int(line))


def _row(file: DataFile, key: int | None) -> Example:
    if key is None:
        return next(iter(file.examples()))
    try:
        return file.at({key})[key]
    except (DataError, KeyError) as error:
        place = file.source_of(key)
        if str(place) in str(error):
            raise
        fault = f"{place.file}: there is no row at line {place.line}. Name a line (of a table: a record), from 1."
        raise DataError(fault) from None


def _found(
    config: Config, data: PreparedData, source: Source, apart: Apart
) -> tuple[str, TokenSet, list[tuple[Landing, ...]]]:
    """(the part of the row in words, its sequences as they are kept, the landings of each)."""
    if rows := data.train.rows_of(source):
        by_loss = ", in an order that the base's losses decide" if config.train.order == "loss" else ""
        return f"trained on{by_loss}", data.train.take(rows), [_landings(config, data.train, i, apart) for i in rows]
    if config.data.eval is None and (rows := data.heldout.rows_of(source)):
        return "held out and scored", data.heldout.take(rows), []
    limit = f"data.max_length {data.max_length} ({data.max_length_reason})"
    return f"neither trained on nor scored: longer than {limit}, or held out and not drawn", data.train.take([]), []


def _landings(config: Config, train: TokenSet, i: int, apart: Apart) -> tuple[Landing, ...]:
    """The landings in the first three epochs, one each; none where the order needs losses of the base."""
    if config.train.order == "loss":
        return ()
    size = config.train.batch_size
    hardness = difficulty(config, train)
    by = None if hardness is None else curriculum(config.train, hardness)
    per_epoch = steps_per_epoch(train.drawn, size)
    last = config.train.max_steps or per_epoch * config.train.epochs
    found = []
    for step in range(1, min(last, 3 * per_epoch) + 1):
        rows = step_rows(step, config.train.seed, train.shares, size, by)
        if i not in rows:
            continue
        shares = apart(micro_batches(rows, train.lengths, _micro_batch_size(config)[0]), train.lengths)
        n = next(n for n, share in enumerate(shares) if i in share)
        padded_to = int(train.lengths[shares[n]].max())
        epoch = (step - 1) // per_epoch + 1
        found.append(Landing(epoch, step, len(rows), n + 1, len(shares), len(shares[n]), padded_to))
    return tuple(found)


def _micro_batch_size(config: Config) -> tuple[int, str]:
    """(rows in a micro batch, a word on it)."""
    micro = config.train.micro_batch_size
    if micro == "auto":
        note = "train.micro_batch_size is auto and settled at the start of a run; here a step is one micro batch"
        return config.train.batch_size, note
    return micro, f"train.micro_batch_size is {micro}"


def _matched(whole: Sequence[TokenizedSequence], kept: TokenSet) -> list[int]:
    """For each kept sequence, the position of the one that it begins."""
    found: list[int] = []
    for i in range(len(kept)):
        ids = kept.row(i).input_ids
        found.append(next(
            n for n, t in enumerate(whole) if n not in found and np.array_equal(t.input_ids[: len(ids)], ids)
        ))  # fmt: skip
    return found


def _sequence(
    encoder: Encoder, whole: TokenizedSequence, kept: TokenizedSequence, landings: tuple[Landing, ...]
) -> ShownSequence:
    ids = kept.input_ids.tolist()
    known = {i: encoder.piece(i) for i in set(ids)}
    texts = tuple(encoder.stretch(ids, start, end) for start, end in _stretches(kept))
    cut = len(whole.input_ids) - len(ids)
    return ShownSequence(kept, tuple([known[i] for i in ids]), whole.altered, cut, landings, texts)


def _stretches(tokens: TokenizedSequence) -> list[tuple[int, int]]:
    changes = np.flatnonzero(np.diff(tokens.weights)) + 1
    return list(pairwise([0, *changes.tolist(), len(tokens.weights)])) if len(tokens.weights) else []
