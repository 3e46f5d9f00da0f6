"""A run kept within memory: the largest batches that fit are found before it begins; where memory runs out
all the same, the same rows again in smaller batches, and from then on.

The rows of a batch are a pure function of the step and of the events that run.json keeps, so a resumed run computes
every step as the first time. The rows of a step, their order and their gradient do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from inlay.config import Config
from inlay.engine.estimate import MemoryEstimate, Shape, Work, estimate, largest_micro_batch
from inlay.engine.lm_head import head_of
from inlay.engine.memory import first_line, held_bytes, is_out_of_memory, limited, release
from inlay.engine.select_engine import expected_engine
from inlay.errors import ConfigError, TrainingError
from inlay.hardware.facts import memory_facts
from inlay.hardware.probe import matmul_dtype
from inlay.methods.adapter import trained_parameters
from inlay.methods.lora import expert_bytes, rank_of
from inlay.methods.method import TRAINED
from inlay.methods.table import method_of
from inlay.runs.record import OutOfMemoryEvent
from inlay.runs.reporter import bytes_shown
from inlay.tasks.opened_base import Precision
from inlay.tasks.task import task_of
from inlay.training.job import TRAINING, AdapterJob, Choices
from inlay.training.process import launch
from inlay.training.process_group import ProcessGroup, share_size

T = TypeVar("T")

_TOKEN_CAP = {"cpu": 4096, "mps": 4096, "cuda": 16384}
_TOKEN_CAP_16_BIT_CPU = 8192  # its matmuls are so quick that calls between them count


def fit_batches(
    model: Any, work: Work, choices: Choices, max_length: int, device: str, group: ProcessGroup
) -> tuple[MemoryEstimate, int]:
    """(memory of the micro batch, which is settled here; rows at a time of an evaluation that needs no more).

    Raises: ConfigError when it is more than `train.max_memory` leaves.
    """
    config, train, shape = choices.config, choices.config.train, Shape.of(model)
    # all ranks cut alike, as the smallest of them must
    room = min(map(int, group.gather(str(_room_bytes(shape, config, work.adapter, device)))))
    micro = train.micro_batch_size
    if micro == "auto":
        micro, reason = largest_micro_batch(
            shape, work, train.batch_size, max_length, room, token_cap(device, work, shape)
        )
        choices.settle("train.micro_batch_size", micro, reason)
    # of a step's longest rows no process has more than this at once; of short ones it has no more tokens
    micro_size = min(int(micro), share_size(train.batch_size, group.size))
    memory = estimate(shape, work, micro_size * max_length, max_length)
    if train.max_memory is None:
        return memory, config.eval.batch_size
    if memory.total > room:
        raise ConfigError(
            f"train.max_memory: the run needs about {bytes_shown(memory.total)} at micro_batch_size {micro_size}, and "
            f"{train.max_memory} leave {bytes_shown(max(0, room))} beside what Python and the libraries hold. Lower "
            "train.micro_batch_size, data.max_length or adapter.rank, set train.gradient_checkpointing=true, or quantize."
        )
    # a forward pass alone saves no more than one with gradient checkpointing
    cap, forward = config.eval.batch_size * max_length, replace(work, recompute=True, engine="autograd")
    rows, _ = largest_micro_batch(shape, forward, config.eval.batch_size, max_length, room, cap)
    return memory, rows


def token_cap(device: str, work: Work, shape: Shape) -> int:
    """Tokens of a micro batch, beyond which speed stops growing."""
    if device == "cpu" and work.engine == "handwritten" and (work.width or shape.width) < 4:
        return _TOKEN_CAP_16_BIT_CPU
    return _TOKEN_CAP[device.partition(":")[0]]


def work_of(config: Config, model: Any, precision: Precision, name: str = TRAINED) -> Work:
    """The work of a gradient of an adapter on the model, as far as it is known without trying."""
    device, dtype, quantization = precision
    method = method_of(config)
    engine = expected_engine(config.train.engine, model, device, dtype, quantization, name, task_of(config).loss)
    widens = engine == "handwritten" and (quantization != "none" or matmul_dtype(device, dtype) != dtype)
    return Work(
        engine=engine,
        recompute=config.train.gradient_checkpointing,
        offload=config.train.activation_offload,
        adapter=0 if method.trains_base else sum(p.numel() for p in trained_parameters(model, name).values()),
        rank=rank_of(config) if method.has_rank else 0,
        method=config.adapter.method,
        virtual_tokens=method.virtual_tokens(config),
        unpacks=quantization == "nf4",
        optimizer=config.train.optimizer,
        head_in_chunks=head_of(model) is not None,
        leaves_holes=device == "cpu" and keeps_freed(config),
        makes_kernels=device == "cpu"
        and (matmul_dtype(device, dtype) if engine == "handwritten" else dtype).itemsize < 4,
        experts=expert_bytes(model, name) if config.adapter.experts else 0,
        width=matmul_dtype(device, dtype).itemsize if widens else None,
    )


def keeps_freed(config: Config) -> bool:
    """Whether a CPU's freed blocks stay for the next step: not where memory is what counts."""
    return config.train.max_memory is None and not config.train.gradient_checkpointing


def _room_bytes(shape: Shape, config: Config, trainable: int, device: str) -> int:
    """Memory to plan a run with; of `train.max_memory` what Python and the libraries leave."""
    if config.train.max_memory:
        loaded = shape.weight_bytes + 4 * trainable
        return parse_bytes(config.train.max_memory) - max(0, held_bytes(device) - loaded)
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.9)
    return int(memory_facts().available_bytes * 0.7) // launch().local_size


_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip


def parse_bytes(text: str, where: str = "train.max_memory") -> int:
    """`8GB`, `500 MB`, `2e9` as bytes. Raises: ConfigError."""
    compact = text.replace(" ", "").upper()
    number = compact.rstrip("BKMGTI")
    try:
        value = float(number) * _UNITS[compact[len(number) :]]
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: not an amount (got {text!r}). Write 8GB or 500MB.") from None
    if not 0 < value < 1e18:
        raise ConfigError(f"{where}: must be above 0 and below 1e18 bytes (got {text!r}).")
    return int(value)


def run_with_oom_retry(
    job: AdapterJob, phase: str, step: int, note: Callable[[str], None], compute: Callable[[int], T]
) -> tuple[T, int]:
    """(`compute` of a batch size, that size): the first that this rank and all others have memory for.

    Raises: what the allocator raised once a single row is too much.
    """
    group = job.base.group
    while True:
        size, failed = job.batch_size_at(phase, step), ""
        try:
            with limited(job.device, job.base.max_memory_bytes):
                result = compute(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or (size == 1 and group.size == 1):
                raise
            failed = first_line(error)
        if not group.any(bool(failed)):
            return result, size
        if size == 1:
            raise TrainingError(
                f"step {step}: out of memory with a single row ({failed or 'on another process'}).", step=step
            )
        # outside of the except clause, whose traceback holds every tensor of the pass
        job.optimizer.zero_grad(set_to_none=True)
        release(job.device)
        held = share_size(job.config.train.batch_size, group.size) if phase == TRAINING else len(job.heldout)
        smaller = (min(size, held) + 1) // 2
        job.out_of_memory_events.append(OutOfMemoryEvent(phase, step, smaller, failed or "on another process"))
        if group.is_first:
            job.run.write_record(replace(job.run.record, out_of_memory=tuple(job.out_of_memory_events)))
        note(
            f"step {step}: out of memory in {phase} ({job.out_of_memory_events[-1].error}); the same rows again, "
            f"{smaller} at a time from here on"
        )
