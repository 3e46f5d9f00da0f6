"""Metrics also go where the user looks, and a tracker that is not there is refused before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from inlay.config import load
from inlay.errors import ConfigError, Interrupted
from inlay.runs import trackers
from training_runs import stop_after, train


def test_tensorboard_holds_the_figures_of_metrics_jsonl(config_tree: Callable[..., dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(config_tree(track={"trackers": ["tensorboard"]}))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("loss")]
    logged = [(line["step"], line["loss"]) for line in run.metrics if "loss" in line]
    assert [step for step, _ in written] == [step for step, _ in logged]
    assert [value for _, value in written] == pytest.approx([value for _, value in logged])


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert trackers.chosen(load(tree=config_tree(track={"trackers": "auto"}))) == []
    with pytest.raises(ConfigError, match="wandb is not installed: pip install"):
        trackers.chosen(load(tree=config_tree(track={"trackers": ["wandb"]})))


def test_a_resumed_run_takes_the_trackers_that_are_asked_for_now(config_tree: Callable[..., dict[str, Any]]) -> None:
    tree = config_tree()
    tree["output"]["name"] = "a"
    with pytest.raises(Interrupted):
        train(tree, reporter=stop_after(2))
    run = train(tree | {"track": {"trackers": ["tensorboard"]}}, resume=True)
    assert list((run.path / "tensorboard").iterdir())
