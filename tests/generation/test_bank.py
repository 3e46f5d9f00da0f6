"""Adapters in memory: each computes what PEFT computes, and in a mixed step what it computes alone, bit for bit."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inlay.adapters.gain import gains_of
from inlay.engine import decode_ops
from inlay.errors import AdapterError
from inlay.generation.bank import LEAST_ROWS, RANKS, Bank
from inlay.generation.gain import Gain
from inlay.generation.work import Segment, Work
from inlay.methods.adapter_state import AdapterState
from inlay.methods.base_modules import base_modules
from inlay.methods.table import METHODS
from methods.test_adapter import decoder
from methods.test_adapters_of_others import GPT2, LLAMA, write
from methods.test_several_adapters import put

IDS_T = torch.arange(3, 23)


def work(*segments: tuple[str | None, int, bool]) -> Work:
    """A step of segments (adapter, tokens, whether generated)."""
    made, start = [], 0
    for adapter, tokens, is_decode in segments:
        made.append(Segment(start, start + tokens, 0, (), adapter, is_decode))
        start += tokens
    ids_T = torch.arange(start)
    return Work(ids_T, ids_T, tuple(made), ids_T)


def served(model: nn.Module, bank: Bank, step: Work) -> Tensor:
    """(T, V) logits of transformers' own modules, with the bank at each of them."""
    handles = []
    for site, module in list(base_modules(model)):
        if site not in bank.sites():
            continue

        def scaled(_: Any, arguments: Any, site: str = site) -> Any:
            x = arguments[0]
            return x if x.dtype == torch.int64 else bank.inputs(site, x.flatten(0, -2), step).view_as(x)

        def added(module: Any, arguments: Any, y: Tensor, site: str = site) -> Tensor:
            x = arguments[0].flatten() if arguments[0].dtype == torch.int64 else module.entered
            return bank.add(site, x, y.flatten(0, -2), step).view_as(y)

        def kept(module: Any, arguments: Any) -> None:
            module.entered = arguments[0].flatten(0, -2)

        handles += [module.register_forward_pre_hook(kept), module.register_forward_pre_hook(scaled)]
        handles += [module.register_forward_hook(added)]
    with torch.no_grad():
        logits_TV = model(IDS_T[None]).logits[0]
    for handle in handles:
        handle.remove()
    return logits_TV


def assert_is_peft(adapted: Any, bare: nn.Module, gains: dict[str, Gain]) -> None:
    with torch.no_grad():
        expected = adapted(IDS_T[None]).logits[0]
        alone = bare(IDS_T[None]).logits[0]
    assert (expected - alone).abs().max() > 1e-3
    bank = Bank()
    bank.load("a", gains)
    for count, is_decode in ((1, False), (len(IDS_T), True)):
        step = work(*[("a", len(IDS_T) // count, is_decode)] * count)
        assert (served(bare, bank, step) - expected).abs().max() < 1e-5
    assert torch.equal(served(bare, bank, work((None, len(IDS_T), False))), alone)


OF_PEFT: dict[tuple[str, str], dict[str, Any]] = {
    **{("llama", name): lora for name, lora in LLAMA.items()},
    **{("gpt2", name): lora for name, lora in GPT2.items()},
    ("gemma3_text", "a scaled embedding"): {"target_modules": ["embed_tokens", "down_proj"]},
    ("llama", "DoRA of the embedding"): {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
}


@pytest.mark.filterwarnings("ignore")  # PEFT names what it does with a head
@pytest.mark.parametrize(("kind", "name"), OF_PEFT)
def test_an_adapter_that_peft_wrote_is_served_as_peft_computes_it(kind: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, kind, **OF_PEFT[kind, name])
    state = AdapterState.read(tmp_path)
    assert_is_peft(state.attach_to(decoder(kind)), decoder(kind), gains_of(state, decoder(kind)))


def base(kind: str) -> nn.Module:
    """A tiny random model whose biases are not zero."""
    model: nn.Module = decoder(kind)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model


OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "IA3": ("llama", {"method": "ia3"}),
    "IA3 over Conv1D and biases": ("gpt2", {"method": "ia3"}),
    "DoRA and biases": (
        "qwen2",
        {"rank": 2, "dora": True, "bias": "lora_only", "target_modules": ["q_proj", "v_proj"]},
    ),
    "started from the weights": ("llama", {"rank": 2, "init": "pissa"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OWN)
def test_each_method_trained_here_is_served_as_it_was_trained(name: str) -> None:
    kind, adapter = OWN[name]
    adapted = put(base(kind), adapter, "served")
    assert_is_peft(adapted, base(kind), gains_of(AdapterState.of(adapted, "served"), base(kind)))


@pytest.mark.parametrize("method", ["prompt", "full"])
def test_what_changes_more_than_modules_is_to_be_a_base_of_its_own(method: str) -> None:
    state = AdapterState({"peft_type": METHODS[method].peft_type}, {})
    with pytest.raises(AdapterError, match="Serve it as a base of its own"):
        gains_of(state, decoder("llama"))


def test_an_adapter_of_another_base_is_refused() -> None:
    state = AdapterState.of(put(decoder("llama"), {"rank": 2}, "default"))
    with pytest.raises(AdapterError, match="belongs to another base"):
        gains_of(state, decoder("gpt2"))


INPUTS, OUTPUTS = 40, 56


def gain(seed: int) -> Gain:
    """A random adapter of one module: its rank and which parts it has follow from the seed."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    rank = 1 + seed % 9
    g_O = random(OUTPUTS) if seed % 3 == 1 else None
    b_O = random(OUTPUTS) if seed % 3 == 2 else None
    return Gain(random(rank, INPUTS), random(OUTPUTS, rank), g_O, random(INPUTS) if seed % 4 == 3 else None, b_O)


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Before the clock of an example runs."""
    for dtype in (torch.float32, torch.bfloat16):
        assert sys.platform != "linux" or decode_ops.reason(dtype) is None


def bank_of(count: int, dtype: torch.dtype) -> Bank:
    bank = Bank(dtype)
    for seed in range(count):
        bank.load(str(seed), {"site": gain(seed)})
    return bank


ADAPTERS = st.one_of(st.none(), st.integers(0, 6).map(str))
STEPS = st.tuples(
    st.lists(ADAPTERS, max_size=12), st.lists(st.tuples(ADAPTERS, st.integers(1, 40)), max_size=4)
).filter(lambda step: bool(step[0] or step[1]))


@pytest.mark.parametrize("has_loops", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(step=STEPS, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_token_in_a_mixed_step_has_the_bits_that_it_has_alone(
    has_loops: bool, stored: torch.dtype, dtype: torch.dtype, step: Any, seed: int
) -> None:
    decoded, pieces = step
    bank = bank_of(7, stored)
    if not has_loops:
        bank.__dict__["_has_loops"] = False  # as where numba is missing
    segments = [(adapter, 1, True) for adapter in decoded] + [(adapter, tokens, False) for adapter, tokens in pieces]
    mixed = work(*segments)
    draw = torch.Generator().manual_seed(seed)
    x_TI, y_TO = (torch.randn(len(mixed.ids_T), width, generator=draw).to(dtype) for width in (INPUTS, OUTPUTS))
    scaled = bank.inputs("site", x_TI, mixed)
    got = bank.add("site", x_TI, y_TO.clone(), mixed)
    for (adapter, tokens, is_decode), segment in zip(segments, mixed.segments, strict=True):
        for start, stop in {(segment.start, segment.stop), (segment.start, segment.start + (tokens + 1) // 2)}:
            alone, own = work((adapter, stop - start, is_decode)), slice(start, stop)
            expected = bank.add("site", x_TI[own], y_TO[own].clone(), alone)
            assert torch.equal(got[own], y_TO[own] if adapter is None else expected)
            assert torch.equal(got[own], expected)
            assert torch.equal(scaled[own], bank.inputs("site", x_TI[own], alone))


@pytest.mark.parametrize("is_decode", [True, False])
def test_what_is_added_is_the_formula(is_decode: bool) -> None:
    for seed in range(12):
        bank, one = Bank(), gain(seed)
        bank.load("a", {"site": one})
        x_TI, y_TO = torch.randn(3, INPUTS), torch.randn(3, OUTPUTS)
        step = work(*([("a", 1, True)] * 3 if is_decode else [("a", 3, False)]))
        assert one.A_RI is not None
        assert one.B_OR is not None
        expected = y_TO.double() if one.g_O is None else y_TO.double() * one.g_O
        expected = expected + x_TI.double() @ one.A_RI.double().T @ one.B_OR.double().T
        expected = expected if one.b_O is None else expected + one.b_O
        assert torch.allclose(bank.add("site", x_TI, y_TO, step).double(), expected, atol=1e-4)


def test_a_matmul_of_the_least_number_of_rows_has_the_bits_of_any_larger_one() -> None:
    for inputs, outputs in itertools.product((RANKS, 40, 576), (RANKS, 56, 576)):
        x_TI, w_OI = torch.randn(80, inputs), torch.randn(outputs, inputs)
        whole = nn.functional.linear(x_TI, w_OI)
        for rows in (LEAST_ROWS, LEAST_ROWS + 1, 33, 64):
            assert torch.equal(nn.functional.linear(x_TI[:rows], w_OI), whole[:rows])


def test_memory_of_an_adapter_goes_with_its_last_holder_and_no_new_one_gets_it() -> None:
    bank = Bank()
    bank.load("a", {"site": gain(0), "other": gain(1)})
    assert bank.bytes == 4 * (2 * RANKS * (INPUTS + OUTPUTS) + OUTPUTS)  # ranks 1 and 2, and g of the second
    bank.hold("a")
    bank.hold("a")
    bank.retire("a")
    assert "a" not in bank
    with pytest.raises(AdapterError, match="is not in memory"):
        bank.hold("a")
    bank.release("a")
    assert bank.sites() == {"site", "other"}
    bank.release("a")
    assert (bank.bytes, bank.sites(), bank.holders("a")) == (0, frozenset(), 0)
    bank.load("b", {"site": gain(0)})
    bank.hold("b")
    bank.retire("b")
    bank.load("b", {"site": gain(0)})
    bank.release("b")
    assert "b" in bank


def test_half_the_memory_in_bfloat16_is_within_its_rounding() -> None:
    exact, small = bank_of(7, torch.float32), bank_of(7, torch.bfloat16)
    plain = [seed for seed in range(7) if gain(seed).g_O is None and gain(seed).b_O is None and gain(seed).h_I is None]
    for seed in plain:
        x_TI, step = torch.randn(4, INPUTS), work((str(seed), 4, False))
        y_TO = exact.add("site", x_TI, torch.zeros(4, OUTPUTS), step)
        error = small.add("site", x_TI, torch.zeros(4, OUTPUTS), step) - y_TO
        assert error.norm() < 2**-7 * y_TO.norm()
        assert error.norm() > 0
