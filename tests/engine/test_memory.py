"""What a run will hold, and what is said when there is not that much."""

from __future__ import annotations

import pytest
import torch

from inlay.engine.memory import BeyondLimit, enough_memory, held_bytes, is_out_of_memory, limited, release
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
        pytest.raises(BeyondLimit, match=r"MB were held, train.max_memory allows .* MB") as caught,
        limited(device, limit),
    ):
        torch.ones(30_000_000, device=device).sum()
    assert is_out_of_memory(caught.value)
    with limited(device, limit):  # what was held before counts no more
        torch.ones(5_000_000, device=device).sum()
    with limited(device, None):
        torch.ones(30_000_000, device=device).sum()
