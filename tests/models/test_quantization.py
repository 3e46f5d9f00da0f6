"""A quantised layer counts as working when it trains like its dequantised self, also after an evaluation."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from inlay.errors import ModelError
from inlay.models.quantization import (
    CPU_REPACK_FLAG,
    QUANTIZATIONS,
    check_gradient,
    forbid_cpu_repack,
    probe_quantization,
)


class CutAfterEvaluation(nn.Linear):
    """Like a repacked layer: right outputs always, no gradient once it was evaluated."""

    evaluated = False

    def forward(self, x_BI: Tensor) -> Tensor:
        self.evaluated = self.evaluated or not self.training
        return super().forward(x_BI.detach() if self.evaluated else x_BI)


class FadingAfterEvaluation(CutAfterEvaluation):
    """Keeps a path for the gradient, but nearly nothing comes through it."""

    def forward(self, x_BI: Tensor) -> Tensor:
        return super().forward(x_BI) + 1e-3 * (x_BI - x_BI.detach()).sum(-1, keepdim=True)


class WrongInEvaluation(nn.Linear):
    def forward(self, x_BI: Tensor) -> Tensor:
        return super().forward(x_BI) * (1.0 if self.training else 1.2)


def layer_and_reference(kind: type[nn.Linear]) -> tuple[nn.Linear, nn.Linear, Tensor]:
    layer, reference = kind(16, 8, bias=False), nn.Linear(16, 8, bias=False)
    layer.requires_grad_(False)
    reference.weight = layer.weight
    return layer, reference, torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def test_a_sound_layer_passes():
    seen = check_gradient(*layer_and_reference(nn.Linear))
    assert seen.works, seen.reason


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CutAfterEvaluation, "no gradient reaches the input after an evaluation pass"),
        (FadingAfterEvaluation, "gradient after an evaluation pass is"),
        (WrongInEvaluation, "output in evaluation is 20.0% away"),
    ],
)
def test_the_check_finds_a_layer_that_an_evaluation_pass_breaks(kind: type[nn.Linear], reason: str):
    seen = check_gradient(*layer_and_reference(kind))
    assert not seen.works
    assert reason in seen.reason


def test_the_check_finds_a_gradient_that_is_not_a_number():
    layer, reference, x_BI = layer_and_reference(nn.Linear)
    layer.weight = nn.Parameter(torch.full_like(layer.weight, float("nan")), requires_grad=False)
    assert not check_gradient(layer, reference, x_BI).works


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", sorted(QUANTIZATIONS))
def test_a_quantised_layer_trains_like_its_dequantised_self_before_and_after_evaluation(kind, compute_dtype):
    pytest.importorskip("bitsandbytes")
    seen = probe_quantization(kind, "cpu", compute_dtype)
    assert seen.works, seen.reason


def nf4_layer() -> tuple[nn.Module, nn.Linear, Tensor]:
    pytest.importorskip("bitsandbytes")
    chance = torch.Generator().manual_seed(0)
    layer = QUANTIZATIONS["nf4"].build(torch.randn(128, 256, generator=chance), "cpu", torch.float32)
    reference = nn.Linear(256, 128, bias=False)
    reference.weight = nn.Parameter(QUANTIZATIONS["nf4"].dequantise(layer))
    return layer, reference, torch.randn(8, 256, generator=chance)


def test_the_check_finds_the_repacking_of_bitsandbytes_and_forbidding_it_is_the_cure():
    layer, reference, x_BI = nf4_layer()
    setattr(layer, CPU_REPACK_FLAG, True)  # what a CPU with AVX512-BF16 sets by itself
    assert not check_gradient(layer, reference, x_BI).works

    layer, reference, x_BI = nf4_layer()
    setattr(layer, CPU_REPACK_FLAG, True)
    assert forbid_cpu_repack(nn.Sequential(nn.Linear(4, 4), layer)) == 1
    seen = check_gradient(layer, reference, x_BI)
    assert seen.works, seen.reason


def test_without_bitsandbytes_the_probe_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.setattr(sys, "path", [])
    seen = probe_quantization("nf4", "cpu", "float32")
    assert not seen.works
    assert "pip install 'bitsandbytes" in seen.reason


def test_unknown_names_are_refused():
    with pytest.raises(ModelError, match="Known: int8, nf4"):
        probe_quantization("fp4", "cpu", "float32")
    with pytest.raises(ModelError, match="Did you mean 'bfloat16'"):
        probe_quantization("nf4", "cpu", "bfloat")
