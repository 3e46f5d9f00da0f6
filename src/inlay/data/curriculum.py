"""The order of rows by difficulty: rows are drawn from a pool that grows linearly during an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inlay.config import Config
from inlay.config.sections.data import TrainFile
from inlay.config.sections.train import TrainConfig
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.reading import sources
from inlay.data.types import Row, lines_in, row_key
from inlay.errors import DataError


@dataclass(frozen=True, eq=False)
class Curriculum:
    """An order of rows: in the first epochs easy rows come first, in later ones the order is random."""

    numbers: np.ndarray  # (N,) difficulty of each row, the lowest first
    pool: float
    """Share of the rows that the first one is drawn from."""
    pacing: float
    """Share of an epoch after which rows are drawn from all that are left."""
    epochs: int

    def order(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(D,) `rows` in another order. The one at place i is of the D·(pool + (1 - pool)·i / (pacing·D)) least."""
        count = len(rows)
        places = np.arange(count)
        sizes = np.ceil(count * self.pool + (1 - self.pool) * places / self.pacing)
        sizes = np.clip(sizes, places + 1, count).astype(np.int64)
        draws = rng.random(count)
        chosen = np.empty(count, np.int64)
        waiting: list[int] = []
        added = 0
        for i, (size, draw) in enumerate(zip(sizes.tolist(), draws.tolist(), strict=True)):
            waiting += range(added, size)
            added = size
            k = int(draw * len(waiting))
            waiting[k], waiting[-1] = waiting[-1], waiting[k]
            chosen[i] = waiting.pop()
        return np.asarray(rows[np.argsort(self.numbers[rows], kind="stable")][chosen])


def curriculum(config: TrainConfig, difficulty: np.ndarray) -> Curriculum:
    """The curriculum of the settings over (N,) numbers, one for each row."""
    sign = -1.0 if config.order_first == "high" else 1.0
    return Curriculum(sign * difficulty, config.order_pool, config.order_pacing, config.order_epochs)


def difficulty(config: Config, train: TokenSet) -> np.ndarray | None:
    """(N,) float64 difficulty of each row; None where rows have no such order, or it needs losses of the base.

    Raises: DataError for a row whose column holds no number.
    """
    if config.train.order == "length":
        return train.lengths.astype(np.float64)
    if config.train.order == "column":
        assert config.train.order_column is not None
        return _column(config.data.train_files, config.train.order_column, train)
    return None


def _column(files: Sequence[TrainFile], name: str, train: TokenSet) -> np.ndarray:
    places = [train.place(i) for i in range(len(train))]
    found: dict[tuple[int, int], float] = {}
    for part, file in enumerate(files):
        keys = {key for of, key in places if of == part}
        for n, path in enumerate(sources.files_of(file.path)):
            lines = lines_in(keys, n)
            for row in sources.rows_of_file(path, only=lines) if lines else ():
                found[part, row_key(n, row.source.line)] = _number(row, name)
    return np.asarray([found[place] for place in places], np.float64)


def _number(row: Row, name: str) -> float:
    value = row.value.get(name)
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        fault = "is missing" if value is None else f"is {value!r}, not a finite number"
        raise DataError(
            f"{row.source}: field {name!r} {fault}, and train.order_column orders the rows by it. Give every row a number."
        )
    return number
