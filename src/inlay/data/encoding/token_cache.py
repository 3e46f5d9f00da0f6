"""Tokenized files on disk: made once, then mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from inlay.data.encoding.encoder import CODE_VERSION, Encoder
from inlay.data.encoding.token_arrays import Packing, TokenArrays
from inlay.data.encoding.worker_pool import Part, encoded
from inlay.data.file_progress import FileProgress, ProgressBar
from inlay.data.reading.data_file import DataFile
from inlay.data.splits import as_keys
from inlay.data.types import Example
from inlay.errors import StorageError
from inlay.file_digests import known_sha256, note_sha256
from inlay.storage import (
    cache_folder,
    one_at_a_time,
    read_manifest,
    replace_folder,
    sweep_abandoned,
)

_IDS, _ROWS = "input_ids.bin", "rows.safetensors"
_KEYS_ON_DISK = "asked"
"""The name of the prompt keys in the file of arrays."""


@dataclass(frozen=True, eq=False)
class TokenizedFile:
    """A file's sequences, and the prompt keys of its examples, by which they are split."""

    stored: TokenArrays
    prompt_keys: np.ndarray  # (E, 2) uint64, equal for examples with the same prompt


def cached(file: DataFile, encoder: Encoder, most: int | None = None) -> TokenizedFile | None:
    """The cached ids of a file with these bytes, of all its rows or of `most` rows; None where there are none, or only
    damaged ones."""
    whole = _opened(_place(file, encoder, None), file.files)
    return whole if whole or most is None else _opened(_place(file, encoder, most), file.files)


def tokenized(
    file: DataFile,
    examples: Callable[[], Iterable[Example]],
    encoder: Encoder,
    use_cache: bool,
    bar: ProgressBar | None,
    processes: int,
    most: int | None = None,
) -> TokenizedFile:
    """The ids of the file's `examples`, made by so many processes; with `use_cache` they are kept for the next start.

    `most`: the cap that `examples` were chosen by, part of the name in the cache. Raises: DataError.
    """
    if use_cache:
        place = _place(file, encoder, most)
        # a cache that cannot be written costs memory now and time at the next start, nothing else
        with contextlib.suppress(StorageError), one_at_a_time(cache_folder("locks") / place.name):
            found = _opened(place, file.files)  # another process may have made it meanwhile
            if found is None:
                sweep_abandoned(place.parent)
                replace_folder(
                    place,
                    lambda folder: _fill(folder, file, examples(), encoder, bar, processes),
                    {"made_of": file.key},
                )
                for name, about in read_manifest(place)["files"].items():
                    note_sha256(place / name, about["sha256"])
                found = _opened(place, file.files)
            if found is not None:
                return found
    kept: list[np.ndarray] = []
    arrays = _work(file, examples(), encoder, bar, processes, kept.append)
    ids = np.concatenate([np.zeros(0, _kind(encoder)), *kept])
    return _assembled(ids, arrays, file.files)


def _place(file: DataFile, encoder: Encoder, most: int | None) -> Path:
    more = [*([] if most is None else [most]), *([f"rows {encoder.rows_known}"] if encoder.rows_known else [])]
    key = json.dumps([CODE_VERSION, file.key, encoder.tokenizer_hash, encoder.template_hash, *more])
    return cache_folder("tokens") / hashlib.sha256(key.encode()).hexdigest()[:32]


def _fill(
    folder: Path, file: DataFile, examples: Iterable[Example], encoder: Encoder, bar: ProgressBar | None, processes: int
) -> None:
    with (folder / _IDS).open("wb") as ids:
        arrays = _work(file, examples, encoder, bar, processes, lambda some: ids.write(some.tobytes()))
    save_file(arrays, folder / _ROWS)


def _work(
    file: DataFile,
    examples: Iterable[Example],
    encoder: Encoder,
    bar: ProgressBar | None,
    processes: int,
    put: Callable[[np.ndarray], object],
) -> dict[str, np.ndarray]:
    """All arrays of the file but the ids, which go to `put` chunk by chunk."""
    kind, prompt_keys, rows = _kind(encoder), bytearray(), 0
    packing = Packing(lambda ids: put(ids.astype(kind)), file.files)
    with contextlib.closing(_shown(encoded(encoder, examples, processes), file, bar)) as parts:
        for part in parts:
            packing.add(part.sequences, rows)
            prompt_keys += part.prompt_keys
            rows += part.rows
    largest = {"largest_id": np.array([packing.largest_id])}
    arrays = packing.arrays()
    return arrays | largest | {_KEYS_ON_DISK: as_keys([bytes(prompt_keys)])}


def _shown(parts: Generator[Part], file: DataFile, bar: ProgressBar | None) -> Generator[Part]:
    """The parts; the bar shows how much of the file is done."""
    rows = 0
    with contextlib.closing(parts), FileProgress(bar, file.size_bytes, "tokenized") as percent:
        for part in parts:
            yield part
            rows += part.rows
            # the file is read ahead of what is tokenized
            read = file.read_bytes / file.size_bytes if file.size_bytes else 0.0
            percent.reached(read * rows / max(1, file.read_rows), rows)


def _kind(encoder: Encoder) -> type[np.generic]:
    """The smallest of two types that holds every id of the tokenizer."""
    largest = max((encoder.eos_id, encoder.pad_id, *encoder.tokenizer.get_vocab().values()))
    return np.uint16 if largest < 1 << 16 else np.int32


def _opened(place: Path, files: tuple[str, ...]) -> TokenizedFile | None:
    try:
        listed = read_manifest(place)["files"]
        if {n: known_sha256(place / n) for n in (_IDS, _ROWS)} != {n: listed[n]["sha256"] for n in listed}:
            return None
        arrays = load((place / _ROWS).read_bytes())
        count, size = int(arrays["offsets"][-1]), (place / _IDS).stat().st_size
        kind = np.uint16 if size == 2 * count else np.int32
        ids = np.asarray(np.memmap(place / _IDS, kind, "r")) if size else np.zeros(0, kind)
        return _assembled(ids, arrays, files)
    except (StorageError, SafetensorError, OSError, LookupError, TypeError, ValueError):
        return None


def _assembled(ids: np.ndarray, arrays: dict[str, np.ndarray], files: tuple[str, ...]) -> TokenizedFile:
    prompt_keys, largest = arrays.pop(_KEYS_ON_DISK), int(arrays.pop("largest_id")[0])
    stored = TokenArrays(ids, **arrays, files=files, example_count=len(prompt_keys), largest_id=largest)
    return TokenizedFile(stored, prompt_keys)
