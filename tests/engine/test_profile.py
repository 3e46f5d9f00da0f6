"""Every moment of a run belongs to one part of the profile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from inlay.engine.profile import PARTS, profiled, timed
from training_runs import Quiet, outcome, train

Tree = Callable[..., dict[str, Any]]


def test_time_goes_to_the_innermost_part_and_nowhere_twice() -> None:
    @timed("attention")
    def inner() -> None:
        time.sleep(0.02)

    @timed("forward")
    def outer() -> None:
        time.sleep(0.01)
        inner()

    outer()  # nobody counts
    began = time.perf_counter()
    with profiled("cpu") as seen:
        outer()
    whole = time.perf_counter() - began
    assert seen.seconds["attention"] >= 0.02
    assert seen.seconds["forward"] >= 0.01
    assert 0.03 <= sum(seen.seconds.values()) <= whole
    assert next(name for name, _ in seen.rows()) == "attention"


class SavedActivations(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[str, list[tuple[str, str]]] = {}

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        self.blocks[title] = rows


@pytest.mark.parametrize("engine", ["handwritten", "autograd"])
def test_a_profiled_run_is_the_same_run_and_says_where_its_time_went(config_tree: Tree, engine: str) -> None:
    settings = {"engine": engine, "max_steps": 2}
    said = SavedActivations()
    run = train(config_tree(train=settings, output={"name": "seen"}), profile=True, reporter=said)
    plain = train(config_tree(train=settings, output={"name": "unseen"}))
    assert outcome(run)["files"] == outcome(plain)["files"]
    seconds = run.record.profile
    hidden = set() if engine == "handwritten" else {"attention", "adapter"}
    assert {name for name, taken in seconds.items() if taken > 0} >= set(PARTS) - hidden
    assert all(seconds[name] == 0 for name in hidden)
    assert {name for name, _ in said.blocks["where the time went"]} == set(PARTS) - hidden
    assert plain.record.profile is None
