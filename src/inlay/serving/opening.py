"""The base and the adapters that a server is started with, by their names; both child processes open them alike."""

from __future__ import annotations

from inlay.adapters import reference
from inlay.adapters.identity import WeightFacts, identity
from inlay.adapters.library import Entry, Library
from inlay.adapters.reference import Reference
from inlay.config.sections.serve import ServeConfig
from inlay.errors import AdapterError
from inlay.methods.adapter_state import AdapterState
from inlay.serving.engine import Refusal
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


def base_identity(base: OpenedBase) -> str:
    """Digest of the base with its tokenizer and template."""
    return identity(base.ref.digest(), base.encoder.tokenizer_hash, base.encoder.template_hash)


def require_same_base(entry: Entry, base: OpenedBase) -> None:
    """Raises: Refusal 409 for an adapter of another base."""
    own = base.ref.digest()
    if entry.card.base_digest != own:
        raise Refusal(
            409,
            f"{entry.ref}: was made for {entry.card.base_model} (digest {entry.card.base_digest[:12]}); this server has "
            f"{base.ref.name} (digest {own[:12]}).",
            code="another_base", param="ref",
        )  # fmt: skip


def adapter_digests(named: Reference, state: AdapterState, base: OpenedBase) -> tuple[str, str]:
    """(digest of the weights, identity with tokenizer and template)."""
    if named.entry is not None:
        return named.entry.card.weights_digest, named.entry.card.identity
    weights = WeightFacts.of(state, base.ref.digest()).weights_digest
    encoder = opened(named).encoder
    return weights, identity(weights, encoder.tokenizer_hash, encoder.template_hash)


def wanted_adapters(start: Start, base: OpenedBase, settings: ServeConfig) -> dict[str, str]:
    """References of the adapters that are loaded at the start, by the names that are served.

    Raises: AdapterError for one that is not there, or that was made for another base.
    """
    library, own = Library(start.library), base.ref.digest()
    named = named_base(start)
    found = {named.name: named.name} if named.folder is not None and not start.is_again else {}
    if start.adapters is not None:
        entries = {}
        for name, ref in start.adapters.items():
            if named.folder is not None and ref in (start.base, named.name):
                found[name] = ref
                continue
            try:
                entries[name] = library.find(ref)
            except AdapterError:
                if not start.is_again:
                    raise
    else:
        stored = library.entries()
        newest = {entry.name: entry for entry in stored}
        tagged = {f"{entry.name}:{tag}": entry for entry in stored for tag in entry.tags}
        entries = newest | tagged
    others = {name: entry for name, entry in entries.items() if entry.card.base_digest != own}
    if others and not (start.adapters is None and settings.skip_others):
        listed = "\n".join(
            f"  {entry.ref}: {entry.card.base_model} (digest {entry.card.base_digest[:12]})"
            for entry in others.values()
        )
        way = (
            "Leave them out with --set serve.skip_others=true."
            if start.adapters is None
            else "Leave them out of --adapters."
        )
        raise AdapterError(
            f"the base {base.ref.name} has the digest {own[:12]}; these adapters were made for another one:\n{listed}\n{way}"
        )
    return found | {name: entry.ref for name, entry in entries.items() if name not in others}
