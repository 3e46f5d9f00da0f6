"""This process as its environment has it: its rank among those that a launcher started, and the signals that it answers.

Ctrl+C, SIGTERM and SIGUSR1 become requests that the loop answers at its next safe point. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
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


STOP_WITH_STDIN: Final = "INLAY_STOP_WITH_STDIN"
"""Set in the environment of a process that is to end with the one that holds the other end of its standard input."""


class StopRequest:
    """The signal that requests a stop, or None, and whether a checkpoint is requested now."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.save = False

    @property
    def requested(self) -> bool:
        """True once a signal has requested a stop."""
        return self.signal is not None


def stop_with_stdin() -> None:
    """Sends this process a SIGTERM when its standard input ends, if the environment says so.

    The system closes that input however the process at the other end died.
    """
    if os.environ.pop(STOP_WITH_STDIN, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        if os.name == "nt":  # where kill would end the process on the spot
            signal.raise_signal(signal.SIGTERM)
        else:  # to the main thread, which may be waiting
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def save_on_signal() -> Iterator[StopRequest]:
    """SIGUSR1 asks for a checkpoint, from here on: before there is anything to save it would kill the process."""
    request = StopRequest()
    number = getattr(signal, "SIGUSR1", None)
    if number is None or threading.current_thread() is not threading.main_thread():  # only that one may listen
        yield request
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        request.save = True

    before = signal.signal(number, note)
    try:
        yield request
    finally:
        signal.signal(number, before or signal.SIG_DFL)


@contextlib.contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[StopRequest]:
    """The first SIGINT or SIGTERM sets the request; a second one acts as if nobody had listened."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield request
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
