"""The machine record names everything that decides what a run does here, in values that go into JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import inlay
from inlay.hardware.facts import (
    GIB,
    LIBRARIES,
    BrokenGpu,
    DiskFacts,
    GpuFacts,
    GpuTier,
    MemoryFacts,
    disk_facts,
    gpu_tier,
    largest_billions,
    memory_facts,
)
from inlay.hardware.machine import Machine, comfortable_billions, machine_record
from inlay.hardware.probe import DeviceChoice, DtypeChoice, Probe
from inlay.workflows.doctor import training_benchmark


@pytest.fixture(scope="module")
def quick() -> Machine:
    return machine_record()


def test_the_record_goes_through_json_unchanged_and_names_every_version(quick):
    assert json.loads(json.dumps(quick.to_json())) == quick.to_json()
    assert set(quick.versions) == set(LIBRARIES)
    assert quick.versions["torch"] == torch.__version__
    assert quick.versions["inlay"] == inlay.__version__


def test_the_quick_record_leaves_out_what_takes_long_and_says_so(quick):
    assert quick.quantization is None
    assert quick.training is None
    if quick.recommended.device == "cpu":
        assert "not tried" in quick.recommended.quantization_reason


def test_the_recommendation_is_what_the_probes_chose(quick):
    assert quick.recommended.device == quick.device.device
    assert quick.recommended.dtype == quick.dtype.dtype
    assert quick.dtypes[quick.dtype.dtype].works


def test_the_training_benchmark_trains():
    seen = training_benchmark("cpu", "float32", budget_s=0.0)
    assert seen.works
    assert seen.tokens_per_s > 0


def test_a_benchmark_that_cannot_run_is_an_answer():
    assert training_benchmark("cuda:99", "float32", budget_s=0.0).error


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path):
    facts = disk_facts(tmp_path / "not" / "yet")
    assert facts.free_bytes > 0
    assert not (tmp_path / "not").exists()


def test_memory_available_is_within_the_total():
    facts = memory_facts()
    assert 0 <= facts.available_bytes <= facts.total_bytes


def test_the_tiers_are_the_arithmetic_of_the_docstring():
    assert gpu_tier(8 * GIB) == GpuTier(memory_gib=8.0, lora_bfloat16_billions=3.0, qlora_nf4_billions=7.0)
    assert largest_billions(24 * GIB, "bfloat16") > 8 > largest_billions(16 * GIB, "bfloat16")
    assert largest_billions(1 * GIB, "nf4") == 0.0
    assert comfortable_billions(1000.0) == 2.0


def with_gpu(machine: Machine, gib: int, nf4_works: bool | None) -> Machine:
    gpu = GpuFacts(0, "a GPU", "8.0", gib * GIB, gib * GIB, gpu_tier(gib * GIB))
    return replace(
        machine,
        gpus=[gpu],
        device=DeviceChoice("cuda:0", ""),
        dtype=DtypeChoice("bfloat16", ""),
        quantization=None if nf4_works is None else {"nf4": Probe(nf4_works, "given")},
        dtypes={"bfloat16": Probe(True, "", 50_000.0)},
    )


@pytest.mark.parametrize(
    ("gib", "nf4_works", "quantization"),
    [(8, True, "nf4"), (8, False, "none"), (8, None, "none"), (16, True, "nf4"), (80, True, "none")],
)
def test_a_small_gpu_quantises_where_that_was_seen_to_work(quick, gib, nf4_works, quantization):
    best = with_gpu(quick, gib, nf4_works).recommended
    assert best.quantization == quantization
    assert best.gradient_checkpointing == (gib < 40)
    assert best.model_billions.largest == largest_billions(gib * GIB, "bfloat16")


def test_a_gpu_that_gives_no_answer_is_not_what_is_recommended_for(quick):
    machine = replace(with_gpu(quick, 80, True), gpus=[BrokenGpu(0, "driver too old")])
    assert machine.recommended.model_billions.largest == largest_billions(quick.memory.available_bytes, "bfloat16")
    assert machine.to_json()["gpus"] == [{"index": 0, "error": "driver too old"}]


def test_little_memory_and_little_disk_are_warned_of_with_what_to_do(quick):
    small = replace(quick, memory=MemoryFacts(4 * GIB, 2 * GIB), disk=DiskFacts("results", GIB)).warnings
    assert any(line.startswith("memory: 4.0 GiB is little") and "micro_batch_size 1" in line for line in small)
    assert any(line.startswith("disk: 1.0 GiB free at results") and "Free some" in line for line in small)


def test_a_quantisation_that_does_not_work_and_a_broken_gpu_are_warned_of(quick):
    probes, missing = {"nf4": Probe(False, "no kernel")}, {"cuda:0": "no kernel image"}
    found = replace(quick, quantization=probes, missing_devices=missing).warnings
    assert any("nf4 cannot be used (no kernel)" in line for line in found)
    assert any("cuda:0 is listed but does not work (no kernel image)" in line for line in found)


def test_the_object_for_json_has_the_keys_that_scripts_rely_on(quick):
    assert list(quick.to_json()) == [
        "python", "platform", "versions", "cpu", "memory", "disk", "gpus", "mps", "device", "missing_devices", "dtype",
        "fp32_products", "dtypes", "quantization", "training", "gpu_tiers", "recommended", "warnings",
    ]  # fmt: skip
    assert set(quick.to_json()["dtypes"]["float32"]) == {"works", "reason", "speed_gflops"}
