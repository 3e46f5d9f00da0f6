"""Two real processes train as one does."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from inlay.config import load
from inlay.run import Run
from training_runs import Inlay, lines_of, train, untimed

SECTIONS: dict[str, Any] = {
    "adapter": {"dropout": 0.2},
    "train": {"batch_size": 8, "micro_batch_size": 2, "max_steps": 8, "eval_steps": 4, "save_steps": 2},
}


def two(inlay: Callable[..., Inlay], *arguments: str) -> list[Inlay]:
    """Both ranks of a world, launched as torchrun launches them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [inlay(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), **env) for rank in range(2)]


def assert_same_within_rounding(found: Run, wanted: Run) -> None:
    for a, b in zip(found.metrics, wanted.metrics, strict=True):
        assert untimed(a) == pytest.approx(untimed(b), rel=1e-6, abs=1e-9)
    ours, theirs = (load_file(r.adapter / "adapter_model.safetensors") for r in (found, wanted))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).abs().max()) < 1e-5, name


def test_two_processes_train_as_one_also_through_a_stop(
    inlay: Callable[..., Inlay], config_file: Callable[..., str], tmp_path: Path
) -> None:
    alone = train(load(Path(config_file("alone", **SECTIONS))))
    source, run = config_file("together", **SECTIONS), Run(tmp_path / "results" / "together")
    ranks = two(inlay, "train", source)
    ranks[0].wait_until(lambda: lines_of(run) >= 4)
    ranks[1].send(signal.SIGTERM)  # one rank alone is told
    for process in ranks:
        code, output = process.wait()
        assert code == 143, output
    assert 0 < lines_of(run) < 9
    for process in two(inlay, "train", source, "--resume"):
        code, output = process.wait()
        assert code == 0, output
    assert "pre-flight" not in output, "only rank 0 reports"
    assert_same_within_rounding(run, alone)
    assert [p.name for p in (tmp_path / "results").iterdir() if p.name not in ("alone", "together")] == []


def test_a_loss_that_is_not_finite_ends_every_rank_with_the_same_message(
    inlay: Callable[..., Inlay], config_file: Callable[..., str]
) -> None:
    absurd = {"train": SECTIONS["train"] | {"learning_rate": 1e25, "eval_steps": 8}}
    said = []
    for process in two(inlay, "train", config_file("a", **absurd)):
        code, output = process.wait()
        assert code == 1, output
        assert "Traceback" not in output
        said.append(output.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0].startswith("error: step 2: loss is")


def test_the_order_of_rows_knows_nothing_of_the_world() -> None:
    import numpy as np

    from inlay.data.batches import micro_batches, step_rows

    lengths = np.arange(1, 33)
    for step in (1, 4, 5, 9):
        rows = step_rows(step, 3, 32, 10)
        for size in (1, 2, 5):
            shared = [r for rank in range(size) for micro in micro_batches(rows, lengths, 3, rank, size) for r in micro]
            assert sorted(shared) == sorted(rows)
