"""A server with its real front, whose children compute nothing: it starts in a moment."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from inlay.config.sections.serve import ServeConfig
from inlay.errors import InlayError
from inlay.serving import wire
from inlay.serving.aliases import read_aliases
from inlay.serving.auth import Auth, Token
from inlay.serving.feedback import LiveTests
from inlay.serving.lifetime import listening, run_server
from inlay.serving.processes import Processes
from training_runs import Forked

ADMIN = {"Authorization": "Bearer admin-token"}


def serve(base: str, logs: Path, loading_s: float, settings: dict[str, Any]) -> None:
    """Prints its port at once, `ready` when it is, and its end as JSON."""
    config = ServeConfig(**settings)
    auth = Auth(admin_tokens=[Token("admin", hashlib.sha256(b"admin-token").digest(), frozenset({"admin"}))])
    with listening("127.0.0.1", 0) as listener:
        _print(listener.getsockname()[1])
        start = wire.Start(base, "", "", {"loading_s": loading_s}, {"a": "a:1"})

        async def run() -> Any:
            children = {"encoding": "serving.stand_in_encoding", "engine": "serving.stand_in_engine"}
            processes = Processes(start, logs, config.max_requests, **children)
            tests = LiveTests(logs, read_aliases(Path(config.aliases))) if config.aliases else None
            return await run_server(
                processes, config, auth, listener, lambda: _print("ready"), lambda text: None, tests=tests
            )

        try:
            _print(asdict(asyncio.run(run())))
        except InlayError as error:
            _print({"error": str(error)})
            sys.exit(error.exit_code)


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


class Running(Forked):
    """The process, and what it printed."""

    def __init__(self, folder: Path, base: str, loading_s: float, settings: dict[str, Any]) -> None:
        tests = Path(__file__).parents[1]
        env = {"PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)])}
        super().__init__(partial(serve, base, folder, loading_s, settings), folder, env)
        self.wait_until(lambda: self.printed("\n"))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.lines()[0]}", timeout=20)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self._output.read_text().splitlines()]

    def wait_ready(self) -> None:
        self.wait_until(lambda: self.printed('"ready"\n'))

    def children(self) -> dict[str, int]:
        """Numbers of the processes behind the front now."""
        found = {}
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):
                found["engine" if "engine" in " ".join(child.cmdline()) else "encoding"] = child.pid
        return found

    def kill(self, name: str) -> None:
        """Kills a child and waits until there is another one, unless the server ends."""
        pid = self.children()[name]
        os.kill(pid, signal.SIGKILL)
        is_ended = lambda: self._process.exitcode is not None or len(self.lines()) > 2  # noqa: E731
        self.wait_until(lambda: is_ended() or self.children().get(name, pid) != pid)
        self.wait_until(lambda: is_ended() or self.http.get("/ready").status_code == 200)

    def ask(self, tokens: int, stream: bool = False, model: str = "base", text: str = "Hello") -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {"model": model, "messages": messages, "max_tokens": tokens, "stream": stream}

    def chat(self, tokens: int, model: str = "base", text: str = "Hello") -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=self.ask(tokens, model=model, text=text))

    def ended(self) -> tuple[int, Any]:
        """(exit code, its last line)"""
        code = self.wait(20)[0]
        return code, self.lines()[-1]

    def live(self) -> float:
        """Answers that the engine computes."""
        return float(self.http.get("/health").json()["figures"].get("live", -1))

    def is_draining(self) -> bool:
        return bool(self.http.get("/health").json()["status"] == "draining")


@contextlib.contextmanager
def stand_in_server(folder: Path, base: str = "base", *, loading_s: float = 0.0, **settings: Any) -> Iterator[Running]:
    """A server in a process of its own, which is gone at the end."""
    running = Running(folder, base, loading_s, settings)
    try:
        with running.http:
            yield running
    finally:
        if running._process.is_alive():
            running._process.kill()
        running._process.join()


def gone(pids: list[int]) -> Callable[[], bool]:
    """Whether all of these processes have ended."""
    return lambda: not any(map(psutil.pid_exists, pids))


def wait_for(holds: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)
