"""The hand-written engine computes what transformers, PEFT and autograd compute."""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoders import FAMILIES, adapted, batch, decoder, gradients, in_nf4, rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from inlay.data.batches import Batch, collate
from inlay.engine import cpu_ops, lm_head
from inlay.engine.autograd import AutogradEngine
from inlay.engine.handwritten import attention
from inlay.engine.handwritten.attention import Softmax, attend, attend_backward, groups, rope_
from inlay.engine.handwritten.lora import Projection, Span
from inlay.engine.handwritten.mlp import ACTIVATIONS, Mlp
from inlay.engine.handwritten.model import HandwrittenEngine, Packed, Part, rounded
from inlay.engine.handwritten.norm import RmsNorm
from inlay.engine.lm_head import Head, HeadLoss, nll_and_gradient, nll_and_hits

FEW = ["llama", "gemma2, caps"]


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def step(engine: Any, peft_model: Any, one: Batch, factor: float = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    nll_B = engine.add_gradient(one, factor)
    return nll_B, gradients(peft_model)


def assert_equal(got: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]], bound: float) -> None:
    assert relative(got[0], wanted[0]) < bound
    assert got[1].keys() == wanted[1].keys()
    assert got[1]
    for name, gradient in wanted[1].items():
        assert relative(got[1][name], gradient) < bound, name


@pytest.fixture(params=[True, False], ids=["fused", "torch"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of all but matmuls."""
    if not request.param:
        monkeypatch.setattr(cpu_ops, "takes", lambda *_: False)
    elif sys.platform == "linux":
        assert cpu_ops.takes(torch.zeros(1, 1))
        assert cpu_ops.takes(torch.zeros(1, 1, dtype=torch.bfloat16))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_every_gradient_are_those_of_transformers_and_peft(family: str, recompute: bool) -> None:
    peft_model = adapted(decoder(family))
    wanted = step(AutogradEngine(peft_model, "cpu"), peft_model, batch())
    assert_equal(step(HandwrittenEngine(peft_model, recompute=recompute), peft_model, batch()), wanted, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_tokens_of_no_row_behind_the_others_change_nothing(
    family: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_model = adapted(decoder(family), adapters=2)
    parts = [Part(0, batch((17, 9)), 0.1), Part(1, batch((5, 12, 12), seed=1), 0.2)]
    engine = HandwrittenEngine(peft_model, ["default", "k1"], recompute=recompute)

    def found() -> tuple[Tensor, dict[str, Tensor]]:
        nll_B = torch.cat(engine.add_gradients(parts))
        return nll_B, gradients(peft_model) | gradients(peft_model, "k1")

    wanted = found()
    monkeypatch.setattr(HandwrittenEngine, "_makes_kernels", lambda _: True)
    assert len(Packed.of(parts, 4, few_shapes=True).ids_T) == 64  # of 55 in rows
    assert_equal(found(), wanted, 1e-5)


@given(st.integers(1, 1 << 20))
def test_a_number_of_tokens_is_rounded_up_by_a_sixteenth_at_most_or_to_the_next_16(count: int) -> None:
    assert count <= rounded(count) < max(count + 16, count * 17 / 16)
    assert rounded(rounded(count)) == rounded(count)


def test_a_thousand_numbers_of_tokens_are_rounded_to_few() -> None:
    assert len({rounded(count) for count in range(2000, 3000)}) == 9


@pytest.mark.parametrize("family", FAMILIES)
def test_over_a_bfloat16_base_it_can_compute_in_fp32(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "WIDENED_AT_ONCE", 32 * 20)
    peft_model = adapted(decoder(family, torch.bfloat16))
    exact = adapted(decoder(family, torch.bfloat16).float())
    exact.load_state_dict(peft_model.state_dict())
    embed = peft_model.get_input_embeddings()  # Gemma scales it, rounded to the format of the base
    exact.get_input_embeddings().register_forward_hook(lambda _, ids, __: embed(*ids).float())
    wanted = step(AutogradEngine(exact, "cpu"), exact, batch())
    got = step(HandwrittenEngine(peft_model, compute=torch.float32), peft_model, batch())
    assert all(p.dtype == torch.bfloat16 for name, p in peft_model.named_parameters() if "lora_" not in name)
    assert_equal(got, wanted, 1e-5)


@pytest.mark.parametrize("family", ["llama with biases, tied", "phi3, half rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_nf4_is_that_of_its_dequantized_weights(family: str, dtype: torch.dtype) -> None:
    small, exact = map(adapted, in_nf4(decoder(family, dtype)))
    wanted = step(AutogradEngine(exact, "cpu"), exact, batch())
    assert_equal(step(HandwrittenEngine(small, compute=torch.float32), small, batch()), wanted, 1e-5)


def flat(steps: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, Tensor]:
    """(the losses, every gradient) of steps, one behind the other."""
    slopes = [gradient.reshape(-1) for _, found in steps for gradient in found.values()]
    return torch.cat([nll_B for nll_B, _ in steps]), torch.cat(slopes)


EIGHT = range(8)
"""Batches, by their seeds: of one the rounding error is luck."""


@functools.cache
def rounding_of_autograd(family: str) -> tuple[Tensor, Tensor, float]:
    """(losses and gradients in fp32, the error of autograd's gradients in bfloat16)"""
    peft_model = adapted(decoder(family, torch.bfloat16))
    exact = adapted(decoder(family, torch.bfloat16).float())
    exact.load_state_dict(peft_model.state_dict())
    plain, engine = AutogradEngine(peft_model, "cpu", torch.bfloat16), AutogradEngine(exact, "cpu")
    losses, slopes = flat([step(engine, exact, batch(seed=seed)) for seed in EIGHT])
    return losses, slopes, relative(flat([step(plain, peft_model, batch(seed=seed)) for seed in EIGHT])[1], slopes)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_its_rounding_error_is_at_most_one_and_a_half_times_that_of_the_autograd_engine(
    family: str,
) -> None:
    peft_model = adapted(decoder(family, torch.bfloat16))
    engine = HandwrittenEngine(peft_model)
    losses, slopes = flat([step(engine, peft_model, batch(seed=seed)) for seed in EIGHT])
    wanted_losses, wanted, of_autograd = rounding_of_autograd(family)
    assert relative(losses, wanted_losses) < 2e-2
    assert relative(slopes, wanted) < 1.5 * of_autograd


@pytest.mark.parametrize(
    ("targets", "layers"),
    [(["q_proj"], None), (["v_proj", "down_proj"], None), (["up_proj"], [1]), (["o_proj", "gate_proj"], [1, 2]),
     (["k_proj"], [2]), (["down_proj"], [0])],
)  # fmt: skip
def test_any_choice_of_layers_has_the_same_gradient(targets: list[str], layers: list[int] | None) -> None:
    peft_model = adapted(decoder("llama with biases, tied"), targets, layers=layers)
    wanted = step(AutogradEngine(peft_model, "cpu"), peft_model, batch())
    assert_equal(step(HandwrittenEngine(peft_model), peft_model, batch()), wanted, 1e-5)


@pytest.mark.parametrize("family", FEW)
def test_adapters_trained_together_get_the_gradients_that_each_gets_alone(family: str) -> None:
    peft_model = adapted(decoder(family), adapters=3)
    names = ["default", "k1", "k2"]
    parts = [
        Part(2, batch((17, 9)), 0.1), Part(0, batch((5, 12, 12), seed=1), 0.2), Part(1, batch((8,), seed=2), 0.3),
    ]  # fmt: skip
    together = HandwrittenEngine(peft_model, names).add_gradients(parts)
    found = {name: gradients(peft_model, name) for name in names}
    for part, nll_B in zip(parts, together, strict=True):
        name = names[part.adapter]
        (alone_B,) = HandwrittenEngine(peft_model, [name]).add_gradients([part._replace(adapter=0)])
        assert_equal((nll_B, found[name]), (alone_B, gradients(peft_model, name)), 1e-5)


def test_an_adapter_without_a_part_gets_no_gradient() -> None:
    peft_model = adapted(decoder("llama"), adapters=3)
    engine = HandwrittenEngine(peft_model, ["default", "k1", "k2"])
    engine.add_gradients([Part(1, batch((9, 5)), 0.1), Part(1, batch((7,), seed=1), 0.2)])
    assert [bool(gradients(peft_model, name)) for name in ("default", "k1", "k2")] == [False, True, False]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_loss_of_one_adapter_that_is_not_finite_leaves_the_gradients_of_the_others_bit_for_bit(
    family: str, recompute: bool
) -> None:
    peft_model = adapted(decoder(family), adapters=3)
    parts = [Part(n, batch((17, 16, 9), seed=n), 0.1 * (n + 1)) for n in range(3)]
    engine = HandwrittenEngine(peft_model, ["default", "k1", "k2"], recompute=recompute)
    wanted_B = engine.add_gradients(parts)
    wanted = {name: gradients(peft_model, name) for name in ("default", "k1", "k2")}
    broken = next(p for name, p in peft_model.named_parameters() if "lora_A.k1" in name)
    broken.data[0] = float("nan")
    found_B = engine.add_gradients(parts)
    found = {name: gradients(peft_model, name) for name in wanted}
    assert not torch.isfinite(found_B[1]).any()
    assert found["k1"] == {}
    for n, name in ((0, "default"), (2, "k2")):
        assert torch.equal(found_B[n], wanted_B[n])
        assert found[name].keys() == wanted[name].keys()
        assert all(torch.equal(found[name][key], gradient) for key, gradient in wanted[name].items())


def test_adapters_trained_together_take_the_steps_that_each_takes_alone() -> None:
    names, norms, rates = ["default", "k1", "k2"], [1e-3, 0.1, 10.0], [1e-2, 1e-3, 3e-3]

    def trained(groups: list[list[str]]) -> dict[str, list[Tensor]]:
        peft_model = adapted(decoder("llama"), adapters=3)
        own = {n: [p for key, p in peft_model.named_parameters() if f".{n}." in key] for n in names}
        optimizers = {n: torch.optim.AdamW(own[n], lr) for n, lr in zip(names, rates, strict=True)}
        for seed in range(4):
            batches = {n: batch((9, 5 + k), seed=3 * seed + k) for k, n in enumerate(names)}
            for group in groups:
                HandwrittenEngine(peft_model, group).add_gradients(
                    [Part(k, batches[n], 0.1) for k, n in enumerate(group)]
                )
            for n, norm in zip(names, norms, strict=True):
                torch.nn.utils.clip_grad_norm_(own[n], norm)
                optimizers[n].step()
                optimizers[n].zero_grad()
        return own

    alone, together = trained([[name] for name in names]), trained([names])
    for name in names:
        assert max(relative(a.detach(), b.detach()) for a, b in zip(together[name], alone[name], strict=True)) < 1e-4, (
            name
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_sixteen_rows_have_the_same_gradient_in_micro_batches_of_any_size(family: str, recompute: bool) -> None:
    peft_model = adapted(decoder(family))
    lengths = tuple(range(18, 2, -1))  # as training has them: neighbours share a group in attention
    engine, tokens = HandwrittenEngine(peft_model, recompute=recompute), rows(lengths)

    def in_micro_batches(size: int) -> tuple[Tensor, dict[str, Tensor]]:
        losses = [engine.add_gradient(collate(tokens, range(k, k + size), 0), 0.1) for k in range(0, 16, size)]
        return torch.cat(losses), gradients(peft_model)

    at_once = in_micro_batches(16)
    for size in (4, 1):
        assert_equal(in_micro_batches(size), at_once, 1e-5)


def test_long_rows_are_computed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in FEW:
        peft_model = adapted(decoder(family))
        wanted = step(AutogradEngine(peft_model, "cpu"), peft_model, batch((40, 33)))
        monkeypatch.setattr(attention, "_BLOCK", 7)
        assert_equal(step(HandwrittenEngine(peft_model), peft_model, batch((40, 33))), wanted, 1e-5)


def test_groups_hold_every_row_once_and_in_order() -> None:
    lengths = [90, 88, 70, 50, 49, 7, 400, 3]
    found = groups(lengths, heads=4)
    assert [length for group in found for length in group.lengths] == lengths
    assert [group.start for group in found] == [0, 248, 347, 354, 754]


def test_the_base_keeps_its_values_and_its_weights_are_not_held_twice() -> None:
    peft_model = adapted(decoder("qwen2"))
    before = copy.deepcopy(peft_model.state_dict())
    engine = HandwrittenEngine(peft_model)
    engine.add_gradient(batch(), 0.1)
    gradients(peft_model)
    assert all(torch.equal(before[name], value) for name, value in peft_model.state_dict().items())
    stacked = engine.layers[0].attention.qkv.frozen.weight().untyped_storage().data_ptr()
    own = peft_model.get_base_model().model.layers[0].self_attn.k_proj.get_base_layer().weight
    assert own.untyped_storage().data_ptr() == stacked


def test_a_loss_that_is_not_finite_leaves_no_gradient() -> None:
    peft_model = adapted(decoder("llama"))
    peft_model.get_base_model().model.norm.weight.data[0] = float("nan")
    nll_B, found = step(HandwrittenEngine(peft_model), peft_model, batch())
    assert not torch.isfinite(nll_B).any()
    assert not found


# ---------------------------------------------------------------- each backward by itself, in float64


def checked(forward: Any, backward: Any, *inputs: Tensor) -> None:
    """`backward(d)` of a function of the inputs against finite differences."""

    class Written(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> Tensor:
            ctx.save_for_backward(*values)
            return forward(*values)

        @staticmethod
        def backward(ctx: Any, d: Tensor) -> tuple[Tensor, ...]:
            return backward(d, *ctx.saved_tensors)

    torch.autograd.gradcheck(Written.apply, [value.requires_grad_() for value in inputs])


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_backward_of_the_norm() -> None:
    torch.manual_seed(0)
    module = nn.RMSNorm(5, eps=1e-2).double()
    module.weight.data = drawn(5)
    norm = RmsNorm(module, 1.0)
    checked(
        lambda x: norm.forward(x)[0],
        lambda d, x: norm.backward(d, x, norm.forward(x)[1]),
        drawn(3, 5),
    )


def test_backward_of_rope_is_rope_with_the_angles_negated() -> None:
    torch.manual_seed(0)
    cos, sin = drawn(3, 1, 2), drawn(3, 1, 2)

    def turned(x: Tensor, back: float) -> Tensor:
        rope_(x := x.clone(), cos, sin * back)
        return x

    checked(lambda x: turned(x, 1), lambda d, _: turned(d, -1), drawn(3, 2, 6))


@pytest.mark.parametrize("softmax", [Softmax(0.5, None, None), Softmax(0.5, 2, None), Softmax(0.5, 3, 0.7)])
@pytest.mark.parametrize(("lengths", "multiple"), [([4, 3, 1], 1), ([3, 3, 1], 4)])
def test_backward_of_attention(
    softmax: Softmax, lengths: list[int], multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second leaves one of the eight tokens to no row."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "_BLOCK", 2)
    together = groups(lengths, heads=4, multiple=multiple)
    checked(
        lambda q, k, v: attend(q, k, v, together, softmax),
        lambda d, q, k, v: attend_backward(d, q, k, v, together, softmax),
        drawn(8, 4, 3), drawn(8, 2, 3), drawn(8, 2, 3),
    )  # fmt: skip


def lora_stack(adapters: int) -> tuple[nn.ModuleDict, Projection]:
    """Two float64 layers of 4 inputs beside each other, the first with LoRA."""
    from peft import LoraConfig, inject_adapter_in_model

    holder = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 2, bias=False)}).double()
    names = [str(k) for k in range(adapters)]
    for name in names:
        config = LoraConfig(r=2, target_modules=["a", "b"] if name == "0" else ["a"], init_lora_weights=False)
        with warnings.catch_warnings():  # peft warns of a second adapter
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, holder, adapter_name=name)
    holder.double()
    return holder, Projection(list(holder.values()), names, torch.float64)


def test_backward_of_a_projection_with_two_adapters() -> None:
    torch.manual_seed(0)
    holder, projection = lora_stack(2)
    spans = [Span(0, slice(0, 3)), Span(1, slice(3, 5))]
    loras = [p for name, p in holder.named_parameters() if "lora_" in name]

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        for parameter, value in zip(loras, values, strict=True):
            parameter.data = value.detach()
        projection.cast()
        return projection.forward(x, spans)[0]

    def backward(d: Tensor, x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        forward(x, *values)
        for parameter in loras:
            parameter.grad = None
        dx = projection.backward(d, x, projection.forward(x, spans)[1], spans)
        assert dx is not None
        found = [p.grad for p in loras]
        assert all(g is not None for g in found)
        return dx, *found  # type: ignore[return-value]

    checked(forward, backward, drawn(5, 4), *[p.detach().clone() for p in loras])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward_of_the_feed_forward(name: str) -> None:
    torch.manual_seed(0)
    norm = RmsNorm(nn.RMSNorm(4, eps=1e-2).double(), 0.0)
    norm.weight_H = drawn(4)
    layers = [nn.Linear(4, 3).double(), nn.Linear(4, 3).double(), nn.Linear(3, 4).double()]
    mlp = Mlp(norm, layers[:2], layers[2], norm, name, ["default"], torch.float64)
    for projection in mlp.projections:
        projection.cast()
    spans = [Span(0, slice(0, 3))]

    def backward(d: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            dx = mlp.backward(d, mlp.forward(x, spans)[1], spans, wants_dx=True)
        assert dx is not None
        return (dx,)

    checked(lambda x: mlp.forward(x, spans)[0], backward, drawn(3, 4))


@pytest.mark.parametrize(("bias", "softcap"), [(None, None), (None, 1.5), (drawn(7), None), (drawn(7), 1.5)])
def test_backward_of_the_head_is_computed_with_its_loss(bias: Tensor | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    last, targets = Head(drawn(7, 4), bias, softcap), torch.tensor([1, 6, 0])
    checked(
        lambda h: nll_and_gradient(h, last, targets)[0],
        lambda d, h: nll_and_gradient(h, last, targets)[1] * d[:, None],
        drawn(3, 4),
    )
    torch.autograd.gradcheck(lambda h: HeadLoss.apply(h, last, targets), [drawn(3, 4).requires_grad_()])


def test_the_head_in_chunks_is_the_head_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = drawn(50, 4), lm_head.Head(drawn(7, 4)), torch.randint(0, 7, (50,))
    whole = *nll_and_gradient(hidden, weight, targets), *nll_and_hits(hidden, weight, targets)
    monkeypatch.setattr(lm_head, "_FEWEST_ROWS", 8)
    monkeypatch.setattr(lm_head, "_LOGITS_AT_ONCE", 0)
    parts = *nll_and_gradient(hidden, weight, targets), *nll_and_hits(hidden, weight, targets)
    for chunked, at_once in zip(parts, whole, strict=True):
        torch.testing.assert_close(chunked, at_once, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole[0], whole[2], rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_steps_take_the_same_way(family: str) -> None:
    """As a loop over transformers and PEFT takes that knows nothing of inlay: within 1e-3 of its loss at every step."""

    def by_hand(peft_model: Any, one: Batch) -> float:
        logits = peft_model(input_ids=one.input_ids, attention_mask=one.attention_mask).logits[:, :-1].float()
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), one.input_ids[:, 1:].flatten(), reduction="none")
        loss = (nll * one.weights[:, 1:].flatten()).sum() / one.weights.sum()
        loss.backward()
        return float(loss.detach())

    def losses(make: Any) -> list[float]:
        peft_model, found = adapted(decoder(family)), []
        engine = make(peft_model)
        optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=2e-4)
        for index in range(200):
            one = batch(seed=index % 10)
            summed = engine.add_gradient(one, 1 / float(one.weights.sum())).sum() if engine else None
            found.append(by_hand(peft_model, one) if summed is None else float(summed) / float(one.weights.sum()))
            optimizer.step()
            optimizer.zero_grad()
        return found

    wanted = losses(lambda peft_model: None)
    assert sum(wanted[-10:]) < sum(wanted[:10])
    assert all(a != b for a, b in pairwise(wanted[:10]))
    paths = {
        "autograd": lambda peft_model: AutogradEngine(peft_model, "cpu"),
        "handwritten": HandwrittenEngine,
        "handwritten, recomputed": lambda peft_model: HandwrittenEngine(peft_model, recompute=True),
    }
    for name, make in paths.items():
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses(make), wanted, strict=True))
        assert apart < 1e-3, name


@pytest.mark.parametrize("recompute", [False, True])
def test_offloaded_activations_come_back_and_weights_never_leave(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inlay.engine import autograd

    peft_model = adapted(decoder("qwen3")).train()
    wanted = step(AutogradEngine(peft_model, "cpu"), peft_model, batch())
    if recompute:
        peft_model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    moved: list[int] = []
    right = autograd.offloaded

    def counted(model: Any, device: str) -> Any:
        hooks = right(model, device)
        away, weights = hooks.pack_hook, {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(saved: Tensor) -> Any:
            kept = away(saved)
            if isinstance(kept, tuple):
                assert saved.untyped_storage().data_ptr() not in weights
                moved.append(saved.numel())
            return kept

        return torch.autograd.graph.saved_tensors_hooks(pack, hooks.unpack_hook)

    monkeypatch.setattr(autograd, "_WORTH_MOVING", 0)
    monkeypatch.setattr(autograd, "offloaded", counted)
    assert_equal(step(AutogradEngine(peft_model, "cpu", offload=True), peft_model, batch()), wanted, 1e-6)
    assert (len(moved) < 20) == recompute  # one value of each of three layers, and what is outside of them
