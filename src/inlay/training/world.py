"""How many processes train together, and the two things they do together."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """Rank and size. Size 1 is an ordinary run, where `sum` and `barrier` do nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all ranks, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Adds up the gradients of all ranks with one message; a parameter without one counts as zero."""
        if self.size == 1:
            return
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in parameters])
        self.sum(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.sum(torch.tensor(float(flag))).item() > 0) if self.size > 1 else flag

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        if self.size == 1:
            return text
        padded = torch.zeros(4096, dtype=torch.float32)
        if self.is_first:
            data = text.encode()[:4096]
            padded[: len(data)] = torch.tensor(list(data), dtype=torch.float32)
        return bytes(int(b) for b in self.sum(padded).tolist() if b).decode()

    def device(self, wanted: str) -> str:
        """The device of this rank: with several ranks on CUDA, each takes its own."""
        if self.size > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        return wanted

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


def join_world(device: str) -> World:
    """The world that the launcher (torchrun, accelerate launch) describes in the environment."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return World(state.process_index, state.num_processes)
