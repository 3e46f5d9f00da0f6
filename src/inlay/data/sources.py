"""Files and hub datasets to rows. Reads strictly: every defect is a DataError that names file and line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

from inlay.data import strictjson
from inlay.data.types import OnFault, Row, Source
from inlay.errors import DataError, nearest

EXTENSIONS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""What can be read; each also with .gz after it."""

_HUB = re.compile(
    r"(?P<prefix>hub:)?(?P<name>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?::(?P<split>[\w.-]{1,96}))?", re.ASCII
)
_CHUNK_BYTES = 1 << 20


class Hash(Protocol):
    """What `hashlib.sha256()` gives."""

    def update(self, data: bytes, /) -> None: ...


def rows(
    path: str, sha: Hash | None = None, on_fault: OnFault | None = None, only: Set[int] | None = None
) -> Iterator[Row]:
    """The rows of a data file or of a hub dataset (`hub:owner/name[:split]`), in order.

    JSON lines, CSV, TSV and parquet are streamed. `sha` has seen every byte of the file when all rows are read.
    With `on_fault`, a damaged line or record is told to it and left out, where the ones after it can still be read.
    With `only`, the rows of these lines are given and the others passed over.

    Raises:
        DataError: the file cannot be read, is damaged, or holds no rows.
    """
    hub = hub_name(path)
    line = 1
    empty = True

    def told(error: DataError) -> None:
        nonlocal empty
        empty = False
        assert on_fault
        on_fault(error)

    source = _hub_rows(*hub, sha) if hub else _file_rows(path, sha, told if on_fault else None, only)
    try:
        for row in source:
            empty = False
            line = row.source.line
            if only is None or line in only:
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}:{line}: the gzip data is damaged or cut off after this line ({error}). Copy the file again."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Give a readable file.") from None
    if empty:
        raise DataError(f"{path}:1: no rows (the file is empty or holds only a header). Give at least one row.")


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
    name = path.lower()
    packed = name.endswith(".gz")
    kind = Path(name.removesuffix(".gz")).suffix
    with _open(path) as file:
        if kind not in EXTENSIONS:
            raise DataError(
                f"{path}: unknown file type {kind!r}. "
                f"Known: {', '.join(EXTENSIONS)}, each also as .gz. Convert or rename the file."
            )
        hashed = cast(BinaryIO, io.BufferedReader(_Hashed(file, sha), _CHUNK_BYTES)) if sha else file
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=hashed)) if packed else hashed
        match kind:
            case ".parquet":
                yield from _parquet_rows(stream, path, streamed=not (packed or sha))
            case ".csv" | ".tsv":
                yield from _table_rows(_lines(stream, path), path, "\t" if kind == ".tsv" else ",", on_fault)
            case ".json":
                yield from strictjson.document_to_rows(list(_lines(stream, path)), path)
            case _:
                yield from strictjson.lines_to_rows(_lines(stream, path, on_fault, only), path, on_fault)
        while sha and hashed.read(_CHUNK_BYTES):
            pass  # bytes that the reader had no need of belong to the hash too


def _open(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.{_nearest_file(Path(path))}") from None
    except IsADirectoryError:
        names = sorted(item.name for item in Path(path).iterdir() if _is_known(item.name))
        inside = f" It holds {', '.join(names[:5])}." if names else " It holds no data file."
        raise DataError(f"{path}: is a folder.{inside} Give one file.") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it. Give yourself read access (chmod u+r).") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened ({error}). Give the path of a data file.") from None


def _is_known(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(EXTENSIONS)


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
        (b"PK\x03\x04", "a zip or Excel file", "Export it as CSV or JSON lines."),
        (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8."),
        (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8."),
    ):
        if first.startswith(magic):
            raise DataError(f"{path}:1: the content is {what}, not what the name says. {fix}")


def _table_rows(lines: Iterable[tuple[int, str]], path: str, delimiter: str, on_fault: OnFault | None) -> Iterator[Row]:
    """Rows of a CSV or TSV; each names the line where its record begins."""
    # The module's own limit of 128 KiB a cell refuses long documents; it can only be set for the process.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as reason:
            raise DataError(f"{path}:{line}: {_explain_csv(str(reason), delimiter)}") from None
        if record is None:
            return
        if not record:
            continue
        if not header:
            header = _header(record, f"{path}:{line}", delimiter)
        elif len(record) != len(header):
            error = DataError(
                f"{path}:{line}: {len(record)} cells where the header has {len(header)} "
                f"({strictjson.listed(header)}). "
                f"Quote a cell that contains {delimiter!r} or a line break."
            )
            if on_fault is None:
                raise error
            on_fault(error)
        else:
            yield Row(dict(zip(header, record, strict=True)), Source(path, line))


def _explain_csv(error: str, delimiter: str) -> str:
    if "unexpected end of data" in error:
        return 'a cell opens with " and is never closed. Close it.'
    if "expected after" in error:
        return f'text between a closing " and the next {delimiter!r}. Double a quote inside a quoted cell ("").'
    if "new-line" in error:
        return "a lone carriage return outside quotes. Save the file with \\n or \\r\\n line ends."
    return f"not a readable table row ({error})."


def _header(record: list[str], place: str, delimiter: str) -> list[str]:
    names = [name.strip() for name in record]
    if "" in names:
        raise DataError(
            f"{place}: column {names.index('') + 1} of the header has no name. "
            "Name every column (pandas: to_csv(index=False))."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: the header names {twice!r} twice. Name every column once.")
    other = next((sign for sign in ",;\t|" if sign != delimiter and sign in names[0]), None)
    if len(names) == 1 and other is not None:
        raise DataError(
            f"{place}: the header is one column ({names[0][:60]!r}); "
            f"the cells seem to be separated by {other!r}. "
            f"Save the file with {delimiter!r} between cells" + (" or name it .tsv." if other == "\t" else ".")
        )
    return names


def _parquet_rows(stream: BinaryIO, path: str, *, streamed: bool) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f'{path}: reading parquet needs pyarrow: pip install "inlay[parquet]"') from None
    data = b"" if streamed else stream.read()
    if not (stream.seek(0, os.SEEK_END) if streamed else data):
        return
    try:
        file = parquet.ParquetFile(stream if streamed else pyarrow.BufferReader(data))
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise DataError(f"{path}:1: two columns have the same name ({strictjson.listed(names)}). Rename one.")
        number = 0
        for batch in file.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(value, Source(path, number))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}:1: not a whole parquet file ({reason}). Write or copy it again.") from None


def hub_name(path: str) -> tuple[str, str] | None:
    """Dataset id and split, when `path` names a hub dataset and not a file."""
    match = _HUB.fullmatch(path)
    if path.startswith("hub:") and not match:
        raise DataError(f"{path}: not a dataset id. Write hub:owner/name or hub:owner/name:split.")
    if not match:
        return None
    if not match["prefix"] and (_is_known(path) or Path(path).exists() or Path(path).parent.is_dir()):
        return None
    return match["name"], match["split"] or "train"


def _hub_rows(name: str, split: str, sha: Hash | None) -> Iterator[Row]:
    place = f"hub:{name}:{split}"
    try:
        import datasets
    except ImportError:
        raise DataError(
            f'{name}: no such file; to read it as a hub dataset: pip install "inlay[hub]". '
            "Or give the path of a data file."
        ) from None
    try:
        stream = iter(datasets.load_dataset(name, split=split, streaming=True))
        number = 0
        while (value := next(stream, None)) is not None:
            number += 1
            if sha:
                sha.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
            yield Row(dict(value), Source(place, number))
    except Exception as error:  # noqa: BLE001  any of four HTTP stacks may speak here; all mean the same to the user
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{place}: the hub dataset cannot be read ({reason}). Check the name, the split and the network, "
            "or download it and give the file."
        ) from None
