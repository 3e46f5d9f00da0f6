"""Compressed files to the bytes they hold, refusing what is damaged, cut off, or followed by something else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final, cast

from inlay.errors import DataError

NAMES: Final = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard", ".zip": "zip"}
COMPRESSIONS: Final = tuple(NAMES)
"""Endings of compressed files, after the extension of a data file."""

_CHUNK_BYTES = 1 << 16


class DamagedError(OSError):
    """Compressed data that cannot be read to its end."""


ERRORS: Final = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, DamagedError)
"""The errors that reading a damaged file raises."""


def unpacked(stream: BinaryIO, compression: str, path: str) -> BinaryIO:
    """The bytes inside. Raises: DataError where a library is missing; one of `ERRORS` when it is read."""
    match compression:
        case ".gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
        case ".bz2":
            return _frames(stream, bz2.BZ2Decompressor)
        case ".xz":
            return _frames(stream, lzma.LZMADecompressor)
        case _:
            return _frames(stream, _zstandard(path))


def zip_member(stream: BinaryIO, path: str) -> tuple[str, BinaryIO]:
    """(name, bytes) of the one file that a zip archive holds. Raises: DataError; one of `ERRORS` when it is read."""
    archive = zipfile.ZipFile(stream)
    files = [one for one in archive.infolist() if not one.is_dir() and not _is_clutter(one.filename)]
    if len(files) != 1:
        names = ", ".join(one.filename for one in files[:5])
        held = f"{len(files)} files ({names}{', …' if len(files) > 5 else ''})" if files else "no file"
        raise DataError(f"{path}: the archive holds {held}. Unpack it and give the file, or the folder of its parts.")
    if files[0].flag_bits & 1:
        raise DataError(f"{path}: {files[0].filename} inside it is encrypted. Unpack it and give the file.")
    try:
        member = archive.open(files[0])
    except NotImplementedError as error:
        raise DataError(f"{path}: cannot be unpacked here ({error}). Unpack it and give the file.") from None
    return files[0].filename, cast(BinaryIO, io.BufferedReader(cast(Any, member), 1 << 20))


def _is_clutter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith(".")


def _zstandard(path: str) -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f'{path}: reading .zst needs zstandard: pip install "inlay[zst]". Or unpack it: zstd -d {path}'
        ) from None
    # files of `zstd --long=31` have the largest window there is
    return lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _frames(stream: BinaryIO, begin: Callable[[], Any]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(cast(Any, _Frames(stream, begin)), 1 << 20))


class _Frames(io.RawIOBase):
    """One or several compressed frames, of which each must be whole and nothing but another may follow."""

    def __init__(self, stream: BinaryIO, begin: Callable[[], Any]) -> None:
        self._stream, self._begin, self._frame = stream, begin, begin()
        self._fresh = True  # nothing of this frame has been read
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                rest, self._frame, self._fresh = self._frame.unused_data, self._begin(), True
            else:
                rest = b""
            data = rest or self._stream.read(_CHUNK_BYTES)
            if not data:
                if self._fresh:
                    return 0
                raise EOFError("it ends before its end mark")
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except EOFError:
                raise
            except Exception as error:  # noqa: BLE001  each library has an exception of its own
                raise DamagedError(str(error)) from None
            self._fresh = False
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)
