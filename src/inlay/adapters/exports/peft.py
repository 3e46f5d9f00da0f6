"""PEFT's format: in flat form, which every program that serves LoRA reads alike, or exactly as it was trained."""

from __future__ import annotations

from pathlib import Path

from inlay.adapters.exports.form import (
    DTYPES,
    ExportSource,
    Form,
    Limit,
    ReadBack,
    compared,
    method_limits,
    same_tensors,
)
from inlay.adapters.flat import flat
from inlay.adapters.lowrank import Factors, module_factors
from inlay.methods.adapter_state import AdapterState
from inlay.models.named_class import renamed, reverse


def limits(source: ExportSource) -> list[Limit]:
    """The flat form needs a change of low rank; as trained, every method has PEFT's format."""
    if source.as_trained:
        return [Limit("method", True, f"{source.state.method.title}, as it was trained")]
    return method_limits(source)[:1]


def written_state(source: ExportSource) -> AdapterState:
    """The adapter as it is written, under the module names of the class that the base's config.json names."""
    if source.as_trained:
        state = source.state.exported()
    else:
        state, dtype = flat(source.lowrank, source.values), DTYPES[source.dtype]
        state = AdapterState(state.settings, {name: tensor.to(dtype) for name, tensor in state.tensors.items()})
    return state.under(source.named).on(source.base)


def write(source: ExportSource, folder: Path) -> None:
    """Writes `adapter_model.safetensors` and `adapter_config.json`."""
    written_state(source).write(folder)


def read_state(source: ExportSource, folder: Path) -> AdapterState:
    """The adapter that was written, under the module names that it was trained with."""
    state = AdapterState.read(folder)
    moved = source.named.prefixes if source.named is not None else {}
    return AdapterState(state.settings, renamed(state.tensors, reverse(moved))) if moved else state


def read_factors(source: ExportSource, folder: Path) -> dict[str, Factors]:
    """A and B of each module, scaled as PEFT scales them."""
    state = read_state(source, folder)
    lora = {name: tensor for name, tensor in state.tensors.items() if ".lora_" in name}
    return module_factors(AdapterState(state.settings, lora))


def read_back(source: ExportSource, folder: Path) -> ReadBack:
    """The files against the adapter: tensor by tensor as trained, else by the change of each module."""
    if source.as_trained:
        return same_tensors(source.state.exported().tensors, read_state(source, folder).tensors)
    return compared(source.lowrank.factors, read_factors(source, folder))


def commands(source: ExportSource, folder: Path) -> list[str]:
    """Two lines of Python."""
    base = source.base.peft_settings()["base_model_name_or_path"]
    return [
        f"python -c 'from transformers import AutoModelForCausalLM; from peft import PeftModel; "
        f'print(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{folder}"))\''
    ]


PEFT = Form("PEFT", limits, write, read_back, commands, "PEFT was not run.")
