"""Digests of large files, remembered in the user's cache for as long as nobody touches the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from inlay.errors import StorageError
from inlay.storage import cache_folder, sha256_of, write_file

_QUICK_TO_HASH_BYTES = 4_000_000


def known_sha256(path: Path) -> str:
    """The sha256 of a file, remembered while the file system says that nobody touched it.

    Hashing costs 1 to 8 seconds per gigabyte. Every write moves the change time, which no program can set back.
    """
    return noted_sha256(path) or note_sha256(path)


def noted_sha256(path: Path) -> str | None:
    """The remembered sha256 of a file that nobody touched since; None where it would have to be read."""
    if path.stat().st_size < _QUICK_TO_HASH_BYTES:
        return sha256_of(path)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        kept = _note_of(path).read_text(encoding="ascii")
        if len(kept) == 64:
            return kept
    return None


def note_sha256(path: Path, digest: str | None = None) -> str:
    """Remembers the sha256 of a file, which is read for it unless its writer gives the digest."""
    return _noted(path, "", (lambda _: digest) if digest else _read_when_settled)


def known_of(path: Path, what: str, compute: Callable[[Path], str]) -> str:
    """The result of `compute` for a file (ASCII), remembered under the name `what` as in `known_sha256`."""
    if path.stat().st_size < _QUICK_TO_HASH_BYTES:
        return compute(path)
    with contextlib.suppress(OSError, ValueError):
        result, _, digest = _note_of(path, what).read_text(encoding="ascii").rpartition("\n")
        if hashlib.sha256(result.encode()).hexdigest() == digest:
            return result

    def read(path: Path) -> str:
        _settle(path)
        result = compute(path)
        return f"{result}\n{hashlib.sha256(result.encode()).hexdigest()}"

    return _noted(path, what, read).rpartition("\n")[0]


def _read_when_settled(path: Path) -> str:
    _settle(path)
    return sha256_of(path)


def _settle(path: Path) -> None:
    """Waits until a second write to the file would show: one within a tick of its clock does not."""
    about = path.stat()
    coarse = not about.st_mtime_ns % 1_000_000_000  # a file system that counts whole seconds, or two
    settled_s = about.st_ctime_ns / 1e9 + (2.1 if coarse else 0.05)
    if (rest_s := settled_s - time.time()) > 0:
        time.sleep(min(rest_s, 2.1))


def _noted(path: Path, what: str, compute: Callable[[Path], str]) -> str:
    note = _note_of(path, what)
    found = compute(path)
    if path.stat().st_size >= _QUICK_TO_HASH_BYTES and note == _note_of(
        path, what
    ):  # else it changed while it was read
        with contextlib.suppress(StorageError):  # a cache that cannot be written costs time, nothing else
            write_file(note, found)
    return found


def _note_of(path: Path, what: str = "") -> Path:
    about = path.stat()
    identity = [str(path.resolve()), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return cache_folder("digests") / (hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32] + what)
