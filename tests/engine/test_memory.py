"""What a run will hold, and what is said when there is not that much."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from inlay.engine.memory import (
    BeyondLimit,
    enough_memory,
    held_bytes,
    is_out_of_memory,
    limited,
    release,
    tune_allocator,
)
from inlay.errors import TrainingError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nGPU 0 has"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_line_with_the_way_out(error: Exception) -> None:
    with pytest.raises(TrainingError, match=r"^out of memory \(.*\)\. Lower it\.$"), enough_memory("Lower it."):
        raise error


def test_another_runtime_error_passes_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("Lower it."):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_pass_that_held_more_than_was_planned_is_out_of_memory_also_when_it_has_freed_it(device: str) -> None:
    torch.ones(1, device=device)
    release(device)
    limit = held_bytes(device) + 60_000_000
    with limited(device, limit):
        torch.ones(5_000_000, device=device).sum()
    with (
        pytest.raises(BeyondLimit, match=r"[MG]B were held, train.max_memory allows .* [MG]B") as caught,
        limited(device, limit),
    ):
        torch.ones(30_000_000, device=device).sum()
    assert is_out_of_memory(caught.value)
    with limited(device, limit):  # what was held before counts no more
        torch.ones(5_000_000, device=device).sum()
    with limited(device, None):
        torch.ones(30_000_000, device=device).sum()


def test_a_malloc_that_somebody_has_tuned_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not tune_allocator(for_speed=True)


@pytest.mark.parametrize("for_speed", [True, False])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_stay_for_the_next_step_or_are_given_back(for_speed: bool) -> None:
    program = f"""
import resource, psutil, torch
from inlay.engine.memory import trim_allocator, tune_allocator
print(tune_allocator({for_speed}))
torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
trim_allocator("cpu")
held = psutil.Process().memory_info().rss
small = [torch.ones(500_000) for _ in range(60)]
del small[::2]
small = small[:1]
print(psutil.Process().memory_info().rss - held)
trim_allocator("cpu")
print(psutil.Process().memory_info().rss - held)
"""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    tuned, faults, grown, left = done.stdout.split()
    assert tuned == "True"
    assert (int(faults) < 100_000) == for_speed  # 40 MB are 9,766 pages, 20 times
    assert (int(grown) < 10_000_000) != for_speed  # of 120 MB in blocks of 2, one is left
    assert int(left) < 10_000_000
