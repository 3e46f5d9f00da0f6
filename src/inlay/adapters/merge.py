"""Adapters merged into the weights of their base, tensor by tensor: no more than a few tensors are in memory.

Shapes: I inputs and O outputs of a linear layer, R rank, V embeddings of width D. GPT-2's Conv1D holds (I, O).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from inlay.adapters.lowrank import module_factors
from inlay.errors import AdapterError
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef, weight_files
from inlay.models.memory_mapped import paged_out
from inlay.models.named_class import sources_in_files
from inlay.storage import write_json

Change = Callable[[Tensor], Tensor]
"""fp32 weight of the base -> fp32 weight with the adapter."""
_ROOT: Final = "base_model.model."
_INDEX: Final = "model.safetensors.index.json"
_CODES: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_DTYPES: Final = {code: dtype for dtype, code in _CODES.items()}
"""Dtypes that an adapter can be merged into; tensors of all others are copied."""
_BITS: Final = re.compile(r"[A-Z]+(\d+)")


@dataclass(slots=True)
class Rounding:
    """The share of the adapter's change that the dtype of the merged weights rounds away."""

    lost2: float = 0.0
    """Σ‖stored - exact‖² over the changed tensors."""
    change2: float = 0.0
    """Σ‖exact - base‖² over the same."""
    worst: float = 0.0
    """The largest relative loss of one tensor."""
    worst_name: str = ""

    def add(self, name: str, base: Tensor, exact: Tensor, stored: Tensor) -> None:
        """Counts one tensor; all three in fp32."""
        lost2, change2 = float((stored - exact).square().sum()), float((exact - base).square().sum())
        self.lost2, self.change2 = self.lost2 + lost2, self.change2 + change2
        if change2 > 0 and math.sqrt(lost2 / change2) > self.worst:
            self.worst, self.worst_name = math.sqrt(lost2 / change2), name

    @property
    def relative(self) -> float:
        """‖stored - exact‖ / ‖exact - base‖ over all changed tensors; 0 where nothing changed."""
        return math.sqrt(self.lost2 / self.change2) if self.change2 else 0.0


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge before it is written: every tensor of the base's files, the changes of some, and tensors that were tied."""

    base: BaseRef
    changes: Mapping[str, Sequence[Change]]
    """By tensor name in the base's files."""
    parameters: Mapping[str, str]
    """Tensor name in the files -> parameter name in the model, where they are the same tensor."""
    untied: Mapping[str, str] = field(default_factory=dict)
    """New tensor name -> the tensor that it was tied to."""


class NotInFiles(Exception):
    """A changed parameter has no tensor of its own in the base's files: transformers makes it of others when it loads."""


def changes_of(state: AdapterState, model: nn.Module) -> dict[str, Change]:
    """The change of each parameter that the adapter changes, by its name in the model, which may be on the meta device.

    Raises: AdapterError for virtual tokens, which are no weights; NotInFiles for what PEFT alone can merge.
    """
    method, tensors = state.method, state.exported().tensors
    if method.name == "prompt":
        raise AdapterError(
            "adapter: prompt tuning puts virtual tokens before the input and changes no weight, so there is nothing to "
            "merge. Serve base and adapter together."
        )
    if method.name == "full":
        return {name: _replaced(tensor) for name, tensor in tensors.items()}
    return _ia3_changes(tensors, model) if method.name == "ia3" else _lora_changes(state, model)


def combined(parts: Sequence[tuple[float, Mapping[str, Change]]]) -> dict[str, list[Change]]:
    """W + Σ weight·(change(W) - W), as a list with one function for each parameter that any part changes."""
    names = sorted({name for _, changes in parts for name in changes})
    return {name: [_weighted([(w, c[name]) for w, c in parts if name in c])] for name in names}


def plan_merge(
    base: BaseRef, model: nn.Module, changes: Mapping[str, Sequence[Change]], *, keeps_ties: bool
) -> MergePlan:
    """Where each changed parameter lies in the base's files.

    `model` is the base on the meta device. Tied weights of which one is changed become two, but for `keeps_ties`, of full
    fine-tuning. Raises: NotInFiles.
    """
    sources = sources_in_files(base, model)
    shapes = {name: shape for file in weight_files(base.folder) for name, shape in _shapes(file).items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ties = ties_of(model)
    places: dict[str, str] = {}
    for parameter, owner in ((name, ties.get(name, name)) for name in parameters):
        found = [*sources.get(owner, ())]
        if len(found) == 1 and shapes[found[0]] == list(parameters[parameter].shape):
            places[parameter] = found[0]
    if missing := sorted(set(changes) - set(places)):
        raise NotInFiles(missing[0])
    untied = {}
    for one, other in () if keeps_ties else ties.items():
        if one in changes or other in changes:
            untied[one], places[one] = places[other], one
    by_file = {places[parameter]: list(those) for parameter, those in changes.items()}
    assert len(by_file) == len(changes), "each tensor once"
    return MergePlan(base, by_file, {place: parameter for parameter, place in places.items()}, untied)


def write_merged(
    plan: MergePlan,
    folder: Path,
    dtype: torch.dtype | None,
    over: Callable[[str], Tensor | None],
    done: Callable[[int, int], None],
) -> Rounding:
    """Writes the weight files of the merged model, and their index where the base has one.

    `dtype` None keeps that of each tensor. `over` gives the weight of a parameter that the adapter was trained over, where
    that is not the one in the files. `done` gets (tensors written, of all). Raises: AdapterError where a value overflows.
    """
    rounding, weight_map, size = Rounding(), {}, 0
    files = weight_files(plan.base.folder)
    total = sum(len(_shapes(file)) for file in files) + len(plan.untied)
    written = 0
    for file in files:
        # what was read of a mapped file would stay in memory
        with paged_out(plan.base.folder), safe_open(file, framework="pt") as source:
            names = {name: name for name in source.keys()}  # noqa: SIM118
            names = {n: o for n, o in names.items() if n not in plan.untied}
            names |= {new: old for new, old in plan.untied.items() if old in names}
            entries = {new: _entry(source, old, dtype) for new, old in names.items()}
            with _TensorFile(folder / file.name, entries) as target:
                for new, old in names.items():
                    target.write(new, _merged(plan, new, source.get_tensor(old), entries[new], over, rounding))
                    weight_map[new] = file.name
                    written += 1
                    done(written, total)
            size += target.bytes
    if (plan.base.folder / _INDEX).is_file():
        write_json(folder / _INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
    return rounding


def _merged(
    plan: MergePlan, name: str, tensor: Tensor, entry: _Entry, over: Callable[[str], Tensor | None], rounding: Rounding
) -> Tensor:
    changes = plan.changes.get(name)
    if entry.dtype is None:
        if changes:
            raise AdapterError(
                f"merge: the base's {name} is stored as {entry.code}, and an adapter is merged into F32, F16 and BF16 weights. "
                "Merge into the base in one of these."
            )
        return tensor
    own = over(plan.parameters.get(name, ""))
    if not changes:
        stored = (tensor if own is None else own.reshape(tensor.shape)).to(entry.dtype)
    else:
        base = (tensor if own is None else own).float().reshape(tensor.shape)
        exact = base
        for change in changes:
            exact = change(exact)
        stored = exact.to(entry.dtype)
        if not torch.isfinite(exact).all():
            raise AdapterError(
                f"merge: {name} would hold values that are not finite. Lower the weights of the adapters."
            )
        rounding.add(name, base, exact, stored.float())
    if entry.dtype == torch.float16 and not torch.isfinite(stored).all():
        raise AdapterError(f"merge: {name} overflows float16 (largest value 65504). Use --dtype bfloat16 or float32.")
    return stored


def _lora_changes(state: AdapterState, model: nn.Module) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    tensors, modules = state.exported().tensors, dict(model.named_modules())
    for module, factors in module_factors(state).items():
        layer = modules.get(module)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise NotInFiles(module)
        magnitude = tensors.get(f"{_ROOT}{module}.lora_magnitude_vector")
        if magnitude is not None and isinstance(layer, nn.Embedding):
            raise NotInFiles(module)
        transposed = isinstance(layer, nn.Embedding) or _is_conv1d(layer)
        shape = (len(factors.B_OR), factors.A_RI.shape[1])
        if shape != tuple(weight.T.shape if transposed else weight.shape):
            raise AdapterError(
                f"adapter: {module} has a change of shape {shape}, which does not fit this base's {tuple(weight.shape)}."
            )
        changes[f"{module}.weight"] = _lora_change(factors.A_RI, factors.B_OR, magnitude, transposed=transposed)
    for name, tensor in tensors.items():
        if ".lora_" in name:
            continue
        parameter = name.removeprefix(_ROOT).replace(".base_layer", "")
        if parameter.endswith("bias"):
            changes[parameter] = _replaced(tensor)
        else:
            changes[parameter] = _over_copy(parameter, tensor, changes.get(parameter))
    return changes


def _over_copy(name: str, copy: Tensor, then: Change | None) -> Change:
    """The change of a weight that the adapter brings a copy of, which must be the base's own."""

    def change(weight: Tensor) -> Tensor:
        if copy.shape != weight.shape or not torch.equal(copy.float(), weight):
            raise AdapterError(
                f"adapter: brings a {name} of its own in place of the base's: tokens were added or the base is another. "
                "Merge it into its base with PEFT, and name the merged model."
            )
        return weight if then is None else then(weight)

    return change


def _lora_change(a_RI: Tensor, b_OR: Tensor, magnitude_O: Tensor | None, *, transposed: bool) -> Change:
    def change(weight: Tensor) -> Tensor:
        w_OI = weight.T if transposed else weight
        w_OI = torch.addmm(w_OI, b_OR, a_RI)
        if magnitude_O is not None:  # Source: Liu et al. 2024, "DoRA", equation 5
            w_OI = w_OI * (magnitude_O.float().reshape(-1, 1) / w_OI.norm(dim=1, keepdim=True))
        return w_OI.T if transposed else w_OI

    return change


def _ia3_changes(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    modules = dict(model.named_modules())
    for name, vector in tensors.items():
        module = name.removeprefix(_ROOT).removesuffix(".ia3_l")
        layer = modules.get(module)
        if not isinstance(getattr(layer, "weight", None), Tensor):
            raise NotInFiles(module)
        scale = vector.float().T if _is_conv1d(layer) else vector.float()
        changes[f"{module}.weight"] = _scaled(scale)
        if len(vector) > 1 and getattr(layer, "bias", None) is not None:  # (O, 1) scales the output, (1, I) the input
            changes[f"{module}.bias"] = _scaled(vector.float().reshape(-1))
    return changes


def _scaled(scale: Tensor) -> Change:
    return lambda weight: weight * scale


def _replaced(tensor: Tensor) -> Change:
    return lambda _: tensor.float()


def _weighted(parts: Sequence[tuple[float, Change]]) -> Change:
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]

    def change(weight: Tensor) -> Tensor:
        total = weight.clone()
        for factor, part in parts:
            total += factor * (part(weight) - weight)
        return total

    return change


def _is_conv1d(layer: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def ties_of(model: Any) -> dict[str, str]:
    """Parameter -> the one that it shares its tensor with, where config.json ties them."""
    settings = model.config
    text = getattr(settings, "text_config", None) or settings
    if not (getattr(settings, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False)):
        return {}
    return dict(getattr(model, "_tied_weights_keys", None) or {})


def _shapes(file: Path) -> dict[str, list[int]]:
    with safe_open(file, framework="pt") as source:
        return {name: source.get_slice(name).get_shape() for name in source.keys()}  # noqa: SIM118


class _Entry(NamedTuple):
    """One tensor of a file: its dtype in the format's words, and in torch's where it is converted."""

    code: str
    shape: list[int]
    dtype: torch.dtype | None

    @property
    def bytes(self) -> int:
        """Size of its values."""
        found = _BITS.match(self.code)
        return math.prod(self.shape) * (int(found[1]) // 8 if found else 1)  # BOOL has a byte


def _entry(source: Any, name: str, dtype: torch.dtype | None) -> _Entry:
    view = source.get_slice(name)
    code = view.get_dtype()
    if code not in _DTYPES:
        return _Entry(code, view.get_shape(), None)
    kept = dtype or _DTYPES[code]
    return _Entry(_CODES[kept], view.get_shape(), kept)


class _TensorFile:
    """A safetensors file that is written tensor by tensor, so that one tensor is in memory and not the whole file.

    Source: the format's description: 8 bytes of header size, a JSON header, the tensors without gaps.
    """

    def __init__(self, path: Path, entries: Mapping[str, _Entry]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._order, self.bytes = list(entries), 0
        for name, entry in entries.items():
            end = self.bytes + entry.bytes
            header[name] = {"dtype": entry.code, "shape": entry.shape, "data_offsets": [self.bytes, end]}
            self.bytes = end
        text = json.dumps(header, separators=(",", ":")).encode()
        self._header = text + b" " * (-len(text) % 8)
        self._path = path

    def __enter__(self) -> _TensorFile:
        self._file = self._path.open("wb")
        self._file.write(struct.pack("<Q", len(self._header)) + self._header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """The next tensor."""
        assert name == self._order.pop(0), "in the order of the header"
        self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._order, "every tensor of the header was written"
