"""One LoRA adapter by its name, over its opened base."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inlay.adapters.library import Library
from inlay.adapters.lowrank import LowRank, lowrank_of, parameters_of
from inlay.adapters.reference import Reference, config_of, opened, reference
from inlay.errors import AdapterError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase


@dataclass(frozen=True, slots=True)
class OneAdapter:
    """An adapter, its change of the base, and the base."""

    reference: Reference
    ready: OpenedBase
    state: AdapterState
    """As it was trained."""
    lowrank: LowRank

    @property
    def name(self) -> str:
        """As `reference` shows it, such as `support:3`."""
        return self.reference.name


class LateParameters:
    """Parameters of a base, which is loaded when one is first asked for."""

    def __init__(self, ready: OpenedBase) -> None:
        self._ready = ready

    def __call__(self, name: str) -> Tensor | None:
        return parameters_of(self._ready.model)(name)


def one_adapter(name: str, library: Library, results: str, reporter: Reporter) -> OneAdapter:
    """The adapter of a run, a checkpoint, a folder or a library name.

    Raises: AdapterError for a whole model, and for one whose change is no sum of low-rank factors.
    """
    one, ready, state = opened_adapter(name, library, results, reporter)
    try:
        lowrank = lowrank_of(state, ready.ref.digest(), LateParameters(ready))
    except AdapterError as error:
        raise AdapterError(f"{name}: {str(error).removeprefix('adapter: ')}") from None
    return OneAdapter(one, ready, state, lowrank)


def opened_adapter(
    name: str, library: Library, results: str, reporter: Reporter, before: OpenedBase | None = None
) -> tuple[Reference, OpenedBase, AdapterState]:
    """(reference, base, adapter) of a name; the base has the model of `before` where that is the same.

    Raises: AdapterError for a whole model.
    """
    one = reference(name, results, reporter.note, library)
    ready = opened(one, config_of(one), before)
    state = one.adapter(ready.ref)
    if state is None:
        raise AdapterError(
            f"{name}: is a whole model, not an adapter. Name a run, an adapter's folder or a library name."
        )
    if one.caution:
        reporter.note(one.caution)
    return one, ready, state
