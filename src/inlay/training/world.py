"""How many processes train together, and the few things they do together."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.training.launcher import launched_rank


@dataclass(frozen=True, slots=True)
class World:
    """Rank and size. Size 1 is an ordinary run, where `sum` and `barrier` do nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all ranks, in place; the same bits on every rank."""
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
        shared = [text]
        torch.distributed.broadcast_object_list(shared, src=0, device=torch.device("cpu"))
        return shared[0]

    def device(self, wanted: str) -> str:
        """The device of this rank: with several ranks on CUDA, each takes its own."""
        if self.size > 1 and (wanted == "auto" or wanted.startswith("cuda")) and torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        return wanted

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


def join_world(device: str) -> World:
    """The world of this process. Waits until every rank has joined."""
    rank, size = launched_rank()
    if size == 1:
        return World()
    if not torch.distributed.is_initialized():
        on_cuda = device != "cpu" and torch.cuda.is_available()
        if on_cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
        # flags and texts travel on the CPU, gradients where they are
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return World(rank, size)
