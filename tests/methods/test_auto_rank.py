"""`adapter.rank=auto` gives as many parameters as there are trained tokens, and a run keeps the rank that it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from families import family
from inlay import api
from inlay import config as configs
from inlay.errors import ConfigError
from inlay.methods import auto_rank as rule
from inlay.methods.adapter import attach, trained_parameters
from inlay.methods.auto_rank import LEAST, MOST, auto_rank, directions_hint, with_rank
from inlay.methods.target_modules import expert_targets
from inlay.training.setup import targets_of
from training_runs import Quiet


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_parameters_of_a_rank_are_those_that_the_adapter_trains(name: str) -> None:
    model, experts = family(name), name == "mixtral"
    config = configs.load(
        tree={"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": {"rank": "auto", "experts": experts}}
    )
    targets = targets_of(config, model)[0]
    _, reason = auto_rank(model, targets, expert_targets(model) if experts else [], 0)
    adapted = attach(model, with_rank(config, 2), targets)
    trained = sum(parameter.numel() for parameter in trained_parameters(adapted).values())
    assert f"{trained // 2:,} a rank" in reason


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(4, 600), st.integers(4, 600)), min_size=1, max_size=4), st.integers(0, 10**9))
def test_the_rank_is_the_least_power_of_two_with_a_parameter_for_each_trained_token(
    sizes: list[tuple[int, int]], tokens: int
) -> None:
    layers = {f"layer{n}": nn.Linear(*size, device="meta") for n, size in enumerate(sizes)}
    rank, _ = auto_rank(nn.ModuleDict(layers), list(layers), [], tokens)
    each, most = sum(map(sum, sizes)), min(MOST, *(min(size) for size in sizes))
    assert rank & (rank - 1) == 0
    assert rank <= most
    assert rank * each >= tokens or 2 * rank > most
    assert rank <= LEAST or (rank // 2) * each < tokens


def test_inputs_that_vary_in_three_directions_are_counted_as_three() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(64, 32), nn.Linear(32, 4)
            self.embedding.weight.data = torch.randn(64, 3) @ torch.randn(3, 32) + 5

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
            return self.layer(self.embedding(input_ids))

    torch.manual_seed(0)
    ids = torch.arange(64)[None].repeat(4, 4)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    hint = directions_hint(Embedded(), ["layer"], [{"input_ids": ids, "attention_mask": mask}])
    assert hint == "on 512 tokens 90% of what the layers read varies in 3 directions"


def test_a_run_takes_the_rank_that_a_plan_tells_says_why_and_keeps_it(
    config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "LEAST", 1)
    config = configs.load(
        tree=config_tree(adapter={"rank": "auto", "target_modules": ["q_proj"]}, train={"max_steps": 2})
    )
    run = api.train(config, reporter=Quiet())
    stored = json.loads((run.adapter / "adapter_config.json").read_text())
    assert run.config.adapter.rank == stored["r"] == api.plan(config, reporter=Quiet()).rank == 8
    assert "rank: 8  # a rule of thumb: as many parameters as trained tokens" in (run.path / "config.yaml").read_text()
    assert "8 (a rule of thumb" in (run.path / "log.txt").read_text()
    monkeypatch.setattr(rule, "LEAST", 32)
    assert api.resume(run, extend="3", reporter=Quiet()).config.adapter.rank == 8


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"rank": "auto", "start_from": "a"}, "rank auto cannot be combined with start_from"),
        ({"rank": "auto", "method": "ia3"}, "rank has no effect with method ia3"),
        ({"rank": "most"}, "`auto` or a whole number"),
    ],
)
def test_a_rank_that_cannot_be_found_is_refused(adapter: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configs.load(tree={"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": adapter})
