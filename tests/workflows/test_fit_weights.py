"""Weights of a sum of adapters that are fitted to rows: exact gradient, least loss, judged on other rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from inlay.adapters.lowrank import Factors, LowRank, state_of, summed
from inlay.config import validate
from inlay.data.batches import Batch
from inlay.data.reading.read import read_examples
from inlay.data.splits import prompt_key
from inlay.data.types import Example
from inlay.engine.loss import RowLosses, causal_loss
from inlay.errors import AdapterError, ConfigError, DataError
from inlay.models.base import find_base
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.workflows.adapter_library import fit
from inlay.workflows.adapter_library.fit import LayerBlocks, Objective, fit_weights, least_loss, weighted_blocks
from parts import ToldBar, qa_rows, write_rows
from training_runs import Quiet

MODULES = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.1.mlp.up_proj": (48, 32)}


@pytest.fixture(scope="module")
def ready(tiny_base: Path) -> OpenedBase:
    config = validate({"model": {"base_model": str(tiny_base)}}, partial=True)
    return OpenedBase(find_base(str(tiny_base)), config.model, config.data, Precision("cpu", torch.float32))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    rows = [row | {"answer": row["answer"][:40]} for row in qa_rows(10)]
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows + rows[:4])
    return tuple(read_examples(str(path)).examples)


def part(seed: int, *modules: str, rank: int = 3, size: float = 0.3) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    shapes = {module: MODULES[module] for module in modules or MODULES}
    factors = {
        module: Factors(size * torch.randn(rank, i, generator=draw), size * torch.randn(o, rank, generator=draw))
        for module, (o, i) in shapes.items()
    }
    return LowRank("digest", factors, {})


def parts() -> dict[str, LowRank]:
    return {"a": part(1), "b": part(2, next(iter(MODULES)), rank=2)}


def gpt2(vocabulary: int) -> Any:
    """Two layers whose norms compute in float64, where the weights are."""
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": vocabulary}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(**shape, **off)).requires_grad_(False).eval()


def layers_of_gpt2(seed: int, module: str) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    factors = Factors(torch.randn(2, 16, generator=draw), torch.randn(48, 2, generator=draw))
    return LowRank("digest", {module: factors}, {}, fan_in_fan_out=True)


def fitted(ready: OpenedBase, examples: tuple[Example, ...], reporter: Any = None, **kinds: LowRank) -> fit.Fit:
    return fit_weights(kinds or parts(), ready, examples, 64, 8, 200, 0, reporter or Quiet())


def test_the_gradient_of_the_weights_is_the_finite_difference_in_float64(ready: OpenedBase, examples: Any):
    def loss(model: Any, batch: Batch) -> RowLosses:
        """Like `causal_loss`, without its float32."""
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        nll = F.cross_entropy(logits.transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
        weights = batch.weights[:, 1:].double()
        return RowLosses((nll * weights).sum(1), weights.sum(1), None)

    kinds = {
        "a": layers_of_gpt2(1, "transformer.h.0.attn.c_attn"),
        "b": layers_of_gpt2(2, "transformer.h.1.attn.c_attn"),
    }
    kinds["b"] = summed([(1.0, kinds["b"]), (0.5, layers_of_gpt2(3, "transformer.h.0.attn.c_attn"))])
    model = state_of(summed([(1.0, one) for one in kinds.values()])).attach_to(gpt2(len(ready.tokenizer))).double()
    precise = OpenedBase(ready.ref, ready.settings, ready.data, ready.precision, task=replace(ready.task, loss=loss))
    rows = fit._encoded(ready, examples[:6], 64)
    with weighted_blocks(model, list(kinds.values())) as set_weights:
        objective = Objective(model, precise, rows.tokens, 4, set_weights)
        weights = torch.tensor([0.7, -0.4], dtype=torch.float64)
        _, gradient = objective(weights)
        for n, step in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
            slope = (objective(weights + step)[0] - objective(weights - step)[0]) / 2e-5
            assert abs(slope - float(gradient[n])) < 1e-7 * max(1.0, abs(slope))


def test_weighted_blocks_compute_what_the_composed_adapter_computes(ready: OpenedBase, examples: Any):
    kinds, ids = parts(), torch.arange(3, 43).view(2, 20)
    with torch.inference_mode():
        expected = ready.with_adapter(state_of(summed([(0.7, kinds["a"]), (-0.4, kinds["b"])])))(input_ids=ids).logits
        model = ready.with_adapter(state_of(summed([(1.0, one) for one in kinds.values()])))
        plain = model(input_ids=ids).logits
        with weighted_blocks(model, list(kinds.values())) as set_weights:
            set_weights(torch.tensor([0.7, -0.4]))
            assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_fitted_weights_have_no_higher_loss_than_any_simpler_choice(ready: OpenedBase, examples: Any):
    bar = ToldBar()
    found = fitted(ready, examples, bar)
    assert set(found.rivals) == {"a alone", "b alone", "sum", "mean"}
    assert found.fit_loss < min(found.rival_fit_losses.values())
    assert all(-2 <= weight <= 2 for (weight,) in found.weights.values())
    assert found.fitted_rows + found.judged_rows == len(examples)
    assert bar.told[0] == (24, 0, "evaluation")
    assert bar.told[-1] == "end"
    for name, difference in found.rivals.items():
        assert difference.n == found.judged_rows
        assert difference.p is None  # of so few rows
        assert found.verdict(name) == "not distinguishable"
    assert found.to_json()["rivals"]["sum"]["p_holm"] == found.adjusted_p["sum"]
    many = replace(found, rivals={name: replace(one, p=0.02, n=20, wins=20, losses=0, low=-0.2, high=-0.1)
                                  for name, one in found.rivals.items()})  # fmt: skip
    assert many.adjusted_p == dict.fromkeys(found.rivals, 0.08)
    assert {many.verdict(name) for name in found.rivals} == {"not distinguishable"}
    sure = replace(many, rivals={name: replace(one, p=0.001) for name, one in many.rivals.items()})
    assert {sure.verdict(name) for name in found.rivals} == {"better"}
    total = summed([(weight, parts()[name]) for name, (weight,) in found.weights.items()])
    halves = fit._halves(examples)
    assert not {prompt_key(e) for e in halves[0]} & {prompt_key(e) for e in halves[1]}
    rows = fit._encoded(ready, halves[0], 64)
    model = ready.with_adapter(state_of(total))
    scores = ready.task.score_rows(
        model, rows.tokens, [[n] for n in range(len(rows.tokens))], ready.encoder.pad_id, "cpu", None
    )
    assert abs(float(scores[0].sum() / scores[1].sum()) - found.fit_loss) < 1e-5


def test_weights_of_each_block_of_layers_compute_what_the_adapter_with_scaled_blocks_computes(ready: OpenedBase):
    kinds, ids = parts(), torch.arange(3, 43).view(2, 20)
    blocks = LayerBlocks.of(kinds.values(), 2)
    scaled = [blocks.scaled(kinds["a"], (0.7, 0.1)), blocks.scaled(kinds["b"], (-0.4, 0.9))]
    with torch.inference_mode():
        expected = ready.with_adapter(state_of(summed([(1.0, one) for one in scaled])))(input_ids=ids).logits
        model = ready.with_adapter(state_of(summed([(1.0, one) for one in kinds.values()])))
        with weighted_blocks(model, list(kinds.values()), blocks) as set_weights:
            set_weights(torch.tensor([0.7, -0.4, 0.1, 0.9]))
            assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_blocks_of_layers_are_consecutive_and_of_nearly_equal_size(count: int):
    blocks = LayerBlocks.of([LowRank("digest", dict.fromkeys(f"model.layers.{n}.q_proj" for n in range(5)), {})], count)
    found = [blocks.of_module(f"model.layers.{n}.mlp.experts.3.w1") for n in range(5)]
    sizes = [found.count(block) for block in range(count)]
    assert found == sorted(found)
    assert (sum(sizes), max(sizes) - min(sizes) <= 1) == (5, True)
    assert blocks.of_module("lm_head") == count - 1


def test_blocks_of_layers_have_no_higher_loss_than_weights_that_all_layers_share(ready: OpenedBase, examples: Any):
    above = "model.layers.1.mlp.up_proj"
    below = {"model.layers.0.mlp.up_proj": part(5, above, size=1.0).factors[above]}
    one = part(4, above, size=1.0)
    kinds = {"a": replace(one, factors={**one.factors, **below})}
    found = fit_weights(kinds, ready, examples, 64, 8, 200, 0, Quiet(), block_count=2)
    shared = fitted(ready, examples, **kinds)
    same = "fitted, same in all layers"
    assert set(found.rivals) == {"a alone", same}
    assert found.rival_fit_losses[same] == pytest.approx(shared.fit_loss, abs=1e-6)
    assert found.fit_loss < shared.fit_loss - 1e-4
    assert [len(row) for row in found.weights.values()] == [2]
    assert found.to_json()["weights"]["a"] == list(found.weights["a"])
    assert shared.to_json()["weights"]["a"] == shared.weights["a"][0]
    with pytest.raises(ConfigError, match=r"--blocks 3: the adapters change 2 layers\. Give 1 to 2 blocks"):
        fit_weights(parts(), ready, examples, 64, 8, 200, 0, Quiet(), block_count=3)


def test_one_adapter_alone_is_given_its_best_weight(ready: OpenedBase, examples: Any):
    found = fitted(ready, examples, a=part(1))
    assert set(found.rivals) == {"a alone"}
    assert found.fit_loss < found.rival_fit_losses["a alone"]


def test_the_least_loss_of_a_quadratic_lies_at_its_bottom_or_on_the_edge_of_the_box():
    def bowl(bottom: list[float]) -> tuple[float, Tensor]:
        where = torch.tensor(bottom, dtype=torch.float64)

        def objective(weights: Tensor) -> tuple[float, Tensor]:
            return float((weights - where).square().sum()), 2 * (weights - where)

        return least_loss(objective, {"sum": torch.ones(2).double()}, lambda done, loss: None)[1:]  # type: ignore[return-value]

    loss, weights = bowl([0.4, -1.3])
    assert loss < 1e-8
    assert torch.allclose(weights, torch.tensor([0.4, -1.3]).double(), atol=1e-3)
    assert torch.allclose(bowl([0.5, 7.0])[1], torch.tensor([0.5, 2.0]).double(), atol=0.02)


def test_too_few_rows_and_changes_beside_linear_layers_are_refused(ready: OpenedBase, examples: Any):
    with pytest.raises(DataError, match="cannot be cut into two halves"):
        fitted(ready, (examples[0], examples[0]))
    with pytest.raises(DataError, match="longer than 2 tokens"):
        fit_weights(parts(), ready, examples, 2, 8, 200, 0, Quiet())
    with pytest.raises(AdapterError, match="a: changes biases, for which weights cannot be fitted"):
        fitted(ready, examples, a=replace(part(1), biases={"x.bias": torch.ones(3)}))
    with pytest.raises(AdapterError, match="a: changes the weight of router, for which weights cannot be fitted"):
        fitted(ready, examples, a=replace(part(1), weight_targets=frozenset({"router"})))
    assert ready.task.loss is causal_loss
