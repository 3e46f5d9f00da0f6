"""How fast a base will be trained is measured on two layers of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import MambaConfig

from inlay.config import load
from inlay.engine.estimate import Shape, Work
from inlay.workflows.benchmark_layers import LayerSpeed, MicroBatchSize, _line, _stand_in

Tree = Callable[..., dict[str, Any]]
SHAPE = Shape(
    hidden=64, layers=4, inner=128, queries=64, keys=32, heads=4, vocabulary=1000, linear=4 * 36_864, parameters=211_456,
    weight_bytes=845_824, width=4, is_gated=True, norms_after=False, norms_heads=False, scores_kept=False,
)  # fmt: skip
SPEED = LayerSpeed(
    "cpu", {("lora", "autograd"): (1e-3, 2e-6), ("lora", "handwritten"): (5e-4, 1e-6), ("prompt", "autograd"): (1e-3, 1e-6)}, head_s=1e-9,
    optimizer_s={"lora": 1e-6}, call_s=1e-4, matmul_flops_per_s=1e11, copied_bytes_per_s=1e10, unpacked_per_s=0.0,
)  # fmt: skip
ALL = MicroBatchSize(rows=(0, 1), tokens=200, trained=200, longest=100)


def test_a_pass_takes_its_layers_and_its_head() -> None:
    plain = Work(engine="autograd", recompute=False, adapter=1000, rank=8)
    assert SPEED.seconds(SHAPE, plain, ALL) == pytest.approx(4 * (1e-3 + 200 * 2e-6) + 200 * 1000 * 1e-9)
    few = replace(ALL, trained=100)
    assert SPEED.seconds(SHAPE, plain, few) == pytest.approx(4 * (1e-3 + 200 * 2e-6) + 100 * 1000 * 1e-9)
    direct = replace(plain, engine="handwritten")
    less = 0.5 * (1 - 64 * (64 + 64) / 36_864) * (5e-4 + 200 * 1e-6)  # half the tokens behind the last attention
    assert SPEED.seconds(SHAPE, direct, few) == pytest.approx(4 * (5e-4 + 200 * 1e-6) + 100 * 1000 * 1e-9 - less)
    prompted = Work(engine="autograd", recompute=False, adapter=320, rank=0, method="prompt", virtual_tokens=50)
    assert SPEED.seconds(SHAPE, prompted, ALL) == pytest.approx(4 * (1e-3 + 300 * 1e-6) + 200 * 1000 * 1e-9)
    assert SPEED.step_s(SHAPE, plain) == pytest.approx(1e-3)


def test_two_passes_give_what_a_layer_takes_at_once_and_by_the_token() -> None:
    assert _line([(300, 0.7), (100, 0.3)]) == pytest.approx((0.05, 0.001))
    assert _line([(300, 0.6), (100, 0.7)]) == pytest.approx((0.0, 0.001))  # noise that would have tokens save time


@pytest.mark.parametrize(
    ("family", "sizes", "path"),
    [("Gemma2Config", {"head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 48}, "handwritten"), ("GPT2Config", {}, "autograd")],
)  # fmt: skip
def test_the_stand_in_is_two_layers_trained_by_the_engine_of_the_run(
    config_tree: Tree, family: str, sizes: dict[str, Any], path: str
) -> None:
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 500}
    architecture = getattr(transformers, family)(**shape, **sizes)
    config = load(tree=config_tree())
    sizes_of_it = Shape.of(_stand_in(architecture, config, "lora", torch.float32, "cpu"))
    assert sizes_of_it.layers == 2
    before = torch.get_rng_state()
    works = [Work(engine=path, recompute=False, adapter=1000, rank=4)]
    works += [replace(works[0], engine="autograd", rank=0, method=method) for method in ("prompt", "full")]
    found = LayerSpeed.measured(architecture, config, sizes_of_it, torch.float32, "cpu", [30, 20, 10], works)
    assert set(found.layer) == {("lora", path), ("prompt", "autograd"), ("full", "autograd")}
    assert all(per_token > 0 for _, per_token in found.layer.values())
    assert (
        min(*found.optimizer_s.values(), found.head_s, found.call_s, found.matmul_flops_per_s, found.copied_bytes_per_s)
        > 0
    )
    assert architecture.num_hidden_layers == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stand_in_of_a_base_whose_layer_types_follow_its_number_of_layers_has_two_layers() -> None:
    architecture = MambaConfig(num_hidden_layers=3, hidden_size=16, state_size=4, vocab_size=64)
    config = load(tree={"model": {"base_model": "x"}, "data": {"train": "x"}})
    model = _stand_in(architecture, config, "lora", torch.float32, "cpu")
    assert (model.config.num_hidden_layers, len(model.config.layer_types)) == (2, 2)
