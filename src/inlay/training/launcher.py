"""What a launcher of several processes says, read without importing torch."""

from __future__ import annotations

import os


def launched_rank() -> tuple[int, int]:
    """(rank, size) that torchrun or accelerate launch put into the environment; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
