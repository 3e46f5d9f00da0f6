"""Adapters merged into their base: a model of its own, checked against the unmerged one before it gets its name."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from inlay.adapters.lowrank import lowrank_of, parameters_of, state_of, summed
from inlay.adapters.merge import (
    MergePlan,
    NotInFiles,
    Rounding,
    changes_of,
    combined,
    plan_merge,
    ties_of,
    write_merged,
)
from inlay.adapters.reference import Reference, config_of, opened
from inlay.errors import AdapterError, ConfigError, RunError, unknown_name
from inlay.evaluation.kept_gain import KeptGain, kept_gain
from inlay.folder_files import SETTINGS
from inlay.hardware.facts import memory_facts
from inlay.methods.adapter_files import CARD
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef, parameter_count, weight_files
from inlay.models.generation_settings import FILE, generation_settings
from inlay.models.quantization import dequantised_weight
from inlay.runs.reporter import LateBar, Reporter
from inlay.storage import MANIFEST, require_space, sweep_killed, write_folder, write_json
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses
from inlay.workflows.adapter_library.logit_agreement import LogitAgreement, agreement_of, logits_of, probe_texts

AS_BASE: Final = "as-base"
DTYPES: Final = {AS_BASE: None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""`--dtype` -> the dtype of all weights; None keeps that of each."""
ONTO: Final = ("trained", "original")
LEAST_KEPT: Final = 0.95
"""Share of the adapter's gain that a merged model must keep."""
_NOT_COPIED: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json", CARD, SETTINGS, MANIFEST)
_SPARE: Final = 1.3
"""Memory of the check beside the weights."""
_WRONG: Final = 0.5
"""Error of the logits, as a share of what the adapter changes them by, beyond which the merge is no rounding."""


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Choices of a merge."""

    dtype: str = AS_BASE
    onto: str = "trained"
    """Of an adapter over a quantized base: the dequantized weights that it was trained over, or the original ones."""
    rows: str | None = None
    """File of rows for the check; None for the held-out rows of the run."""
    check: bool = True
    accept_loss: bool = False
    """Keep a merged model that loses more than a twentieth of the gain."""


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A merged model on disk, and what the check found."""

    folder: Path
    parts: tuple[tuple[str, float], ...]
    """Name and weight of each adapter."""
    bytes: int
    dtype: str
    onto: str
    """What the adapters were merged into, in words."""
    in_memory: str
    """The parameter because of which the model was loaded as a whole; empty where it was merged file by file."""
    untied: bool
    """Whether embedding and head, which the base shares, became two tensors."""
    rounding: Rounding | None
    """None where it was not measured."""
    agreement: LogitAgreement | None
    losses: dict[str, float]
    """Held-out loss by what was measured, in nats per trained token."""
    kept: KeptGain | None
    checked_on: str
    """The rows of the check; empty without any."""
    unchecked: str
    """The reason why the merged model was not compared with its unmerged form; empty where it was."""

    def to_json(self) -> JsonObject:
        """Everything, as `--json` prints it."""
        return {
            "folder": str(self.folder), "parts": [{"name": name, "weight": weight} for name, weight in self.parts],
            "bytes": self.bytes, "dtype": self.dtype, "onto": self.onto, "in_memory": self.in_memory or None,
            "untied": self.untied, "rounding": None if self.rounding is None else self.rounding.relative,
            "agreement": None if self.agreement is None else self.agreement.to_json(), "losses": self.losses,
            "kept": None if self.kept is None else self.kept.to_json(), "checked_on": self.checked_on or None,
            "unchecked": self.unchecked or None,
        }  # fmt: skip


def merge(
    parts: Sequence[tuple[Reference, float]], out: Path, options: MergeOptions, reporter: Reporter
) -> MergedModel:
    """Writes the model W + Σ weight·ΔW into the folder `out`, which appears once it is whole and checked.

    Raises: AdapterError for what cannot be merged, and where the merged model does not do what the adapter does;
    ConfigError for options without effect; StorageError for a full disk.
    """
    _require_options(parts, options)
    _require_new(out)
    for one, _ in parts:
        if one.caution:
            reporter.note(one.caution)
    return _Merge(parts, out, options, reporter).run()


class _Merge:
    """One merge, from its opened base to the folder."""

    def __init__(
        self, parts: Sequence[tuple[Reference, float]], out: Path, options: MergeOptions, reporter: Reporter
    ) -> None:
        self._parts, self._out, self._options, self._reporter = parts, out, options, reporter
        self._lead = parts[0][0]
        ready = opened(self._lead, config_of(self._lead))
        self._precision_of_run = ready.precision
        self._opened = self._as_written(ready)
        self._states = [one.adapter(self._opened.ref) for one, _ in parts]
        if missing := next(
            (one.name for (one, _), state in zip(parts, self._states, strict=True) if state is None), None
        ):
            raise AdapterError(f"{missing}: is a model and no adapter: there is nothing to merge.")
        quantization = self._opened.precision.quantization
        if quantization == "none" and options.onto == "original":
            raise ConfigError(
                "--onto original: the base was not quantized, so the adapter was trained over the original weights."
            )
        self._dequantizes = quantization != "none" and options.onto == "trained"
        self._rounding: Rounding | None = None
        self._in_memory, self._untied, self._unchecked = "", False, "" if options.check else "--no-check"
        self._agreement: LogitAgreement | None = None
        self._losses: dict[str, float] = {}
        self._kept: KeptGain | None = None
        self._rows: HeldOutLosses | None = None

    def _note_differences(self) -> None:
        """Notes parts that were made with another tokenizer or template, or over another precision, than the first."""
        lead = self._precision_of_run
        encoding = self._opened.encoder.tokenizer_hash, self._opened.encoder.template_hash
        for one, _ in self._parts[1:]:
            other = opened(one, config_of(one))
            if (other.encoder.tokenizer_hash, other.encoder.template_hash) != encoding:
                self._reporter.note(
                    f"{one.name} was made with another tokenizer or chat template than {self._lead.name}, whose the merged model has"
                )
            if other.precision[1:] != lead[1:]:
                self._reporter.note(
                    f"{one.name} was made over {_weights_in_words(other.precision)}, {self._lead.name} over "
                    f"{_weights_in_words(lead)}: merged into {self._onto()}"
                )

    def _as_written(self, ready: OpenedBase) -> OpenedBase:
        """The base in fp32, so that the check sees the rounding of the file and not that of 16-bit arithmetic.

        A base that does not fit the free memory so is left as its run had it, and a quantized one as it was trained over.
        """
        device, dtype, quantization = ready.precision
        needed = 4 * parameter_count(ready.ref) * _SPARE
        if not self._options.check or quantization != "none" or dtype == torch.float32:
            return ready
        if device == "cpu" and needed > memory_facts().available_bytes:
            return ready
        return _opened_as(ready, ready.ref, Precision(device, torch.float32))

    def run(self) -> MergedModel:
        """The merged model."""
        ref = self._opened.ref
        self._note_differences()
        size = sum(file.stat().st_size for file in weight_files(ref.folder))
        require_space(self._out.absolute().parent, size * (2 if self._options.dtype == "float32" else 1))
        about = {"merged": [{"name": one.name, "weight": weight} for one, weight in self._parts], "base": ref.digest()}
        sweep_killed(self._out)
        _require_new(self._out)
        write_folder(self._out, self._fill, about)
        written = sum(file.stat().st_size for file in self._out.glob("*.safetensors"))
        return MergedModel(
            self._out, tuple((one.name, weight) for one, weight in self._parts), written, self._options.dtype,
            self._onto(), self._in_memory, self._untied, self._rounding, self._agreement, self._losses, self._kept,
            self._rows.data if self._rows is not None else "", self._unchecked,
        )  # fmt: skip

    def _fill(self, folder: Path) -> None:
        before = self._measured_unmerged() if self._options.check else None
        self._write(folder)
        if before is not None:
            self._compare(folder, before)

    def _onto(self) -> str:
        kind = self._opened.precision.quantization
        return f"the dequantized {kind} weights that it was trained over" if self._dequantizes else "the base's weights"

    def _write(self, folder: Path) -> None:
        ref, dtype = self._opened.ref, DTYPES[self._options.dtype]
        with torch.device("meta"):
            bare = self._opened.task.random_model(self._opened.architecture, "auto", torch.float32)
        states = [state for state in self._states if state is not None]
        keeps_ties = any(state.method.name == "full" for state in states)
        try:
            changes = combined([(w, changes_of(s, bare)) for (_, w), s in zip(self._parts, states, strict=True)])
            plan = plan_merge(ref, bare, changes, keeps_ties=keeps_ties)
        except NotInFiles as place:
            self._in_memory = str(place)
            self._write_from_memory(folder, dtype, bare)
        else:
            self._untied = bool(plan.untied)
            self._write_tensors(plan, folder, dtype, bare)
        _write_rest(self._opened, self._lead, folder, dtype, untied=self._untied)

    def _write_tensors(self, plan: MergePlan, folder: Path, dtype: torch.dtype | None, bare: nn.Module) -> None:
        self._reporter.stage(f"merging into {self._onto()}")
        over: Callable[[str], Tensor | None] = lambda _: None  # noqa: E731
        if self._dequantizes:
            quantized = self._opened.with_adapter(None)
            kind = self._opened.precision.quantization
            over = lambda name: dequantised_weight(quantized, name, kind, bare)  # noqa: E731
        with LateBar(self._reporter, sum(1 for _ in plan.parameters), "tensor") as bar, torch.no_grad():
            self._rounding = write_merged(plan, folder, dtype, over, lambda done, _: bar.reached(done))

    def _write_from_memory(self, folder: Path, dtype: torch.dtype | None, bare: nn.Module) -> None:
        """Merges with PEFT in fp32: transformers makes the changed weight of several tensors of the files."""
        state, weight = self._states[0], self._parts[0][1]
        if len(self._parts) > 1 or weight != 1 or state is None or self._dequantizes:
            raise AdapterError(
                f"merge: {self._in_memory} is made of several tensors of the base's files, and such a model is merged in "
                "memory, one adapter at weight 1 onto the original weights."
            )
        shared = {name.removesuffix(".weight") for pair in ties_of(bare).items() for name in pair}
        if changed := sorted(module for module in shared if any(f".{module}." in name for name in state.tensors)):
            raise AdapterError(
                f"merge: the adapter changes {changed[0]}, which embedding and head share, and has to be merged in memory "
                f"({self._in_memory}), where both would change. Train without it in adapter.target_modules."
            )
        self._reporter.stage(f"merging in memory: {self._in_memory} is no tensor of the base's files")
        ready = _opened_as(self._opened, self._opened.ref, Precision("cpu", torch.float32))
        model = (
            state.attach_to(ready.load())
            .merge_and_unload()
            .to(dtype or self._opened.architecture.dtype or torch.float32)
        )
        if broken := next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None):
            raise AdapterError(
                f"merge: {broken} would hold values that are not finite. Use --dtype bfloat16 or float32."
            )
        model.save_pretrained(str(folder))

    def _measured_unmerged(self) -> _Unmerged:
        """Logits of a few texts and losses of the held-out rows, of base and adapter."""
        probes = probe_texts(self._opened)
        with contextlib.suppress(
            ConfigError, *(() if self._options.rows else (RunError,))
        ):  # no rows to measure the loss on
            self._rows = HeldOutLosses(self._lead, self._options.rows, self._reporter, self._opened)
        state = self._one_state()
        base = logits_of(self._opened, None, probes)
        adapted = None if state is None else logits_of(self._opened, state, probes)
        losses = {}
        if self._rows is not None:
            losses["base"] = self._rows.of("base", None)
            if state is not None:
                losses["adapter"] = self._rows.of("adapter", state)
        unmerged = _Unmerged(probes, base, adapted, losses)
        if not self._dequantizes:
            if self._opened.precision.quantization != "none" and self._rows is not None and state is not None:
                unmerged.losses["adapter over the original weights"] = self._rows.of(
                    "adapter over the original weights", state, self._unquantized(self._opened.ref)
                )
            self._opened = _closed(self._opened)
            gc.collect()
        return unmerged

    def _one_state(self) -> AdapterState | None:
        """All adapters as one; None where their methods do not add up, which is noted."""
        states = [state for state in self._states if state is not None]
        if len(states) == 1 and self._parts[0][1] == 1:
            return states[0]
        try:
            model = self._opened.with_adapter(None)
            digest, base = self._opened.ref.digest(), parameters_of(model)
            return state_of(
                summed([(w, lowrank_of(s, digest, base)) for (_, w), s in zip(self._parts, states, strict=True)]), base
            )
        except AdapterError as error:
            self._unchecked = (
                f"adapters with weights are compared where they have a sum; {str(error).removeprefix('adapter: ')}"
            )
            return None

    def _unquantized(self, ref: BaseRef) -> OpenedBase:
        device, dtype, quantization = self._opened.precision
        exact = torch.float32 if quantization != "none" and self._options.dtype == "float32" else dtype
        return _opened_as(self._opened, ref, Precision(device, exact))

    def _compare(self, folder: Path, before: _Unmerged) -> None:
        """Measures the merged model. Raises: AdapterError where it is not what the adapter was."""
        self._opened = _closed(self._opened)
        gc.collect()
        merged = self._unquantized(BaseRef(f"the merged model in {self._out}", folder))
        self._reporter.stage("checking the merged model")
        if before.adapter is not None:
            self._agreement = agreement_of(before.base, before.adapter, logits_of(merged, None, before.probes))
        losses = dict(before.losses)
        if self._rows is not None:
            losses["merged"] = self._rows.of("merged", None, merged)
            self._losses = {name: self._rows.mean(nll_N) for name, nll_N in losses.items()}
            if "adapter" in losses:
                self._kept = kept_gain(losses["base"], losses["adapter"], losses["merged"], self._rows.weight_N)
        self._refuse_loss()

    def _refuse_loss(self) -> None:
        logits = self._agreement
        if not all(math.isfinite(loss) for loss in self._losses.values()) or (
            logits and not math.isfinite(logits.largest)
        ):
            raise AdapterError(
                "merge: the merged model gives values that are not finite. Nothing was written. Lower the weights of the "
                "adapters, or merge with --dtype float32."
            )
        if self._options.accept_loss:
            return
        wide = self._options.dtype == "float32"
        way_out = f"{'T' if wide else 'Merge with --dtype float32, or t'}ake it as it is: --accept-loss."
        if self._kept is not None and self._kept.share is not None and self._kept.share < LEAST_KEPT:
            lost = (
                ""
                if self._rounding is None
                else f": its weights round {self._rounding.relative:.1%} of the adapter's change away"
            )
            raise AdapterError(
                f"merge: the merged model {self._kept.text()}, less than {LEAST_KEPT:.0%}{lost}. Nothing was written. {way_out}"
            )
        if logits is not None and logits.relative > _WRONG and self._opened.precision.dtype == torch.float32:
            raise AdapterError(
                f"merge: the logits of the merged model are off by {logits.relative:.0%} of what the adapter changes. "
                f"Nothing was written. {way_out}"
            )


@dataclass(frozen=True, slots=True)
class _Unmerged:
    probes: list[list[int]]
    base: list[Tensor]
    adapter: list[Tensor] | None
    losses: dict[str, Any]


def _require_new(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        raise ConfigError(f"--out {out}: is there already. Name a new folder; nothing is overwritten.")


def _require_options(parts: Sequence[tuple[Reference, float]], options: MergeOptions) -> None:
    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype: {unknown_name('dtype', options.dtype, DTYPES)}")
    if options.onto not in ONTO:
        raise ConfigError(f"--onto: {unknown_name('choice', options.onto, ONTO)}")
    if not parts:
        raise ConfigError("merge: no adapter is named. Name at least one.")
    if not options.check and (options.rows or options.accept_loss):
        name = "--rows" if options.rows else "--accept-loss"
        raise ConfigError(f"{name}: has no effect with --no-check. Leave out one of them.")
    for one, weight in parts:
        if not math.isfinite(weight) or weight == 0:
            raise ConfigError(
                f"{one.name}={weight:g}: the weight must be a finite number other than 0. Leave out what has no part."
            )
        if one.folder is None:
            raise AdapterError(f"{one.name}: is a model and no adapter: there is nothing to merge.")


def _closed(ready: OpenedBase) -> OpenedBase:
    """The same base without its model in memory."""
    return _opened_as(ready, ready.ref, ready.precision)


def _opened_as(ready: OpenedBase, ref: BaseRef, precision: Precision) -> OpenedBase:
    """Another base, or the same in another precision, with the tokenizer of `ready`; no model in memory."""
    return OpenedBase(ref, ready.settings, ready.data, precision, ready.tokenizer_folder, task=ready.task)


def _weights_in_words(precision: Precision) -> str:
    """`nf4 weights`, `bfloat16 weights`."""
    dtype = str(precision.dtype).removeprefix("torch.")
    return f"{dtype if precision.quantization == 'none' else precision.quantization} weights"


def _write_rest(ready: OpenedBase, lead: Reference, folder: Path, dtype: torch.dtype | None, *, untied: bool) -> None:
    """config.json, tokenizer with the trained template, generation settings, and what else a processor needs."""
    source = ready.ref.folder
    for file in source.iterdir():  # such as those of a vision-language model's processor
        if (
            file.suffix in (".json", ".jinja", ".txt", ".model")
            and not (folder / file.name).exists()
            and file.name not in _NOT_COPIED
        ):
            shutil.copyfile(file, folder / file.name)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        settings["dtype"] = str(dtype).removeprefix("torch.")
        settings.pop("torch_dtype", None)
    for section in (settings, settings.get("text_config")):
        if untied and isinstance(section, dict) and (section is settings or "tie_word_embeddings" in section):
            section["tie_word_embeddings"] = False
    write_json(folder / "config.json", settings)
    ready.tokenizer.save_pretrained(str(folder))
    ends = lead.folder / FILE if lead.folder is not None else None
    kept = generation_settings(source)
    if kept is not None:
        write_json(folder / FILE, kept[0])
    if ends is not None and ends.is_file():
        shutil.copyfile(ends, folder / FILE)
