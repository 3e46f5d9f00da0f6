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
from inlay.adapters.merge import MergePlan, NotInFiles, Rounding, changes_of, combined, plan_merge, write_merged
from inlay.adapters.reference import Reference, config_of, opened
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, ConfigError, unknown_name
from inlay.evaluation.kept_gain import KeptGain, kept_gain
from inlay.evaluation.score import held_out
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef, weight_files
from inlay.models.generation_settings import FILE, generation_settings
from inlay.models.quantization import dequantised_weight
from inlay.runs.reporter import LateBar, Reporter
from inlay.storage import require_space, write_folder, write_json
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses
from inlay.workflows.measure import general_rows

AS_BASE: Final = "as-base"
DTYPES: Final = {AS_BASE: None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""`--dtype` -> the dtype of all weights; None keeps that of each."""
ONTO: Final = ("trained", "original")
LEAST_KEPT: Final = 0.95
"""Share of the adapter's gain that a merged model must keep."""
_PROBES, _PROBE_TOKENS = 8, 32
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
class LogitAgreement:
    """Logits of the merged model beside those of base and adapter, over the tokens of a few texts."""

    tokens: int
    largest: float
    """Largest |difference| of a logit."""
    relative: float
    """Root mean square difference, as a share of that between base and adapter."""
    kl: float
    """Mean KL divergence of the next token, in nats."""
    same_choice: float
    """Share of the tokens for which both rank the same next token first."""

    def to_json(self) -> JsonObject:
        """All figures."""
        return {
            "tokens": self.tokens, "largest": self.largest, "relative": self.relative, "kl": self.kl,
            "same_choice": self.same_choice,
        }  # fmt: skip


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
    rounding: Rounding
    agreement: LogitAgreement | None
    losses: dict[str, float]
    """Held-out loss by what was measured, in nats per trained token."""
    kept: KeptGain | None
    checked_on: str
    """The rows of the check; empty without any."""

    def to_json(self) -> JsonObject:
        """Everything, as `--json` prints it."""
        return {
            "folder": str(self.folder), "parts": [{"name": name, "weight": weight} for name, weight in self.parts],
            "bytes": self.bytes, "dtype": self.dtype, "onto": self.onto, "in_memory": self.in_memory or None,
            "untied": self.untied, "rounding": self.rounding.relative,
            "agreement": None if self.agreement is None else self.agreement.to_json(), "losses": self.losses,
            "kept": None if self.kept is None else self.kept.to_json(), "checked_on": self.checked_on or None,
        }  # fmt: skip


def merge(
    parts: Sequence[tuple[Reference, float]], out: Path, options: MergeOptions, reporter: Reporter
) -> MergedModel:
    """Writes the model W + Σ weight·ΔW into the folder `out`, which appears once it is whole and checked.

    Raises: AdapterError for what cannot be merged, and where the merged model does not do what the adapter does;
    ConfigError for options without effect; StorageError for a full disk.
    """
    _require_new(out)
    _require_options(parts, options)
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
        self._opened = self._in_written_dtype(opened(self._lead, config_of(self._lead)))
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
        self._rounding, self._in_memory, self._untied = Rounding(), "", False
        self._agreement: LogitAgreement | None = None
        self._losses: dict[str, float] = {}
        self._kept: KeptGain | None = None
        self._rows: HeldOutLosses | None = None

    def _in_written_dtype(self, ready: OpenedBase) -> OpenedBase:
        """The base in fp32 where the merged weights are: else the check would see the rounding of 16 bits."""
        device, dtype, quantization = ready.precision
        if self._options.dtype != "float32" or quantization != "none" or dtype == torch.float32:
            return ready
        return _opened_as(ready, ready.ref, Precision(device, torch.float32))

    def run(self) -> MergedModel:
        """The merged model."""
        ref = self._opened.ref
        size = sum(file.stat().st_size for file in weight_files(ref.folder))
        require_space(self._out.absolute().parent, size * (2 if self._options.dtype == "float32" else 1))
        about = {"merged": [{"name": one.name, "weight": weight} for one, weight in self._parts], "base": ref.digest()}
        write_folder(self._out, self._fill, about)
        written = sum(file.stat().st_size for file in self._out.glob("*.safetensors"))
        return MergedModel(
            self._out, tuple((one.name, weight) for one, weight in self._parts), written, self._options.dtype,
            self._onto(), self._in_memory, self._untied, self._rounding, self._agreement, self._losses, self._kept,
            self._rows.data if self._rows is not None else "",
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
            self._write_from_memory(folder, dtype)
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

    def _write_from_memory(self, folder: Path, dtype: torch.dtype | None) -> None:
        """Merges with PEFT in fp32: transformers makes the changed weight of several tensors of the files."""
        state, weight = self._states[0], self._parts[0][1]
        if len(self._parts) > 1 or weight != 1 or state is None or self._dequantizes:
            raise AdapterError(
                f"merge: {self._in_memory} is made of several tensors of the base's files, and such a model is merged in "
                "memory, one adapter at weight 1 onto the original weights."
            )
        self._reporter.stage(f"merging in memory: {self._in_memory} is no tensor of the base's files")
        ready = OpenedBase(
            self._opened.ref,
            self._opened.settings,
            self._opened.data,
            Precision("cpu", torch.float32),
            task=self._opened.task,
        )
        model = state.attach_to(ready.load()).merge_and_unload()
        stored = dtype or self._opened.architecture.dtype or torch.float32
        model.to(stored).save_pretrained(str(folder))

    def _measured_unmerged(self) -> _Unmerged:
        """Logits of a few texts and losses of the held-out rows, of base and adapter."""
        probes = _probe_texts(self._opened)
        with contextlib.suppress(ConfigError):  # no run and no file: nothing to measure the loss on
            self._rows = HeldOutLosses(self._lead, self._options.rows, self._reporter, self._opened)
        state = self._one_state()
        base = _logits(self._opened, None, probes)
        adapted = None if state is None else _logits(self._opened, state, probes)
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
        """All adapters as one; None where their methods do not add up."""
        states = [state for state in self._states if state is not None]
        if len(states) == 1 and self._parts[0][1] == 1:
            return states[0]
        try:
            model = self._opened.with_adapter(None)
            digest, base = self._opened.ref.digest(), parameters_of(model)
            return state_of(
                summed([(w, lowrank_of(s, digest, base)) for (_, w), s in zip(self._parts, states, strict=True)]), base
            )
        except AdapterError:
            return None

    def _unquantized(self, ref: BaseRef) -> OpenedBase:
        device, dtype, _ = self._opened.precision
        return _opened_as(
            self._opened, ref, Precision(device, torch.float32 if self._options.dtype == "float32" else dtype)
        )

    def _compare(self, folder: Path, before: _Unmerged) -> None:
        """Measures the merged model. Raises: AdapterError where it is not what the adapter was."""
        self._opened = _closed(self._opened)
        gc.collect()
        merged = self._unquantized(BaseRef(f"the merged model in {self._out}", folder))
        self._reporter.stage("checking the merged model")
        if before.adapter is not None:
            self._agreement = _agreement(before.base, before.adapter, _logits(merged, None, before.probes))
        losses = dict(before.losses)
        if self._rows is not None:
            losses["merged"] = self._rows.of("merged", None, merged)
            self._losses = {name: self._rows.mean(nll_N) for name, nll_N in losses.items()}
            if "adapter" in losses:
                self._kept = kept_gain(losses["base"], losses["adapter"], losses["merged"], self._rows.weight_N)
        self._refuse_loss()

    def _refuse_loss(self) -> None:
        if self._options.accept_loss:
            return
        way_out = "Merge with --dtype float32, or take it as it is: --accept-loss."
        if self._kept is not None and self._kept.share is not None and self._kept.share < LEAST_KEPT:
            raise AdapterError(
                f"merge: the merged model {self._kept.text()}, less than {LEAST_KEPT:.0%}: {self._options.dtype} weights round "
                f"{self._rounding.relative:.1%} of the adapter's change away. Nothing was written. {way_out}"
            )
        if self._agreement is not None and self._agreement.relative > _WRONG:
            raise AdapterError(
                f"merge: the logits of the merged model are off by {self._agreement.relative:.0%} of what the adapter changes. "
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


def _probe_texts(ready: OpenedBase) -> list[list[int]]:
    rows = held_out(general_rows(), ready.encoder, _PROBE_TOKENS, "cut", ()).tokens
    return [rows.row(i).input_ids.tolist() for i in range(min(len(rows), _PROBES))]


@torch.no_grad()
def _logits(ready: OpenedBase, state: AdapterState | None, probes: list[list[int]]) -> list[Tensor]:
    """(T, V) fp32 logits of each text."""
    model = ready.with_adapter(state)
    with autocast(ready.device, ready.autocast_dtype):
        return [model(torch.tensor([ids], device=ready.device)).logits[0].float().cpu() for ids in probes]


def _agreement(base: list[Tensor], adapter: list[Tensor], merged: list[Tensor]) -> LogitAgreement:
    wrong2 = effect2 = largest = kl = 0.0
    same = tokens = 0
    for base_TV, adapter_TV, merged_TV in zip(base, adapter, merged, strict=True):
        # an adapter over virtual tokens or a padded head has no other length here
        difference_TV = merged_TV - adapter_TV
        wrong2 += float(difference_TV.double().square().sum())
        effect2 += float((adapter_TV - base_TV).double().square().sum())
        largest = max(largest, float(difference_TV.abs().max()))
        one_TV, two_TV = adapter_TV.log_softmax(-1), merged_TV.log_softmax(-1)
        kl += float((one_TV.exp() * (one_TV - two_TV)).sum())
        same += int((one_TV.argmax(-1) == two_TV.argmax(-1)).sum())
        tokens += len(one_TV)
    relative = math.sqrt(wrong2 / effect2) if effect2 else 0.0 if not wrong2 else math.inf
    return LogitAgreement(tokens, largest, relative, max(kl / tokens, 0.0), same / tokens)


def _write_rest(ready: OpenedBase, lead: Reference, folder: Path, dtype: torch.dtype | None, *, untied: bool) -> None:
    """config.json, tokenizer with the trained template, generation settings, and what else a processor needs."""
    source = ready.ref.folder
    for file in source.iterdir():  # such as those of a vision-language model's processor
        if (
            file.suffix in (".json", ".jinja", ".txt", ".model")
            and not (folder / file.name).exists()
            and "index" not in file.name
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
