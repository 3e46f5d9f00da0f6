"""What a run will hold, and what is said when there is not that much."""

from __future__ import annotations

import pytest
import torch

from inlay.engine.memory import enough_memory
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
