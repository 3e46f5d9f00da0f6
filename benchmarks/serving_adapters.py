"""One base and adapters on it in the forms of every server under test, in one folder that is made once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inlay.adapters.exports.table import EXPORTS
from inlay.adapters.library import Library
from inlay.adapters.reference import Reference, config_of, opened, reference
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef
from inlay.tasks.opened_base import OpenedBase
from inlay.workflows.adapter_library.add import _fill, described
from inlay.workflows.adapter_library.export import ExportOptions, export_source

FORMS: Final = ("peft", "gguf", "mlx")
RANK: Final = 16


@dataclass(frozen=True)
class Prepared:
    """Folders of the benchmark."""

    base: Path
    adapters: dict[str, dict[str, Path]]
    """Name -> form -> folder, or file for gguf."""
    library: Path
    """The library of `inlay serve`."""
    mlx_base: Path
    """The base in float32, with its RoPE settings where mlx-lm looks for them; it takes no dtype."""
    merged: Path
    """Base and first adapter as one model."""


def random_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA of rank 16 on all linear layers but the head, large enough to change answers."""
    if folder.exists():
        return folder
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(base)))
    draw, tensors = torch.Generator().manual_seed(seed), {}
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    for name, module in modules:
        outputs, inputs = module.weight.shape
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, inputs, generator=draw) * inputs**-0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw) * 0.01
    settings: Any = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name, _ in modules}), "init_lora_weights": True,
    }  # fmt: skip
    folder.mkdir(parents=True)
    ref = BaseRef(str(base), base)
    AdapterState(settings, tensors).on(ref).write(folder)
    (folder / "card.json").write_text(json.dumps(ref.card_entries() | {"base_digest": ref.digest()}))
    return folder


def prepare(base: Path, work: Path, count: int, trained: dict[str, Path], forms: tuple[str, ...]) -> Prepared:
    """Everything that the servers need, made where it is missing. `trained` are adapters on this base beside the random ones."""
    base = base.absolute()
    folders = {f"r{n}": random_adapter(base, work / "adapters" / f"r{n}", n) for n in range(count)} | trained
    found: dict[str, dict[str, Path]] = {}
    ready = None
    library = Library(work / "library")
    for name, folder in folders.items():
        one = replace(reference(str(folder), str(work)), base=str(base), revision=None)
        places = {"own": folder}
        if not library.entries(name):
            ready = ready or opened(one, config_of(one))
            put(library, name, ready, one)
        for form in forms:
            out = work / form / name
            if not out.exists():
                ready = ready or opened(one, config_of(one))
                state = one.adapter(ready.ref)
                assert state is not None
                source = export_source(one, ready, state, ExportOptions(form))
                out.mkdir(parents=True)
                EXPORTS[form].write(source, out)
            places[form] = next(out.glob("*.gguf")) if form == "gguf" else out
        found[name] = places
    return Prepared(
        base, found, library.path, for_mlx(base, work / "mlx-base"), merged(found["r0"]["own"], work / "merged")
    )


def put(library: Library, name: str, ready: OpenedBase, one: Reference) -> None:
    """Adds an adapter without the golden answers that `inlay adapters add` computes: they take a minute for all of these."""
    state = one.adapter(ready.ref)
    assert state is not None
    written, card = described(ready, state)
    library.put(
        name, lambda folder: _fill(folder, written, None, []), card,
        lambda folder: ready.encoder.tokenizer.save_pretrained(str(folder)),
    )  # fmt: skip


def for_mlx(base: Path, out: Path) -> Path:
    """The base in float32; `rope_theta` beside the other settings, as mlx-lm does not read `rope_parameters` and takes 10,000."""
    if out.exists():
        return out
    out.mkdir(parents=True)
    for file in base.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".bin", ".gguf"):
            shutil.copy(file, out)
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as opened_file:
            tensors = {name: opened_file.get_tensor(name).float() for name in opened_file.keys()}  # noqa: SIM118
        save_file(tensors, out / file.name, {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    theta = config.get("rope_parameters", {}).get("rope_theta", 10000.0)
    (out / "config.json").write_text(json.dumps({"rope_theta": theta} | config | {"dtype": "float32"}, indent=2))
    return out


def merged(adapter: Path, out: Path) -> Path:
    """The base with one adapter merged into its weights."""
    if out.exists():
        return out
    from inlay import api

    api.merge_adapters({str(adapter): None}, out, dtype="float32", check=False, folder=str(out.parent))
    return out
