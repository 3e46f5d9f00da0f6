"""llama.cpp: a GGUF file of the adapter, for the GGUF file of its base.

Shapes: I inputs and O outputs of a module, R rank, H heads.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

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
from inlay.errors import AdapterError


class Family(NamedTuple):
    """One model type in llama.cpp."""

    architecture: str
    """Name of gguf's `MODEL_ARCH`."""
    turns_heads: bool = False
    """Whether llama.cpp turns neighbouring rows of a head in RoPE, so that rows of q and k have another order."""


FAMILIES: Final = {
    "gemma": Family("GEMMA"), "gemma2": Family("GEMMA2"), "gemma3_text": Family("GEMMA3"), "granite": Family("GRANITE", True),
    "llama": Family("LLAMA", True), "mistral": Family("LLAMA", True), "olmo2": Family("OLMO2"), "phi3": Family("PHI3"),
    "qwen2": Family("QWEN2"), "qwen3": Family("QWEN3"), "smollm3": Family("SMOLLM3", True),
    "starcoder2": Family("STARCODER2"),
}  # fmt: skip
"""Model types whose tensors were compared with those that llama.cpp's own converter writes."""
_HALVES: Final = ("lora_a", "lora_b")


def limits(source: ExportSource) -> list[Limit]:
    """A LoRA on linear layers of a known family, and the package that writes the file."""
    family = family_limit(source, FAMILIES, "llama.cpp's converter")
    return [*method_limits(source), family, embedding_limit(source), package_limit()]


def package_limit() -> Limit:
    """Whether the package gguf is installed."""
    is_there = find_spec("gguf") is not None
    return Limit("package", is_there, "gguf" if is_there else 'gguf is not installed: pip install "inlay[gguf]"')


def file_name(source: ExportSource) -> str:
    """Name of the adapter's file."""
    return f"{source.name}.gguf"


def write(source: ExportSource, folder: Path) -> None:
    """Writes the GGUF file of the adapter: alpha is the rank, so the scale is 1."""
    import gguf

    family, names, factors = FAMILIES[source.family], tensor_names(source), source.factors()
    architecture = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family.architecture]]
    writer = gguf.GGUFWriter(str(folder / file_name(source)), architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(source.name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(source.rank))
    for module, (a_RI, b_OR) in factors.items():
        heads = turned_heads(source, module)
        halves = a_RI, turned(b_OR, heads) if heads else b_OR
        for half, tensor in zip(_HALVES, halves, strict=True):
            writer.add_tensor(f"{names[module]}.weight.{half}", tensor.contiguous().numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def tensor_names(source: ExportSource) -> dict[str, str]:
    """llama.cpp's name of each adapted module. Raises: AdapterError for one that it has no name for."""
    import gguf

    kind = gguf.MODEL_ARCH[FAMILIES[source.family].architecture]
    known = gguf.get_tensor_name_map(kind, source.architecture.num_hidden_layers)
    names = {}
    for module in source.lowrank.factors:
        name = known.get_name(module)
        if name is None:
            raise AdapterError(f"export: llama.cpp has no tensor for {module} of {source.family}.")
        names[module] = name
    return names


def turned_heads(source: ExportSource, module: str) -> int:
    """Number of heads by which the rows of a module have another order in llama.cpp; 0 where they have the same."""
    if not FAMILIES[source.family].turns_heads:
        return 0
    shape = source.architecture
    heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
    return int(heads.get(module.rpartition(".")[2], 0))


def turned(b_OR: Tensor, heads: int) -> Tensor:
    """Rows in llama.cpp's order: the two halves of each head interleaved."""
    return b_OR.view(heads, 2, len(b_OR) // heads // 2, -1).transpose(1, 2).reshape(b_OR.shape)


def turned_back(b_OR: Tensor, heads: int) -> Tensor:
    """Rows in the order of transformers."""
    return torch.cat([head.view(-1, 2, head.shape[1]).transpose(0, 1).flatten(0, 1) for head in b_OR.chunk(heads)])


def read_factors(source: ExportSource, folder: Path) -> dict[str, Factors]:
    """A and B of each module as llama.cpp computes with them: scale = alpha / rank. Raises: AdapterError."""
    import gguf

    reader = gguf.GGUFReader(str(folder / file_name(source)))
    if (kind := _value(reader, gguf.Keys.General.TYPE)) != gguf.GGUFType.ADAPTER:
        raise AdapterError(f"export: the file is of type {kind!r}, not an adapter. Nothing was kept.")
    alpha = float(_value(reader, gguf.Keys.Adapter.LORA_ALPHA))
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in reader.tensors}
    return _scaled(source, tensors, alpha)


def _scaled(source: ExportSource, tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Factors]:
    modules = {name: module for module, name in tensor_names(source).items()}
    found = {}
    for name in {name.rpartition(".weight.")[0] for name in tensors}:
        a_RI, b_OR = (tensors[f"{name}.weight.{half}"] for half in _HALVES)
        module = modules.get(name, name)
        heads = turned_heads(source, module)
        b_OR = turned_back(b_OR, heads) if heads else b_OR
        found[module] = Factors(a_RI, b_OR * (alpha / b_OR.shape[1]))
    return found


def _value(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def read_back(source: ExportSource, folder: Path) -> ReadBack:
    """The file against the adapter."""
    return compared(source.lowrank.factors, read_factors(source, folder))


def base_file(source: ExportSource) -> str:
    """The GGUF file of the base: the one that it was trained on, or a name to be replaced."""
    return str(source.base.gguf.file.absolute()) if source.base.gguf else "BASE.gguf"


def commands(source: ExportSource, folder: Path) -> list[str]:
    """The base converted where it is no GGUF file, and the server."""
    server = f"llama-server -m {shlex.quote(base_file(source))} --lora {shlex.quote(str(folder / file_name(source)))}"
    if source.base.gguf:
        return [server]
    base = shlex.quote(str(source.base.folder.absolute()))
    return [f"python convert_hf_to_gguf.py {base} --outtype f16 --outfile BASE.gguf", server]


GGUF = Form(
    "llama.cpp", limits, write, read_back, commands,
    "llama.cpp was not run. Over a quantized base file the answers are those of another base than the adapter was trained "
    "and measured on.",
)  # fmt: skip
