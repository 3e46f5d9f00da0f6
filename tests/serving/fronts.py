"""The front before the stub engine: over ASGI for most, on a socket where the connection itself is tried."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import httpx
import uvicorn
from stub_engine import server

from inlay.serving.app import create_app
from inlay.serving.connection import connections
from inlay.serving.server import Server

HELLO = [{"role": "user", "content": "hello"}]
T = TypeVar("T")


def client_of(one: Server, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(one)), base_url="http://localhost", **options)


def ask(work: Callable[[httpx.AsyncClient], Awaitable[T]], one: Server | None = None, **options: Any) -> T:
    """What the work gives, with a client of a server."""

    async def run() -> T:
        async with client_of(one or server(), **options) as client:
            return await work(client)

    return anyio.run(run)


def post(path: str, body: Any, one: Server | None = None, **more: Any) -> httpx.Response:
    return ask(lambda client: client.post(path, json=body, **more), one)


def chat(one: Server | None = None, **fields: Any) -> httpx.Response:
    return post("/v1/chat/completions", {"model": "base", "messages": HELLO} | fields, one)


def complete(one: Server | None = None, **fields: Any) -> httpx.Response:
    return post("/v1/completions", {"model": "base", "prompt": "hello"} | fields, one)


def events_of(response: httpx.Response) -> list[Any]:
    """The values of a stream, with its `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextmanager
def on_a_socket(one: Server) -> Iterator[int]:
    """The port of a server in a thread of its own."""
    limits = one.gate.limits
    config = uvicorn.Config(
        create_app(one), port=0, http=connections(limits), log_config=None, access_log=False, ws="none", lifespan="off",
        h11_max_incomplete_event_size=limits.header_bytes, timeout_graceful_shutdown=1,
    )  # fmt: skip
    running = uvicorn.Server(config)
    started = threading.Event()

    async def serve() -> None:
        task = asyncio.create_task(running.serve())
        while not running.started:
            await asyncio.sleep(0.002)
        started.set()
        await task

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(10)
