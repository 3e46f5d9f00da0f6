"""`inlay serve` as a child process, ready to answer, and gone at the end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from inlay.errors import InlayError

_PATIENCE_S = 45.0


@contextlib.contextmanager
def started_server(arguments: Sequence[str]) -> Iterator[str]:
    """The address of `inlay serve ARGUMENTS`, on a free port. Raises: InlayError with its last words where it does not start."""
    command = [sys.executable, "-m", "inlay", "serve", *arguments, "--port", "0", "--json"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        try:
            assert child.stdout is not None
            url = _ready_url(child.stdout.readline())
            if url is None:
                child.wait(_PATIENCE_S)
                log.seek(0)
                last = (log.read().strip().splitlines() or ["no word of why"])[-1].removeprefix("error: ")
                raise InlayError(f"inlay serve {arguments[0]}: did not start: {last}")
            yield url
        finally:
            end_process(child, _PATIENCE_S)
            assert child.stdout is not None
            child.stdout.close()


def _ready_url(line: str) -> str | None:
    """The address in its first line; None where that is another one."""
    try:
        return str(json.loads(line)["ready"])
    except (ValueError, KeyError, TypeError):
        return None


def end_process(process: subprocess.Popen[Any], patience_s: float) -> None:
    """Ends a process by SIGTERM; after so many seconds by force."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
