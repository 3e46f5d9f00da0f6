"""The hand-written engine computes the same with a GPU's kernels.

There is no GPU here: Triton's interpreter runs Liger's kernels, and the flash kernel, which has none, is stood in for by
torch's attention of each row by itself. What this cannot show is that they run on a GPU, and how fast.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from decoders import FAMILIES, adapted, batch, decoder, gradients
from other_device import step_elsewhere
from test_handwritten import assert_equal, relative, step
from torch import Tensor

from inlay.engine import cpu_ops, gpu_ops
from inlay.engine.autograd import AutogradEngine
from inlay.engine.handwritten import attention
from inlay.engine.handwritten.mlp import gated, gated_backward
from inlay.engine.handwritten.model import HandwrittenEngine, Packed, Part
from inlay.engine.handwritten.norm import RmsNorm
from inlay.engine.lm_head import Head

pytest.importorskip("triton", reason="Triton is made for Linux")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Liger's kernels, interpreted. Triton's interpreter leaves to a kernel what a GPU's compiler turns into its own:
    numbers of Python, and functions of CUDA's library."""
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("there is a GPU: `make gpu` runs the kernels themselves")
    with pytest.MonkeyPatch.context() as patch:
        import numpy as np
        import triton.language as tl
        import triton.runtime.interpreter as its
        from liger_kernel.ops import cross_entropy, rms_norm

        given = its._implicit_cvt

        def number(one: Any) -> Any:
            if not isinstance(one, float):
                return given(one)
            return tl.tensor(its.TensorHandle(np.array([one], dtype=np.float32), tl.float32), tl.float32)

        patch.setattr(its, "_implicit_cvt", number)
        patch.setattr(rms_norm, "rsqrt", lambda x: tl.rsqrt(x))
        patch.setattr(cross_entropy, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)
        yield


@pytest.fixture
def on_gpu(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if tensors lay on a GPU; gives the names of the kernels that were called."""
    called: list[str] = []
    monkeypatch.setattr(gpu_ops, "is_on_gpu", lambda x: x.dtype in (torch.float32, torch.bfloat16))
    monkeypatch.setattr(cpu_ops, "takes", lambda *_: False)
    monkeypatch.setattr(HandwrittenEngine, "_makes_kernels", lambda _: False)
    monkeypatch.setattr(gpu_ops, "_FLASH", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(gpu_ops, "_varlen", lambda: row_by_row)
    for name in ("rms_norm", "rms_norm_backward", "gated_silu", "gated_silu_backward", "nll_and_gradient", "attend"):
        kernel = getattr(gpu_ops, name)
        monkeypatch.setattr(gpu_ops, name, lambda *given, of=name, run=kernel: (called.append(of), run(*given))[1])
    return called


def row_by_row(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, key_bounds: Tensor, longest: int, longest_keys: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """What torch documents of `varlen_attn`."""
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, key_bounds)
    assert longest == longest_keys == int(bounds.diff().max())
    found = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q_1NLD, k_1MLD, v_1MLD = (x[None, start:end].transpose(1, 2) for x in (q, k, v))
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        before, after = window_size
        seen = (back >= -after) & ((back <= before) if before >= 0 else True)
        mixed = F.scaled_dot_product_attention(q_1NLD, k_1MLD, v_1MLD, seen, scale=scale, enable_gqa=enable_gqa)
        found.append(mixed[0].transpose(0, 1))
    return torch.cat(found)


def exactly(norm: RmsNorm) -> RmsNorm:
    """In float64, for which there are no kernels."""
    found = copy.copy(norm)
    found.weight_H = norm.weight_H.double()
    return found


@pytest.mark.parametrize(("family", "recompute"), [*((family, False) for family in FAMILIES), ("qwen3", True)])
def test_loss_and_every_gradient_are_those_of_transformers_and_peft(
    family: str, recompute: bool, on_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_model = adapted(decoder(family))
    with monkeypatch.context() as patch:
        patch.setattr(gpu_ops, "is_on_gpu", lambda _: False)
        wanted = step(AutogradEngine(peft_model, "cpu"), peft_model, batch((7, 3, 2)))
    assert_equal(step(HandwrittenEngine(peft_model, recompute=recompute), peft_model, batch((7, 3, 2))), wanted, 1e-5)
    kernels = {"rms_norm", "rms_norm_backward", "nll_and_gradient"}
    kernels |= set() if "gemma2" in family else {"attend"}  # which caps its scores
    assert set(on_gpu) == kernels | (set() if "gemma" in family else {"gated_silu", "gated_silu_backward"})


def test_a_norm_and_the_head_take_bfloat16_and_compute_in_fp32(on_gpu: list[str]) -> None:
    """Triton's interpreter cuts 16-bit numbers off in place of rounding them, and cannot multiply them: the kernels
    seen here compute in fp32."""
    torch.manual_seed(0)
    norm = RmsNorm(torch.nn.RMSNorm(24, eps=1e-3), 0.0)
    x, dy = torch.randn(7, 24).bfloat16(), torch.randn(7, 24).bfloat16()
    (y, factor), (wanted, wanted_factor) = norm.forward(x), exactly(norm).forward(x.double())
    assert y.dtype == torch.bfloat16
    assert float(((y - wanted) / wanted).abs().max()) <= 2**-7
    wanted_dx = exactly(norm).backward(dy.double(), x.double(), wanted_factor)
    assert relative(norm.backward(dy, x, factor), wanted_dx) < 2**-7
    hidden, head, targets = (
        torch.randn(11, 16).bfloat16(),
        Head(torch.randn(50, 16).bfloat16()),
        torch.randint(50, (11,)),
    )
    nll, gradient = gpu_ops.nll_and_gradient(hidden, head, targets)
    exact = hidden.double().requires_grad_()
    wanted_nll = F.cross_entropy(exact @ head.weight_VH.double().T, targets, reduction="none")
    wanted_nll.sum().backward()
    assert exact.grad is not None
    assert nll.dtype == torch.float32
    assert relative(nll, wanted_nll.detach()) < 2**-8
    assert relative(gradient, exact.grad) < 2**-7
    assert set(on_gpu) == {"rms_norm", "rms_norm_backward", "nll_and_gradient"}


def test_adapters_trained_together_get_the_gradients_that_each_gets_alone(on_gpu: list[str]) -> None:
    peft_model = adapted(decoder("qwen2"), adapters=2)
    parts = [Part(0, batch((5, 3)), 0.1), Part(1, batch((3, 2), seed=1), 0.2)]
    together = HandwrittenEngine(peft_model, ["default", "k1"]).add_gradients(parts)
    found = {name: gradients(peft_model, name) for name in ("default", "k1")}
    for name, part, nll_B in zip(found, parts, together, strict=True):
        (alone_B,) = HandwrittenEngine(peft_model, [name]).add_gradients([part._replace(adapter=0)])
        assert_equal((nll_B, found[name]), (alone_B, gradients(peft_model, name)), 1e-5)


def test_a_norm_of_heads_that_lie_beside_others(on_gpu: list[str]) -> None:
    torch.manual_seed(0)
    norm = RmsNorm(torch.nn.RMSNorm(24, eps=1e-3), 1.0)
    exact = exactly(norm)
    x, dy = torch.randn(7, 5, 24)[:, 1:4], torch.randn(7, 3, 24)
    y, factor = norm.forward(x)
    wanted, wanted_factor = exact.forward(x.double())
    assert relative(y, wanted) < 1e-6
    assert torch.equal(norm.scaled(x, factor), y)
    for more in (None, torch.randn(7, 3, 24)):
        exact_dx = exact.backward(dy.double(), x.double(), wanted_factor, None if more is None else more.double())
        assert relative(norm.backward(dy, x, factor, more), exact_dx) < 1e-6
    assert {"rms_norm", "rms_norm_backward"} <= set(on_gpu)


def test_the_gated_activation_writes_its_gradients_over_what_it_read(on_gpu: list[str]) -> None:
    torch.manual_seed(0)
    gate_up, dh = torch.randn(5, 2 * 37), torch.randn(5, 37)
    exact = gate_up.double().requires_grad_()
    gate, up = exact.chunk(2, 1)
    wanted = F.silu(gate) * up
    wanted.backward(dh.double())
    assert exact.grad is not None
    assert relative(gated("silu", gate_up), wanted.detach()) < 1e-6
    gated_backward("silu", dh, gate_up)
    assert relative(gate_up, exact.grad) < 1e-6
    assert on_gpu == ["gated_silu", "gated_silu_backward"]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_head_in_chunks_of_any_size(
    softcap: float | None, rows: int, on_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("inlay.engine.lm_head.rows_at_once", lambda _: rows)
    hidden, weight, bias, targets = torch.randn(11, 16), torch.randn(50, 16), torch.randn(50), torch.randint(50, (11,))
    exact = hidden.double().requires_grad_()
    logits = exact @ weight.double().T + bias.double()
    wanted = F.cross_entropy(
        logits if softcap is None else softcap * torch.tanh(logits / softcap), targets, reduction="none"
    )
    wanted.sum().backward()
    nll, gradient = gpu_ops.nll_and_gradient(hidden, Head(weight, bias, softcap), targets)
    assert exact.grad is not None
    assert relative(nll, wanted.detach()) < 1e-6
    assert relative(gradient, exact.grad) < 1e-5
    assert on_gpu == ["nll_and_gradient"]


def test_without_a_gpu_there_are_none() -> None:
    x = torch.zeros(3, 8, dtype=torch.bfloat16)
    assert not gpu_ops.takes(x)
    assert not gpu_ops.attends(x[None], None)


def test_torch_has_the_attention_that_is_called_for() -> None:
    varlen = gpu_ops._varlen()
    major, minor = map(int, torch.__version__.split(".")[:2])
    assert (varlen is not None) == ((major, minor) >= (2, 12)), torch.__version__


def test_on_another_device_nothing_of_a_step_behind_its_packing_stays_on_the_cpu() -> None:
    for family in FAMILIES:
        flash = 3 if gpu_ops.has_flash() and "gemma2" not in family else 0
        assert step_elsewhere(family) == ({"meta"}, flash), family


class WiderBlocks:
    """A kernel whose programs take so many times as many rows; the interpreter takes as long for one row as for a thousand."""

    def __init__(self, kernel: Any, times: int) -> None:
        self._kernel, self._times, self.called = kernel, times, 0

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*arguments: Any, BLOCK_ROW: int, **options: Any) -> None:
            self.called += 1
            self._kernel[(-(-grid[0] // self._times),)](*arguments, BLOCK_ROW=BLOCK_ROW * self._times, **options)

        return launch


def test_norms_of_many_narrow_rows_which_have_kernels_of_their_own(
    on_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from liger_kernel.ops import rms_norm

    torch.manual_seed(0)
    kernels = [f"_block_rms_norm_{way}_kernel" for way in ("forward", "backward")]
    wider = [WiderBlocks(getattr(rms_norm, name), 64) for name in kernels]
    for name, kernel in zip(kernels, wider, strict=True):
        monkeypatch.setattr(rms_norm, name, kernel)
    norm = RmsNorm(torch.nn.RMSNorm(8, eps=1e-3), 0.0)
    x, dy = torch.randn(4096 * 8, 8), torch.randn(4096 * 8, 8)
    (y, factor), (wanted, wanted_factor) = norm.forward(x), exactly(norm).forward(x.double())
    assert relative(y, wanted) < 1e-6
    wanted_dx = exactly(norm).backward(dy.double(), x.double(), wanted_factor)
    assert relative(norm.backward(dy, x, factor), wanted_dx) < 1e-6
    assert on_gpu == ["rms_norm", "rms_norm_backward"]
    assert [kernel.called for kernel in wider] == [1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_they_are_those_of_transformers_and_peft(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_model, one = adapted(decoder(family, dtype)).to("cuda"), batch().to("cuda")
    packed, flash = Packed.of([Part(0, one, 0.1)], heads=4), mock.Mock(side_effect=gpu_ops.attend)
    assert all(x.device.type == "cuda" for f in fields(packed) if isinstance(x := getattr(packed, f.name), Tensor))
    assert gpu_ops.takes(packed.bounds)
    monkeypatch.setattr(gpu_ops, "attend", flash)
    narrow = dtype == torch.bfloat16
    wanted = step(AutogradEngine(peft_model, "cuda", dtype if narrow else None), peft_model, one)
    found = step(HandwrittenEngine(peft_model), peft_model, one)
    assert flash.called == (narrow and gpu_ops.has_flash() and "gemma2" not in family)
    if not narrow:
        assert_equal(found, wanted, 1e-4)
    gradients = (torch.cat([g.reshape(-1) for _, g in sorted(each[1].items())]) for each in (found, wanted))
    assert relative(*gradients) < 1e-1  # in 16 bits rounding makes as much of the whole, and more of a part


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_on_a_gpu_the_flash_kernel_computes_the_attention_of_the_blocks(window: int | None) -> None:
    torch.manual_seed(0)
    lengths, softmax = [40, 33, 7], attention.Softmax(0.3, window, None)
    q, k, v, d = (torch.randn(80, heads, 16, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2, 4))
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to("cuda", torch.int32)
    mixed, kept = gpu_ops.attend(q, k, v, bounds, 40, softmax.scale, window)
    rows = attention.groups(lengths, heads=4)
    exact = [x.double() for x in (q, k, v, d)]
    assert relative(mixed, attention.attend(*exact[:3], rows, softmax)) < 1e-2
    wanted = attention.attend_backward(exact[3], *exact[:3], rows, softmax)
    for found, one in zip(gpu_ops.attend_backward(d, kept), wanted, strict=True):
        assert relative(found, one) < 2e-2
