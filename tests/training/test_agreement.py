"""Processes that train together begin together, with the same thing, or end together with one message."""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import api
from inlay.errors import ConfigError, DataError, InlayError
from inlay.training.process import launch, require_data_parallel, require_precision
from inlay.training.process_group import ProcessGroup, join_process_group
from parts import qa_rows, write_rows
from training_runs import Forked, Inlay

Start = Callable[..., Inlay]
ConfigFile = Callable[..., str]


def launched(rank: int, port: str, size: int = 2) -> dict[str, str]:
    """The environment that torchrun gives a process on one machine."""
    one = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.fixture
def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def ended(processes: list[Any]) -> list[tuple[int, str]]:
    """(exit code, last line) of each."""
    found = [process.wait() for process in processes]
    assert not any("Traceback" in output for _, output in found), found
    return [(code, output.strip().splitlines()[-1]) for code, output in found]


def older_transformers() -> None:
    from inlay.training import setup

    now = setup.library_versions()
    setup.library_versions = lambda: now | {"transformers": "4.1"}


@pytest.mark.parametrize(
    ("second", "before", "said"),
    [
        ({"data": {"train": "other.jsonl"}}, None, "differ in the data ("),
        pytest.param({}, older_transformers, "differ in transformers (", marks=pytest.mark.slow),
        pytest.param({"train": {"seed": 5}}, None, "differ in train.seed (0 on process 0, 5 on", marks=pytest.mark.slow),
        pytest.param({"data": {"train": "gone.jsonl"}}, None, "process 1 of 2 (on", marks=pytest.mark.slow),
        pytest.param({"train": {"batch_size": 1, "micro_batch_size": 1}}, None, "process 1 of 2 (on", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_processes_that_would_train_on_different_things_end_with_one_message_and_no_run(
    inlay: Start, config_file: ConfigFile, tmp_path: Path, port: str, second: Any, before: Any, said: str
) -> None:
    write_rows(tmp_path / "other.jsonl", [*qa_rows(39), {"question": "Other?", "answer": "Other."}])
    if "data" in second:
        second = {"data": {"train": str(tmp_path / second["data"]["train"])}}
    files = [config_file("a"), config_file("b", **second)]
    one, two = ended(
        [
            inlay("train", file, "--name", "a", before=before if rank else None, **launched(rank, port))
            for rank, file in enumerate(files)
        ]
    )
    assert one == two
    assert one[0] == 2
    assert said in one[1], one
    assert not (tmp_path / "results" / "a").exists()


def test_what_the_first_process_refuses_before_it_begins_ends_the_others_too(
    inlay: Start, config_file: ConfigFile, tmp_path: Path, port: str
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a").write_text("a file")
    source = config_file("a")
    one, two = ended([inlay("train", source, **launched(rank, port)) for rank in range(2)])
    assert one == two
    assert one[0] == 2
    assert "process 0 of 2" in one[1]
    assert "a file, not the folder of a run" in one[1]


def tell(error: InlayError) -> None:
    sys.stdout.write(f"{error.exit_code} {error}\n")
    sys.stdout.flush()


def talk() -> None:
    """Two ranks meet errors at different places, and wait longer than the collective timeout."""
    init = torch.distributed.init_process_group
    torch.distributed.init_process_group = functools.partial(init, timeout=timedelta(seconds=1))
    group = join_process_group("cpu")
    assert group.gather(f"rank {group.rank}") == ["rank 0", "rank 1"]
    assert group.broadcast_text(f"rank {group.rank}") == "rank 0"
    assert group.max(float(group.rank)) == 1.0
    assert group.copy(torch.full((2,), float(group.rank))).tolist() == [0.0, 0.0]
    for failing in (0, 1):
        try:
            with group.failing_together():
                group.agree()
                if group.rank == failing:
                    raise DataError("d.jsonl: not here.")
                group.gather("reached by the other one alone")
                group.agree()
        except InlayError as error:
            tell(error)
    try:
        with group.failing_together():
            raise ConfigError("the same everywhere.")
    except InlayError as error:
        tell(error)
    if group.is_first:
        time.sleep(1.5)  # what the first alone does, longer than others wait for a sum
    group.barrier()
    if group.is_first:
        time.sleep(1.2)
    assert group.any(group.is_first)
    if group.rank == 1:
        os._exit(0)  # as killed
    try:
        group.any(True)
    except InlayError as error:
        tell(error)


def test_an_error_of_one_process_reaches_all_and_long_work_of_one_is_waited_for(tmp_path: Path, port: str) -> None:
    processes = [Forked(talk, tmp_path / str(rank), launched(rank, port)) for rank in range(2)]
    (one, first), (two, second) = (process.wait() for process in processes)
    assert (one, two) == (0, 0), first + second
    lines, others = ([x for x in told.splitlines() if not x.startswith("[Gloo]")] for told in (first, second))
    assert others == lines[:3]
    assert lines[0].startswith("2 process 0 of 2 (on ")
    assert lines[0].endswith("): d.jsonl: not here.")
    assert lines[1].startswith("2 process 1 of 2 (on ")
    assert lines[2] == "2 the same everywhere."
    assert lines[3].startswith("1 another of the 2 processes ended: its own output says why.")


def test_a_single_process_neither_waits_nor_changes_an_error() -> None:
    group = ProcessGroup()
    assert group.gather("a") == ["a"]
    assert group.max(2.0) == 2.0
    group.barrier()
    group.agree()
    with pytest.raises(DataError, match=r"^bad\.$"), group.failing_together():
        raise DataError("bad.")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is on"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is on"),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "Megatron-LM is on"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism config is on"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_backend INDUCTOR has no effect"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "train.batch_size counts all rows"),
    ],
)
def test_what_accelerate_launch_would_do_and_inlay_does_not_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        require_data_parallel(environment)
    assert "\n" not in str(caught.value)


def test_what_accelerate_launch_sets_by_default_is_taken() -> None:
    default = {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    for environment in ({}, default, default | {"ACCELERATE_USE_FSDP": "false"}):
        require_data_parallel(environment)
        require_precision(environment, "float32")
    require_precision({"ACCELERATE_MIXED_PRECISION": "bf16"}, "bfloat16")
    with pytest.raises(
        ConfigError, match=r"mixed_precision bf16, and this run computes in float32\. Set model\.dtype=b"
    ):
        require_precision({"ACCELERATE_MIXED_PRECISION": "bf16"}, "float32")
    with pytest.raises(ConfigError, match="mixed_precision fp8"):
        require_precision({"ACCELERATE_MIXED_PRECISION": "fp8"}, "bfloat16")


def test_sharding_asked_of_accelerate_ends_a_run_before_it_begins(
    inlay: Start, config_file: ConfigFile, tmp_path: Path
) -> None:
    ((code, last),) = ended([inlay("train", config_file("a"), ACCELERATE_USE_FSDP="true")])
    assert code == 2
    assert last.startswith("error: accelerate launch: FSDP is on (ACCELERATE_USE_FSDP)")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2, WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK: not a number"),
    ],
)
def test_a_launch_that_cannot_be_meant_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        launch()


@pytest.mark.parametrize(
    ("what", "start"),
    [
        ("compare-methods", lambda tree: api.compare_methods(tree, ["lora", "ia3"])),
        ("cross-validate", lambda tree: api.cross_validate(tree, 2)),
        ("advise", api.advise),
        ("demo", lambda tree: api.demo(folder=tree["output"]["folder"])),
    ],
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_starts_runs_of_its_own_is_not_launched_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, config_tree: Callable[..., dict[str, Any]], what: str, start: Any, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    tree = config_tree()
    with pytest.raises(ConfigError, match=f"^{what}: one process starts its runs .* and 2 were launched"):
        start(tree)
    assert not Path(tree["output"]["folder"]).exists()


def test_a_gpu_is_taken_by_one_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert ProcessGroup(rank, 4).device("auto") == f"cuda:{rank}"
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="3 processes or more are on a machine with 2 GPUs"):
        ProcessGroup(2, 4).device("auto")
    with pytest.raises(ConfigError, match=r"model\.device cuda:1: 4 processes take a GPU each"):
        ProcessGroup(0, 4).device("cuda:1")
    assert ProcessGroup(3, 4).device("cpu") == "cpu"
