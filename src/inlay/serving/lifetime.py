"""A server from its start to its end: listening, ready, draining, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

import uvicorn

from inlay.adapters.router import Router
from inlay.config.sections.serve import ServeConfig
from inlay.errors import UserError
from inlay.serving.admin import admin_router
from inlay.serving.app import create_app
from inlay.serving.auth import Auth
from inlay.serving.connection import connections
from inlay.serving.feedback import LiveTests, add_tests, feedback_router
from inlay.serving.limits import Gate, Limits
from inlay.serving.metrics import Metrics, metrics_router
from inlay.serving.names import Names
from inlay.serving.processes import Processes
from inlay.serving.router import add_router
from inlay.serving.server import Server

_LAST_BYTES_S: Final = 5
"""For clients to take the ends of their answers."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a server."""

    reason: str
    """The signal, or that an admin asked for it."""
    requests: int
    """That were answered, with those that were refused."""
    cut_off: int
    """Answers that the drain did not wait for."""
    seconds: float
    """Since it was ready."""


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers: what a signal means is decided here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Captures none."""
        yield


class Lifetime:
    """One run of a server."""

    def __init__(self, processes: Processes, drain_s: float) -> None:
        self._processes, self._drain_s = processes, drain_s
        self._asked = asyncio.Event()
        self._reason = ""

    def drain(self, reason: str = "an admin's request") -> None:
        """Takes no new requests from now on, and ends the server once the running ones have ended."""
        self._reason = self._reason or reason
        self._processes.drain()
        self._asked.set()

    async def run(
        self, app: Any, listener: socket.socket, on_ready: Callable[[], None], on_progress: Callable[[str], None]
    ) -> Ended:
        """Serves until a signal or `drain`. `on_ready` is called once answers can be given; until then `on_progress` gets
        what is waited for.

        A second signal ends the process at once with exit code 130. Raises: ChildFailedError, and what a child refuses.
        """
        limits: Limits = app.state.server.gate.limits
        server = _Uvicorn(uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_LAST_BYTES_S, server_header=False,
            http=connections(limits), h11_max_incomplete_event_size=limits.header_bytes, ws="none", lifespan="off",
            proxy_headers=False,
        ))  # fmt: skip
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        http = asyncio.create_task(server.serve(sockets=[listener]))
        children = asyncio.create_task(self._processes.run())
        life = asyncio.create_task(self._life(server, on_ready, on_progress))
        try:
            await asyncio.wait({http, children, life}, return_when=asyncio.FIRST_COMPLETED)
            if children.done():  # answers get their errors before the connections end
                await asyncio.sleep(0.1)
            server.should_exit = True
            await http
            for task in (life, children):
                if task.done():
                    task.result()
            return await life
        finally:
            for task in (life, children, http):
                task.cancel()
            await asyncio.gather(life, children, http, return_exceptions=True)
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if self._reason:
            os._exit(130)  # the children end with our sockets
        self.drain(signal.Signals(number).name)

    async def _life(
        self, server: uvicorn.Server, on_ready: Callable[[], None], on_progress: Callable[[str], None]
    ) -> Ended:
        ready = asyncio.create_task(self._processes.ready())
        asked = asyncio.create_task(self._asked.wait())
        why = ""
        while not (ready.done() or asked.done()):
            await asyncio.wait({ready, asked}, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            if (now := self._processes.state().why) != why and not ready.done():
                on_progress(why := now)
        since = time.monotonic()
        if ready.done():
            on_ready()
        else:
            ready.cancel()
        await asked
        until = time.monotonic() + self._drain_s
        while server.server_state.tasks and time.monotonic() < until:
            await asyncio.sleep(0.02)
        cut_off = self._processes.end_answers("The server is shutting down.")
        return Ended(self._reason, server.server_state.total_requests, cut_off, time.monotonic() - since)


async def run_server(
    processes: Processes, config: ServeConfig, auth: Auth, listener: socket.socket,
    on_ready: Callable[[], None], on_progress: Callable[[str], None], *, tests: LiveTests | None = None,
    router: Router | None = None,
) -> Ended:  # fmt: skip
    """Serves what `processes` open to those whom `auth` lets in, under the aliases of `tests` and as `auto`, too.

    See `Lifetime.run`. Raises: ConfigError where an alias or the router needs a model that is not served.
    """
    lifetime = Lifetime(processes, config.drain_s)
    metrics, names = Metrics(processes, processes.pids), Names("base")
    gate = Gate(Limits(
        max_wait_s=config.max_wait_s, live_in_all=config.max_requests, requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute, live_requests=config.live_requests,
    ))  # fmt: skip
    server = Server(processes, names, auth, gate, [metrics], frozenset(config.origins))

    def ready() -> None:
        names.base, names.base_identity = processes.base, processes.base_identity
        for name, adapter in processes.named.items():
            names.put(name, adapter)
        if tests is not None:
            add_tests(server, tests, config.aliases)
        if router is not None:
            add_router(server, router, config.router)
        on_ready()

    routers = [metrics_router(metrics), admin_router(lifetime.drain)]
    app = create_app(server, *routers, *([feedback_router(tests)] if tests else []))
    return await lifetime.run(app, listener, ready, on_progress)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free. Raises: UserError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}). Choose another port (0 takes a free one), "
            "or end the program that has it."
        ) from None
    return listener
