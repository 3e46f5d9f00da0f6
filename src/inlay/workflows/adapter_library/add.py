"""An adapter put into the library: from a run, a checkpoint, or a folder of PEFT's format."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from inlay.adapters.cards import Card, StoredGoldens, StoredProofs, Verdict, is_tokenizer_key
from inlay.adapters.goldens import FILE, Golden, golden_prompts, goldens_of, lines_of
from inlay.adapters.identity import WeightFacts, identity
from inlay.adapters.library import Entry, Library, Stored, require_name, require_tag
from inlay.adapters.lowrank import inner, module_factors, parameters_of
from inlay.adapters.reference import CONFIG, Reference, config_of, open_base, opened, reference
from inlay.config.sections.data import DataConfig
from inlay.data.types import Example
from inlay.errors import AdapterError, RunError
from inlay.evaluation.score import read_held_out
from inlay.hardware.facts import library_versions
from inlay.methods.adapter_files import read_card
from inlay.methods.adapter_state import AdapterState
from inlay.models.generation_settings import FILE as GENERATION
from inlay.models.named_class import named_class
from inlay.runs.folder import PROOFS, Run
from inlay.runs.record import RunRecord
from inlay.runs.reporter import LateBar, Reporter
from inlay.storage import path_exists, verified, write_file
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject

IMPORTED = "imported"
_ORIGIN = (
    "run",
    "run_folder",
    "step",
    "seed",
    "data_hash",
    "settings_hash",
    "verdict",
    "proofs",
    "operation",
    "parents",
)
"""Entries of a card that say where an adapter is from."""
_LONGEST_LABEL = 2000


@dataclass(frozen=True, slots=True)
class Labels:
    """The user's own words on an adapter."""

    task: str | None = None
    licence: str | None = None
    note: str | None = None
    tags: Sequence[str] = ()

    def require_usable(self) -> None:
        """Raises: AdapterError for a tag that cannot be one, or a text that is empty, too long, or of several lines."""
        for tag in self.tags:
            require_tag(tag)
        for what, text in (("task", self.task), ("licence", self.licence), ("note", self.note)):
            if text is not None and not (text.isprintable() and 0 < len(text.strip()) <= _LONGEST_LABEL):
                raise AdapterError(
                    f"--{what}: must be one line of 1 to {_LONGEST_LABEL} printable characters (got {text[:40]!r})."
                )


@dataclass(frozen=True, slots=True)
class Added:
    """The entry that holds an adapter now, and what its user should know."""

    entry: Entry
    is_new: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """The line of the entry in `inlay adapters list --json`, and the two other fields."""
        return self.entry.to_json() | {"is_new": self.is_new, "notes": list(self.notes)}


def add(
    source: str | Path | Run | None, name: str | None, labels: Labels, base: str | None, library: Library, results: str,
    reporter: Reporter,
) -> Added:  # fmt: skip
    """The entry of the source's adapter under `name`, by default that of its run or folder. See `inlay.api.add_adapter`."""
    labels.require_usable()
    one = reference(source, results, reporter.note)
    name = require_name(name if name is not None else _default_name(one))
    _require_adapter(one, source)
    found = _of_run(one, reporter) if one.run is not None else _of_folder(one, base)
    if one.run is not None and base is not None:
        raise AdapterError(f"--base {base}: has no effect on {one.name}, whose run records its base. Leave it out.")
    ready, state, notes = found
    stored = put(name, ready, state, library, origin_of(one), reporter, labels, one.run)
    entry = stored.entry
    for tag in labels.tags:
        entry = library.tag(entry.ref, tag)
    if not stored.is_new:
        notes = [*notes, *_not_applied(labels, entry)]
    return Added(entry, stored.is_new, tuple(notes))


def _not_applied(labels: Labels, entry: Entry) -> list[str]:
    """A line on labels that differ from those of the version that is there, whose card never changes."""
    card = entry.card
    given = {
        "task": (labels.task, card.task),
        "licence": (labels.licence, card.licence),
        "note": (labels.note, card.note),
    }
    names = [f"--{name}" for name, (new, old) in given.items() if new is not None and new != old]
    if not names:
        return []
    return [
        f"{', '.join(names)} not applied: {entry.ref} is there already, and its card never changes. Remove it and add it "
        f"again (inlay adapters remove {entry.ref}), or add it under another name (--name)"
    ]


def put(
    name: str, ready: OpenedBase, state: AdapterState, library: Library, origin: JsonObject, reporter: Reporter,
    labels: Labels = Labels(), run: Run | None = None,
) -> Stored:  # fmt: skip
    """The entry of an adapter over its opened base, with golden answers. `origin` are the card's entries on where it is from.

    The config and the held-out prompts are those of `run`.
    """
    written, card = described(ready, state, labels, origin)
    for entry in library.entries(require_name(name), lambda _: None):
        if entry.card.identity == card.identity:
            return Stored(entry, False)
    goldens = golden_answers(ready, state, held_out_of(run), name, reporter)
    card = card.model_copy(update={"goldens": StoredGoldens(count=len(goldens), computed_on=_where(goldens))})
    return library.put(
        name, lambda folder: _fill(folder, written, run, goldens), card,
        lambda folder: ready.encoder.tokenizer.save_pretrained(str(folder)),
    )  # fmt: skip


def _default_name(one: Reference) -> str:
    name = one.run.name if one.run is not None else Path(one.name).name
    try:
        return require_name(name.lower())
    except AdapterError:
        raise AdapterError(f"{one.name}: its name cannot be that of an adapter. Give one: --name NAME.") from None


def _require_adapter(one: Reference, source: object) -> None:
    if one.kind == "library":
        raise AdapterError(f"{source}: is in a library already. Tag it: inlay adapters tag {one.name} TAG")
    whole = one.run is not None and one.kind == "run" and one.folder == one.run.model
    if one.kind in ("model", "base") or whole:
        raise AdapterError(
            f"{source}: is a whole model, not an adapter on a base. Name its folder wherever a model is named; the "
            "library keeps adapters."
        )


def _of_run(one: Reference, reporter: Reporter) -> tuple[OpenedBase, AdapterState, list[str]]:
    assert one.run is not None
    if one.kind == "adapter" and one.folder != one.run.adapter:
        raise AdapterError(f"{one.name}: lies in the run {one.run.path} but is not its adapter. Name the run.")
    ready = open_base(one.run)
    state = one.adapter(ready.ref)
    assert state is not None
    if one.caution:
        reporter.note(one.caution)
    return ready, state, []


def _of_folder(one: Reference, base: str | None) -> tuple[OpenedBase, AdapterState, list[str]]:
    card = _card_of(one)
    if base is None and not card.get("base_digest"):
        raise AdapterError(
            f"{one.name}: does not record the digest of its base ({one.base}), so nobody can tell whether a base is the "
            "one. Name it: --base FOLDER|ID."
        )
    if base is not None:
        one = replace(one, base=base, revision=None)
    kwargs = card.get("template_kwargs") or {}
    config = config_of(one)
    config = config.model_copy(
        update={"data": DataConfig.model_validate(config.data.model_dump() | {"template_kwargs": kwargs})}
    )
    ready = opened(one, config)
    own = _tokenizer_folder(one, card)
    if own is not None:
        ready = OpenedBase(ready.ref, ready.settings, ready.data, ready.precision, own)
    state = one.adapter(ready.ref)
    assert state is not None
    notes = [f"imported for the base {ready.ref.name}: what it was trained on is not known"]
    if large := _larger_than_base(state, ready):
        notes.append(large)
    template = None if one.folder is None or own else _text(one.folder / "chat_template.jinja")
    if template is not None and template != ready.tokenizer.chat_template:
        notes.append("its chat template is another than the base's and was not taken; the base's is used")
    return ready, state, notes


def _larger_than_base(state: AdapterState, ready: OpenedBase) -> str:
    """A warning where the adapter changes a weight by more than its own size; empty where it does not, or is no LoRA."""
    if state.method.name != "lora":
        return ""
    own, shares = parameters_of(ready.model), {}
    for module, factors in module_factors(state.exported()).items():
        weight = own(f"{module}.weight")
        size = len(factors.B_OR) * factors.A_RI.shape[1]
        if weight is not None and weight.is_floating_point() and weight.numel() == size:  # neither packed nor experts
            change = math.sqrt(max(inner(factors, factors), 0.0))
            shares[module] = change / max(float(weight.detach().float().norm()), 1e-30)
    above = sum(share > 1 for share in shares.values())
    if not above:
        return ""
    worst = max(shares, key=shares.__getitem__)
    return (
        f"warning: its change of {worst} is {shares[worst]:.3g} times as large as the base's weight (‖ΔW‖/‖W‖, above 1 in "
        f"{above} of {len(shares)} modules), as with another base or a wrong alpha"
    )


def _tokenizer_folder(one: Reference, card: JsonObject) -> Path | None:
    """The folder of the adapter's own tokenizer; None where that of its base is used."""
    if one.folder is None or not card.get("chat_template_hash"):
        return None
    key = card.get("tokenizer")
    if isinstance(key, str) and is_tokenizer_key(key) and len(one.folder.absolute().parents) > 2:
        folder = one.folder.absolute().parents[2] / "tokenizers" / key  # the folder is a version of a library
        if path_exists(folder):
            return folder if _is_intact(folder) else None
        return None
    return one.folder if _is_intact(one.folder) else None


def described(
    ready: OpenedBase, state: AdapterState, labels: Labels = Labels(), origin: JsonObject | None = None
) -> tuple[AdapterState, Card]:
    """(the adapter as it is written, its card without goldens)"""
    encoder, ref = ready.encoder, ready.ref
    named = named_class(ref, ready.model)
    written = state.under(named).on(ref)
    digest = ref.digest()
    # read again, the settings are those that were written, the tensors those of the class that is trained
    facts = WeightFacts.of(AdapterState(written.settings, state.tensors), digest)
    tokenizer_hash, template_hash = encoder.tokenizer_hash, encoder.template_hash
    about: JsonObject = {
        "identity": identity(facts.weights_digest, tokenizer_hash, template_hash),
        **asdict(facts),
        **ref.card_entries(),
        "base_digest": digest,
        "base_fingerprint": ref.fingerprint().to_json(),
        "base_commit": ref.pinned_commit,
        "dtype": str(ready.precision.dtype).removeprefix("torch."),
        "quantization": ready.precision.quantization,
        "tokenizer": hashlib.sha256(json.dumps([tokenizer_hash, template_hash]).encode()).hexdigest()[:32],
        "tokenizer_hash": tokenizer_hash,
        "chat_template": encoder.template_name,
        "chat_template_hash": template_hash,
        "template_kwargs": dict(ready.data.template_kwargs),
        "task": labels.task,
        "licence": labels.licence,
        "note": labels.note,
        "versions": library_versions(),
    }
    if named and named.prefixes:
        about |= {"class": named.summary(), "module_names": named.prefixes}
    about |= origin or {}
    return written, Card.model_validate(about)


def origin_of(one: Reference) -> JsonObject:
    """The card's entries on where an adapter is from, as far as that is known."""
    if one.entry is not None:
        return {key: getattr(one.entry.card, key) for key in _ORIGIN}
    if one.run is None:
        card = _card_of(one)
        known = {key: card[key] for key in ("run", "step", "data_hash") if type(card.get(key)) in (str, int)}
        return {"operation": IMPORTED, **known}
    record = one.run.record
    result = record.result
    step = (
        int(one.name.rpartition("@")[2])
        if one.kind == "checkpoint"
        else None
        if result is None
        else result.adapter_step
    )
    return {
        "run": one.run.name, "run_folder": str(one.run.path.absolute()), "step": step, "seed": record.seed,
        "data_hash": record.data_hash, "settings_hash": record.settings_hash, "verdict": _verdict(record, step),
        "proofs": _proofs(one.run),
    }  # fmt: skip


def _verdict(record: RunRecord, step: int | None) -> Verdict | None:
    result = record.result
    if result is None or result.adapter_step != step:
        return None
    return Verdict(
        metric="loss", base=result.base_eval_loss, adapter=result.eval_loss, difference=result.difference, low=result.low,
        high=result.high, verdict=result.verdict, rows=record.heldout_available,
    )  # fmt: skip


def _proofs(run: Run) -> StoredProofs | None:
    try:
        proofs = json.loads((run.path / PROOFS).read_text(encoding="utf-8"))["proofs"]
        failed = tuple(str(one["name"]) for one in proofs if one["passed"] is False)
        return StoredProofs(held=sum(one["passed"] is True for one in proofs), failed=failed)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def golden_answers(
    ready: OpenedBase, state: AdapterState, held_out: Sequence[Example], name: str, reporter: Reporter
) -> list[Golden]:
    """The answers of base and adapter to general texts and held-out prompts."""
    prompts = golden_prompts(ready.encoder, held_out)
    reporter.stage(f"{name}: {len(prompts)} golden answers")
    with LateBar(reporter, len(prompts), "answer") as bar:
        return goldens_of(ready, ready.with_adapter(state), prompts, bar.reached)


def held_out_of(run: Run | None) -> tuple[Example, ...]:
    """The held-out rows of a run; none without one, or where they are gone."""
    if run is None:
        return ()
    try:
        return read_held_out(run.heldout)
    except RunError:  # gone, and nothing else depends on them
        return ()


def _where(goldens: Sequence[Golden]) -> str:
    return goldens[0].computed_on if goldens else "nowhere"


def _fill(folder: Path, state: AdapterState, run: Run | None, goldens: Sequence[Golden]) -> None:
    state.write(folder)
    write_file(folder / FILE, lines_of(goldens))
    if run is not None:
        shutil.copyfile(run.path / CONFIG, folder / CONFIG)
        if (ends := run.adapter / GENERATION).is_file():
            shutil.copyfile(ends, folder / GENERATION)


def _card_of(one: Reference) -> JsonObject:
    return read_card(one.folder) if one.folder else {}


def _is_intact(folder: Path | None) -> bool:
    if folder is None or not path_exists(folder / "manifest.json"):
        return False
    verified(folder)
    return True


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
