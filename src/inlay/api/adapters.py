"""The adapter library: adapters listed, shown, added, tagged, removed, checked, composed, merged, exported.

`library` is its folder; by default that of INLAY_LIBRARY, else `library` beside `folder`, which holds the runs. Torch is
imported by the verbs that compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.library import Damaged, Entry
from inlay.adapters.names import library_at
from inlay.errors import AdapterError
from inlay.runs.folder import RunLike
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.typed_json import JsonObject

if TYPE_CHECKING:
    from inlay.workflows.adapter_library.add import Added
    from inlay.workflows.adapter_library.compose import Composed
    from inlay.workflows.adapter_library.export import Exported
    from inlay.workflows.adapter_library.merge import MergedModel

LibraryLike = str | Path | None
"""Folder of a library; None for the usual one."""


def list_adapters(
    *, task: str | None = None, base: str | None = None, tag: str | None = None, library: LibraryLike = None,
    folder: str = "results",
) -> list[JsonObject]:  # fmt: skip
    """[{"name", "version", "tags", "task", "base", "rank", "parameters", "bytes", "verdict", …}] of every version, by name.

    Only those with the `task`, the `tag`, and the `base`: its name, the end of its path, or the beginning of its digest.
    A version with an unreadable card is {"name", "version", "damaged"}.
    """
    damaged: list[Damaged] = []
    entries = library_at(library, folder).entries(on_damage=damaged.append)
    rows = [one.to_json() for one in entries if _is_wanted(one, task, base, tag)]
    if task is base is tag is None:
        rows += [{"name": one.name, "version": one.version, "damaged": one.fault} for one in damaged]
    return sorted(rows, key=lambda row: (row["name"], row["version"]))


def show_adapter(ref: str, *, library: LibraryLike = None, folder: str = "results") -> JsonObject:
    """{"name", "version", "tags", "folder", "card", "history"} of one version. Raises: AdapterError for an unknown one."""
    found = library_at(library, folder)
    entry = found.find(ref)
    lines = [line for line in found.history(entry.name) if line.get("version") == entry.version or "damaged" in line]
    return {
        "name": entry.name, "version": entry.version, "tags": list(entry.tags), "folder": str(entry.folder),
        "card": entry.card.to_json(), "history": lines,
    }  # fmt: skip


def add_adapter(
    source: RunLike = None,
    *,
    name: str | None = None,
    task: str | None = None,
    tags: Sequence[str] = (),
    licence: str | None = None,
    note: str | None = None,
    base: str | None = None,
    reporter: Reporter | None = None,
    library: LibraryLike = None,
    folder: str = "results",
) -> Added:
    """The library's entry of an adapter, which is a new version unless the name holds the same one already.

    `source` is a run, `RUN@STEP`, or the folder of an adapter; `name` that of its run or folder by default. A folder that
    does not record the digest of its base needs `base`. `task`, `licence` and `note` go onto the card.
    Raises: AdapterError for what is no adapter, cannot be used, or belongs to another base; RunError; StorageError.
    """
    from inlay.workflows.adapter_library.add import Labels, add

    labels = Labels(task, licence, note, tuple(tags))
    return add(source, name, labels, base, library_at(library, folder), folder, reporter or PlainReporter())


def tag_adapter(ref: str, tag: str, *, library: LibraryLike = None, folder: str = "results") -> JsonObject:
    """The row of the version, which has the tag now; the version that had it before has it no more."""
    return library_at(library, folder).tag(ref, tag).to_json()


def untag_adapter(ref: str, tag: str, *, library: LibraryLike = None, folder: str = "results") -> JsonObject:
    """The row of the version, without the tag. Raises: AdapterError when it does not have it."""
    return library_at(library, folder).untag(ref, tag).to_json()


def removable_adapter(ref: str, *, library: LibraryLike = None, folder: str = "results") -> str:
    """`NAME:VERSION` that a reference names, damaged or not. Raises: AdapterError for an unknown one, or one with a tag."""
    name, version = library_at(library, folder).removable(ref)
    return f"{name}:{version}"


def remove_adapter(ref: str, *, library: LibraryLike = None, folder: str = "results") -> JsonObject:
    """{"removed": "NAME:VERSION"}. Raises: AdapterError for a version with a tag, and for one in use."""
    return {"removed": library_at(library, folder).remove(ref)}


def check_adapters(
    ref: str | None = None, *, reporter: Reporter | None = None, library: LibraryLike = None, folder: str = "results"
) -> list[JsonObject]:
    """[{"adapter", "passed", "proofs": [{"name", "passed", "found", "samples"}]}] of one version, or of all.

    Proven are its files, the digest of its weights, its base and tokenizer, and its golden answers, which are computed
    anew. `passed` of a proof is None where it cannot be checked here, as without the base.
    """
    from inlay.workflows.adapter_library.check import check, damaged_proof, entries_to_check

    entries, damaged = entries_to_check(library_at(library, folder), ref)
    if not entries and not damaged:
        raise AdapterError(
            f"{library_at(library, folder).path}: the library is empty: inlay adapters add RUN --name NAME"
        )
    found = [(entry.ref, proofs) for entry, proofs in check(entries, reporter or PlainReporter())]
    found += [(f"{one.name}:{one.version}", [damaged_proof(one)]) for one in damaged]
    return [
        {
            "adapter": name,
            "passed": all(one.passed is not False for one in proofs),
            "proofs": [one.to_json() for one in proofs],
        }
        for name, proofs in found
    ]


def compose_adapters(
    weights: Mapping[str, float | None],
    name: str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    budget: str | int | None = None,
    lossy: str | None = None,
    density: float | None = None,
    fit: str | None = None,
    blocks: int = 1,
    seed: int = 0,
    reporter: Reporter | None = None,
    library: LibraryLike = None,
    folder: str = "results",
) -> Composed:
    """The weighted sum of adapters as a new version of `name`; exact, but for what `rank`, `energy` or `budget` cut off.

    `weights` maps a run, `RUN@STEP`, a folder or a library adapter to its weight. With `fit`, a file of rows, every weight
    is None: they are found on one half of the rows and judged on the other, for each of `blocks` blocks of layers. `budget` is a size, such as `20MB`. `lossy` is
    a merge that is no sum, `ties_svd` or `dare_svd`, which keeps the share `density` of each change.
    Raises: AdapterError for adapters that have no sum, such as on different bases, or of DoRA; ConfigError.
    """
    from inlay.adapters.compose import RankLimit
    from inlay.training.memory import parse_bytes
    from inlay.workflows.adapter_library.compose import ComposeRequest, compose

    size = parse_bytes(budget, "budget") if isinstance(budget, str) else budget
    request = ComposeRequest(weights, RankLimit(rank, energy, size), lossy, density, fit, blocks, seed)
    return compose(request, name, library_at(library, folder), folder, reporter or PlainReporter())


def merge_adapters(
    weights: Mapping[str, float | None],
    out: str | Path,
    *,
    dtype: str = "as-base",
    onto: str = "trained",
    rows: str | None = None,
    check: bool = True,
    accept_loss: bool = False,
    reporter: Reporter | None = None,
    library: LibraryLike = None,
    folder: str = "results",
) -> MergedModel:
    """The model W + Σ weight·ΔW in the new folder `out`, with its tokenizer, as transformers loads it.

    `weights` maps a run, `RUN@STEP`, a folder or a library adapter to its weight, None for 1. `dtype` is as-base,
    bfloat16, float16 or float32. `onto` original takes the original weights of a quantized base. The logits and, where
    there are held-out rows or the file `rows`, the loss are compared with those of base and adapter before the folder
    gets its name; `accept_loss` keeps a model that loses more than a twentieth of the gain.
    Raises: AdapterError for what cannot be merged; ConfigError; StorageError.
    """
    from inlay.adapters.reference import reference
    from inlay.workflows.adapter_library.merge import MergeOptions, merge

    reporter = reporter or PlainReporter()
    at = library_at(library, folder)
    parts = [
        (reference(name, folder, reporter.note, at), 1.0 if weight is None else weight)
        for name, weight in weights.items()
    ]
    options = MergeOptions(dtype, onto, rows, check, accept_loss)
    return merge(parts, Path(out), options, reporter)


def export_adapter(
    ref: RunLike,
    to: str,
    out: str | Path | None = None,
    *,
    as_trained: bool = False,
    dtype: str = "float32",
    with_rows: bool = False,
    reporter: Reporter | None = None,
    library: LibraryLike = None,
    folder: str = "results",
) -> Exported:
    """The adapter in the new folder `out`, in the form that another program reads: peft, vllm, gguf, mlx or ollama.

    The files are read back and compared with the change of every module before the folder appears; `EXPORT.md` in it has
    the command. Without `out` nothing is written, and the limits of the form are given. `as_trained` keeps ranks, alphas
    and method as they were (peft). `with_rows` adds golden answers to held-out prompts.
    Raises: AdapterError for what the form cannot hold, with what to do instead; ConfigError.
    """
    from inlay.adapters.reference import reference
    from inlay.workflows.adapter_library.export import ExportOptions, export

    reporter = reporter or PlainReporter()
    one = reference(ref, folder, reporter.note, library_at(library, folder))
    return export(one, None if out is None else Path(out), ExportOptions(to, as_trained, dtype, with_rows), reporter)


def _is_wanted(entry: Entry, task: str | None, base: str | None, tag: str | None) -> bool:
    card = entry.card
    names = {card.base_model, Path(card.base_model).name, card.base_hub_id}
    is_base = base is None or base.rstrip("/") in names or (len(base) >= 6 and card.base_digest.startswith(base))
    return is_base and (task is None or card.task == task) and (tag is None or tag in entry.tags)
