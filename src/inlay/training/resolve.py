"""The value of every `auto` setting of base and adapter on this machine, for this architecture, and the reason for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from inlay.config import Config
from inlay.config.load import merge, nested, preset_tree, validate
from inlay.data.batches import step_rows
from inlay.data.encoding.encoder import Encoder
from inlay.data.prepare import PreparedData
from inlay.errors import AdapterError, ModelError
from inlay.methods.adapter_state import AdapterState
from inlay.methods.method import TRAINED
from inlay.methods.table import method_of
from inlay.methods.target_modules import layers_for_roles, resolve_targets
from inlay.models.base import BaseRef
from inlay.runs import folder as runs
from inlay.tasks.task import task_of
from inlay.training.checkpoint import adapter_at


@dataclass
class Choices:
    """Value and reason of each setting that was `auto`."""

    config: Config
    values: dict[str, object] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def settle(self, path: str, value: Any, reason: str) -> None:
        """Takes the value where the config leaves it open."""
        section, _, name = path.partition(".")
        if getattr(getattr(self.config, section), name) == "auto":
            self.values[path], self.reasons[path] = value, reason

    def config_settled(self) -> Config:
        """The config without `auto` where it was settled."""
        return validate(merge(self.config.model_dump(), nested(self.values)), "resolved config")


_SAMPLE_ROWS, _SAMPLE_BATCH = 64, 4


def targets_of(config: Config, model: Any) -> tuple[list[str], str]:
    """(target modules, reason) of the config; the reason is empty for a list that the user wrote.

    A preset names layers as Llama does; they are found under this architecture's names. A user's list is taken as it is.
    """
    wanted = config.adapter.target_modules
    method = method_of(config)
    if not method.has_targets:
        return [], ""
    if wanted == "auto":
        return method.auto_targets(model)
    if config.preset is not None and preset_tree(config.preset).get("adapter", {}).get("target_modules") == wanted:
        names, reason = layers_for_roles(model, wanted, "the preset's")
        return resolve_targets(model, names), reason
    return resolve_targets(model, wanted), ""


def choose_quantization(config: Config, device: str, dtype: str) -> tuple[str, str]:
    """The quantization that is used, and why. Raises: ModelError if the chosen one does not work and must not fall back."""
    wanted = config.model.quantization
    if wanted == "none":
        return "none", "not asked for"
    from inlay.models.quantization import probe_quantization

    compute = config.model.compute_dtype if config.model.compute_dtype != "auto" else dtype
    probe = probe_quantization(wanted, device, compute)
    if probe.works:
        return wanted, probe.reason
    if not config.model.quantization_fallback:
        raise ModelError(
            f"model.quantization {wanted}: does not work here: {probe.reason}. Leave it out, or allow an unquantized "
            "run with --set model.quantization_fallback=true."
        )
    return "none", f"{wanted} was asked for but does not work here: {probe.reason}"


def sample_batches(config: Config, data: PreparedData, encoder: Encoder, device: str) -> Iterator[dict[str, Tensor]]:
    """The first training rows, in the order of training, a few at a time."""
    rows = step_rows(1, config.train.seed, data.train.shares, min(_SAMPLE_ROWS, data.train.drawn))
    for start in range(0, len(rows), _SAMPLE_BATCH):
        batch = task_of(config).batch(data.train, rows[start : start + _SAMPLE_BATCH], encoder.pad_id, device)
        yield {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def start_from(config: Config, model: Any, base: BaseRef, adapter_name: str = TRAINED) -> str:
    """Puts the adapter that `adapter.start_from` names into the model; what to tell of its run, usually nothing.

    Raises: AdapterError when it is none, or when it differs from the config in what an adapter computes.
    """
    reference = str(config.adapter.start_from)
    name, step = runs.split_step(reference)
    if step is not None:
        run = runs.find(name, config.output.folder)
        if difference := base.difference(run.record.base):
            raise AdapterError(
                f"adapter.start_from {reference}: was trained on another base than this one: {difference}."
            )
        state, caution = adapter_at(run, step), run.caution
    else:
        folder = _adapter_folder(str(name), config.output.folder)
        state, caution = AdapterState.read(folder, base), runs.caution_of(folder)
    method, its_method = method_of(config), state.method
    if its_method is not method:
        raise AdapterError(
            f"adapter.start_from {reference}: is of method {its_method.name}, this config {method.name}. "
            f"Set adapter.method={its_method.name} to go on from it."
        )
    for setting, wanted, found in method.differences(config, state.settings):
        raise AdapterError(
            f"adapter.start_from {reference}: has {setting} {found}, this config {wanted}. "
            f"Set adapter.{setting}={found} to go on from it."
        )
    try:
        state.load_into(model, adapter_name)
    except AdapterError as error:
        raise AdapterError(f"adapter.start_from {reference}: {str(error).removeprefix('adapter: ')}") from None
    return caution


def _adapter_folder(reference: str, results: str) -> Path:
    for folder in (Path(reference), Path(results) / reference):
        for candidate in (folder / "adapter", folder):
            if (candidate / "adapter_config.json").is_file():
                return candidate
    raise AdapterError(f"adapter.start_from {reference}: neither a run with an adapter nor an adapter folder.")
