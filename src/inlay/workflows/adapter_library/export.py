"""An adapter written for another program: the folder is read back and compared before it gets its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from inlay._version import __version__
from inlay.adapters.exports.form import DTYPES, LARGEST_ERROR, ExportSource, Form, Limit, ReadBack
from inlay.adapters.exports.table import EXPORTS
from inlay.adapters.goldens import FILE as GOLDENS
from inlay.adapters.goldens import Golden, lines_of, read_goldens
from inlay.adapters.lowrank import LowRank, lowrank_of, parameters_of
from inlay.adapters.reference import Reference, config_of, opened
from inlay.errors import AdapterError, ConfigError, unknown_name
from inlay.methods.adapter_state import AdapterState
from inlay.models.named_class import named_class
from inlay.runs.reporter import Reporter
from inlay.storage import path_exists, require_space, require_writable, sweep_abandoned, write_file, write_folder
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.add import described, golden_answers, held_out_of

PAGE: Final = "EXPORT.md"
_SPARE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The form, and how it is written."""

    to: str
    as_trained: bool = False
    """PEFT's format with ranks, alphas and method as they were trained, in place of the flat form."""
    dtype: str = "float32"
    with_rows: bool = False
    """Golden answers to held-out prompts, too; without it no row of the data leaves."""

    def require_usable(self) -> Form:
        """The form. Raises: ConfigError for an unknown one, and for options without effect on it."""
        if self.to not in EXPORTS:
            raise ConfigError(f"--to: {unknown_name('form', self.to, EXPORTS)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype: {unknown_name('dtype', self.dtype, DTYPES)}")
        if self.as_trained and self.to != "peft":
            raise ConfigError(
                f"--as-trained: has no effect on --to {self.to}, which takes the flat form. Use --to peft."
            )
        if self.as_trained and self.dtype != "float32":
            raise ConfigError(
                f"--dtype {self.dtype}: an adapter as it was trained keeps its dtype. Leave out one of both."
            )
        return EXPORTS[self.to]


@dataclass(frozen=True, slots=True)
class Exported:
    """An export on disk, or the limits alone where nothing was written."""

    name: str
    """The adapter, as it was named."""
    identity: str
    to: str
    folder: Path | None
    limits: tuple[Limit, ...]
    dtype: str
    rank: int | None = None
    bytes: int = 0
    read_back: ReadBack | None = None
    commands: tuple[str, ...] = ()
    goldens: int = 0

    @property
    def fits(self) -> bool:
        """Whether no limit is broken."""
        return all(limit.passed is not False for limit in self.limits)

    def to_json(self) -> JsonObject:
        """Everything, as `--json` prints it."""
        return {
            "adapter": self.name, "identity": self.identity, "to": self.to,
            "folder": None if self.folder is None else str(self.folder), "fits": self.fits,
            "limits": [limit._asdict() for limit in self.limits], "dtype": self.dtype, "rank": self.rank,
            "bytes": self.bytes, "read_back": None if self.read_back is None else self.read_back._asdict(),
            "commands": list(self.commands), "goldens": self.goldens,
        }  # fmt: skip


def export(one: Reference, out: Path | None, options: ExportOptions, reporter: Reporter) -> Exported:
    """The adapter in the folder `out`, which appears once it is whole and checked; without `out` its limits alone.

    Raises: AdapterError for an adapter that the form cannot hold, and where the written files do not hold its changes;
    ConfigError for options without effect; StorageError for a full disk.
    """
    form = options.require_usable()
    if out is not None:
        _require_new(out)
    if one.caution:
        reporter.note(one.caution)
    ready = opened(one, config_of(one))
    state = _adapter_of(one, ready)
    source = export_source(one, ready, state, options)
    limits = tuple(form.limits(source))
    identity = one.entry.card.identity if one.entry is not None else described(ready, state)[1].identity
    found = Exported(one.name, identity, options.to, None, limits, options.dtype, _rank(source))
    if out is None:
        return found
    if broken := next((limit for limit in limits if limit.passed is False), None):
        raise AdapterError(f"{one.name} as {options.to}: {broken.name}: {broken.found}")
    goldens = _goldens(one, ready, state, options, reporter)
    return write_export(found, form, source, out.absolute(), goldens, reporter)


def export_source(one: Reference, ready: OpenedBase, state: AdapterState, options: ExportOptions) -> ExportSource:
    """The adapter with all that a form may need of it; the base's weights are read only where it trains biases."""
    with torch.device("meta"):
        bare = ready.task.random_model(ready.architecture, "auto", torch.float32)
    values = parameters_of(ready.model) if any(".lora_" not in name for name in state.tensors) else None
    adapter: LowRank | None = None
    fault = ""
    try:
        adapter = lowrank_of(state, ready.ref.digest(), values)
    except AdapterError as error:
        fault = str(error).removeprefix("adapter: ")
    return ExportSource(
        _file_name(one), state, adapter, fault, ready.ref, ready.architecture, ready.encoder, config_of(one).generation,
        named_class(ready.ref, bare), values, options.dtype, options.as_trained,
    )  # fmt: skip


def _adapter_of(one: Reference, ready: OpenedBase) -> AdapterState:
    state = one.adapter(ready.ref)
    if state is None or state.method.name == "full":
        raise AdapterError(f"{one.name}: is a whole model, not an adapter: its folder is what other programs open.")
    return state


def _require_new(out: Path) -> None:
    if path_exists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: is there already. Name a new folder; nothing is overwritten.")
    require_writable(out.absolute().parent)


def _file_name(one: Reference) -> str:
    """A name of letters, digits, '.', '_' and '-' that files and servers take."""
    name = one.entry.name if one.entry is not None else Path(one.name).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "adapter"


def _rank(source: ExportSource) -> int | None:
    return None if source.as_trained or source.adapter is None else source.rank


def _goldens(
    one: Reference, ready: OpenedBase, state: AdapterState, options: ExportOptions, reporter: Reporter
) -> list[Golden]:
    goldens = read_goldens(one.entry.folder) if one.entry is not None else []
    if not goldens:
        rows = held_out_of(one.run) if options.with_rows else ()
        goldens = golden_answers(ready, state, rows, one.name, reporter)
    return [golden for golden in goldens if options.with_rows or golden.source == "general"]


def write_export(
    found: Exported, form: Form, source: ExportSource, out: Path, goldens: Sequence[Golden], reporter: Reporter
) -> Exported:
    """The export in the folder `out`, which appears whole and compared with the adapter, or not at all. See `export`."""
    needed = sum(tensor.numel() * 4 for tensor in source.state.tensors.values())
    if source.adapter is not None and not source.as_trained:
        needed = (
            sum(sum(f.A_RI.shape[1:] + f.B_OR.shape[:1]) for f in source.adapter.factors.values()) * source.rank * 4
        )
    require_space(out.parent, needed + _SPARE_BYTES, "this export", "choose another folder")
    sweep_abandoned(out.parent)
    results: list[Exported] = []

    def fill(folder: Path) -> None:
        reporter.stage(f"writing for {form.program}")
        form.write(source, folder)
        reporter.stage("reading back and comparing with the adapter")
        back = form.read_back(source, folder)
        _require_same(found.name, back, source.dtype)
        written = sum(file.stat().st_size for file in folder.iterdir())
        results.append(
            replace(
                found, folder=out, read_back=back, bytes=written, goldens=len(goldens),
                commands=tuple(form.commands(source, out)),
            )
        )  # fmt: skip
        write_file(folder / GOLDENS, lines_of(goldens))
        write_file(folder / PAGE, page(results[0], form, source, goldens))

    if out.is_dir():
        out.rmdir()  # an empty one, whose name the export takes
    write_folder(out, fill, {"exported": found.name, "identity": found.identity, "to": found.to})
    return results[0]


def _require_same(name: str, back: ReadBack, dtype: str) -> None:
    """Raises: AdapterError where the written files do not hold the adapter's changes."""
    if back.error <= LARGEST_ERROR[dtype]:
        return
    way_out = " Write it as float32." if dtype != "float32" else " Report this as a bug."
    raise AdapterError(
        f"{name}: the written change of {back.module} is off by {back.error:.1e} of its size, more than "
        f"{LARGEST_ERROR[dtype]:.0e} ({dtype}). Nothing was kept.{way_out}"
    )


def page(found: Exported, form: Form, source: ExportSource, goldens: Sequence[Golden]) -> str:
    """The content of EXPORT.md: where it is from, how to run it, what was checked and what was not."""
    assert found.read_back is not None
    base = source.base
    where = f"{base.hub_id} at {base.commit}" if base.hub_id else base.name
    shape = "as it was trained" if source.as_trained else f"rank {found.rank} on {found.read_back.modules} modules"
    lines = [
        f"# {found.name} for {form.program}",
        "",
        f"Written by inlay {__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| identity | `{found.identity}` |",
        f"| base | {where}, digest `{base.digest()}` |",
        f"| adapter | {source.state.method.title}, {shape}, {source.dtype} |",
        "",
        "## Run",
        "",
        *(f"    {command}" for command in found.commands),
        "",
        "## Checked",
        "",
        f"- The files were read back: {_comparison(found.read_back, source)}",
        *(f"- {limit.name}: {limit.found}" for limit in found.limits if limit.passed),
        "",
        "## Not checked",
        "",
        f"- {form.not_checked}",
        *(f"- {limit.name}: {limit.found}" for limit in found.limits if limit.passed is None),
        "",
        "## Golden answers",
        "",
        *_golden_lines(goldens),
    ]
    return "\n".join(lines) + "\n"


def _comparison(back: ReadBack, source: ExportSource) -> str:
    if source.as_trained:
        return f"all {back.modules} tensors are equal bit for bit."
    worst = "all are equal" if back.error == 0 else f"the largest error is {back.error:.1e} of ΔW, in {back.module}"
    return f"the changes ΔW of {back.modules} modules against those of the adapter; {worst}."


def _golden_lines(goldens: Sequence[Golden]) -> list[str]:
    if not goldens:
        return ["None: there was no prompt with room for an answer."]
    return [
        f"`{GOLDENS}` has {len(goldens)} prompts with the greedy answers that inlay gave, computed on "
        f"{goldens[0].computed_on}.",
        "Each line has `prompt_ids`, the `ids` of the answer, and at each id the `margin` to the second choice in nats.",
        "Send the ids of a prompt at temperature 0, without penalties. The answer must be the same ids, up to the first",
        "place where the margin is under 0.05: there rounding may choose either.",
    ]
