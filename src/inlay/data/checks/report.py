"""All checks over some files, and the report of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data.checks import CHECKS, Check
from inlay.data.checks.findings import SEVERITIES, Finding, Kind, Severity, Tally, by_gravity
from inlay.data.checks.lengths import LengthCheck, LengthFacts, Model
from inlay.data.checks.near import NearDuplicates
from inlay.data.checks.row import CheckedRow
from inlay.data.checks.rules_of_thumb import RuleOfThumb, Task, rules_of_thumb
from inlay.data.checks.survey import FileFacts
from inlay.data.encoding.worker_pool import process_count
from inlay.data.file_progress import FileProgress, ProgressBar
from inlay.data.reading import sources
from inlay.data.reading.read import stream_examples
from inlay.data.types import Source
from inlay.errors import DataError
from inlay.typed_json import JsonObject

UNREADABLE: Final = Kind(
    "unreadable-row",
    "error",
    "rows that cannot be used as they are",
    "Each place names the fault and the way out.",
)
UNREADABLE_FILE: Final = Kind(
    "unreadable-file",
    "error",
    "files that cannot be read to the end",
    "The place names the fault; the rows after it were not checked.",
)


@dataclass(frozen=True)
class DataReport:
    """The contents of the files, and the findings in them."""

    files: tuple[FileFacts, ...]
    findings: tuple[Finding, ...]
    """Gravest first."""
    lengths: LengthFacts
    advice: tuple[RuleOfThumb, ...]
    model: str | None = None
    parameters: int | None = None
    """Number of parameters of the model."""

    @property
    def rows(self) -> int:
        """Rows that could be read, in all files."""
        return sum(facts.rows for facts in self.files)

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def has_errors(self) -> bool:
        """Whether a finding is an error."""
        return self.count("error") > 0

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        return {
            "files": [facts.to_json() for facts in self.files],
            "rows": self.rows,
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "model": self.model,
            "lengths": self.lengths.to_json(),
            "advice": [advice.to_json() for advice in self.advice],
            "findings": [finding.to_json() for finding in self.findings],
        }


def check_files(
    files: Sequence[TrainFile], config: DataConfig, model: Model | None = None, *, only_count: bool = False,
    bar: ProgressBar | None = None,
) -> DataReport:  # fmt: skip
    """Every check over the files, and over `config.eval` as held-out rows.

    `config` gives format and columns of those that name none; its `train` is not read. With a model lengths are in
    its tokens. `only_count` leaves out the checks that need no model.

    Raises: DataError for a file that is not there or of no known kind, and for a setting that is wrong.
    """
    parts = [(file, FileFacts(file.path, False)) for file in files]
    parts += [(TrainFile(path=config.eval), FileFacts(config.eval, True))] if config.eval else []
    passed = _Passed(sum(_size_bytes(name) for file, _ in parts for name in sources.files_of(file.path)))
    processes = process_count(config.workers, passed.size_bytes)
    lengths = LengthCheck(model, None if config.max_length == "auto" else config.max_length, processes)
    task, faults = Task(), Tally()
    checks: list[Check] = [lengths, *([] if only_count else [make() for make in CHECKS.values()])]
    with contextlib.closing(lengths):
        with FileProgress(bar, passed.size_bytes, "checked") as percent:
            for row in _rows(parts, config, faults, passed):
                task.see(row)
                for check in checks:
                    check.see(row)
                percent.reached(passed.share, row.number + 1)
        for near in (check for check in checks if isinstance(check, NearDuplicates)):
            with FileProgress(bar, passed.size_bytes, "searched for near duplicates") as percent:
                near.search(percent.reached)
        findings = by_gravity([*faults.findings(), *(finding for check in checks for finding in check.findings())])
    measured = lengths.facts()
    advice = rules_of_thumb(task, measured, model)
    named = (model.name, model.parameters) if model else ()
    return DataReport(tuple(facts for _, facts in parts), tuple(findings), measured, tuple(advice), *named)


class _Passed:
    """Counts the bytes that are read."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self._read_bytes = size_bytes, 0

    def update(self, data: bytes, /) -> None:
        self._read_bytes += len(data)

    @property
    def share(self) -> float:
        return self._read_bytes / self.size_bytes if self.size_bytes else 0.0


def _size_bytes(path: str) -> int:
    return Path(path).stat().st_size if Path(path).is_file() else 0


def _rows(
    parts: Sequence[tuple[TrainFile, FileFacts]], config: DataConfig, faults: Tally, passed: _Passed
) -> Iterator[CheckedRow]:
    """The rows of all parts that can be read; the others are counted as faults."""
    number = 0
    for file, facts in parts:
        names = sources.files_of(file.path)

        def fault(error: DataError, facts: FileFacts = facts, names: tuple[str, ...] = names) -> None:
            facts.faulty += 1
            _add(faults, UNREADABLE, error, names)

        seen = None if any(map(sources.seeks, names)) else passed  # a hash would have them read once more
        try:
            columns = config.columns if file.columns is None else file.columns
            found, examples = stream_examples(
                file.path, file.format or config.format, columns, seen, fault, config.weights_of_roles
            )
            facts.format, facts.why = found.name, found.why
            for example in examples:
                row = CheckedRow(example, number, facts.held_out)
                facts.see(row)
                yield row
                number += 1
        except DataError as error:
            if _place(error, names) is not None:
                _add(faults, UNREADABLE_FILE, error, names)
            elif not facts.faulty:  # with faults only, there is no row to find the format from
                raise


def _place(error: DataError, files: Sequence[str]) -> Source | None:
    """The line that the error names, if it speaks of one in one of the files."""
    text = str(error)
    for file in files:
        line = text.removeprefix(f"{file}:").partition(": ")[0]
        if line != text and line.isdigit():
            return Source(file, int(line))
    return None


def _add(faults: Tally, kind: Kind, error: DataError, files: Sequence[str]) -> None:
    place = _place(error, files)
    message = str(error).removeprefix(f"{place}: ")
    faults.add(kind, place or Source(files[0], 1), message, width=700)
