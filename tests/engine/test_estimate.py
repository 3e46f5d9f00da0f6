"""What is planned with is what autograd keeps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from decoders import batch, decoder
from torch import Tensor

from inlay.config import validate
from inlay.engine.estimate import MemoryEstimate, Shape, Work, estimate, shape_of
from inlay.engine.loss import causal_loss
from inlay.methods.adapter import attach, virtual_tokens
from inlay.training.setup import targets_of


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "full"])
def test_a_layer_of_the_autograd_engine_keeps_what_the_estimate_says(family: str, method: str) -> None:
    config = validate({"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": {"method": method}})
    rows = batch((40, 60))
    saved, kept = [], []
    for layers in (1, 2):
        base = decoder(family, num_hidden_layers=layers, hidden_size=64, intermediate_size=176)
        model = attach(base, config, targets_of(config, base)[0], reopen=lambda: None)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor, weights: set[int] = weights, seen: dict[int, Tensor] = seen) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            causal_loss(model.train(), rows)
        saved.append(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))
        full, rank = method == "full", config.adapter.rank if method == "lora" else 0
        work = Work("autograd", False, 0 if full else 1, rank, method, virtual_tokens(model))
        kept.append(estimate(Shape.of(model), work, rows.input_ids.numel(), rows.input_ids.shape[1]).activations)
    assert kept[1] - kept[0] == pytest.approx(saved[1] - saved[0], rel=0.1)


def test_beside_what_is_in_use_a_cpu_holds_holes_of_the_autograd_engine_and_kernels() -> None:
    shape, plain = Shape.of(decoder("llama")), Work("autograd", False, 1, 4, leaves_holes=True)

    def found(work: Work) -> MemoryEstimate:
        return estimate(shape, work, 400, 40)

    none = found(replace(plain, leaves_holes=False))
    assert none.kept_free == 0
    assert found(plain).kept_free == none.activations // 4
    assert found(plain).total == none.total + none.activations // 4
    assert found(replace(plain, recompute=True)).kept_free == 0  # each block is given back at once
    assert found(replace(plain, engine="handwritten")).kept_free == 0
    assert found(replace(plain, makes_kernels=True)).kept_free > found(plain).kept_free + 1e8


def test_a_size_that_each_layer_has_for_itself_counts_as_its_largest() -> None:
    assert shape_of(SimpleNamespace(intermediate_size=[64, 96, 64]), "intermediate_size") == 96
