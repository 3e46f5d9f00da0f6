"""The machine record names everything that decides what a run does here, in values that go into JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.hardware.facts import GIB, LIBRARIES, disk_facts, gpu_tier, largest_billions, memory_facts
from inlay.hardware.probe import DeviceChoice, DtypeChoice
from inlay.workflows.doctor import comfortable_billions, machine_record, recommended, training_benchmark, warnings_of


@pytest.fixture(scope="module")
def quick() -> dict[str, Any]:
    return machine_record(quick=True)


def test_the_record_goes_through_json_unchanged_and_names_every_version(quick):
    assert json.loads(json.dumps(quick)) == quick
    assert set(quick["versions"]) == set(LIBRARIES)
    assert quick["versions"]["torch"] == torch.__version__
    assert quick["versions"]["inlay"] == inlay.__version__


def test_the_quick_record_leaves_out_what_takes_long_and_says_so(quick):
    assert quick["quantization"] is None
    assert quick["training"] is None
    if quick["recommended"]["device"] == "cpu":
        assert "not tried" in quick["recommended"]["quantization_reason"]


def test_the_recommendation_is_what_the_probes_chose(quick):
    assert quick["recommended"]["device"] == quick["device"]["device"]
    assert quick["recommended"]["dtype"] == quick["dtype"]["dtype"]
    assert quick["dtypes"][quick["dtype"]["dtype"]]["works"]


def test_the_training_benchmark_trains():
    seen = training_benchmark("cpu", "float32", budget_s=0.0)
    assert "error" not in seen
    assert seen["tokens_per_s"] > 0


def test_a_benchmark_that_cannot_run_is_an_answer():
    assert "error" in training_benchmark("cuda:99", "float32", budget_s=0.0)


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path):
    facts = disk_facts(tmp_path / "not" / "yet")
    assert facts["free_bytes"] > 0
    assert not (tmp_path / "not").exists()


def test_memory_available_is_within_the_total():
    facts = memory_facts()
    assert 0 <= facts["available_bytes"] <= facts["total_bytes"]


def test_the_tiers_are_the_arithmetic_of_the_docstring():
    assert gpu_tier(8 * GIB) == {
        "memory_gib": 8.0,
        "lora_bfloat16_billions": 3.0,
        "qlora_nf4_billions": 7.0,
    }
    assert largest_billions(24 * GIB, "bfloat16") > 8 > largest_billions(16 * GIB, "bfloat16")
    assert largest_billions(1 * GIB, "nf4") == 0.0
    assert comfortable_billions(1000.0) == 2.0


def with_gpu(record: dict[str, Any], gib: int, nf4_works: bool | None) -> dict[str, Any]:
    gpu = {"index": 0, "total_bytes": gib * GIB, "free_bytes": gib * GIB}
    probes = None if nf4_works is None else {"nf4": {"works": nf4_works, "reason": "given"}}
    speeds = {"bfloat16": {"works": True, "speed_gflops": 50_000.0}}
    return {**record, "gpus": [gpu], "quantization": probes, "dtypes": speeds, "training": None}


@pytest.mark.parametrize(
    ("gib", "nf4_works", "quantization"),
    [(8, True, "nf4"), (8, False, "none"), (8, None, "none"), (16, True, "nf4"), (80, True, "none")],
)
def test_a_small_gpu_quantises_where_that_was_seen_to_work(quick, gib, nf4_works, quantization):
    best = recommended(with_gpu(quick, gib, nf4_works), DeviceChoice("cuda:0", ""), DtypeChoice("bfloat16", ""))
    assert best["quantization"] == quantization
    assert best["gradient_checkpointing"] == (gib < 40)
    assert best["model_billions"]["largest"] == largest_billions(gib * GIB, "bfloat16")


def test_little_memory_and_little_disk_are_warned_of_with_what_to_do(quick):
    memory = {"total_bytes": 4 * GIB, "available_bytes": 2 * GIB}
    disk = {"folder": "results", "free_bytes": GIB}
    small = warnings_of({**quick, "memory": memory, "disk": disk})
    assert any(line.startswith("memory: 4.0 GiB is little") and "micro_batch_size 1" in line for line in small)
    assert any(line.startswith("disk: 1.0 GiB free at results") and "Free some" in line for line in small)


def test_a_quantisation_that_does_not_work_and_a_broken_gpu_are_warned_of(quick):
    probes = {"nf4": {"works": False, "reason": "no kernel"}}
    missing = {"cuda:0": "no kernel image"}
    found = warnings_of({**quick, "quantization": probes, "missing_devices": missing})
    assert any("nf4 cannot be used (no kernel)" in line for line in found)
    assert any("cuda:0 is listed but does not work (no kernel image)" in line for line in found)
