"""A child process of the server and the socket to it. It is started anew (never forked), and ends with the front."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import BoundedSemaphore, Thread

from inlay.serving import wire
from inlay.typed_json import JsonObject

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
_MOST_WAITING = 4096
"""Messages that a child has read and not yet looked at."""


class ChildProcess:
    """The front's side: a process of `python -m MODULE`, with messages to it and from it."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer

    @staticmethod
    async def start(module: str, log: Path) -> ChildProcess:
        """A process that has just begun. What it prints goes to the end of `log`."""
        near, far = socket.socketpair()
        # a session of its own: Ctrl+C in the terminal is for the front, which lets answers end
        with far, log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(far.fileno())], pass_fds=[far.fileno()], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=near, limit=2**20)
        return ChildProcess(process, reader, writer)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    async def send(self, message: JsonObject) -> None:
        """Hands a message over; waits while the child is behind. One that has ended loses it."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(wire.packed(message))
            await self._writer.drain()

    def send_soon(self, message: JsonObject) -> None:
        """The same without waiting; for a few small messages."""
        if not self._writer.is_closing():
            self._writer.write(wire.packed(message))

    async def receive(self) -> JsonObject | None:
        """The next message; None where the process has ended."""
        return await wire.received(self._reader)

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    async def ended(self) -> int:
        """Its exit code, minus the signal where one ended it. The process is ended if it has not done so itself in a second."""
        self._writer.close()
        for _ in range(100):
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        else:
            self._process.kill()
        return await asyncio.to_thread(self._process.wait)


def ending_in_words(code: int) -> str:
    """`was ended by SIGKILL`, `ended with exit code 1`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class Front:
    """The child's side: messages from the front as they come, and to it. The process ends when the front does."""

    def __init__(self) -> None:
        """Takes the socket that `ChildProcess.start` passed."""
        faulthandler.enable()
        for number in (signal.SIGINT, signal.SIGTERM):  # a service manager sends them to all; the front decides
            signal.signal(number, signal.SIG_IGN)
        if sys.platform == "linux":  # also where a computation that never returns keeps the thread below from running
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        self._connection = socket.socket(fileno=int(sys.argv[1]))
        self._messages: SimpleQueue[JsonObject] = SimpleQueue()
        self._room = BoundedSemaphore(_MOST_WAITING)
        Thread(target=self._read, daemon=True, name="front").start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while (message := wire.receive(self._connection)) is not None:
                self._room.acquire()
                self._messages.put(message)
        os._exit(0)

    def put(self, message: JsonObject) -> None:
        """Adds a message of this process to those of the front; from any thread."""
        self._room.acquire()
        self._messages.put(message)

    def next(self) -> JsonObject:
        """The next message; waits for it."""
        message = self._messages.get()
        self._room.release()
        return message

    def has_message(self) -> bool:
        """Whether `next` would not wait."""
        return not self._messages.empty()

    def send(self, message: JsonObject) -> None:
        """Sends a message; from the main thread alone. Waits while the front is behind."""
        try:
            self._connection.sendall(wire.packed(message))
        except OSError:
            os._exit(0)
