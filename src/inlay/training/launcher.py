"""Environment variables of a launcher of several processes, read without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from inlay.errors import ConfigError


class Launch(NamedTuple):
    """Rank of this process and number of processes; 0 of 1 without a launcher."""

    rank: int
    size: int
    local_rank: int
    """Among those on this machine."""
    local_size: int
    restarts: int = 0
    """How often torchrun has started these processes before, where they are of one machine: others may count apart."""


def launch() -> Launch:
    """The launch that torchrun or accelerate put into the environment. Raises: ConfigError when it cannot be meant."""
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if size < 1 or not 0 <= rank < size:
        raise ConfigError(
            f"RANK {rank}, WORLD_SIZE {size}: no process can be that one. Start with torchrun, or unset both."
        )
    if size > 1 and "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE is {size} and RANK is not set. Start with torchrun, or unset WORLD_SIZE.")
    alone = _number("GROUP_WORLD_SIZE", 1) == 1
    restarts = _number("TORCHELASTIC_RESTART_COUNT", 0) if alone else 0
    return Launch(rank, size, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", 1), restarts)


def require_alone(what: str) -> None:
    """Raises: ConfigError under a launcher of several processes, for what starts runs of its own and judges them."""
    if (size := launch().size) > 1:
        raise ConfigError(
            f"{what}: one process starts its runs and judges them, and {size} were launched. Start it without a launcher."
        )


def launched_rank() -> tuple[int, int]:
    """(rank, size) of this process; (0, 1) without a launcher."""
    return launch()[:2]


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}: not a number (got {text!r}). Start with torchrun, or unset it.") from None


_WAYS: Final = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What accelerate launch is to do with a model, by the variable that it hands on."""
_PRECISIONS: Final = {"bf16": "bfloat16", "fp16": "float16"}


def require_data_parallel(environment: Mapping[str, str]) -> None:
    """Raises: ConfigError for a setting of `accelerate launch` that inlay does not carry out."""
    for name, what in _WAYS.items():
        if environment.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t"):
            raise ConfigError(
                f"accelerate launch: {what} is on ({name}), and inlay shards no model: every process holds the whole base. "
                "Launch without it, or with torchrun; model.quantization=nf4 and train.gradient_checkpointing=true save memory."
            )
    if (compiler := environment.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() not in ("", "no"):
        raise ConfigError(f"accelerate launch: dynamo_backend {compiler} has no effect on inlay. Launch without it.")
    if (steps := environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) not in ("", "1"):
        raise ConfigError(
            f"accelerate launch: gradient_accumulation_steps {steps} has no effect on inlay, whose train.batch_size counts all "
            "rows of a step. Launch without it."
        )


def require_precision(environment: Mapping[str, str], dtype: str) -> None:
    """Raises: ConfigError when `accelerate launch` asks for another mixed precision than the run computes in."""
    wanted = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if wanted in ("", "no") or _PRECISIONS.get(wanted) == dtype:
        return
    way = f"Set model.dtype={_PRECISIONS[wanted]}" if wanted in _PRECISIONS else "There is none here"
    raise ConfigError(
        f"accelerate launch: mixed_precision {wanted}, and this run computes in {dtype}. {way}, or launch with "
        "--mixed_precision no."
    )
