"""Two real processes train as one does."""

from __future__ import annotations

import functools
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inlay.config import load
from inlay.runs.folder import Run
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from training_runs import Inlay, Quiet, lines_of, train, untimed

SECTIONS: dict[str, Any] = {
    "adapter": {"dropout": 0.2},
    "train": {"batch_size": 8, "micro_batch_size": 2, "max_steps": 8, "eval_steps": 4, "save_steps": 2},
}


def two(inlay: Callable[..., Inlay], *arguments: str, second: Callable[[], None] | None = None) -> list[Inlay]:
    """Two ranks, launched as torchrun launches them; `second` is called in rank 1 first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        inlay(*arguments, before=second if rank else None, RANK=str(rank), LOCAL_RANK=str(rank), **env)
        for rank in range(2)
    ]


def assert_same_within_rounding(found: Run, wanted: Run) -> None:
    for a, b in zip(found.metrics, wanted.metrics, strict=True):
        one, two = ({k: v for k, v in untimed(line).items() if isinstance(v, (int, float))} for line in (a, b))
        assert one == pytest.approx(two, rel=1e-6, abs=1e-9)
    ours, theirs = (load_file(r.adapter / "adapter_model.safetensors") for r in (found, wanted))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).abs().max()) < 1e-5, name


@pytest.mark.parametrize("then", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_also_through_a_stop_and_by_another_number_of_them(
    inlay: Callable[..., Inlay], config_file: Callable[..., str], tmp_path: Path, then: int
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
    again = two(inlay, "train", source, "--resume") if then == 2 else [inlay("train", source, "--resume")]
    outputs = [process.wait() for process in again]
    assert [code for code, _ in outputs] == [0] * then, outputs
    assert ["pre-flight" in output for _, output in outputs] == [True, False][:then], "only rank 0 reports"
    assert_same_within_rounding(run, alone)
    assert [p.name for p in (tmp_path / "results").iterdir() if p.name not in ("alone", "together")] == []


def test_with_default_settings_every_process_has_half_of_the_work(
    inlay: Callable[..., Inlay], config_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    runs = []
    for name in ("alone", "together"):
        tree = config_tree(train={"max_steps": 2}, output={"name": name})
        del tree["train"]["micro_batch_size"], tree["train"]["batch_size"]
        (tmp_path / f"{name}.yaml").write_text(json.dumps(tree))
        runs.append(Run(tmp_path / "results" / name))
    alone = train(load(tmp_path / "alone.yaml"))
    outputs = []
    for process in two(inlay, "train", str(tmp_path / "together.yaml")):
        code, output = process.wait()
        assert code == 0, output
        outputs.append(output)
    together = runs[1]
    assert together.config.train.micro_batch_size == together.config.train.batch_size == 16
    tokens = [one.tokens for one in together.record.processes]
    assert sum(tokens) == together.result.tokens_seen
    assert abs(tokens[0] - tokens[1]) < 0.1 * sum(tokens)
    assert alone.record.processes == ()
    assert_same_within_rounding(together, alone)
    for key in ("eval_loss", "base_eval_loss", "difference", "low", "high"):
        assert getattr(together.result, key) == pytest.approx(getattr(alone.result, key), rel=1e-6), key
    assert "  processes       2, each with its share" in outputs[0]
    assert "  batch           16 = 2 processes × 8 × 1" in outputs[0]
    assert "tokens/s in one micro batch of each process)" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "base", "rate"), [("lora", "builtin:nano", 0.05), ("full", None, 0.5)])
def test_the_verdict_is_over_the_best_checkpoint_on_every_process(
    inlay: Callable[..., Inlay],
    config_file: Callable[..., str],
    tmp_path: Path,
    method: str,
    base: str | None,
    rate: float,
) -> None:
    steps = {"learning_rate": rate, "schedule": "constant", "warmup_steps": 0, "max_steps": 4, "eval_steps": 1}
    sections = {"train": SECTIONS["train"] | steps} | ({"model": {"base_model": base}} if base else {})
    source = Path(config_file("together", **sections))
    source.write_text(json.dumps(json.loads(source.read_text()) | {"adapter": {"method": method}}))
    for process in two(inlay, "train", str(source)):
        code, output = process.wait()
        assert code == 0, output
    run = Run(tmp_path / "results" / "together")
    result, losses = run.result.to_json(), {line["step"]: line["eval_loss"] for line in run.metrics}
    assert result["best_step"] == result["adapter_step"] < result["steps"], "choose a rate that overshoots"
    assert result["eval_loss"] == pytest.approx(losses[result["best_step"]], rel=1e-5)


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


def spoil(loss: int, weight: int, memory: int) -> None:
    """This process, and no other, meets what guards answer, each at a step of its own, the first time it comes there."""
    from inlay.training import guards, loop

    accumulate, finite, met = loop.accumulate, guards.require_finite_update, set()

    def first_time(step: int, wanted: int) -> bool:
        now = step == wanted and step not in met
        met.update({step} if now else ())
        return now

    def passes(job: Any, step: int, *rest: Any) -> Any:
        if first_time(step, memory):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        total, bad = accumulate(job, step, *rest)
        return (total * float("nan") if first_time(step, loss) else total), bad

    def checked(group: Any, parameters: list[Any], optimizer: Any, step: int) -> None:
        if first_time(step, weight):
            parameters[0].data.view(-1)[0] = float("inf")
        finite(group, parameters, optimizer, step)

    loop.accumulate = passes  # type: ignore[assignment]
    guards.require_finite_update = checked  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("policy", "met"),
    [
        ("rollback", {"loss": 0, "weight": 5, "memory": 3}),
        pytest.param("skip", {"loss": 3, "weight": 0, "memory": 6}, marks=pytest.mark.slow),
    ],
)
def test_what_one_process_meets_is_answered_by_all_as_one_process_alone_answers_it(
    inlay: Callable[..., Inlay], config_file: Callable[..., str], tmp_path: Path, policy: str, met: dict[str, int]
) -> None:
    sections = SECTIONS | {"train": SECTIONS["train"] | {"on_nonfinite": policy}}
    meets = functools.partial(spoil, **met)
    processes = two(inlay, "train", config_file("together", **sections), second=meets)
    processes.append(inlay("train", config_file("alone", **sections), before=meets))
    for process in processes:
        code, output = process.wait()
        assert code == 0, output
    together, alone = (Run(tmp_path / "results" / name) for name in ("together", "alone"))
    for run in (together, alone):
        assert [line["step"] for line in run.metrics if line.get("event") == "skipped"] == [3] * (policy == "skip")
        assert [line["failed_step"] for line in run.metrics if line.get("event") == "rollback"] == [5] * (
            policy == "rollback"
        )
        assert [(one.step, one.batch_size) for one in run.record.out_of_memory] == [(met["memory"], 1)]
    assert_same_within_rounding(together, alone)


def test_where_another_rank_takes_the_autograd_engine_all_take_it(
    config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_single_job(load(tree=config_tree()), Quiet(), ProcessGroup())
    assert job.engine.name == job.config.train.engine == "handwritten"
    monkeypatch.setattr(ProcessGroup, "gather", lambda _, text: [text, "autograd"] if text == "handwritten" else [text])
    job = make_single_job(load(tree=config_tree()), Quiet(), ProcessGroup())
    assert job.engine.name == job.config.train.engine == "autograd"
    assert job.reasons["train.engine"] == "not the hand-written engine: another rank takes the autograd engine"


def test_the_order_of_rows_does_not_depend_on_the_number_of_ranks() -> None:
    import numpy as np

    from inlay.data.batches import split_across_ranks, step_rows

    lengths = np.arange(1, 33)
    for step in (1, 4, 5, 9):
        rows = step_rows(step, 3, 32, 10)
        for size in (1, 2, 5):
            shared = [row for share in split_across_ranks(rows, lengths, 3, size) for group in share for row in group]
            assert sorted(shared) == sorted(rows)
