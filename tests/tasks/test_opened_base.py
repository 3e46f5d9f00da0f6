"""A base opened once: an encoder without weights, and one model in memory for many adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import api
from inlay.adapters.reference import config_of, open_base, opened, reference
from inlay.config import validate
from inlay.data.types import Message
from inlay.errors import AdapterError
from inlay.models import base as bases
from inlay.runs.folder import Run
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.tasks.task import TASKS
from parts import make_base
from training_runs import train

QUESTION = [Message("user", "What about lamps?")]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases whose weights are loaded, in order."""
    names: list[str] = []
    load = bases.load_model

    def counted(ref: bases.BaseRef, *arguments: Any) -> Any:
        names.append(ref.name)
        return load(ref, *arguments)

    monkeypatch.setitem(TASKS, "causal", replace(TASKS["causal"], load_model=counted))
    return names


@pytest.fixture
def runs(config_tree: Callable[..., dict[str, Any]]) -> tuple[Run, Run]:
    """Two runs on one base: LoRA, and prompt tuning."""
    prompt = {"method": "prompt", "prompt_tokens": 3}
    lora = train(config_tree(output={"name": "lora"}))
    return lora, train(config_tree(output={"name": "prompt"}) | {"adapter": prompt})


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=torch.tensor([ids])).logits
    return found


def test_the_encoder_of_a_reference_needs_no_weights(
    config_tree: Callable[..., dict[str, Any]], tiny_base: Path, loads: list[str]
) -> None:
    run = train(config_tree())
    loads.clear()
    for name in (run, str(tiny_base)):
        one = reference(name, "results")
        base = opened(one, config_of(one))
        assert base.encoder.prompt(QUESTION)
        assert base.context_length == 256
    assert loads == []


def test_two_adapters_over_one_opened_base_give_the_logits_of_each_opened_alone(
    runs: tuple[Run, Run], loads: list[str]
) -> None:
    states = [reference(run, "results").adapter(None) for run in runs]
    ids = open_base(runs[0]).encoder.prompt(QUESTION)
    alone = [logits(open_base(run).with_adapter(state), ids) for run, state in zip(runs, states, strict=True)]
    bare = logits(open_base(runs[0]).model, ids)
    loads.clear()
    base = open_base(runs[0])
    together = [logits(base.with_adapter(state), ids) for state in [*states, *states]]
    assert all(torch.equal(a, b) for a, b in zip(together, [*alone, *alone], strict=True))
    assert torch.equal(logits(base.model, ids), bare)
    assert not torch.equal(alone[0], alone[1])
    assert len(loads) == 1


def test_an_adapter_that_does_not_fit_leaves_the_base_usable(
    runs: tuple[Run, Run], tmp_path: Path, loads: list[str]
) -> None:
    fits = reference(runs[0], "results").adapter(None)
    config = validate(
        {"model": {"base_model": str(make_base(tmp_path / "wide", hidden_size=64))}, "data": {"train": "x"}}
    )
    wide = OpenedBase.of(bases.find_base(config.model.base_model), config, Precision("cpu", torch.float32))
    ids = wide.encoder.prompt(QUESTION)
    before = logits(wide.model, ids)
    with pytest.raises(AdapterError, match="this model needs"):
        wide.with_adapter(fits)
    assert torch.equal(logits(wide.model, ids), before)


def test_a_comparison_of_adapters_of_one_base_loads_it_once(runs: tuple[Run, Run], loads: list[str]) -> None:
    loads.clear()
    api.compare("base", *runs)
    assert len(loads) == 1


def test_a_comparison_with_another_base_loads_each(runs: tuple[Run, Run], tmp_path: Path, loads: list[str]) -> None:
    other = make_base(tmp_path / "other", seed=1)
    loads.clear()
    api.compare(runs[0], other)
    assert [Path(name).name for name in loads] == [Path(runs[0].config.model.base_model).name, "other"]
