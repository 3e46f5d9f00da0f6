"""mlx-lm: its own adapter folder, with A and B transposed and one rank and scale for all modules."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file

from inlay.adapters.exports.form import (
    ExportSource,
    Form,
    Limit,
    ReadBack,
    compared,
    embedding_limit,
    family_limit,
    method_limits,
)
from inlay.adapters.lowrank import Factors
from inlay.storage import write_json

WEIGHTS, SETTINGS = "adapters.safetensors", "adapter_config.json"
FAMILIES: Final = dict.fromkeys(
    (
        "cohere", "ernie4_5", "gemma", "gemma2", "gemma3_text", "granite", "helium", "hunyuan_v1_dense", "llama", "mistral",
        "nemotron", "olmo2", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2",
    ),
    "0.32.2",
)  # fmt: skip
"""Model type -> version of mlx-lm whose module names and weight shapes were compared with those of transformers."""
_READ_ROPE_PARAMETERS: Final = frozenset(("qwen3",))
"""Families in which mlx-lm reads `rope_parameters`, under which transformers 5 writes the RoPE settings."""
_IN_BLOCK: Final = re.compile(r"model\.layers\.\d+\.(.+)")


def limits(source: ExportSource) -> list[Limit]:
    """A LoRA on linear layers of a family that has the same names there."""
    family = family_limit(source, FAMILIES, "mlx-lm")
    return [*method_limits(source), family, embedding_limit(source), _rope_limit(source)]


def _rope_limit(source: ExportSource) -> Limit:
    """Whether mlx-lm finds the RoPE settings of the base: those it does not find have another value there."""
    config: Any = json.loads((source.base.folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    lacking = {}
    if source.family not in _READ_ROPE_PARAMETERS:
        if "rope_theta" in rope and "rope_theta" not in config:
            lacking["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
            lacking["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if not lacking:
        return Limit("rope", True, "found by mlx-lm in the base's config.json")
    entries = json.dumps(lacking)[1:-1]
    return Limit(
        "rope", None, f"mlx-lm 0.32 finds it only at the top of the base's config.json: add {entries} to a copy"
    )


def write(source: ExportSource, folder: Path) -> None:
    """Writes `adapters.safetensors` and `adapter_config.json`."""
    tensors = {}
    factors = source.factors()
    for module, (a_RI, b_OR) in factors.items():
        tensors[f"{module}.lora_a"] = a_RI.T.contiguous()
        tensors[f"{module}.lora_b"] = b_OR.T.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "mlx"})
    keys = sorted({_key(module) for module in factors})
    write_json(folder / SETTINGS, {
        "fine_tune_type": "lora", "num_layers": source.architecture.num_hidden_layers,
        "lora_parameters": {"rank": source.rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
    })  # fmt: skip


def _key(module: str) -> str:
    """mlx-lm's name of a module: within its block where it is in one."""
    inside = _IN_BLOCK.fullmatch(module)
    return inside.group(1) if inside else module


def read_factors(folder: Path) -> dict[str, Factors]:
    """A and B of each module as mlx-lm computes with them: y + scale · (x·a)·b, for the keys of its config."""
    settings: Any = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["lora_parameters"]
    tensors = load_file(folder / WEIGHTS)
    modules = {name.rpartition(".")[0] for name in tensors}
    return {
        module: Factors(
            tensors[f"{module}.lora_a"].T.float(), tensors[f"{module}.lora_b"].T.float() * settings["scale"]
        )
        for module in modules
        if _key(module) in settings["keys"] and tensors[f"{module}.lora_a"].shape[1] == settings["rank"]
    }


def read_back(source: ExportSource, folder: Path) -> ReadBack:
    """The files against the adapter."""
    return compared(source.lowrank.factors, read_factors(folder))


def commands(source: ExportSource, folder: Path) -> list[str]:
    """The server, and one answer."""
    base = shlex.quote(source.base.hub_id or str(source.base.folder.absolute()))
    at = shlex.quote(str(folder))
    return [
        f"mlx_lm.server --model {base} --adapter-path {at}",
        f"mlx_lm.generate --model {base} --adapter-path {at} --temp 0 --prompt 'Hello'",
    ]


MLX = Form(
    "mlx-lm", limits, write, read_back, commands,
    "mlx-lm was not run. In blocks that the adapter leaves alone mlx-lm adds an adapter of zeros, which changes nothing.",
)  # fmt: skip
