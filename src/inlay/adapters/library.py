"""The adapter library on disk: adapters by name and version, their tags, and the history of each name.

    library/
      tokenizers/KEY/            a tokenizer with its chat template, once for all adapters that use it
      support/versions/3/        adapter_model.safetensors adapter_config.json card.json manifest.json …
      support/tags.json          {"prod": 3}
      support/log.jsonl          one line for each add, tag and remove

A version is written whole or not at all and then never changes. There is no index: a list reads the cards. No torch here.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, NamedTuple

from inlay.adapters.cards import CARD, Card
from inlay.adapters.shared_tokenizers import SharedTokenizers
from inlay.errors import AdapterError, StorageError, nearest_of
from inlay.folder_files import in_a_line, read_bytes
from inlay.storage import (
    MANIFEST,
    explained,
    one_at_a_time,
    path_exists,
    removed_at_once,
    require_space,
    require_writable,
    sweep_staging,
    write_file,
    write_folder,
    write_json,
)
from inlay.strict_json import parsed
from inlay.typed_json import JsonObject

try:
    import fcntl
except ImportError:  # Windows: nothing can be held there, and a version in use can be removed
    fcntl = None  # type: ignore[assignment]

RESERVED: Final = frozenset({"base", "builtin", "latest", "auto", "tokenizers"})
"""Names and tags with a meaning of their own."""
LATEST: Final = "latest"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER: Final = re.compile("[0-9]{1,9}")
_ALLOWED: Final = "lower-case letters, digits, '.', '_' and '-' (at most 64, no '..'), beginning with a letter or digit"
_LARGEST_LOG: Final = 64 << 20
_SPARE_BYTES: Final = 1 << 20
"""Room for the files beside the weights."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of one adapter."""

    name: str
    version: int
    folder: Path
    card: Card
    tags: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """`NAME:VERSION`."""
        return f"{self.name}:{self.version}"

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder of its tokenizer with the chat template; None where the base's own is used."""
        return self.folder.parents[2] / "tokenizers" / self.card.tokenizer if self.card.tokenizer else None

    def to_json(self) -> JsonObject:
        """Its line of `inlay adapters list --json`."""
        card = self.card
        return {
            "name": self.name, "version": self.version, "tags": list(self.tags), "task": card.task, "base": card.base_model,
            "base_digest": card.base_digest, "method": card.method, "rank": card.rank, "modules": card.modules,
            "parameters": card.parameters, "bytes": card.bytes, "verdict": card.verdict.verdict if card.verdict else None,
            "licence": card.licence, "note": card.note, "operation": card.operation, "run": card.run, "step": card.step,
            "created": card.created, "identity": card.identity, "folder": str(self.folder),
        }  # fmt: skip


class Stored(NamedTuple):
    """The entry that holds an adapter, and whether it was written just now."""

    entry: Entry
    is_new: bool


class Damaged(NamedTuple):
    """A version whose card cannot be read, and why."""

    name: str
    version: int
    fault: str


def require_name(name: str, what: str = "name") -> str:
    """The name. Raises: AdapterError when no adapter, or no tag, can have it."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise AdapterError(f"{what} {name!r}: cannot be used. Use {_ALLOWED}.")
    if name in RESERVED:
        raise AdapterError(f"{what} {name!r}: is reserved ({', '.join(sorted(RESERVED))}). Choose another.")
    return name


def is_number(text: str) -> bool:
    """Whether a text is a version or a step: at most nine digits of ASCII. `str.isdigit` also takes superscripts."""
    return _NUMBER.fullmatch(text) is not None


def require_tag(tag: str) -> str:
    """The tag. Raises: AdapterError when it is no name, or could be taken for a version."""
    if is_number(tag):
        raise AdapterError(f"tag {tag!r}: would be taken for a version. Begin it with a letter.")
    return require_name(tag, "tag")


def split_ref(ref: str) -> tuple[str, str | None]:
    """(name, version or tag) of `NAME:VERSION` or `NAME:TAG`; (name, None) of a bare name.

    Raises: AdapterError for text that no adapter can have as its reference.
    """
    name, colon, which = ref.partition(":")
    if colon and not (is_number(which) or which == LATEST or _is_tag(which)):
        raise AdapterError(f"{ref!r}: names no adapter. Write NAME, NAME:VERSION or NAME:TAG.")
    return require_name(name, "adapter"), which if colon else None


def _is_tag(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and ".." not in text


def is_adapter_name(text: str) -> bool:
    """Whether an adapter could have this name."""
    return bool(_NAME.fullmatch(text)) and ".." not in text and text not in RESERVED


def is_library_ref(text: str) -> bool:
    """Whether a text has the form `NAME:VERSION` or `NAME:TAG`."""
    name, colon, which = text.partition(":")
    return bool(colon and _NAME.fullmatch(name) and _NAME.fullmatch(which) and name not in RESERVED)


class Library:
    """The adapters in a folder, which need not exist yet. Cheap to make; every method reads the disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tokenizers = SharedTokenizers(self.path)

    def names(self) -> list[str]:
        """Names with at least one version, sorted."""
        if not path_exists(self.path):
            return []
        with explained(self.path):
            found = [one.name for one in os.scandir(self.path) if _NAME.fullmatch(one.name)]
        return sorted(name for name in found if name not in RESERVED and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """Numbers of the versions of a name, ascending."""
        try:
            found = os.listdir(self._versions(name))  # noqa: PTH208 -- a thousand names are listed in a moment
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"{self._versions(name)}: cannot be listed ({error.strerror}).") from None
        return sorted(int(one) for one in found if is_number(one) and str(int(one)) == one)

    def entries(self, name: str | None = None, on_damage: Callable[[Damaged], None] | None = None) -> list[Entry]:
        """Every version of a name, or of all, by name and version; files are not verified.

        A version with an unreadable card goes to `on_damage`. Raises: AdapterError for it where that is None.
        """
        found = []
        for one in self.names() if name is None else [name]:
            tags = self._tags_by_version(one)
            for version in self.versions(one):
                try:
                    found.append(self._entry(one, version, tags))
                except AdapterError as error:
                    if not path_exists(self._versions(one) / str(version)):  # removed meanwhile by another process
                        continue
                    if on_damage is None:
                        raise
                    on_damage(Damaged(one, version, str(error)))
        return found

    def find(self, ref: str) -> Entry:
        """The entry of `NAME:VERSION`, `NAME:TAG` or `NAME:latest`; of a bare name the newest version.

        Raises: AdapterError naming what is near, or when its card is unreadable.
        """
        name, version = self.resolve(ref)
        return self._entry(name, version, self._tags_by_version(name))

    def resolve(self, ref: str) -> tuple[str, int]:
        """(name, version) of a reference as in `find`; the card is not read. Raises: AdapterError naming what is near."""
        name, which = split_ref(ref)
        versions = self.versions(name)
        if not versions:
            known = self.names()
            hint = nearest_of(name, known)
            more = f" It holds {', '.join(known[:3])}{' …' if len(known) > 3 else ''}." if known and not hint else ""
            empty = "" if known else f" It is empty: inlay adapters add RUN --name {name}."
            raise AdapterError(f"{ref}: no adapter {name!r} in {self.path}.{hint}{more}{empty}")
        tags = self.tags(name)
        version = versions[-1] if which in (None, LATEST) else int(which) if is_number(which) else tags.get(which)
        if version not in versions:
            listed = ", ".join(map(str, versions[-8:])) + (f"; tags: {', '.join(sorted(tags))}" if tags else "")
            hint = nearest_of(which or "", tags)
            raise AdapterError(f"{ref}: {name} has no version or tag {which!r}.{hint} Versions: {listed}.")
        return name, version

    def tags(self, name: str) -> dict[str, int]:
        """Version by tag. Raises: AdapterError when tags.json is damaged."""
        path = self.path / name / "tags.json"
        if not os.path.lexists(path):
            return {}
        try:
            found = parsed(read_bytes(path.parent, path.name).decode("utf-8"))
            if not all(_is_tag(tag) and type(version) is int for tag, version in found.items()):
                raise ValueError("it does not map tags to versions")
        except (AdapterError, ValueError, AttributeError) as error:
            raise AdapterError(
                f"{path}: cannot be used ({in_a_line(error)}). Restore it, or delete it and tag anew."
            ) from None
        return dict(found)

    def history(self, name: str) -> list[JsonObject]:
        """Lines of log.jsonl, oldest first: {"at", "by", "action", "version", …}; of a line that is none, {"damaged"}.

        A last line that a kill cut short is left out.
        """
        path = self.path / name / "log.jsonl"
        if not os.path.lexists(path):
            return []
        *whole, _torn = read_bytes(path.parent, path.name, _LARGEST_LOG).split(b"\n")
        return [_history_line(path, number, line) for number, line in enumerate(whole, 1)]

    def put(
        self, name: str, fill: Callable[[Path], None], card: Card, fill_tokenizer: Callable[[Path], None] | None = None
    ) -> Stored:
        """The entry of this card under the name: a new version that `fill` writes the files of, or the one that has the
        same identity already. `fill_tokenizer` writes the card's tokenizer where the library does not have it.

        Raises: AdapterError for a name that cannot be used; StorageError when the disk refuses, with nothing written.
        """
        require_name(name)
        require_writable(self.path)
        require_space(self.path, card.bytes + _SPARE_BYTES, "this adapter", "choose another library with --library")
        with self._changing(name):
            for entry in self.entries(name, on_damage=lambda _: None):
                if entry.card.identity == card.identity:
                    return Stored(entry, False)
            version = 1 + max([*self.versions(name), *self._numbers_given(name)], default=0)

            def whole(folder: Path) -> None:
                fill(folder)
                write_json(folder / CARD, card.to_json())

            folder = self._versions(name) / str(version)
            with contextlib.ExitStack() as held_while_written:
                if card.tokenizer is not None and fill_tokenizer is not None:
                    held_while_written.enter_context(self._tokenizers.present(card.tokenizer, fill_tokenizer))
                write_folder(folder, whole, {"name": name, "version": version, "identity": card.identity})
            self._log(name, "add", version, {"identity": card.identity})
        return Stored(self._entry(name, version, self._tags_by_version(name)), True)

    def tag(self, ref: str, tag: str) -> Entry:
        """The entry, which has the tag now; another version of the name that had it has it no more."""
        require_tag(tag)
        return self._retag(ref, tag, is_set=True)

    def untag(self, ref: str, tag: str) -> Entry:
        """The entry, without the tag. Raises: AdapterError when it does not have it."""
        return self._retag(ref, tag, is_set=False)

    def removable(self, ref: str) -> tuple[str, int]:
        """(name, version) of a reference; the card is not read. Raises: AdapterError for a version that has a tag."""
        name, version = self.resolve(ref)
        if tags := self._tags_by_version(name).get(version):
            untag = f"inlay adapters tag {name}:{version} {tags[0]} --remove"
            raise AdapterError(f"{name}:{version}: has the tag {tags[0]}. Take it off first: {untag}")
        return name, version

    def remove(self, ref: str) -> str:
        """`NAME:VERSION` of the version that was removed, damaged or not; its number is never given again. A tokenizer that
        no other version uses goes with it.

        Raises: AdapterError for a version that has a tag, or that a running process holds.
        """
        require_writable(self.path)
        with self._changing(split_ref(ref)[0]):
            name, version = self.removable(ref)
            folder = self._versions(name) / str(version)
            with _locked(f"{name}:{version}", folder / MANIFEST, shared=False):
                removed_at_once(folder)
            self._log_removed(name, version)
        return f"{name}:{version}"

    def _retag(self, ref: str, tag: str, *, is_set: bool) -> Entry:
        require_writable(self.path)
        with self._changing(split_ref(ref)[0]):
            entry = self.find(ref)
            tags = self.tags(entry.name)
            before = tags.get(tag)
            if not is_set and before != entry.version:
                known = f"Its tags: {', '.join(entry.tags)}." if entry.tags else "It has none."
                raise AdapterError(f"{entry.ref}: does not have the tag {tag!r}. {known}")
            if is_set and before == entry.version:
                return entry
            tags = {one: version for one, version in tags.items() if one != tag}
            if is_set:
                tags[tag] = entry.version
            write_json(self.path / entry.name / "tags.json", dict(sorted(tags.items())))
            moved = {"tag": tag} | ({"moved_from": before} if is_set and before is not None else {})
            self._log(entry.name, "tag" if is_set else "untag", entry.version, moved)
            return self._entry(entry.name, entry.version, self._tags_by_version(entry.name))

    def _versions(self, name: str) -> Path:
        return self.path / name / "versions"

    def _entry(self, name: str, version: int, tags: Mapping[int, tuple[str, ...]]) -> Entry:
        folder = self._versions(name) / str(version)
        return Entry(name, version, folder, Card.read(folder), tags.get(version, ()))

    def _tags_by_version(self, name: str) -> dict[int, tuple[str, ...]]:
        found: dict[int, tuple[str, ...]] = {}
        for tag, version in sorted(self.tags(name).items()):
            found[version] = (*found.get(version, ()), tag)
        return found

    def _numbers_given(self, name: str) -> list[int]:
        return [line["version"] for line in self.history(name) if line.get("action") == "add"]

    @contextlib.contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Inside, no other process changes this name. What a killed one left half-done is cleared first."""
        with one_at_a_time(self.path / name / ".lock"):
            for folder in (self.path / name, self._versions(name)):
                if folder.is_dir():
                    with explained(folder):
                        sweep_staging(folder)
            self._complete_log(name)
            yield

    def _complete_log(self, name: str) -> None:
        """Adds the lines that a process killed between a change and its line did not write."""
        there, given = set(self.versions(name)), set(self._numbers_given(name))
        for version in sorted(there - given):
            self._log(name, "add", version, {"noted": "later"})
        removed = {line["version"] for line in self.history(name) if line.get("action") == "remove"}
        for version in sorted(given - there - removed):
            self._log_removed(name, version, noted="later")

    def _log_removed(self, name: str, version: int, **more: str) -> None:
        """The line of a version that is gone. Unused tokenizers go first: without the line a later change does it again."""
        self._tokenizers.keep(self._tokenizers_in_use)
        self._log(name, "remove", version, more)

    def _tokenizers_in_use(self) -> set[str] | None:
        """Keys that the cards name; None where one cannot be read."""
        keys = set()
        for name in self.names():
            for version in self.versions(name):
                try:
                    keys.add(self._entry(name, version, {}).card.tokenizer or "")
                except AdapterError:
                    if path_exists(self._versions(name) / str(version)):  # else removed meanwhile
                        return None
        return keys

    def _log(self, name: str, action: str, version: int, more: Mapping[str, object]) -> None:
        path = self.path / name / "log.jsonl"
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": _user(),
            "action": action,
            "version": version,
        }
        with explained(path):
            before = read_bytes(path.parent, path.name, _LARGEST_LOG) if os.path.lexists(path) else b""
        whole = before[: before.rfind(b"\n") + 1]
        # replaced, not appended to: a line that was cut short would make the next one unreadable
        write_file(path, whole + json.dumps(line | dict(more), ensure_ascii=False).encode() + b"\n")


@contextlib.contextmanager
def held(entry: Entry) -> Iterator[None]:
    """Inside, no process can remove this version. The system frees it when the process ends, however it ends.

    Raises: AdapterError when it was removed just now.
    """
    with _locked(entry.ref, entry.folder / MANIFEST, shared=True):
        if not entry.folder.is_dir():
            raise AdapterError(f"{entry.ref}: was removed just now.")
        yield


@contextlib.contextmanager
def _locked(ref: str, manifest: Path, *, shared: bool) -> Iterator[None]:
    """Holds the manifest, which is there as long as its version and never changes."""
    try:
        file: IO[bytes] = manifest.open("rb" if shared else "rb+")  # NFS wants both for a lock against readers
    except FileNotFoundError:  # damaged, so nobody can use it
        yield
        return
    except OSError as error:
        raise StorageError(f"{manifest}: cannot be opened ({error.strerror}).") from None
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            way_out = "is being removed just now." if shared else "is in use by a running process. End that first."
            raise AdapterError(f"{ref}: {way_out}") from None
        except OSError:  # a file system without locks
            pass
        yield


def _history_line(path: Path, number: int, line: bytes) -> JsonObject:
    try:
        found = parsed(line.decode("utf-8"))
        if not isinstance(found, dict) or type(found.get("version")) is not int:
            raise ValueError("it names no version")
        if not all(isinstance(found.get(key), str) for key in ("at", "by", "action")):
            raise ValueError("it does not say when, by whom and what")
    except ValueError as error:
        return {"damaged": f"{path}:{number}: is no line of history ({in_a_line(error)})"}
    return dict(found)


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return f"{os.getuid() if hasattr(os, 'getuid') else 'unknown'}@{socket.gethostname()}"
