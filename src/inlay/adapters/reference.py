"""Models by their names: a run, a checkpoint, a library adapter, an adapter folder, a whole model; and the base of each,
opened for use."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from inlay import config as configs
from inlay.adapters.identity import read_entry
from inlay.adapters.library import Entry, Library, is_number
from inlay.adapters.names import entry_of, require_known
from inlay.config import Config
from inlay.config.load import read_tree
from inlay.config.renamed import with_current_names
from inlay.errors import AdapterError, ModelError, RunError
from inlay.folder_files import SETTINGS
from inlay.hardware.probe import pick_device
from inlay.methods.adapter_files import read_card, read_json
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef, find_base
from inlay.models.gguf import gguf_file
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.storage import path_exists, verified
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.training import checkpoint
from inlay.training.checkpoint import checkpoint_at

ModelName = str | Path | Run | None
CONFIG = "config.yaml"
"""The resolved config of the run, in a library version that a run trained."""
BASE = "base"
"""The name of the base under the run that is named with it."""
_MARKS = {"an adapter": "adapter_config.json", "a model": "config.json"}
"""The file by which a folder is known as such."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One model that can be measured."""

    name: str
    kind: str
    """base, run, checkpoint, library, adapter (a folder) or model (a whole one)."""
    base: str
    """Folder, hub id or built-in name of the weights."""
    run: Run | None = None
    """The run whose settings, tokenizer and held-out rows come with it."""
    folder: Path | None = None
    """Folder of the adapter or checkpoint; None for a model without one."""
    revision: str | None = None
    """Commit or branch of a hub's base; None is its newest."""
    is_base_recorded: bool = True
    """Whether what it was made on is known, and not only named."""
    entry: Entry | None = None
    """The version in the adapter library, for kind `library`."""

    @property
    def caution(self) -> str:
        """One line to tell where its run failed its proofs, or its base is only named; else empty."""
        if self.folder is not None and not self.is_base_recorded:
            return (
                f"warning: {self.name}: was made on a base of this name ({self.base}); its digest is not recorded, so it may "
                "have been other weights."
            )
        if self.kind == "model":
            return runs.caution_of(Path(self.base))
        if self.entry is not None and self.folder is not None:
            return _caution_of(self.entry)
        return self.run.caution if self.run is not None and self.folder is not None else ""

    def without_adapter(self) -> Reference:
        """Its base alone."""
        return replace(self, name=self.base, kind="base", folder=None)

    def adapter(self, base: BaseRef | None) -> AdapterState | None:
        """Its adapter. Raises: AdapterError when it is unusable, or was made on another base than `base`, if given."""
        if self.folder is None:
            return None
        if self.kind == "checkpoint":
            if base is not None and self.run is not None and (changed := base.difference(self.run.record.base)):
                raise AdapterError(
                    f"{self.name}: was trained on another base ({self.base}) than this one: {changed}. It would not do what "
                    "was measured."
                )
            return checkpoint.load(checkpoint.Checkpoint(self.folder))[0].exported()
        if self.entry is not None:
            return read_entry(self.entry, base)
        return AdapterState.read(self.folder, base)


def reference(
    name: ModelName, folder: str, note: Callable[[str], None] = lambda _: None, library: Library | None = None
) -> Reference:
    """The model of a name; the run trained last for None. In this order: the folder of a run, an adapter or a model, a
    built-in model, `RUN@STEP`, `NAME:VERSION` or `NAME:TAG` of the library (by default the usual one), the name of a run in
    `folder`, a bare name of the library, a hub id. `note` gets a line where a run hides an adapter of its name.

    Raises: RunError, AdapterError, naming what is near, or both where a bare name is that of a run and of a folder.
    """
    if isinstance(name, Run):
        return _of_run(name)
    path, text = Path(name or ""), str(name or "")
    if name is not None and not path_exists(path / "run.json"):
        here = next((kind for kind in _MARKS if path_exists(path / _MARKS[kind])), None)
        if here and path.parts == (text,) and path_exists(Path(folder) / text / "run.json"):
            raise RunError(
                f"{text}: is a run in {folder} and the folder of {here} here. Say which: {Path(folder) / text} for the "
                f"run, ./{text} for the folder."
            )
        if path_exists(path / "adapter_config.json"):
            return _of_adapter(path)
        if text.startswith("builtin:") or path_exists(path / "config.json") or (path_exists(path) and gguf_file(path)):
            return Reference(text, "model", text)
        before, at, step = text.rpartition("@")
        if at and is_number(step):
            return _of_checkpoint(runs.find(before or None, folder), int(step))
        if entry := entry_of(text, folder, note, library):
            return _of_entry(entry)
        if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.parent.is_dir():
            try:
                find_base(text)
            except ModelError as error:
                raise RunError(f"{text}: no run, adapter or model folder of that name. {error}") from None
            return Reference(text, "model", text)
        require_known(text, folder)
    return _of_run(runs.find(name, folder))


def name_here(run: Run) -> str:
    """The name by which `reference` finds this run from the working folder: its own, or its path where that is another's."""
    if str(run.path.parent) != "results" or run.name == BASE or runs.split_step(run.name)[1] is not None:
        return str(run.path)
    is_taken = any(path_exists(Path(run.name) / mark) for mark in (*_MARKS.values(), "run.json"))
    return str(run.path) if is_taken else run.name


def _of_run(run: Run) -> Reference:
    require_adapter(run)
    verified(run.trained)
    return Reference(run.name, "run", run.config.model.base_model, run, run.trained, run.base_revision)


def _of_checkpoint(run: Run, step: int) -> Reference:
    folder = checkpoint_at(run, step).path
    return Reference(f"{run.name}@{step}", "checkpoint", run.config.model.base_model, run, folder, run.base_revision)


def _of_entry(entry: Entry) -> Reference:
    card = entry.card
    revision = None if path_exists(Path(card.base_model)) else card.base_commit
    return Reference(entry.ref, "library", card.base_model, run_of(entry), entry.folder, revision, entry=entry)


def run_of(entry: Entry) -> Run | None:
    """The run that trained it, where that still lies in its place and is the same; its held-out rows come with it."""
    card = entry.card
    if card.run_folder is None or not path_exists(Path(card.run_folder) / "run.json"):
        return None
    run = Run(Path(card.run_folder))
    try:
        record = run.record
    except RunError:
        return None
    then = (card.settings_hash, card.data_hash, card.base_digest)
    return run if then == (record.settings_hash, record.data_hash, record.base_digest) else None


def _caution_of(entry: Entry) -> str:
    proofs = entry.card.proofs
    if proofs is None or not proofs.failed:
        return ""
    return f"warning: {entry.ref}: its run failed its proofs ({', '.join(proofs.failed)}) before it was added."


def _of_adapter(folder: Path) -> Reference:
    card, settings = read_card(folder), read_json(folder, SETTINGS)
    base, revision = card.get("base_model"), card.get("base_commit")
    if base is None or (Path(str(base)).is_absolute() and not path_exists(Path(str(base)))):
        base, revision = settings.get("base_model_name_or_path") or base, settings.get("revision")
    if not isinstance(base, str) or not isinstance(revision, str | None):
        raise AdapterError(
            f"{folder}: does not say which base it was made on (base_model_name_or_path of {SETTINGS}). Write the folder or "
            "the hub id of its base there."
        )
    if path_exists(Path(base)):
        revision = None
    made_by = Run(folder.parent) if path_exists(folder.parent / "run.json") else None
    return Reference(str(folder), "adapter", base, made_by, folder, revision, card.get("base_digest") is not None)


def require_adapter(run: Run) -> None:
    """Raises: RunError when the run has no adapter yet."""
    if not run.trained.is_dir():
        raise RunError(
            f"{run.path}: has no adapter yet (status {run.status}). "
            f"Finish it: inlay checkpoints resume {shlex.quote(str(run.path))}, or train it anew."
        )


def open_base(run: Run) -> OpenedBase:
    """The base of a run, in the precision and with the tokenizer of its training. Raises: ModelError when the base changed."""
    config, record = run.config, run.record
    ref = find_base(config.model.base_model, run.base_revision)
    if changed := ref.difference(record.base):
        raise ModelError(
            f"{config.model.base_model}: is not the base that {run.name} was trained on: {changed}. "
            "The adapter would not do what was measured."
        )
    kept = run.trained if run.trained.is_dir() else None  # a run that has not ended has the tokenizer of its base
    return OpenedBase(
        ref,
        config.model,
        config.data,
        Precision(device_for(config), getattr(torch, record.dtype), record.quantization),
        kept,
    )


def open_entry(entry: Entry) -> OpenedBase:
    """The base of a library adapter, in the precision and with the tokenizer of its training.

    Raises: ModelError when the base is not there, or has changed.
    """
    config, card = _config_of(entry), entry.card
    ref = find_base(card.base_model, None if path_exists(Path(card.base_model)) else card.base_commit)
    if changed := ref.difference({"base_digest": card.base_digest, "base_fingerprint": card.base_fingerprint}):
        raise ModelError(
            f"{card.base_model}: is not the base that {entry.ref} was made for: {changed}. "
            "The adapter would not do what was measured."
        )
    precision = Precision(device_for(config), getattr(torch, card.dtype), card.quantization)
    settings = config.model.model_copy(update={"chat_template": None})
    return OpenedBase(ref, settings, config.data, precision, entry.tokenizer_folder)


def _config_of(entry: Entry) -> Config:
    path = entry.folder / CONFIG
    if path.is_file():
        return configs.validate(with_current_names(read_tree(path)), str(path))
    kwargs = {"template_kwargs": entry.card.template_kwargs}
    return configs.validate({"model": {"base_model": entry.card.base_model}, "data": kwargs}, partial=True)


def config_of(one: Reference) -> Config:
    """The config that it was trained with, else the defaults for its base."""
    if one.entry is not None:
        return _config_of(one.entry)
    return one.run.config if one.run else configs.validate({"model": {"base_model": one.base}}, partial=True)


def opened(one: Reference, config: Config, before: OpenedBase | None = None) -> OpenedBase:
    """The base of a reference, opened with `config` where it is of no run; with the model of `before` where that is the same."""
    if one.entry is not None:
        return open_entry(one.entry).share(before)
    if one.run is not None:
        return open_base(one.run).share(before)
    ref, device = find_base(one.base, one.revision), device_for(config)
    is_narrow = config.model.dtype == "auto" and device != "cpu"
    dtype = torch.bfloat16 if is_narrow else getattr(torch, str(config.model.dtype).replace("auto", "float32"))
    settings = config.model.model_copy(update={"chat_template": None})  # that of another model's tokenizer
    return OpenedBase(ref, settings, config.data, Precision(device, dtype)).share(before)


def device_for(config: Config) -> str:
    """The device that answers are computed on."""
    # answering needs no particular device: any GPU for a run of a GPU, whatever there is
    return pick_device("cpu" if config.model.device == "cpu" else "auto").device
