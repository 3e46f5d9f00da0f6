"""The files of an adapter folder, read as a stranger's: nothing in them is executed, followed or taken on trust.

Each file is opened once. What is judged is what is used, also where the file changes meanwhile.
"""

from __future__ import annotations

import os
import re
import sys
from json.decoder import scanstring  # type: ignore[attr-defined]
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from inlay.errors import AdapterError
from inlay.folder_files import AGAIN, WEIGHTS, in_a_line, opened, read_bytes, shown
from inlay.strict_json import DECODER, parsed
from inlay.typed_json import JsonObject

CARD = "card.json"
LARGEST_WEIGHTS: Final = 2 * 1024**3
"""Of a folder whose base is not at hand, and which therefore could be of any size."""
_LARGEST_HEADER: Final = 12 * 1024**2
_MOST_TENSORS: Final = 65_536
LONGEST_NAME: Final = 640
_LARGEST_ENTRY: Final = 4096
_LARGEST_METADATA: Final = 64 * 1024
_MOST_DIMENSIONS: Final = 5
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STARTS: Final = {
    b"PK\x03\x04": "a zip archive or a PyTorch pickle", b"\x80": "a pickle", b"\x1f\x8b": "a gzip archive",
    b"GGUF": "a GGUF file", b"version ": "a pointer of Git LFS in place of the file",
}  # fmt: skip
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_json(folder: Path, name: str) -> JsonObject:
    """The object in a JSON file of the folder. Raises: AdapterError."""
    text = read_bytes(folder, name)
    try:
        value = parsed(text.decode("utf-8"))
    except ValueError as error:
        raise AdapterError(f"{folder}: {name} is not usable JSON ({in_a_line(error)}). {AGAIN}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{folder}: {name} holds no object. {AGAIN}")
    return value


def read_card(folder: Path) -> JsonObject:
    """The card that inlay writes beside an adapter of its own; empty where there is no card. Raises: AdapterError."""
    return read_json(folder, CARD) if os.path.lexists(folder / CARD) else {}


class Weights:
    """The tensors of an adapter file: names and shapes first, values when they are wanted. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Opens the file and judges its header. Raises: AdapterError."""
        self._folder = folder
        self._file = opened(folder, WEIGHTS)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            header = self._header()
            self._start = self._file.tell()
            self._entries = self._judged(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def shapes(self) -> dict[str, Tensor]:
        """Each tensor without its values, on the meta device."""
        return {name: torch.empty(e.shape, dtype=e.dtype, device="meta") for name, e in self._entries.items()}

    def require_at_most(self, limit: int, what: str) -> None:
        """Raises: AdapterError where the file is larger."""
        if self.size > limit:
            raise AdapterError(
                f"{self._folder}: {WEIGHTS} has {self.size:,} bytes, more than {what} ({limit:,}). It belongs to another "
                "base, or is no adapter."
            )

    def read(self) -> dict[str, Tensor]:
        """The tensors by name, all in one piece of memory. Raises: AdapterError."""
        data = bytearray(self.size - self._start)
        if self._file.readinto(data) != len(data):
            raise self._broken("it has become shorter while it was read")
        if sys.byteorder == "big":
            raise self._broken("this machine is big-endian, the file is not")
        found = {}
        for name, entry in self._entries.items():
            values = torch.frombuffer(data, dtype=entry.dtype, offset=entry.start, count=prod(entry.shape))
            found[name] = values.view(entry.shape)
            if not torch.isfinite(found[name]).all():
                raise AdapterError(f"{self._folder}: {name} holds values that are not finite. The adapter is damaged.")
        return found

    def _header(self) -> str:
        first = self._file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(self.size - 8, _LARGEST_HEADER):
            kind = next((kind for start, kind in _STARTS.items() if first.startswith(start)), None)
            why = f"it is {kind}" if kind else "it is cut off" if len(first) < 8 else (
                f"its header would have {length:,} bytes, of {self.size:,} in the file and {_LARGEST_HEADER:,} that are read"
            )  # fmt: skip
            raise self._broken(why)
        try:
            return self._file.read(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._broken("its header is not UTF-8") from None

    def _judged(self, header: str) -> dict[str, _Entry]:
        """The entries of the header, when they follow each other without gap or overlap and fill the file."""
        entries: dict[str, _Entry] = {}
        if header.count('"data_offsets"') > _MOST_TENSORS:
            raise self._broken(f"it holds more than {_MOST_TENSORS:,} tensors")
        for name, value in self._pairs(header):
            if len(entries) == _MOST_TENSORS:
                raise self._broken(f"it holds more than {_MOST_TENSORS:,} tensors")
            if name in entries:
                raise self._broken(f"it holds {shown(name)} twice")
            if len(name) > LONGEST_NAME:
                raise self._broken(f"{shown(name)} is a name of {len(name)} characters, {LONGEST_NAME} are the most")
            entries[name] = self._entry(name, value)
        if not entries:
            raise self._broken("it holds no tensors")
        end = 0
        for name, entry in sorted(entries.items(), key=lambda each: each[1].start):
            if entry.start != end:
                raise self._broken(f"{shown(name)} begins at {entry.start}, where {end} was due")
            end = entry.end
        if self._start + end != self.size:
            raise self._broken(f"it has {self.size:,} bytes, its header tells of {self._start + end:,}")
        return entries

    def _pairs(self, text: str) -> Any:
        """Name and value of each tensor in the header, read one by one: the memory for a large header stays small."""
        at, seen_metadata = _skip(text, 0), False
        if text[at : at + 1] != "{":
            raise self._broken("its header is no object")
        try:
            at = _skip(text, at + 1)
            while text[at : at + 1] == '"':
                name, at = scanstring(text, at + 1, True)
                at = _skip(text, at)
                if text[at : at + 1] != ":":
                    raise ValueError("':' is missing")
                at = _skip(text, at + 1)
                most = _LARGEST_METADATA if name == "__metadata__" else _LARGEST_ENTRY
                value, length = DECODER.raw_decode(text[at : at + most])
                at = _skip(text, at + length)
                if name != "__metadata__":
                    yield name, value
                elif seen_metadata or not isinstance(value, dict):
                    raise ValueError("__metadata__ is no object, or appears twice")
                else:
                    seen_metadata = True
                if text[at : at + 1] != ",":
                    break
                at = _skip(text, at + 1)
                if text[at : at + 1] != '"':
                    raise ValueError("a name is missing after ','")
            if text[at : at + 1] != "}" or _skip(text, at + 1) != len(text):
                raise ValueError("it does not end where its object ends")
        except (ValueError, RecursionError) as error:
            raise self._broken(f"its header is not usable JSON ({in_a_line(error)})") from None

    def _entry(self, name: str, value: Any) -> _Entry:
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)], **rest} if (
                not rest
            ):
                pass
            case _:
                raise self._broken(f"{shown(name)} needs dtype, shape and data_offsets, and nothing else")
        if dtype not in _DTYPES:
            raise self._broken(f"{shown(name)} is of {shown(dtype)}; only {', '.join(_DTYPES)} are taken")
        if not 0 < len(shape) <= _MOST_DIMENSIONS or not all(type(each) is int and 0 < each < 2**40 for each in shape):
            raise self._broken(f"{shown(name)} has the shape {shown(shape)}")
        bytes_needed = prod(shape) * _DTYPES[dtype].itemsize
        if isinstance(start, bool) or isinstance(end, bool) or start < 0 or end - start != bytes_needed:
            raise self._broken(f"{shown(name)} needs {bytes_needed} bytes, but lies from {start} to {end}")
        return _Entry(_DTYPES[dtype], tuple(shape), start, end)

    def _broken(self, why: str) -> AdapterError:
        return AdapterError(f"{self._folder}: {WEIGHTS} cannot be used: {why}. {AGAIN}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
