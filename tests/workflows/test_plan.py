"""What a run will need is told before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.cli.render.plan import plan_text
from inlay.config import load
from inlay.engine.estimate import Shape, Work, estimate
from inlay.errors import ConfigError
from inlay.training.memory import token_cap
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from inlay.workflows.plan import Plan, _largest
from training_runs import Quiet

Tree = Callable[..., dict[str, Any]]


def planned(tree: dict[str, Any], **options: Any) -> Plan:
    return api.plan(tree, reporter=Quiet(), **options)


def test_sizes_are_those_of_the_loaded_model_and_no_weights_are_needed(config_tree: Tree, tiny_base: Path) -> None:
    job = make_single_job(load(tree=config_tree()), Quiet(), ProcessGroup())
    bare = tiny_base.parent / "without weights"
    bare.mkdir(exist_ok=True)
    for path in tiny_base.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    found = planned(config_tree(model={"base_model": str(bare)}))
    assert found.parameters == job.base.total_parameters
    assert (found.forecast.trainable, found.steps) == (job.trainable, job.total_steps)
    assert found.forecast.memory.weights == job.memory.weights
    assert found.forecast.engine == job.engine.name == "handwritten"
    assert [one.method for one in found.forecasts] == ["lora", "qlora", "full"]
    lora, qlora, full = found.forecasts
    assert qlora.memory.weights < lora.memory.weights
    assert full.memory.optimizer == 8 * found.parameters
    assert all(one.recomputed.activations < one.memory.activations for one in found.forecasts)


def test_what_is_called_the_largest_fits_and_one_more_does_not(config_tree: Tree) -> None:
    assert [_largest(lambda n: 10 * n, room, 8) for room in (9, 10, 45, 79, 80, 900)] == [0, 1, 4, 7, 8, 8]
    found = planned(config_tree(train={"max_memory": "100TB"}))
    assert found.room_bytes == 100 * 10**12
    assert found.changes == ()
    largest = found.forecast.largest
    assert (largest.micro_batch_size, largest.max_length, largest.rank) == (8, 256, 1024)


@pytest.mark.parametrize(("adapter", "count"), [({"rank": 4}, 2), ({"method": "prompt"}, 3)], ids=str)
def test_where_nothing_fits_what_would_help_is_named_in_order(
    adapter: dict[str, Any], count: int, config_tree: Tree
) -> None:
    found = planned(config_tree() | {"adapter": adapter}, memory="1MB")
    assert not found.forecast.fits
    assert found.forecast.largest.micro_batch_size == found.forecast.largest.max_length == 0
    first = ["train.micro_batch_size=1", "train.gradient_checkpointing=true", "model.quantization=nf4"]
    assert [c.setting for c in found.changes][:count] == first[:count]  # tiny layers widened weigh more than in fp32
    sizes = [found.forecast.total_bytes, *(c.total_bytes for c in found.changes)]
    assert sizes == sorted(sizes, reverse=True)
    assert "smaller base" in plan_text(found)
    with pytest.raises(ConfigError, match="--memory: not an amount"):
        planned(config_tree(), memory="much")


def test_a_calibrated_plan_has_seen_the_runs_own_batches(config_tree: Tree) -> None:
    found = planned(config_tree(), calibrate=True)
    assert found.is_calibrated
    assert found.forecast.step_s > 0
    assert found.forecast.total_bytes > found.forecast.memory.weights
    assert json.loads(json.dumps(found.to_json()))["is_calibrated"] is True
    assert "two micro batches were computed" in plan_text(found)


def test_a_price_turns_time_and_memory_into_money_energy_and_storage(config_tree: Tree) -> None:
    found = planned(config_tree(), cost=7.2, watts=500.0, utilisation=0.5)
    assert [bill.name for bill in found.bills] == ["lora", "qlora", "full"]
    for bill, forecast in zip(found.bills, found.forecasts, strict=True):
        assert bill.once == pytest.approx(forecast.train_s * 0.002)
        assert bill.once_kwh == pytest.approx(forecast.train_s * 0.5 / 3600)
        assert bill.per_1000 == pytest.approx(forecast.request_s * 4)
        assert forecast.request_s > 0
    lora, _, full = found.bills
    assert lora.stored_bytes == 4 * found.forecast.trainable
    assert full.stored_bytes == found.forecast.memory.weights
    assert found.to_json()["costs"]["price_per_hour"] == 7.2
    assert "1,000 requests" in plan_text(found)
    assert "1,000 requests" not in plan_text(planned(config_tree()))


SHAPE = Shape(
    hidden=64, layers=3, inner=128, queries=64, keys=32, heads=4, vocabulary=1000, linear=100_000, parameters=200_000,
    weight_bytes=800_000, width=4, is_gated=True, norms_after=False, norms_heads=False, scores_kept=False,
)  # fmt: skip


def test_matmuls_in_16_bits_on_a_cpu_take_twice_the_tokens_at_once_on_the_handwritten_engine() -> None:
    narrow, work = replace(SHAPE, width=2), Work(engine="handwritten", recompute=False, adapter=10_000, rank=8)
    assert token_cap("cpu", work, narrow) == 2 * token_cap("cpu", work, SHAPE)
    for same in (replace(work, width=4), replace(work, engine="autograd")):
        assert token_cap("cpu", same, narrow) == token_cap("cpu", work, SHAPE)


def test_more_of_anything_never_needs_less() -> None:
    for engine in ("handwritten", "autograd"):
        work = Work(engine=engine, recompute=False, adapter=10_000, rank=8)
        small = estimate(SHAPE, work, 100, 50)
        assert estimate(SHAPE, work, 200, 50).total > small.total
        assert estimate(SHAPE, replace(work, adapter=20_000, rank=16), 100, 50).total > small.total
        assert estimate(SHAPE, replace(work, recompute=True), 100, 50).total < small.total
        assert estimate(replace(SHAPE, width=2, weight_bytes=400_000), work, 100, 50).total < small.total
        assert estimate(SHAPE, work, 100, 50, trained_tokens=20).total <= small.total
        longer = estimate(SHAPE, replace(work, virtual_tokens=25), 100, 50)
        assert longer.activations == estimate(SHAPE, work, 150, 75).activations > small.activations
        assert longer.logits == small.logits  # nothing is predicted there
        dropping = replace(SHAPE, drops_out=True)
        assert (estimate(dropping, work, 100, 50).total > small.total) is (engine == "autograd")
