"""Files, folders of files and hub datasets to rows. Reads strictly: every defect is a DataError that names file and line."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from inlay.data.reading import compressed, folders, hub, plain_text, strict_json, tables
from inlay.data.reading.columnar import arrow_rows, parquet_rows
from inlay.data.reading.compressed import COMPRESSIONS
from inlay.data.reading.folders import is_several
from inlay.data.reading.workbook import workbook_rows
from inlay.data.types import Hash, OnFault, Row
from inlay.errors import DataError, nearest
from inlay.storage import refuse_ascii_only

EXTENSIONS: Final = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".txt",
)  # fmt: skip
"""Extensions of the files that can be read; each also compressed."""

_SEEKING: Final = (".parquet", ".arrow", ".xlsx", ".zip")
"""Extensions of the files that are not read from front to back."""
_SMALL_BYTES: Final = 4_000_000
_CHUNK_BYTES = 1 << 20


def kind_of(path: str) -> tuple[str, str]:
    """(extension, compression) of a file's name; each is empty where there is none that is known."""
    name = path.lower()
    packed = next((one for one in COMPRESSIONS if name.endswith(one)), "")
    kind = Path(name.removesuffix(packed)).suffix
    return kind if kind in EXTENSIONS else "", packed


def is_data_name(path: str) -> bool:
    """Whether a file of this name would be read."""
    kind, packed = kind_of(path)
    return bool(kind) or packed == ".zip"


def seeks(path: str) -> bool:
    """Whether the reader of the file seeks in it, so that its progress is not that of the bytes."""
    kind, packed = kind_of(path)
    return packed == ".zip" or kind in _SEEKING


def files_of(path: str) -> tuple[str, ...]:
    """The files of a path: itself, or those of a folder or pattern. Raises: DataError."""
    if hub_name(path) or not is_several(path):
        return (path,)
    return folders.files_of(path, is_data_name)


def rows(
    path: str,
    sha: Hash | None = None,
    on_fault: OnFault | None = None,
) -> Iterator[Row]:
    """The rows of a data file, of the files of a folder or pattern, or of a hub dataset
    (`hub:owner/name[:configuration][:split]`), in order.

    JSON lines, CSV, TSV, plain text, parquet and Arrow are streamed. `sha` has seen every byte of the files when all
    rows are read. With `on_fault`, a damaged line or record is passed to it and left out, where the ones after it can
    still be read.

    Raises:
        DataError: a file cannot be read, is damaged, or there are no rows.
    """
    empty = True

    def pass_on(error: DataError) -> None:
        nonlocal empty
        empty = False
        assert on_fault
        on_fault(error)

    for name in files_of(path):
        for row in rows_of_file(name, sha, pass_on if on_fault else None):
            empty = False
            yield row
    if empty:
        raise DataError(f"{path}:1: no rows (the file is empty or holds only a header). Give at least one row.")


def rows_of_file(
    path: str,
    sha: Hash | None = None,
    on_fault: OnFault | None = None,
    only: Set[int] | None = None,
) -> Iterator[Row]:
    """The rows of one file, or of a hub dataset; there may be none. `sha` and `on_fault` as in `rows`; with `only`, the
    rows of these lines are given and the others passed over.

    Raises: DataError.
    """
    wanted = hub_name(path)
    line = 1
    source = hub.hub_rows(wanted, sha) if wanted else _file_rows(path, sha, on_fault, only)
    try:
        for row in source:
            line = row.source.line
            if only is None or line in only:
                yield row
    except compressed.ERRORS as error:
        what = compressed.NAMES[kind_of(path)[1] or ".zip"]
        raise DataError(
            f"{path}:{line}: the {what} data is damaged or cut off after this line ({error}). Copy the file again."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Give a readable file.") from None


def content_hash(paths: Iterable[str]) -> str:
    """Hex sha256 over the bytes of the files in order, as `cat FILES | sha256sum` prints it."""
    sha = hashlib.sha256()
    for path in paths:
        with _open(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
    return sha.hexdigest()


class _Hashed(io.RawIOBase):
    """A raw file that shows every byte it gives to a hash."""

    def __init__(self, raw: BinaryIO, sha: Hash) -> None:
        self._raw, self._sha = raw, sha

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._sha.update(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _file_rows(path: str, sha: Hash | None, on_fault: OnFault | None, only: Set[int] | None = None) -> Iterator[Row]:
    kind, packed = kind_of(path)
    with _open(path) as file:
        if not kind and packed != ".zip":
            raise _unknown_kind(path, Path(path.lower().removesuffix(packed)).suffix)
        stream, hashed = file, None
        if sha and seeks(path):
            stream = _hashed_before(file, sha)
        elif sha:
            stream = hashed = cast(BinaryIO, io.BufferedReader(_Hashed(file, sha), _CHUNK_BYTES))
        if packed == ".zip":
            name, stream = compressed.zip_member(stream, path)
            kind, inner = kind_of(name)
            if not kind or inner == ".zip":
                raise _unknown_kind(f"{path}: {name} inside it", Path(name).suffix)
            stream = compressed.unpacked(stream, inner, path) if inner else stream
        elif packed:
            stream = compressed.unpacked(stream, packed, path)
        if packed and kind in _SEEKING:
            stream = io.BytesIO(stream.read())
        yield from _rows_of_kind(kind, stream, path, on_fault, only)
        while hashed and hashed.read(_CHUNK_BYTES):
            pass  # bytes that the reader had no need of belong to the hash too


def _rows_of_kind(
    kind: str, stream: BinaryIO, path: str, on_fault: OnFault | None, only: Set[int] | None
) -> Iterator[Row]:
    match kind:
        case ".parquet":
            return parquet_rows(stream, path)
        case ".arrow":
            return arrow_rows(stream, path)
        case ".xlsx":
            return workbook_rows(stream, path, on_fault)
        case ".csv":
            return tables.csv_rows(_lines(stream, path), path, ",", on_fault)
        case ".tsv":
            return tables.tsv_rows(_lines(stream, path), path, on_fault)
        case ".txt":
            return plain_text.text_rows(_lines(stream, path, on_fault), path)
        case ".json":
            return strict_json.document_to_rows(list(_lines(stream, path)), path)
        case _:
            return strict_json.lines_to_rows(_lines(stream, path, on_fault, only), path, on_fault)


def _hashed_before(file: BinaryIO, sha: Hash) -> BinaryIO:
    """The file, whose bytes the hash has seen; a small one as those very bytes."""
    data = file.read(_SMALL_BYTES)
    sha.update(data)
    if len(data) < _SMALL_BYTES:
        return io.BytesIO(data)
    while chunk := file.read(_CHUNK_BYTES):
        sha.update(chunk)
    file.seek(0)
    return file


def _unknown_kind(where: str, suffix: str) -> DataError:
    return DataError(
        f"{where}: unknown file type {suffix!r}. Known: {', '.join(EXTENSIONS)}, each also with "
        f"{', '.join(COMPRESSIONS)} behind it. Convert or rename the file; plain text is read from .txt."
    )


def _open(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.{_nearest_file(Path(path))}") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it. Give yourself read access (chmod u+r).") from None
    except (OSError, ValueError) as error:
        refuse_ascii_only(path)
        raise DataError(f"{path}: cannot be opened ({error}). Give the path of a data file.") from None


def _nearest_file(path: Path) -> str:
    try:
        names = [item.name for item in path.parent.iterdir()]
    except OSError:
        return f" The folder {str(path.parent)!r} does not exist either."
    guess = nearest(path.name, names)
    return f" Did you mean {str(path.parent / guess)!r}?" if guess else " Nothing there has a similar name."


def _lines(
    stream: BinaryIO, path: str, on_fault: OnFault | None = None, only: Set[int] | None = None
) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line breaks, decoded as UTF-8; a byte order mark is dropped."""
    offset = 0
    for number, raw in enumerate(stream, 1):
        if number == 1:
            _refuse_other_kinds(raw, path)
        if only is not None and number not in only:
            offset += len(raw)
            continue
        try:
            text = _decoded(raw, path, number, offset)
        except DataError as error:
            if on_fault is None:
                raise
            on_fault(error)
        else:
            yield number, text
        offset += len(raw)


def _decoded(raw: bytes, path: str, number: int, offset: int) -> str:
    """The text of line `number`, which begins at byte `offset`. Raises: DataError."""
    text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
    if (at := raw.find(b"\0")) >= 0:
        raise DataError(
            f"{path}:{number}: NUL byte at byte {offset + at} (binary data, or a write that was cut off). "
            "Write the file again as UTF-8 text."
        )
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + len(raw) - len(text) + error.start
        guess = text[max(0, error.start - 10) : error.start + 10].decode("latin-1")
        raise DataError(
            f"{path}:{number}: byte 0x{text[error.start]:02x} at byte {at} is not UTF-8 "
            f"(as latin-1 it reads {guess!r}). Convert the file: iconv -f latin1 -t utf-8."
        ) from None


def _refuse_other_kinds(first: bytes, path: str) -> None:
    for magic, what, fix in (
        (b"\x1f\x8b", "gzip data", "Add .gz to its name."),
        (b"PAR1", "a parquet file", "Name it .parquet."),
        (b"PK\x03\x04", "a zip or Excel file", "Name it .zip or .xlsx."),
        (b"BZh", "bzip2 data", "Add .bz2 to its name."),
        (b"\xfd7zXZ", "xz data", "Add .xz to its name."),
        (b"\x28\xb5\x2f\xfd", "zstandard data", "Add .zst to its name."),
        (b"ARROW1", "an Arrow file", "Name it .arrow."),
        (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8."),
        (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8."),
    ):
        if first.startswith(magic):
            raise DataError(f"{path}:1: the content is {what}, unlike its name. {fix}")


def hub_name(path: str) -> hub.HubName | None:
    """The dataset, when `path` names one of the hub and not a file. Raises: DataError."""
    found = hub.parsed(path)
    if found and not found.has_prefix and (is_data_name(path) or Path(path).exists() or Path(path).parent.is_dir()):
        return None
    return found
