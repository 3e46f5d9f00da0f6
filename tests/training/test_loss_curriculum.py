"""A run in the order of a curriculum: what comes first, what is proven, and what is kept for going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay import api
from inlay.errors import ConfigError, Interrupted, StorageError
from inlay.runs.folder import Run
from inlay.training import loop, loss_curriculum
from training_runs import Tree, outcome, stop_after, train

BY_LOSS = {"order": "loss", "order_pool": 0.3, "max_steps": 7, "batch_size": 10, "eval_steps": 3}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of every step."""
    steps: list[list[int]] = []
    rows_of = loop.step_rows

    def seen(*given: Any) -> list[int]:
        steps.append(rows_of(*given))
        return steps[-1]

    monkeypatch.setattr(loop, "step_rows", seen)
    return steps


def named(tree: Tree, folder: Path, train: dict[str, Any]) -> dict[str, Any]:
    return tree(train=train, adapter={"rank": 4, "dropout": 0.2}, output={"folder": str(folder), "name": "run"})


def test_a_run_by_loss_shows_first_what_the_base_finds_easy_and_is_the_same_after_a_stop(
    config_tree: Tree, tmp_path: Path, shown: list[list[int]]
) -> None:
    whole = train(named(config_tree, tmp_path / "a", BY_LOSS))
    losses = loss_curriculum.stored(whole)
    assert losses is not None
    first = [row for step in shown[:1] for row in step]
    assert losses[first].mean() < np.mean(losses)
    assert (np.argsort(np.argsort(losses, kind="stable"))[shown[0][0]]) < np.ceil(0.3 * len(losses))
    with pytest.raises(Interrupted):
        train(named(config_tree, tmp_path / "b", BY_LOSS), reporter=stop_after(2))
    resumed = train(named(config_tree, tmp_path / "b", BY_LOSS), resume=True)
    assert outcome(resumed) == outcome(whole)
    assert api.verify(whole)["passed"]


def test_a_run_goes_on_in_no_other_order(config_tree: Tree, tmp_path: Path) -> None:
    by_length = {"order": "length", "max_steps": 4}
    with pytest.raises(Interrupted):
        train(named(config_tree, tmp_path, by_length), reporter=stop_after(2))
    with pytest.raises(ConfigError, match=r"train\.order: 'length' then, 'random' now"):
        train(named(config_tree, tmp_path, {"order": "random", "max_steps": 4}), resume=True)


def _damaged(run: Run, change: Callable[[np.ndarray], np.ndarray]) -> None:
    from safetensors.numpy import save_file

    losses = loss_curriculum.stored(run)
    assert losses is not None
    save_file({"loss": change(losses)}, run.path / loss_curriculum.FILE)


def test_losses_that_were_lost_are_found_again_and_a_proof_misses_them_where_they_cannot_be(
    config_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = named(config_tree, tmp_path, BY_LOSS | {"max_steps": 3})
    with pytest.raises(Interrupted):
        train(tree, reporter=stop_after(2))
    run = Run(tmp_path / "run")
    losses = loss_curriculum.stored(run)
    _damaged(run, lambda values: values[::-1].copy())
    assert loss_curriculum.stored(run) is None
    run = train(tree, resume=True)
    assert (loss_curriculum.stored(run) == losses).all()
    (run.path / loss_curriculum.FILE).unlink()
    proofs = {proof["name"]: proof for proof in api.verify(run)["proofs"]}
    assert proofs["files"]["passed"] is False
    assert proofs["trained tokens"]["passed"] is None
    with pytest.raises(StorageError, match="order of rows cannot be had again"):
        loss_curriculum._keep(run, losses + 1)
