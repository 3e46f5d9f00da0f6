"""The processes that train together: how many, the few things they do together, the share of a step that each has.

Gradients travel where they are, by NCCL between GPUs. Flags and texts travel on the CPU, in a group of their own that
waits for days: what the first process alone does (writing, proofs, a report) takes as long as it takes. A process that
dies is noticed at once, since its connections close.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import torch
from torch import Tensor

from inlay.errors import ConfigError, InlayError, RunError, TrainingError
from inlay.training.process import Launch, launch
from inlay.typed_json import JsonObject

_PATIENCE: Final = timedelta(days=7)


class Shared(InlayError):
    """An error of one process that every process ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Rank and size. Size 1 is an ordinary run, where nothing is sent or waited for."""

    rank: int = 0
    size: int = 1
    messages: Any = field(default=None, compare=False)
    """The process group of flags and texts."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all ranks, in place; the same bits on every rank."""
        if self.size > 1:
            group = self.messages if tensor.device.type == "cpu" else None
            with _others_alive(self.size):
                torch.distributed.all_reduce(tensor, group=group)
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

    def max(self, value: float) -> float:
        """The largest value of all ranks."""
        if self.size == 1:
            return value
        values = torch.zeros(self.size, dtype=torch.float64)
        values[self.rank] = value
        return float(self.sum(values).max())

    def copy(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on every rank, in place of this one on the CPU."""
        if self.size > 1:
            with _others_alive(self.size):
                torch.distributed.broadcast(tensor, src=0, group=self.messages)
        return tensor

    def gather(self, text: str) -> list[str]:
        """The text of every rank, by rank. Raises: Shared where one of them has failed instead (`failing_together`)."""
        return self._exchanged({"text": text}) if self.size > 1 else [text]

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, on every rank. Raises: as `gather`."""
        return self.gather(text)[0]

    def agree(self) -> None:
        """Waits until every rank is here. Raises: as `gather`."""
        self.gather("")

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Inside, an error that one rank meets ends all of them with one message.

        Ranks may speak to each other by `gather` and what is made of it alone, and each must come to one after its last
        chance to fail.
        """
        try:
            yield
        except Shared:
            raise
        except InlayError as error:
            if self.size == 1:
                raise
            self._exchanged({"error": str(error), "exit_code": error.exit_code})
            raise AssertionError("unreachable: what was sent is an error") from error

    def _exchanged(self, message: JsonObject) -> list[str]:
        found: list[Any] = [None] * self.size
        with _others_alive(self.size):
            own = json.dumps(message | {"host": platform.node()})
            torch.distributed.all_gather_object(found, own, group=self.messages)
        every = [json.loads(one) for one in found]
        failed = [rank for rank, one in enumerate(every) if "error" in one]
        if not failed:
            return [one["text"] for one in every]
        first = every[failed[0]]
        everywhere = len(failed) == self.size and len({one["error"] for one in every}) == 1
        where = "" if everywhere else f"process {failed[0]} of {self.size} (on {first['host']}): "
        raise Shared(where + first["error"], first["exit_code"])

    def device(self, wanted: str) -> str:
        """The device of this rank: with several ranks on CUDA, each takes its own. Raises: ConfigError."""
        if self.size == 1 or not (wanted == "auto" or wanted.startswith("cuda")) or not torch.cuda.is_available():
            return wanted
        if wanted not in ("auto", "cuda"):
            raise ConfigError(
                f"model.device {wanted}: {self.size} processes take a GPU each. Write cuda, or leave it out."
            )
        own, count = launch().local_rank, torch.cuda.device_count()
        if own >= count:
            raise ConfigError(
                f"model.device: {own + 1} processes or more are on a machine with {count} GPU{'s' if count > 1 else ''}, and "
                f"each takes its own. Start {count} on it, or set model.device=cpu."
            )
        return f"cuda:{own}"

    def barrier(self) -> None:
        if self.size > 1:
            with _others_alive(self.size):
                torch.distributed.barrier(group=self.messages)


@contextlib.contextmanager
def _others_alive(size: int) -> Iterator[None]:
    """Turns a lost connection into one line. Raises: TrainingError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        lost = any(sign in str(error).lower() for sign in ("closed by peer", "reset by peer", "broken pipe"))
        what = "ended" if lost else f"cannot be reached ({_reason(error)})"
        raise TrainingError(
            f"another of the {size} processes {what}: its own output says why. Start all of them again with --resume."
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of a message of torch, without the place in its source."""
    return re.sub(r"^\[[^]]*\] *", "", str(error).strip()).partition("\n")[0].partition(". ")[0][:200]


_messages: Any = None


def join_process_group(device: str) -> ProcessGroup:
    """The processes that train together, this one among them. Waits until every rank has joined. Raises: RunError."""
    global _messages
    started = launch()
    if started.size == 1:
        return ProcessGroup()
    with _meeting(started):
        if not torch.distributed.is_initialized():
            on_cuda = device != "cpu" and torch.cuda.is_available()
            if on_cuda and started.local_rank < torch.cuda.device_count():
                torch.cuda.set_device(started.local_rank)
            _join(started, "cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        if _messages is None:
            _messages = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return ProcessGroup(started.rank, started.size, _messages)


def _join(started: Launch, backend: str) -> None:
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps its store when it starts the processes of a machine again: there the dead ones' addresses lie too
    store = PrefixStore(f"start {started.restarts}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    atexit.register(torch.distributed.destroy_process_group)


@contextlib.contextmanager
def _meeting(started: Launch) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:  # those of torch's stores are RuntimeErrors
        raise RunError(
            f"process {started.rank} of {started.size}: the others cannot be met ({_reason(error)}). Start all of them "
            "together with torchrun, which gives each its RANK and all the same MASTER_ADDR and MASTER_PORT; for a single "
            "process unset RANK and WORLD_SIZE."
        ) from None


def share_size(batch_size: int, size: int) -> int:
    """Rows of a step for each of `size` processes, where all are equally long."""
    return -(-batch_size // size)


def require_work(batch_size: int, drawn: int, processes: int) -> None:
    """Raises: ConfigError when a step has fewer rows than there are processes."""
    rows = min(batch_size, drawn)
    if rows >= processes:
        return
    known = f"a step has {batch_size}" if batch_size <= drawn else f"only {drawn} are to be trained on"
    more = "Raise train.batch_size" if batch_size <= drawn else "Give more rows"
    raise ConfigError(
        f"train.batch_size: {processes} processes share the rows of a step, and {known}: {processes - rows} would have "
        f"no work. {more}, or start {rows} process{'es' if rows > 1 else ''}."
    )
