"""What the machine can do is found by doing it; what it cannot do is said with the way out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from inlay.errors import ModelError
from inlay.hardware import probe
from inlay.hardware.probe import (
    DTYPES,
    Probe,
    devices_here,
    matmul_gflops,
    pick_device,
    pick_dtype,
    pick_matmul_precision,
    probe_dtype,
    quickest_fp32,
    relative_error,
)

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def measured(**gflops: float | None):
    """A probe that answers with given speeds; None is a format that does not work."""

    def probe(device: str, dtype: str) -> Probe:
        speed = gflops[dtype]
        return Probe(speed is not None, f"{dtype} on {device}: given", speed)

    return probe


# ---------------------------------------------------------------- devices


def test_the_cpu_is_always_there_and_always_last():
    here, missing = devices_here()
    assert here[-1] == "cpu"
    assert not set(here) & set(missing)


def test_auto_takes_the_best_device_that_works_and_says_why():
    choice = pick_device("auto")
    assert choice.device == devices_here()[0][0]
    assert choice.reason


@without_cuda
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_a_wanted_gpu_that_is_not_there_is_refused_with_what_is_there(wanted: str):
    with pytest.raises(ModelError, match=rf"'{wanted}' does not work here \(.+\)\. Here: (mps, )?cpu\. Choose one"):
        pick_device(wanted)


@pytest.mark.parametrize("wanted", ["gpu", "cudaa", "cpu:0", "cuda:x", ""])
def test_an_unknown_device_name_is_refused_with_the_known_ones(wanted: str):
    with pytest.raises(ModelError, match="Known: auto, cpu, cuda, cuda:<index>, mps"):
        pick_device(wanted)


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({"float32": 80, "bfloat16": 20}, "float32"),
        ({"float32": 80, "bfloat16": 84}, "float32"),
        ({"float32": 80, "bfloat16": 160}, "bfloat16"),
        ({"float32": 80, "bfloat16": None}, "float32"),
    ],
    ids=["slower", "within the noise", "faster", "broken"],
)
def test_on_a_cpu_bfloat16_is_chosen_only_where_it_works_and_is_measured_faster(speeds, chosen):
    choice = pick_dtype("cpu", "auto", measured(**speeds))
    assert choice.dtype == chosen
    assert "bfloat16" in choice.reason


def test_the_reason_of_a_choice_carries_the_measured_numbers():
    assert "22 GFLOP/s against 81" in pick_dtype("cpu", "auto", measured(float32=81, bfloat16=22)).reason


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({"float32": 10, "bfloat16": 100, "float16": 100}, "bfloat16"),
        ({"float32": 10, "bfloat16": 9.5, "float16": 9.5}, "bfloat16"),
        ({"float32": 10, "bfloat16": None, "float16": 60}, "float16"),
        ({"float32": 10, "bfloat16": 2, "float16": 60}, "float16"),
        ({"float32": 10, "bfloat16": None, "float16": None}, "float32"),
    ],
    ids=["modern", "equal speed, half the memory", "no bfloat16", "emulated bfloat16", "neither"],
)
def test_on_a_gpu_bfloat16_comes_before_float16_before_float32(speeds, chosen):
    assert pick_dtype("cuda:0", "auto", measured(**speeds)).dtype == chosen


def test_an_explicit_format_is_honoured_though_slow_but_not_when_it_does_not_work():
    slow = measured(float32=80, bfloat16=20, float16=None)
    assert pick_dtype("cpu", "bfloat16", slow).dtype == "bfloat16"
    with pytest.raises(ModelError, match="'float16' does not work here"):
        pick_dtype("cpu", "float16", slow)


def test_an_unknown_format_is_refused_with_the_nearest():
    with pytest.raises(ModelError, match="Did you mean 'bfloat16'"):
        pick_dtype("cpu", "bfloat", measured(float32=1))
    with pytest.raises(ModelError, match="Known: bfloat16, float16, float32"):
        probe_dtype("cpu", "fp8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_this_cpu_trains_in_the_format_and_its_speed_is_measured(dtype: str):
    seen = probe_dtype("cpu", dtype)
    assert seen.works, seen.reason
    assert seen.speed_gflops is not None
    assert seen.speed_gflops > 0.1


def test_the_real_choice_follows_the_real_measurements():
    full, half = probe_dtype("cpu", "float32"), probe_dtype("cpu", "bfloat16")
    assert full.speed_gflops
    assert half.speed_gflops
    faster = half.speed_gflops >= 1.1 * full.speed_gflops
    assert pick_dtype("cpu", "auto").dtype == ("bfloat16" if faster else "float32")


@without_cuda
def test_a_device_that_is_not_there_is_an_answer_not_a_crash():
    seen = probe_dtype("cuda:0", "bfloat16")
    assert not seen.works
    assert seen.reason.startswith("bfloat16 on cuda:0: ")


def test_probing_leaves_the_random_state_and_the_threads_as_they_were():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    probe_dtype.__globals__["_probe_dtype"].__wrapped__("cpu", "float32")
    matmul_gflops("cpu", "float32", budget_s=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_value_that_is_not_finite_is_never_near():
    expected = torch.ones(4)
    assert relative_error(expected, expected) == 0.0
    for value in (float("nan"), float("inf")):
        assert not relative_error(torch.full((4,), value), expected) < 1e9


def test_the_formats_are_those_of_torch():
    assert {name: str(dtype) for name, dtype in DTYPES.items()} == {name: f"torch.{name}" for name in DTYPES}


@pytest.mark.parametrize(
    ("onednn", "error", "taken"),
    [(2.0, 3e-7, "medium"), (2.0, 2e-3, "highest"), (1.2, 3e-7, "highest"), (0.9, 3e-7, "highest")],
)
def test_fp32_matmuls_go_to_onednn_where_it_is_much_faster_and_as_exact(onednn: float, error: float, taken: str):
    def seconds(_: torch.Tensor) -> float:
        return 1.0 / (onednn if torch.get_float32_matmul_precision() == "medium" else 1.0)

    before = torch.get_float32_matmul_precision()

    def errors(_: torch.Tensor) -> float:
        return error if torch.get_float32_matmul_precision() == "medium" else 3e-7

    assert quickest_fp32(seconds, errors)[0] == taken
    assert torch.get_float32_matmul_precision() == before


def test_a_machine_that_slows_down_between_two_measurements_does_not_turn_the_choice():
    asked: list[str] = []

    def seconds(_: torch.Tensor) -> float:  # as fast either way, and half as fast for the first third of the time
        asked.append(torch.get_float32_matmul_precision())
        return 2.0 if len(asked) <= 8 else 1.0

    assert quickest_fp32(seconds)[0] == "highest"
    assert asked[:4] == ["highest", "medium"] * 2


def test_a_set_precision_of_matmuls_is_taken_without_measuring(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "quickest_fp32", lambda: pytest.fail("measured"))
    assert pick_matmul_precision("cpu", "medium")[0] == "medium"
    assert pick_matmul_precision("cuda", "high")[0] == "high"
    assert pick_matmul_precision("cuda", "auto")[0] == "highest"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc what is allocated")
def test_matmuls_of_ever_new_shapes_hold_little_memory_unless_somebody_has_tuned_that():
    held_mib = []
    for settings in ({}, {"LRU_CACHE_CAPACITY": "1024", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}):
        done = subprocess.run(
            [sys.executable, "-c", MANY_SHAPES], capture_output=True, text=True, check=True, env=os.environ | settings
        )
        held_mib.append(int(done.stdout))
    assert held_mib[0] < 0.6 * held_mib[1]


MANY_SHAPES = """
import ctypes, inlay.hardware.probe, torch
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h hblkhd us fs uordblks f k".split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
torch.set_float32_matmul_precision("medium")
weight = torch.randn(128, 512)
held = []
for tokens in range(300, 450):
    torch.randn(tokens, 128) @ weight
    if tokens in (320, 449):
        info = mallinfo()
        held.append(info.uordblks + info.hblkhd)
print((held[1] - held[0]) >> 20)
"""


def test_fp32_matmuls_that_are_rounded_are_not_taken_however_fast(monkeypatch: pytest.MonkeyPatch):
    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        narrow = torch.get_float32_matmul_precision() == "medium" and a.dtype == torch.float32
        return torch.mm(a.bfloat16(), b.bfloat16()).float() if narrow else torch.mm(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    took_s = {"highest": 9.0, "medium": 1.0}
    assert quickest_fp32(lambda _: took_s[torch.get_float32_matmul_precision()])[0] == "highest"
