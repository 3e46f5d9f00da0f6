"""The check of the first rows of all files, made while they are tokenized and finished before any other row is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inlay.config.sections.data import DataConfig
from inlay.data.checks.quick import EvenSample, QuickCheck, RunningCheck, quick_check
from inlay.data.reading.data_file import DataFile
from inlay.data.types import Example
from inlay.errors import DataError


class SampledReading:
    """One pass over a file that keeps an even sample of its rows; the first rows can be checked before the others."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._restart()

    def _restart(self) -> None:
        self._rest: Iterator[Example] | None = None
        self._head: list[Example] = []
        self.sample = EvenSample()
        self.is_whole = False
        """Whether all rows have been seen."""

    def first(self) -> Iterator[Example]:
        """All rows, or the first ones up to the size of a sample, as they are read."""
        if self._rest is None:
            self._rest = self._file.examples()
        while self.sample.stride == 1:
            example = next(self._rest, None)
            if example is None:
                self.is_whole = True
                return
            self.sample.add(example)
            yield example

    def first_again(self) -> Iterator[Example]:
        """`first`, of a new pass."""
        self._restart()
        return self.first()

    def keep_first(self) -> Iterator[Example]:
        """`first`, held for `examples`."""
        for example in self.first():
            self._head.append(example)
            yield example

    def rest(self) -> Iterator[Example]:
        """The rows behind the first."""
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
            yield from self.first_again()
        head.clear()
        yield from self.rest()

    def sampled(self) -> list[Example]:
        """An even sample of all rows; reads those that have not been read."""
        if not self.is_whole:
            for _ in self.rest() if self._rest else self.examples():
                pass
        return self.sample.examples


class FirstRowsCheck:
    """The check of the first rows of all files, which runs along while those of the first file are tokenized."""

    def __init__(self, readings: Sequence[SampledReading], last_is_held_out: bool, config: DataConfig) -> None:
        self._readings, self._last_is_held_out, self._config = readings, last_is_held_out, config
        self._check, self._is_over = RunningCheck(), False
        self.found: QuickCheck | None = None
        """The result, once the check is finished."""
        self.saw_all = False
        """Whether the first rows were all rows."""

    def along(self) -> Iterator[Example]:
        """All rows of the first file, checked on their way. Raises: DataError, DataCheckError."""
        if not self._is_over:
            self._check = RunningCheck()
        yield from self._checked(0, self._readings[0].first_again())
        self.finish()
        yield from self._readings[0].rest()

    def finish(self) -> None:
        """Checks the first rows that have not been checked. Raises: DataError, DataCheckError."""
        if self._is_over:
            return
        for n, reading in enumerate(self._readings):
            for _ in self._checked(n, reading.keep_first() if n else reading.first()):
                pass
        self._is_over, self.saw_all = True, all(reading.is_whole for reading in self._readings)
        self.found = self._check.found(sum(reading.sample.seen for reading in self._readings))
        refuse_errors(self.found, self._config)

    def _checked(self, n: int, rows: Iterator[Example]) -> Iterator[Example]:
        held_out = self._last_is_held_out and n == len(self._readings) - 1
        try:
            for example in rows:
                if not self._is_over:
                    self._check.see(example, held_out)
                yield example
        except DataError:  # a row that cannot be read is reported before the findings of the check
            self._is_over = True
            raise


def check_samples(readings: Sequence[SampledReading], last_is_held_out: bool) -> QuickCheck:
    """The findings in an even sample of all rows; reads those that have not been read. Raises: DataError."""
    seen = [reading.sampled() for reading in readings]
    held_out = seen[-1] if last_is_held_out else []
    train = [example for one in (seen[:-1] if last_is_held_out else seen) for example in one]
    return quick_check(train, held_out, sum(reading.sample.seen for reading in readings))


def refuse_errors(check: QuickCheck, config: DataConfig) -> None:
    """Raises: DataCheckError for an error among the findings, where `data.check` is `refuse`."""
    if config.check == "refuse":
        check.refuse_errors(config.train_name)
