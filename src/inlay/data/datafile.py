"""A data file that is read more than once: its format, its digest, and its rows again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from inlay.data import sources
from inlay.data.read import examples_again, stream_examples
from inlay.data.types import ASSISTANT, Example
from inlay.errors import DataError
from inlay.storage import known_sha256

_SMALL_BYTES = 4_000_000  # hashed again while it is read


class DataFile:
    """Rows of a file, streamed; those of a hub dataset are held, so that they are fetched once."""

    def __init__(
        self,
        path: str,
        format: str,  # noqa: A002
        columns: Mapping[str, str],
        role_weights: Mapping[str, float] = ASSISTANT,
    ) -> None:
        """Reads the rows that show the format. Raises: DataError."""
        self.path, self.columns, self._role_weights = path, columns, role_weights
        sha = hashlib.sha256()
        hub = sources.hub_name(path) is not None
        found, examples = stream_examples(path, format, columns, sha if hub else None, None, role_weights)
        self.format, self.why = found.name, found.why
        self._held = tuple(examples) if hub else None
        first = self._held[0] if self._held else next(examples)
        self.name = first.source.file
        """What the rows call the file that they are from."""
        self.read_bytes = self.read_rows = 0
        """How far the newest reading has come."""
        self._version = None if hub else _version(path)
        if hub:
            self.digest = sha.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the bytes."""
        return known_sha256(Path(self.path))

    @property
    def size_bytes(self) -> int:
        return 0 if self._version is None else int(self._version[2])

    @property
    def key(self) -> list[Any]:
        """Equal for files that give the same examples."""
        weights = [] if self._role_weights == ASSISTANT else [sorted(self._role_weights.items())]
        return [self.digest, self.format, sorted(self.columns.items()), *weights]

    def examples(self, only: Set[int] | None = None) -> Iterator[Example]:
        """Every example, or those of these lines. Raises: DataError for a row that cannot be used, and when the file changed meanwhile."""
        if self._held is not None:
            yield from (e for e in self._held if only is None or e.source.line in only)
            return
        whole = self.digest  # before the file is read, so that a change in between is seen
        seen = _Seen(self, hashlib.sha256() if self.size_bytes < _SMALL_BYTES else None)
        hashed = None if ".parquet" in self.path.lower() and not seen.sha else seen  # a hash would have it read whole
        self.read_rows = 0
        for example in examples_again(self.path, self.format, self.columns, hashed, only, self._role_weights):
            self.read_rows += 1
            yield example
        if _version(self.path) != self._version or (seen.sha and seen.sha.hexdigest() != whole):
            raise DataError(f"{self.path}: changed while it was read. Start again when it is written whole.")

    def at(self, lines: Set[int]) -> dict[int, Example]:
        """The examples of these lines, by line."""
        if self._held is not None:
            return {e.source.line: e for e in self._held if e.source.line in lines}
        if not lines:
            return {}
        found = {}
        for example in examples_again(self.path, self.format, self.columns, None, lines, self._role_weights):
            found[example.source.line] = example
            if len(found) == len(lines):
                break
        return found


class _Seen:
    """Counts the bytes that are read, and hashes them where that is wanted."""

    def __init__(self, file: DataFile, sha: Any) -> None:
        self._file, self.sha = file, sha
        file.read_bytes = 0

    def update(self, data: bytes, /) -> None:
        self._file.read_bytes += len(data)
        if self.sha:
            self.sha.update(data)


def _version(path: str) -> tuple[int, ...]:
    about = Path(path).stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
