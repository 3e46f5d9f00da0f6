"""Adapters as low-rank changes: what they compute stays equal, sums are exact, truncation errors are true."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from families import family
from inlay.adapters.flat import flat, rank_class
from inlay.adapters.lowrank import (
    Factors,
    LowRank,
    allocated,
    core,
    cut,
    dense,
    energy_rank,
    inner,
    lowrank_of,
    norm,
    parameters_of,
    spectrum,
    state_of,
    summed,
)
from inlay.errors import AdapterError
from inlay.methods.adapter import attach
from inlay.methods.adapter_state import AdapterState
from inlay.methods.full import FULL
from inlay.methods.target_modules import resolve_targets
from methods.test_adapter import decoder, logits
from methods.test_adapter import settings as config_of
from methods.test_adapters_of_others import write

BASE, OTHER = "a" * 64, "b" * 64
SIZES = {"q": (6, 5), "v": (3, 5), "mlp.up": (7, 4), "mlp.down": (4, 7)}
"""(outputs, inputs) of each module of a base that is never made."""
Change = dict[str, Tensor]


def random_adapter(seed: int) -> tuple[AdapterState, Change]:
    """A LoRA of random targets, ranks, alphas and scale rule, and ΔW of each module in float64 by PEFT's formula."""
    draw = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    rank, alpha, rslora = pick(1, 4), pick(1, 40) / 2, bool(pick(0, 1))
    targets = [module for module in SIZES if pick(0, 2)] or ["q"]
    ranks = {module: pick(1, 5) for module in targets if pick(0, 1)}
    alphas = {module.rpartition(".")[2]: pick(1, 30) for module in targets if pick(0, 1)}
    tensors, change = {}, {}
    for module in targets:
        r, (outputs, inputs) = ranks.get(module, rank), SIZES[module]
        a, b = torch.randn(r, inputs, generator=draw), torch.randn(outputs, r, generator=draw)
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        scale = alphas.get(module.rpartition(".")[2], alpha) / (math.sqrt(r) if rslora else r)
        change[module] = scale * b.double() @ a.double()
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "use_rslora": rslora,
        "rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": targets,
    }  # fmt: skip
    return AdapterState(peft, tensors), change


def lowrank(seed: int) -> LowRank:
    return lowrank_of(random_adapter(seed)[0], BASE)


def assert_changes(adapter: LowRank, expected: Change, size: float) -> None:
    for module, change in expected.items():
        got = dense(adapter.factors[module]) if module in adapter.factors else torch.zeros_like(change)
        assert float((got - change).norm()) <= 1e-6 * size, module
    assert set(adapter.factors) <= set(expected)


SEEDS = st.integers(0, 2**31)
WEIGHTS = st.sampled_from([0.7, 0.3, -0.4, 1.0, -1.0, 1.9])


@settings(max_examples=200, deadline=None)
@given(SEEDS, SEEDS, WEIGHTS, WEIGHTS)
def test_a_weighted_sum_changes_each_module_by_the_sum_of_the_weighted_changes(s: int, t: int, v: float, w: float):
    (a, change_a), (b, change_b) = random_adapter(s), random_adapter(t)
    zero = {module: torch.zeros(SIZES[module], dtype=torch.float64) for module in change_a | change_b}
    expected = {m: v * change_a.get(m, zero[m]) + w * change_b.get(m, zero[m]) for m in zero}
    size = sum(float(change.norm()) for part in (change_a, change_b) for change in part.values())
    parts = [(v, lowrank_of(a, BASE)), (w, lowrank_of(b, BASE))]
    together = summed(parts)
    assert_changes(together, expected, size)
    assert_changes(summed(parts[::-1]), expected, size)  # the order of the parts does not matter
    assert_changes(lowrank_of(state_of(together), BASE), expected, size)
    assert_changes(lowrank_of(flat(together), BASE), expected, size)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 6))
def test_the_error_of_a_truncation_is_that_of_the_dense_change_and_the_least(seed: int, rank: int):
    for factors in lowrank(seed).factors.values():
        decomposed, whole = core(factors), factors.B_OR.double() @ factors.A_RI.double()
        sigma, near = torch.linalg.svdvals(whole), 1e-6 * float(factors.B_OR.norm() * factors.A_RI.norm())
        k = len(decomposed.sigma_K)
        assert torch.allclose(decomposed.sigma_K, sigma[:k], atol=near)
        assert torch.allclose(spectrum(factors), decomposed.sigma_K, atol=near)
        shorter = cut(decomposed, rank)
        error = float(decomposed.sigma_K[rank:].square().sum().sqrt())
        assert shorter.rank == min(rank, k)
        assert math.isclose(float((dense(shorter).double() - whole).norm()), error, abs_tol=near)
        assert math.isclose(error, float(sigma[rank:].square().sum().sqrt()), abs_tol=near)


@settings(max_examples=40, deadline=None)
@given(SEEDS, SEEDS)
def test_norm_and_inner_product_are_those_of_the_dense_changes(s: int, t: int):
    f, g = (Factors(*(torch.randn(shape, generator=torch.Generator().manual_seed(n + seed))
                      for n, shape in enumerate(((rank, 5), (6, rank))))) for seed, rank in ((s, 2), (t, 3)))  # fmt: skip
    assert math.isclose(inner(f, g), float((dense(f) * dense(g)).sum()), abs_tol=1e-3)
    adapter = lowrank(s)
    assert math.isclose(
        norm(adapter), math.sqrt(sum(float(dense(x).norm()) ** 2 for x in adapter.factors.values())), rel_tol=1e-5
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=3), min_size=1, max_size=3),
       st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 30))  # fmt: skip
def test_no_other_ranks_keep_more_within_what_the_budget_buys(
    sigmas: list[list[float]], prices: list[int], budget: int
):
    spectra = {str(n): torch.tensor(sorted(s, reverse=True), dtype=torch.float64) for n, s in enumerate(sigmas)}
    costs = {module: prices[n] for n, module in enumerate(spectra)}

    def kept(ranks: dict[str, int]) -> float:
        return sum(float(spectra[m][:r].square().sum()) for m, r in ranks.items())

    def price(ranks: dict[str, int]) -> int:
        return sum(costs[m] * r for m, r in ranks.items())

    chosen = allocated(spectra, costs, budget)
    assert price(chosen) <= budget
    every = [dict(zip(spectra, ranks, strict=True))
             for ranks in itertools.product(*(range(len(s) + 1) for s in spectra.values()))]  # fmt: skip
    most = max(kept(ranks) for ranks in every if price(ranks) <= budget)
    dearest = max(float(spectra[m][0]) ** 2 / costs[m] for m in spectra) * max(costs.values())
    assert kept(chosen) >= most - dearest - 1e-9  # at most one step is lost where prices differ
    if len(set(costs.values())) == 1:
        assert math.isclose(kept(chosen), most, rel_tol=1e-9, abs_tol=1e-12)


def test_an_adapter_minus_itself_has_only_exact_zeros_as_singular_values():
    adapter = lowrank(3)
    for factors in summed([(0.7, adapter), (-0.7, adapter)]).factors.values():
        assert not core(factors).sigma_K.any()
        assert energy_rank(spectrum(factors), 0.99) == 0


def test_the_energy_rank_is_the_least_that_keeps_the_share():
    sigma = torch.tensor([3.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert [energy_rank(sigma, share) for share in (0.5, 0.82, 0.9, 0.99, 1.0)] == [1, 2, 2, 3, 3]


def test_adapters_on_different_bases_have_no_sum():
    with pytest.raises(AdapterError, match="different bases \\(aaaaaaaaaaaa and bbbbbbbbbbbb\\)"):
        summed([(1.0, lowrank(1)), (1.0, lowrank_of(random_adapter(2)[0], OTHER))])


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the defaults": ("llama", {}),
    "rsLoRA": ("llama", {"use_rslora": True}),
    "alpha 1/3": ("llama", {"lora_alpha": 1 / 3}),
    "rank and alpha by layer": ("llama", {
        "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj": 3},
        "alpha_pattern": {"q_proj": 5, "layers.1.mlp.down_proj": 40}, "use_rslora": True}),
    "rank above 8": ("llama", {"r": 11}),
    "some layers": ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "the head and the embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "weights": ("llama", {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "Conv1D and the head": ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    "biases of adapted layers": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # PEFT names what it does with a head
@pytest.mark.parametrize("variant", VARIANTS)
def test_forms_of_an_adapter_compute_what_it_computed_in_pefts_own_loader_too(variant: str, tmp_path: Path):
    kind, lora = VARIANTS[variant]
    expected = write(tmp_path / "theirs", kind, **lora)
    own = parameters_of(decoder(kind))
    adapter = lowrank_of(AdapterState.read(tmp_path / "theirs"), BASE, own)
    assert_same_everywhere(adapter, expected, kind, tmp_path)


def assert_same_everywhere(adapter: LowRank, expected: Tensor, kind: str, folder: Path) -> None:
    own = parameters_of(decoder(kind))
    assert not torch.allclose(expected, logits(decoder(kind)), atol=1e-3)
    for name, state in {"own-ranks": state_of(adapter, own), "flat": flat(adapter, own)}.items():
        (folder / name).mkdir()
        state.write(folder / name)
        elsewhere = PeftModel.from_pretrained(decoder(kind), str(folder / name)).eval()
        for model in (AdapterState.read(folder / name).attach_to(decoder(kind)), elsewhere):
            assert torch.allclose(logits(model), expected, atol=1e-5), name
        settings_of = json.loads((folder / name / "adapter_config.json").read_text())
        assert isinstance(settings_of["lora_alpha"], int)
    assert settings_of["r"] == settings_of["lora_alpha"] == rank_class(adapter.rank)
    assert not settings_of["rank_pattern"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
def test_an_initialization_from_the_weights_keeps_its_output_in_flat_form(init: str, tmp_path: Path):
    torch.manual_seed(0)
    model = attach(decoder("llama"), config_of(init=init, rslora=True), ["q_proj", "up_proj"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    adapter = lowrank_of(AdapterState.of(model), BASE)
    assert_same_everywhere(adapter, logits(model.eval()), "llama", tmp_path)


def test_the_sum_of_adapters_computes_what_merged_weights_compute(tmp_path: Path):
    parts = []
    for n, (weight, lora) in enumerate([(0.7, {"r": 2, "use_rslora": True}), (-0.3, {"target_modules": ["up_proj"]})]):
        write(tmp_path / str(n), "llama", **lora)
        parts.append((weight, lowrank_of(AdapterState.read(tmp_path / str(n)), BASE)))
    merged = decoder("llama")
    for weight, part in parts:
        for module, factors in part.factors.items():
            merged.get_submodule(module).weight.data += weight * dense(factors)  # type: ignore[operator, union-attr]
    got = logits(state_of(summed(parts)).attach_to(decoder("llama")))
    assert torch.allclose(got, logits(merged), atol=1e-5)


def test_biases_are_summed_as_differences_from_the_bases_own(tmp_path: Path):
    own = parameters_of(decoder("gpt2"))
    parts = []
    for n, bias in enumerate(["all", "none"]):
        write(tmp_path / str(n), "gpt2", target_modules=["c_attn", "c_proj"][n : n + 1], bias=bias)
        parts.append((0.5 - n, lowrank_of(AdapterState.read(tmp_path / str(n)), BASE, own)))
    state = state_of(summed(parts), own)
    assert state.settings["bias"] == "all"
    name = "transformer.h.0.ln_1.bias"
    trained = AdapterState.read(tmp_path / "0").tensors[f"base_model.model.{name}"]
    original = own(name)
    assert original is not None
    expected = original + 0.5 * (trained - original)
    assert torch.allclose(state.tensors[f"base_model.model.{name}"], expected, atol=1e-7)
    assert logits(state.attach_to(decoder("gpt2"))).isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("adapter", "text"),
    [({"dora": True}, "DoRA scales .*`inlay adapters merge`"), ({"method": "ia3"}, "IA3 multiplies .*adapters merge"),
     ({"method": "prompt"}, "prompt tuning .* Use it alone"), ({"method": "full"}, "full fine-tuning .* base of its own")],
)  # fmt: skip
def test_a_change_that_is_no_sum_of_low_rank_factors_is_refused_with_the_way_out(adapter: Any, text: str):
    config = config_of(**adapter) if "method" not in adapter else None
    if config is None:
        state = AdapterState(
            {"peft_type": {"ia3": "IA3", "prompt": "PROMPT_TUNING", "full": FULL}[adapter["method"]]}, {}
        )
    else:
        state = AdapterState.of(attach(decoder("llama"), config, ["q_proj"]))
    with pytest.raises(AdapterError, match=text):
        lowrank_of(state, BASE)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_experts_in_one_tensor_are_refused_with_the_way_out():
    base = family("mixtral")
    state = AdapterState.of(attach(base, config_of(experts=True), resolve_targets(base, "auto")))
    with pytest.raises(AdapterError, match=r"all experts of a layer.*`inlay adapters merge`"):
        lowrank_of(state, BASE)


DAMAGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "half": ({}, {"base_model.model.q.lora_B.weight": None}, "has only lora_A.weight"),
    "shapes": ({}, {"base_model.model.q.lora_B.weight": torch.zeros(6, 9)}, "must be \\(rank, inputs\\)"),
    "regular expression": ({"alpha_pattern": {"(q|v)": 3}}, {}, "regular expression '\\(q\\|v\\)'"),
    "alpha in words": ({"alpha_pattern": {"q": "3"}}, {}, "alpha of q is '3'"),
    "another matrix": ({}, {"base_model.model.q.lora_C.weight": torch.zeros(1)}, "neither A nor B"),
    "a bias without its base": ({}, {"base_model.model.q.base_layer.bias": torch.zeros(6)}, "base was not opened"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_adapter_is_one_message(damage: str):
    settings_of, tensors, text = DAMAGED[damage]
    pair = {"lora_A.weight": torch.ones(2, 5), "lora_B.weight": torch.ones(6, 2)}
    whole = {f"base_model.model.q.{half}": tensor for half, tensor in pair.items()} | tensors
    state = AdapterState(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]} | settings_of,
        {name: tensor for name, tensor in whole.items() if tensor is not None},
    )
    with pytest.raises(AdapterError, match=text) as caught:
        lowrank_of(state, BASE)
    assert "\n" not in str(caught.value)


def test_rank_classes_are_those_that_servers_have():
    assert [rank_class(rank) for rank in (1, 8, 9, 100, 256, 257, 320, 321)] == [8, 8, 16, 128, 256, 320, 320, 384]
