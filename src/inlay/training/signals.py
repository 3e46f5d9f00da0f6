"""Ctrl+C, SIGTERM and SIGUSR1 as requests that the loop answers at its next safe point."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

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
