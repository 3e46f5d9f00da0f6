"""Files and folders that are written whole or not at all. Everything that inlay keeps on disk goes through here.

A folder is staged beside its place, its files fsynced and listed in a manifest, then renamed into place;
a file is written beside its place, fsynced and renamed over it. A kill at any moment leaves the old or the new.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from inlay.errors import ONLY_ASCII, InlayError, RunError, StorageError, UserError
from inlay.typed_json import JsonObject

MANIFEST, LOCK, OWNER = "manifest.json", ".lock", ".lock.pid"
_STAGING = ".staging-"
_OLD = f"{_STAGING}old-"  # an earlier folder in the moment when its successor takes its place

_WAY_OUT = {
    errno.ENOSPC: "the disk is full. Free space or choose another folder (runs: output.folder; adapters: --library)",
    errno.EDQUOT: "your disk quota is used up. Free space or choose another folder (runs: output.folder; adapters: --library)",
    errno.EACCES: "no permission to write here. Choose another folder (runs: output.folder; adapters: --library) or change its owner",
    errno.EPERM: "no permission to write here. Choose another folder (runs: output.folder; adapters: --library) or change its owner",
    errno.EROFS: "this file system is read-only. Choose another folder (runs: output.folder; adapters: --library)",
    errno.EISDIR: "is a folder. Name a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another folder (runs: output.folder; adapters: --library)",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the disk refused inside into a StorageError that names the place and the way out."""
    try:
        yield
    except InlayError:
        raise
    except Exception as error:
        code = _errno_of(error)
        if code is None:
            raise
        raise StorageError(f"{path}: {_WAY_OUT.get(code, getattr(error, 'strerror', None) or error)}.") from error


def _errno_of(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or 0
    # safetensors and tokenizers write in Rust, whose errors keep the number in their text only
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def cache_folder(name: str) -> Path:
    """Folder of things that can be made again: in INLAY_CACHE, else in the user's cache folder.

    A user without a home, as in many containers, has a folder that ends with the process.
    """
    if chosen := os.environ.get("INLAY_CACHE"):
        return Path(chosen) / name
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "inlay" / name
    home = os.path.expanduser("~")  # noqa: PTH111 -- Path.home() raises where there is none
    return (_passing_cache() if home.startswith("~") else Path(home) / ".cache" / "inlay") / name


@cache
def _passing_cache() -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="inlay-cache-"))
    except OSError:  # nowhere to write: what is kept there is made anew each time
        return Path(os.devnull)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def path_exists(path: Path) -> bool:
    """Whether something lies at a path that a user gave. Raises: UserError when the system refuses to tell."""
    try:
        found = path.exists()
    except OSError as error:  # a name that is too long, a folder that is closed to us
        shown = str(path) if len(str(path)) < 200 else f"{str(path)[:199]}…"
        raise UserError(f"{shown}: cannot be looked at ({error.strerror}). Give another path.") from None
    if not found:
        refuse_ascii_only(str(path))
    return found


def refuse_ascii_only(name: str) -> None:
    """Raises: UserError for a name that is text, but that Python cannot pass to the system in this environment."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        if not any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{name}: {ONLY_ASCII}") from None


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces the file at once with the new content, durably. Raises: StorageError."""
    data = content.encode() if isinstance(content, str) else content
    if not path.name:
        raise StorageError(f"{str(path)!r}: names no file. Give the name of one.")
    staging = path.with_name(f".{path.name}{_STAGING}{os.getpid()}")
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)  # which rename does not do on Windows
            _fsync_folder(path.parent)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Replaces the file with `value` as indented JSON. NaN is refused: it is not JSON."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, value: Any) -> None:
    """Adds one JSON line. A torn last line is dropped by `read_lines`."""
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[JsonObject]:
    """The JSON lines of a file, without a last line that a kill cut short; empty when there is no file.

    Raises: StorageError naming any other line that is not JSON.
    """
    if not path.exists():
        return []
    with explained(path):
        *whole, _torn = path.read_bytes().split(b"\n")  # a whole line ends with a newline
    lines: list[JsonObject] = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path}:{number}: damaged, not a line of JSON ({error}).") from None
    return lines


class FileEntry(TypedDict):
    """One file in a manifest, by its path in the folder."""

    size: int
    sha256: str


def write_folder(final: Path, fill: Callable[[Path], None], about: Mapping[str, object]) -> None:
    """Makes `final` appear with what `fill` wrote and a manifest carrying `about`, or not at all.

    Raises: StorageError when the disk refuses; `final` must not exist yet.
    """
    assert not final.exists(), f"{final} is already there"
    staging = final.with_name(f"{_STAGING}{final.name}-{os.getpid()}")
    with explained(final):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            fill(staging)
            write_manifest(staging, about)
            staging.rename(final)
            _fsync_folder(final.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def write_manifest(folder: Path, about: Mapping[str, object]) -> None:
    """Fsyncs every file below the folder and lists it with size and sha256 in `manifest.json`, which has its own."""
    files: dict[str, FileEntry] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb+") as file:  # Windows flushes only what may be written
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(_manifest_text({**about, "files": files}))
        file.flush()
        os.fsync(file.fileno())
    _fsync_folder(folder)


def read_manifest(folder: Path) -> JsonObject:
    """The manifest of a folder, whose files are not looked at. Raises: StorageError when it is missing or damaged."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest.pop("sha256", None) is None or not isinstance(manifest["files"], dict):
            raise ValueError("it is not one")
        if text != _manifest_text(manifest):
            raise ValueError("it was changed")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise StorageError(f"{folder}: no usable manifest ({error}).") from None
    return dict(manifest)


def _manifest_text(about: Mapping[str, object]) -> str:
    """The one way a manifest is written: with its own digest, so that no byte of it may differ."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return json.dumps({**about, "sha256": digest}, indent=2, allow_nan=False)


def verified(folder: Path) -> JsonObject:
    """The manifest of a folder whose files all are what it says.

    Raises: StorageError naming the first file that is missing, extra, or changed.
    """
    manifest = read_manifest(folder)
    with explained(folder):
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
        for name in sorted(found ^ set(manifest["files"])):
            raise StorageError(f"{folder / name}: {'not in the manifest' if name in found else 'missing'}.")
        for name, expected in manifest["files"].items():
            if (folder / name).stat().st_size != expected["size"] or sha256_of(folder / name) != expected["sha256"]:
                raise StorageError(f"{folder / name}: damaged (its bytes are not those of the manifest).")
    return manifest


def replace_folder(final: Path, fill: Callable[[Path], None], about: Mapping[str, object]) -> None:
    """Like `write_folder`, but an earlier folder of that name gives way once the new one is whole.

    The two change places in one step where the file system can do that. Elsewhere a kill between two renames leaves
    the earlier one under a staging name, from which `sweep_staging` puts it back.
    """
    if not final.exists():
        write_folder(final, fill, about)
        return
    fresh = final.with_name(f"{_STAGING}new-{final.name}-{os.getpid()}")
    old = final.with_name(f"{_OLD}{final.name}-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    write_folder(fresh, fill, about)
    with explained(final):
        if exchange(fresh, final):
            old = fresh
        else:
            final.rename(old)
            fresh.rename(final)
        _fsync_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Lets two paths change places in one step (Linux renameat2); False, and nothing done, where that is not to be had.

    Raises: OSError for what would refuse a rename as well.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def move_aside(folder: Path, why: str = "old") -> Path:
    """Renames a folder to the next free `NAME.<why>-N` and returns that; nothing is deleted."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.{why}-{number}")).exists():
        number += 1
    with explained(folder):
        if os.name == "nt" and (lock := _HELD.get(folder)):  # a folder with an open file cannot be renamed there
            lock.release()
        folder.rename(target)
    return target


def removed_at_once(folder: Path) -> None:
    """Deletes a folder: from one moment to the next it is gone as a whole. `sweep_staging` finishes after a kill."""
    going = folder.with_name(f"{_STAGING}removed-{folder.name}-{os.getpid()}")
    with explained(folder):
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        _fsync_folder(folder.parent)
        shutil.rmtree(going, ignore_errors=True)


def is_staging(path: Path) -> bool:
    """Whether the name is that of something half-written."""
    return path.name.startswith(".") and _STAGING in path.name


def sweep_staging(folder: Path) -> None:
    """Removes what a killed writer left half-written in this folder; call it only as the folder's owner."""
    for path in folder.glob(f"{_OLD}*"):
        place = path.with_name(path.name.removeprefix(_OLD).rpartition("-")[0])
        if not place.exists():
            with explained(place):
                path.rename(place)
    for path in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".*{_STAGING}*"):
        path.unlink(missing_ok=True)


def sweep_killed(final: Path) -> None:
    """Removes what processes that were killed left half-written of this folder; that of a living one stays."""
    import psutil  # here: the command line starts without it

    for path in final.parent.glob(f"{_STAGING}{final.name}-*"):
        pid = path.name.rpartition("-")[2]
        if (
            path.name == f"{_STAGING}{final.name}-{pid}"
            and pid.isascii()
            and pid.isdigit()
            and not psutil.pid_exists(int(pid))
        ):
            shutil.rmtree(path, ignore_errors=True)


def sweep_abandoned(folder: Path, after_s: float = 3600) -> None:
    """Removes what killed writers left half-written in a folder of several owners, once nobody has written to it."""
    for path in folder.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError):
            newest = max(item.stat().st_mtime for item in (path, *path.rglob("*")))
            if time.time() - newest > after_s:
                shutil.rmtree(path, ignore_errors=True)


def require_space(
    folder: Path, needed_bytes: int, what: str = "the run",
    remedy: str = "choose another folder (output.folder), or lower train.keep_checkpoints",
) -> None:  # fmt: skip
    """Raises: StorageError when the file system of `folder` has less room than `what` needs."""
    while not folder.exists():
        folder = folder.parent
    with explained(folder):
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"{folder}: {free_bytes / 1e6:.0f} MB free, but {what} needs about {needed_bytes / 1e6:.0f} MB. "
            f"Free space, or {remedy}."
        )


def require_writable(folder: Path) -> None:
    """Raises: StorageError when nothing could be written into the folder, or when it could not be made."""
    with explained(folder):
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds the folder for this process. The system frees it when the process ends, however it ends.

    Raises: RunError naming the pid of the other owner.
    """
    from filelock import FileLock, Timeout  # here: the command line starts without it

    lock, owner = FileLock(folder / LOCK, thread_local=False), folder / OWNER
    with explained(folder / LOCK):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{folder}: another process (pid {_pid_in(owner)}) is training here. Wait for it or stop it."
            ) from None
    _HELD[folder] = lock
    try:
        with explained(owner):
            owner.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        _HELD.pop(folder, None)
        lock.release()


_HELD: dict[Path, Any] = {}
"""The lock of each folder that this process holds."""


def _pid_in(owner: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(int(owner.read_text(encoding="ascii")))
    return "unknown"


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file, and holds it. Where no lock can be had, nobody waits."""
    from filelock import FileLock

    lock = FileLock(path, thread_local=False)
    try:
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        yield
    finally:
        lock.release()


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there, and its journal keeps a rename whole
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
