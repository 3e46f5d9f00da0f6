"""Names of library adapters among the names of runs, paths and models. No torch here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from inlay.adapters.cards import CARD
from inlay.adapters.library import Entry, Library, is_adapter_name, is_library_ref, is_number
from inlay.config import Config
from inlay.config.load import ConfigLike, checked_config
from inlay.errors import RunError, nearest_of
from inlay.runs import folder as runs
from inlay.storage import path_exists

_MARKS = ("run.json", "adapter_config.json", "config.json")
"""Files by which a folder is known as a run, an adapter or a model."""


def library_at(path: str | Path | None, results: str | Path) -> Library:
    """The library in `path`; without one that of INLAY_LIBRARY, else `library` beside the folder of the runs."""
    return Library(path or os.environ.get("INLAY_LIBRARY") or Path(results).absolute().parent / "library")


def entry_of(
    name: str, results: str, note: Callable[[str], None] = lambda _: None, library: Library | None = None
) -> Entry | None:
    """The library adapter of a name; None for a name of something else: a path, a run, a built-in model, a hub id.
    The usual library is looked in where none is given.

    A run goes before a bare name; where both exist, `note` gets a line that says so. Raises: AdapterError for
    `NAME:VERSION` or `NAME:TAG` that the library does not hold.
    """
    if any(path_exists(Path(name) / mark) for mark in _MARKS):
        return None
    library = library or library_at(None, results)
    if is_library_ref(name):
        return library.find(name)
    if not is_adapter_name(name) or not library.versions(name):
        return None
    if path_exists(Path(results) / name / "run.json"):
        note(f"{name}: the run of that name; the adapter in the library is {name}:latest")
        return None
    return library.find(name)


def entry_at(folder: str | Path) -> Entry | None:
    """The library adapter whose version lies in this folder; None for any other folder. Raises: AdapterError."""
    path = Path(folder).absolute()
    if path.parent.name != "versions" or not is_number(path.name) or not path_exists(path / CARD):
        return None
    name = path.parents[1].name
    return Library(path.parents[2]).find(f"{name}:{path.name}") if is_adapter_name(name) else None


def require_known(name: str, results: str) -> None:
    """Raises: RunError naming the three nearest for a bare name that is neither a run nor an adapter of the library."""
    known = library_at(None, results).names() if "/" not in name else []
    if not known or path_exists(Path(name) / "run.json") or path_exists(Path(results) / name / "run.json"):
        return
    names = {*known, *runs.names(results)}
    hint = nearest_of(name, names)
    listed = "" if hint else f" Adapters: {', '.join(known[:8])}{' …' if len(known) > 8 else ''}."
    raise RunError(f"{name}: no run in {results} and no adapter in the library has that name.{hint}{listed}")


def as_config(config: ConfigLike) -> Config:
    """The checked config, in which an adapter of the library that `adapter.start_from` names stands as its folder.

    Raises: ConfigError, AdapterError.
    """
    found = checked_config(config)
    name = found.adapter.start_from
    entry = entry_of(name, found.output.folder) if name else None
    if entry is None:
        return found
    adapter = found.adapter.model_copy(update={"start_from": str(entry.folder)})
    return found.model_copy(update={"adapter": adapter})
