"""Library entries proved again: files, weights, base, tokenizer, golden answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from inlay.adapters.goldens import read_goldens, replayed
from inlay.adapters.identity import read_entry
from inlay.adapters.library import Damaged, Entry, Library
from inlay.adapters.reference import open_entry
from inlay.errors import AdapterError, ModelError
from inlay.methods.adapter_state import AdapterState
from inlay.proof.proofs import Proof, Refuted, Unknown, proof
from inlay.runs.reporter import LateBar, Reporter, bytes_shown
from inlay.storage import verified
from inlay.tasks.opened_base import OpenedBase


def check(entries: Sequence[Entry], reporter: Reporter) -> Iterator[tuple[Entry, list[Proof]]]:
    """The proofs of each entry. A base that several share is loaded once."""
    before: OpenedBase | None = None
    for entry in entries:
        reporter.stage(f"{entry.ref}: checking")
        one = _Check(entry, reporter, before)
        yield entry, one.proofs()
        before = one.ready or before


def damaged_proof(one: Damaged) -> Proof:
    """The proof that failed of a version with an unreadable card."""
    return Proof("card", False, one.fault)


def entries_to_check(library: Library, ref: str | None) -> tuple[list[Entry], list[Damaged]]:
    """(entries, damaged versions) that a reference names; all of the library without one."""
    damaged: list[Damaged] = []
    if ref is not None:
        return [library.find(ref)], damaged
    return library.entries(on_damage=damaged.append), damaged


class _Check:
    """The proofs of one entry; each keeps what a later one needs."""

    def __init__(self, entry: Entry, reporter: Reporter, before: OpenedBase | None) -> None:
        self.entry, self.reporter, self._before = entry, reporter, before
        self.ready: OpenedBase | None = None
        self._state: AdapterState | None = None

    def proofs(self) -> list[Proof]:
        """Files, weights, base, tokenizer, goldens: the later ones are unknown where an earlier one fails."""
        steps: list[tuple[str, Callable[[], str]]] = [
            ("files", self._files), ("weights", self._weights), ("base", self._base), ("tokenizer", self._tokenizer),
            ("goldens", self._goldens),
        ]  # fmt: skip
        return [proof(name, statement) for name, statement in steps]

    def _files(self) -> str:
        files = verified(self.entry.folder)["files"].values()
        if (folder := self.entry.tokenizer_folder) is not None:
            files = [*files, *verified(folder)["files"].values()]
        return f"{len(files)} files, {bytes_shown(sum(file['size'] for file in files))}, have their sha256"

    def _weights(self) -> str:
        self._state = read_entry(self.entry)
        return f"{self.entry.card.parameters:,} parameters have the digest {self.entry.card.weights_digest[:12]}"

    def _base(self) -> str:
        try:
            self.ready = open_entry(self.entry).share(self._before)
        except ModelError as error:
            if "is not the base that" in str(error):
                raise Refuted(str(error)) from None
            raise Unknown(str(error)) from None
        return f"{self.ready.ref.name} has the digest {self.entry.card.base_digest[:12]}"

    def _tokenizer(self) -> str:
        if self.ready is None:
            raise Unknown("not without its base")
        encoder, card = self.ready.encoder, self.entry.card
        for what, now, then in (
            ("tokenizer", encoder.tokenizer_hash, card.tokenizer_hash),
            ("chat template", encoder.template_hash, card.chat_template_hash),
        ):
            if now != then:
                raise Refuted(f"the {what} is another than when it was added ({now[:12]}, then {then[:12]})")
        return f"tokenizer {card.tokenizer_hash[:12]} and chat template {card.chat_template_hash[:12]}"

    def _goldens(self) -> str:
        goldens = read_goldens(self.entry.folder)
        if not goldens:
            raise Unknown("it has none")
        if self.ready is None or self._state is None:
            raise Unknown("not replayed without base and weights")
        with LateBar(self.reporter, len(goldens), "answer") as bar:
            try:
                found = replayed(self.ready, self.ready.with_adapter(self._state), goldens, bar.reached)
            except ModelError as error:
                raise AdapterError(str(error)) from None
        if found.differing:
            raise Refuted(f"{found.differing} of {len(goldens)} answers differ, first {found.first}")
        ties = f", {found.near_ties} up to a near tie" if found.near_ties else ""
        return f"{found.equal + found.near_ties} of {len(goldens)} answers as on {goldens[0].computed_on}{ties}"
