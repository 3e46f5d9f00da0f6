"""The base and the adapters that a server is started with, by their names; both child processes open them alike."""

from __future__ import annotations

from inlay.adapters import reference
from inlay.adapters.library import Library
from inlay.adapters.reference import Reference
from inlay.serving.wire import Start
from inlay.tasks.opened_base import OpenedBase


def named_base(start: Start) -> Reference:
    """The model that BASE names. Raises: RunError, AdapterError."""
    return reference.reference(start.base, start.results, library=Library(start.library))


def opened_base(start: Start) -> OpenedBase:
    """The base alone, its weights not yet loaded. Raises: ModelError when it is not there, or is not that of the run."""
    return opened(named_base(start).without_adapter())


def opened(named: Reference) -> OpenedBase:
    """The base of a model, with the model's own tokenizer and template."""
    return reference.opened(named, reference.config_of(named))


def adapter(start: Start, ref: str) -> Reference:
    """An adapter by its name: that of BASE itself, or one of the library. Raises: AdapterError."""
    named = named_base(start)
    if named.folder is not None and ref in (start.base, named.name):
        return named
    library = Library(start.library)
    return reference.reference(library.find(ref).ref, start.results, library=library)
