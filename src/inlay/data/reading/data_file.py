"""A source of rows that is read more than once: its format, its digest, and its rows again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from inlay.data.reading import sources
from inlay.data.reading.read import examples_again, stream_examples
from inlay.data.reading.row_fields import OneSplit
from inlay.data.types import ASSISTANT, Example, Source, lines_in, part_and_line, row_key
from inlay.errors import DataError
from inlay.file_digests import known_sha256

_SMALL_BYTES = 4_000_000  # hashed again while it is read


class DataFile:
    """Rows of a file, or of the files of a folder or pattern, streamed; those of a hub dataset are held, so that they
    are fetched once."""

    def __init__(
        self,
        path: str,
        format: str,  # noqa: A002
        columns: Mapping[str, str],
        role_weights: Mapping[str, float] = ASSISTANT,
    ) -> None:
        """Reads the rows that show the format. Raises: DataError."""
        self.path, self.columns, self._role_weights = path, columns, role_weights
        self._split = OneSplit() if format == "auto" else None
        sha = hashlib.sha256()
        hub = sources.hub_name(path) is not None
        files = sources.files_of(path)
        found, examples = stream_examples(path, format, columns, sha if hub else None, None, role_weights)
        self.format, self.why = found.name, found.why + (f"; {len(files)} files" if len(files) > 1 else "")
        self._held = tuple(examples) if hub else None
        first = self._held[0] if self._held else next(examples)
        self.files = (first.source.file,) if hub else files
        """The names of the files, as the sources of their rows have them."""
        self._part_of = {name: part for part, name in enumerate(self.files)}
        self.read_bytes = self.read_rows = 0
        """Bytes and rows of the newest reading so far."""
        self._versions = () if hub else tuple(_version(name) for name in files)
        if hub:
            self.digest = sha.hexdigest()

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.files[0] if len(self.files) == 1 else self.path

    @cached_property
    def _digests(self) -> tuple[str, ...]:
        return tuple(known_sha256(Path(name)) for name in self.files)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the bytes; of several files, of their digests."""
        several = len(self._digests) > 1
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest() if several else self._digests[0]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(version[2] for version in self._versions)

    @property
    def key(self) -> list[Any]:
        """Equal for files that give the same examples."""
        weights = [] if self._role_weights == ASSISTANT else [sorted(self._role_weights.items())]
        return [self.digest, self.format, sorted(self.columns.items()), *weights]

    def row_key(self, source: Source) -> int:
        """The key of a row, as `only` and `at` take it."""
        return row_key(self._part_of[source.file], source.line)

    def source_of(self, key: int) -> Source:
        """The place of the row with this key."""
        part, line = part_and_line(key)
        return Source(self.files[part], line)

    def examples(self, only: Set[int] | None = None) -> Iterator[Example]:
        """Every example, or those of these rows. Raises: DataError for a row that cannot be used, and when a file changed meanwhile."""
        if self._held is not None:
            yield from (e for e in self._held if only is None or self.row_key(e.source) in only)
            return
        _ = self._digests  # before a file is read, so that a change in between is seen
        self.read_rows = self.read_bytes = 0
        for part, name in enumerate(self.files):
            lines = None if only is None else lines_in(only, part)
            if lines is None or lines:
                yield from self._of_file(part, name, lines)

    def _of_file(self, part: int, name: str, lines: Set[int] | None) -> Iterator[Example]:
        small = self._versions[part][2] < _SMALL_BYTES
        seen = _Seen(self, hashlib.sha256() if small else None)
        hashed = seen if small or not sources.seeks(name) else None  # a hash would have it read once more
        for example in examples_again(
            name, self.format, self.columns, hashed, lines, self._role_weights, split=self._split
        ):
            self.read_rows += 1
            yield example
        changed = _version(name) != self._versions[part]
        if changed or (seen.sha and seen.sha.hexdigest() != self._digests[part]):
            raise DataError(f"{name}: changed while it was read. Start again when it is written whole.")

    def at(self, keys: Set[int]) -> dict[int, Example]:
        """The examples of these rows, by their keys."""
        if self._held is not None:
            return {key: e for e in self._held if (key := self.row_key(e.source)) in keys}
        found: dict[int, Example] = {}
        for part, name in enumerate(self.files):
            lines = lines_in(keys, part)
            wanted = len(found) + len(lines)
            if not lines:
                continue
            for example in examples_again(
                name, self.format, self.columns, None, lines, self._role_weights, split=self._split
            ):
                found[self.row_key(example.source)] = example
                if len(found) == wanted:
                    break
        return found


class _Seen:
    """Counts the bytes that are read, and hashes them where that is wanted."""

    def __init__(self, file: DataFile, sha: Any) -> None:
        self._file, self.sha = file, sha

    def update(self, data: bytes, /) -> None:
        self._file.read_bytes += len(data)
        if self.sha:
            self.sha.update(data)


def _version(path: str) -> tuple[int, ...]:
    about = Path(path).stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
