"""Adapters as low-rank changes of a base, and exact arithmetic on them: sums, norms, spectra, truncations.

The change of a module is ΔW = B·A. No function but `dense` makes ΔW itself.

Shapes: I inputs and O outputs of a module, R rank, K singular values (at most the least of I, O and R).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from inlay.errors import AdapterError
from inlay.methods.adapter_file_checks import literal, values_by_layer
from inlay.methods.adapter_state import AdapterState
from inlay.methods.method import PeftSettings
from inlay.methods.peft_names import tensors_of_target_modules

BaseParameters = Callable[[str], Tensor | None]
"""A parameter of the base by its exact name; None where the base has none of that name."""
_PREFIX: Final = "base_model.model."
_HALVES: Final = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
_MAGNITUDE: Final = "lora_magnitude_vector"
_MERGE_INSTEAD: Final = "`inlay adapters merge` gives it as a whole model"
_ROUNDING: Final = 1e-14
"""Singular values below this share of ‖B‖·‖A‖ are what float64 leaves of an exact zero."""


class Factors(NamedTuple):
    """The change of one module, ΔW = B·A, in float32. The scale is in B."""

    A_RI: Tensor
    B_OR: Tensor

    @property
    def rank(self) -> int:
        """R."""
        return len(self.A_RI)

    @property
    def parameters(self) -> int:
        """Numbers in A and B."""
        return self.A_RI.numel() + self.B_OR.numel()


class Core(NamedTuple):
    """The singular value decomposition of one module's ΔW, in float64: left · diag(sigma) · right."""

    left_OK: Tensor
    sigma_K: Tensor
    """Largest first; exact zeros where ΔW has a lower rank."""
    right_KI: Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """One adapter as the change that it makes to its base."""

    base: str
    """Digest of the base."""
    factors: Mapping[str, Factors]
    """By the exact module name of the base. Of an embedding (V rows) I is V, and the change of its weight is (B·A)ᵀ."""
    biases: Mapping[str, Tensor]
    """Differences from the base's biases, by their parameter names."""
    embeddings: frozenset[str] = frozenset()
    """Modules that are embeddings."""
    weight_targets: frozenset[str] = frozenset()
    """Modules that PEFT must find by their weights; see `inlay.methods.peft_names`."""
    fan_in_fan_out: bool = False
    """Whether PEFT is told of transposed weights (GPT-2's Conv1D); the factors are not transposed."""
    task_type: str | None = "CAUSAL_LM"

    @property
    def rank(self) -> int:
        """The largest rank of a module, 0 without any."""
        return max((each.rank for each in self.factors.values()), default=0)

    @property
    def parameters(self) -> int:
        """Numbers in all factors and biases."""
        return sum(f.parameters for f in self.factors.values()) + sum(b.numel() for b in self.biases.values())

    @property
    def bytes(self) -> int:
        """Size in float32."""
        return 4 * self.parameters


def lowrank_of(state: AdapterState, base_digest: str, base: BaseParameters | None = None) -> LowRank:
    """The change that a LoRA adapter makes to the base of that digest.

    `base` is needed where the adapter trains biases, or brings a copy of an embedding that it adapts.

    Raises: AdapterError for a method whose change is no sum of low-rank factors, and for damaged files.
    """
    state = state.exported()
    settings = state.settings
    _require_plain_lora(state)
    factors = module_factors(state)
    names = {name: _module_and_half(name) for name in state.tensors}
    embeddings = {module for module, half in names.values() if half == "lora_embedding_A"}
    targets = {names[name][0] for name in tensors_of_target_modules([n for n in names if ".lora_" in n], settings)}
    weight_targets = frozenset(factors) - targets
    _refuse_experts(settings, factors, weight_targets)
    return LowRank(
        base_digest, factors, _bias_changes(state, names, base), frozenset(embeddings), weight_targets,
        bool(settings.get("fan_in_fan_out")), settings.get("task_type"),
    )  # fmt: skip


def module_factors(state: AdapterState) -> dict[str, Factors]:
    """A and B of each module that a LoRA adapter is on, with the scale in B. What DoRA does beside them is not in it.

    Raises: AdapterError for halves that do not fit each other.
    """
    settings = state.settings
    rslora = bool(settings.get("use_rslora"))
    beside = (_MAGNITUDE,) if settings.get("use_dora") else ()
    names = {name: _module_and_half(name) for name in state.tensors}
    pairs = _pairs({name: place for name, place in names.items() if place[1] not in beside})
    alphas, factors = _alphas(settings, pairs), {}
    for module, (down, up) in pairs.items():
        a_RI, b_OR = state.tensors[down].float(), state.tensors[up].float()
        rank = len(a_RI)
        if a_RI.ndim != 2 or b_OR.ndim != 2 or b_OR.shape[1] != rank or rank == 0:
            raise AdapterError(
                f"adapter: {module} has A of shape {tuple(a_RI.shape)} and B of shape {tuple(b_OR.shape)}. They must be "
                "(rank, inputs) and (outputs, rank)."
            )
        factors[module] = Factors(a_RI, b_OR * (alphas[module] / (math.sqrt(rank) if rslora else rank)))
    return factors


def state_of(adapter: LowRank, base: BaseParameters | None = None) -> AdapterState:
    """The adapter under PEFT's names, with the scale in B (alpha = rank), each module with its own rank.

    `inlay.adapters.flat` gives one rank to all. `base` is needed where the adapter changes biases.
    """
    if not adapter.factors:
        raise AdapterError("adapter: changes no module: it would be the base itself.")
    ranks = {module: each.rank for module, each in adapter.factors.items()}
    most = max(ranks.values())
    factors = adapter.factors
    if adapter.weight_targets:  # PEFT looks up their ranks under other names
        factors = {module: padded(each, most) for module, each in factors.items()}
        ranks = dict.fromkeys(ranks, most)
    pattern = {module: rank for module, rank in sorted(ranks.items()) if rank != most}
    settings: PeftSettings = {
        "peft_type": "LORA", "task_type": adapter.task_type, "inference_mode": True, "base_model_name_or_path": None,
        "r": most, "lora_alpha": most, "rank_pattern": pattern, "alpha_pattern": pattern, "lora_dropout": 0.0,
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "bias": "none", "modules_to_save": None,
        "fan_in_fan_out": adapter.fan_in_fan_out, "target_modules": sorted(set(factors) - adapter.weight_targets),
        "target_parameters": sorted(f"{module}.weight" for module in adapter.weight_targets) or None,
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for module in sorted(factors):
        halves = _HALVES[module in adapter.embeddings]
        for half, tensor in zip(halves, factors[module], strict=True):
            tensors[f"{_PREFIX}{module}.{half}"] = tensor
    if adapter.biases:
        settings["bias"], biases = _whole_biases(adapter, base)
        tensors |= biases
    return AdapterState(settings, tensors)


def summed(parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    """The exact weighted sum: B = [w₁B₁, w₂B₂, …] and A = [A₁; A₂; …] of each module that any part changes.

    Raises: AdapterError for parts on different bases, with both digests.
    """
    first = parts[0][1]
    for _, other in parts[1:]:
        if other.base != first.base:
            raise AdapterError(
                f"adapters: are on different bases ({first.base[:12]} and {other.base[:12]}): their changes have no sum. "
                "Train both on one base."
            )
    factors, biases = {}, {}
    for module in sorted({module for _, part in parts for module in part.factors}):
        those = [(weight, part.factors[module]) for weight, part in parts if module in part.factors]
        factors[module] = Factors(
            torch.cat([each.A_RI for _, each in those]), torch.cat([weight * each.B_OR for weight, each in those], 1)
        )
    for name in sorted({name for _, part in parts for name in part.biases}):
        biases[name] = torch.stack([w * part.biases[name] for w, part in parts if name in part.biases]).sum(0)
    return LowRank(
        first.base,
        factors,
        biases,
        frozenset().union(*(part.embeddings for _, part in parts)),
        frozenset().union(*(part.weight_targets for _, part in parts)),
        any(part.fan_in_fan_out for _, part in parts),
        first.task_type,
    )


def core(factors: Factors) -> Core:
    """The singular value decomposition of ΔW, by QR of B and Aᵀ: O((O+I)·R² + R³)."""
    q_OK, r_KR = torch.linalg.qr(factors.B_OR.double())
    p_IK, s_KR = torch.linalg.qr(factors.A_RI.double().T)
    u, sigma, vh = torch.linalg.svd(r_KR @ s_KR.T, full_matrices=False)
    return Core(q_OK @ u, _without_rounding(sigma, r_KR, s_KR), vh @ p_IK.T)


def spectrum(factors: Factors) -> Tensor:
    """The singular values of ΔW in float64, largest first; half the work of `core`."""
    r_KR, s_KR = (torch.linalg.qr(half.double(), mode="r").R for half in (factors.B_OR, factors.A_RI.T))
    return _without_rounding(torch.linalg.svdvals(r_KR @ s_KR.T), r_KR, s_KR)


def cut(decomposed: Core, rank: int) -> Factors:
    """The nearest change of at most that rank (Eckart and Young), with each singular value split evenly on A and B."""
    root_R = decomposed.sigma_K[:rank].sqrt()
    b_OR, a_RI = decomposed.left_OK[:, :rank] * root_R, root_R[:, None] * decomposed.right_KI[:rank]
    return Factors(a_RI.float().contiguous(), b_OR.float().contiguous())


def energy_rank(sigma_K: Tensor, share: float) -> int:
    """The least rank that keeps that share of ‖ΔW‖²; 0 for ΔW = 0."""
    energy_K = sigma_K.square().cumsum(0)
    if float(energy_K[-1]) == 0.0:
        return 0
    return min(int((energy_K < share * energy_K[-1]).sum()) + 1, int((sigma_K > 0).sum()))


def allocated(spectra: Mapping[str, Tensor], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks of all modules that keep the most of Σ‖ΔW‖² within a budget; `costs` is the price of one rank of a module.

    Singular values are taken by σ² per price until one does not fit, then smaller ones that still do. No other choice at
    the price of the first part keeps more.
    """
    ranks, spent = dict.fromkeys(spectra, 0), 0

    def entry(module: str) -> tuple[float, str]:
        return -(float(spectra[module][ranks[module]]) ** 2) / costs[module], module

    queue = [entry(module) for module in spectra if len(spectra[module])]
    heapq.heapify(queue)
    while queue:
        gain, module = heapq.heappop(queue)
        if gain == 0.0 or spent + costs[module] > budget:
            continue
        spent += costs[module]
        ranks[module] += 1
        if ranks[module] < len(spectra[module]):
            heapq.heappush(queue, entry(module))
    return ranks


def inner(f: Factors, g: Factors) -> float:
    """⟨ΔW_f, ΔW_g⟩ (Frobenius), in float64 and without either ΔW."""
    return float(((g.A_RI.double() @ f.A_RI.double().T) * (g.B_OR.double().T @ f.B_OR.double())).sum())


def norm(adapter: LowRank) -> float:
    """‖ΔW‖ over all modules (Frobenius)."""
    return math.sqrt(sum(max(inner(each, each), 0.0) for each in adapter.factors.values()))


def dense(factors: Factors) -> Tensor:
    """(O, I) ΔW in float32; of an embedding and a Conv1D the transpose of the weight's change."""
    return factors.B_OR @ factors.A_RI


def padded(factors: Factors, rank: int) -> Factors:
    """The same change with rows and columns of zeros up to that rank."""
    more = rank - factors.rank
    assert more >= 0
    pad = torch.nn.functional.pad
    return Factors(pad(factors.A_RI, (0, 0, 0, more)), pad(factors.B_OR, (0, more)))


def _without_rounding(sigma_K: Tensor, r_KR: Tensor, s_KR: Tensor) -> Tensor:
    return torch.where(sigma_K > _ROUNDING * r_KR.norm() * s_KR.norm(), sigma_K, 0.0)


def _require_plain_lora(state: AdapterState) -> None:
    """Raises: AdapterError for a change that is no sum of low-rank factors, with what to do instead."""
    method = state.method
    if method.name == "lora" and not state.settings.get("use_dora"):
        return
    reasons = {
        "lora": f"DoRA scales the base's own weights, so its change has full rank. {_MERGE_INSTEAD}.",
        "ia3": f"IA3 multiplies activations, so its change has full rank. {_MERGE_INSTEAD}.",
        "prompt": "prompt tuning puts virtual tokens before the input and changes no weight. Use it alone.",
        "full": "full fine-tuning changes all weights in all directions. Use its model as a base of its own.",
    }
    other = f"{method.title} changes its base by something else than low-rank factors. Use it alone."
    raise AdapterError(f"adapter: {reasons.get(method.name, other)}")


def _refuse_experts(settings: PeftSettings, factors: Mapping[str, Factors], by_weight: frozenset[str]) -> None:
    """Raises: AdapterError for an adapter of several experts in one tensor."""
    ranks = values_by_layer(settings.get("rank_pattern"), factors, settings.get("r"))
    named = [name for name in settings.get("target_parameters") or () if not name.endswith(".weight")]
    second = [module for module in factors if module.endswith(".base_layer")]
    stacked = [m for m in by_weight if factors[m].rank != ranks[m]]
    if found := named or second or sorted(stacked):
        raise AdapterError(
            f"adapter: changes {found[0]}, a tensor with all experts of a layer (adapter.experts), which the adapter "
            f"arithmetic does not know. {_MERGE_INSTEAD}."
        )


def _module_and_half(name: str) -> tuple[str, str]:
    """(module of the base, half of its factors) of PEFT's name of a tensor; (parameter of the base, "") of any other."""
    stem, lora, half = name.removeprefix(_PREFIX).partition(".lora_")
    return (stem, f"{lora[1:]}{half}") if lora else (stem.replace(".base_layer", ""), "")


def _pairs(names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Names of A and B of each module. Raises: AdapterError where one of them is missing."""
    by_place = {place: name for name, place in names.items()}
    pairs = {}
    for module, half in by_place:
        if not half:
            continue
        kind = next((halves for halves in _HALVES if half in halves), None)
        if kind is None:
            raise AdapterError(f"adapter: {module}.{half} is neither A nor B of a LoRA. {_MERGE_INSTEAD}.")
        down, up = (by_place.get((module, each)) for each in kind)
        if down is None or up is None:
            raise AdapterError(f"adapter: {module} has only {half}. A and B belong together: the file is damaged.")
        pairs[module] = (down, up)
    return pairs


def _alphas(settings: PeftSettings, modules: Collection[str]) -> dict[str, float]:
    """Alpha of each module. Raises: AdapterError for one that is no number, or is given by a regular expression."""
    patterns = settings.get("alpha_pattern") or {}
    if strange := [pattern for pattern in patterns if literal(pattern) is None]:
        raise AdapterError(
            f"adapter: alpha_pattern has the regular expression {strange[0]!r}. Write each module's name, or its end."
        )
    alphas = values_by_layer(patterns, modules, settings.get("lora_alpha"))
    for module, alpha in alphas.items():
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise AdapterError(f"adapter: alpha of {module} is {alpha!r}; it must be a number.")
    return alphas


def _bias_changes(
    state: AdapterState, names: Mapping[str, tuple[str, str]], base: BaseParameters | None
) -> dict[str, Tensor]:
    """Differences from the base's biases; copies of its weights are compared and left out. Raises: AdapterError."""
    changes = {}
    for name, (path, half) in names.items():
        if half:
            continue
        own = base(path) if base is not None else None
        if own is None:
            lacking = "it has none of that name" if base is not None else "the base was not opened"
            raise AdapterError(f"adapter: {path} is to be compared with the base's own, and {lacking}.")
        change = state.tensors[name].float() - own.detach().float().cpu()
        if path.endswith("bias"):
            changes[path] = change
        elif change.any():
            raise AdapterError(
                f"adapter: brings a {path} of its own in place of the base's: tokens were added or the base is another. "
                "Merge it into its base with PEFT, and name the merged model."
            )
    return changes


def _whole_biases(adapter: LowRank, base: BaseParameters | None) -> tuple[str, dict[str, Tensor]]:
    """(PEFT's `bias`, biases as PEFT holds them): of all adapted modules, or of the whole base if others change, too."""
    adapted = {f"{module}.bias": f"{_PREFIX}{module}.base_layer.bias" for module in adapter.factors}
    others = set(adapter.biases) - set(adapted)
    whole = {}
    for name in sorted({*adapted, *others}):
        own = base(name) if base is not None else None
        if own is None:
            if name in adapter.biases:
                raise AdapterError(f"adapter: changes the bias {name}, and the base's own is not known here.")
            continue
        value = own.detach().float().cpu()
        whole[adapted.get(name, f"{_PREFIX}{name}")] = value + adapter.biases[name] if name in adapter.biases else value
    return ("all" if others else "lora_only"), whole


def parameters_of(model: torch.nn.Module) -> BaseParameters:
    """The parameters of an opened base, by name; tied ones under each of their names."""
    held = dict(model.named_parameters(remove_duplicate=False))
    return held.get
