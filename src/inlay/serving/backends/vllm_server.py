"""One vLLM server: a child process that is started here, or one that runs elsewhere; asked over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import IO, Final

from inlay.errors import ModelError
from inlay.generation.request import Ask, Event
from inlay.serving.backends.vllm_requests import BASE, events_of, refusal_of, request_of
from inlay.serving.engine import Refusal
from inlay.serving.load_client import Connection, EventReader, Exchange, Target
from inlay.serving.started_server import end_process, free_port
from inlay.typed_json import JsonObject

KEY: Final = "INLAY_VLLM_KEY"
"""Environment variable with the key of servers that run elsewhere."""
_HELPED: Final = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
"""Runs a command that ends with its parent; vLLM ends its own children."""


class VllmServer:
    """A vLLM server with adapters by digest."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.is_up = False
        self.live = 0
        """Answers that it computes for us."""
        self._idle: list[Connection] = []

    async def context_length(self) -> int | None:
        """Tokens of prompt and answer at most; None where it does not answer. A server whose base has another name is refused.

        Raises: ModelError.
        """
        found = await self._exchange("GET", "/v1/models")
        if found.status != 200:
            self.is_up = False
            return None
        models = {one["id"]: one for one in json.loads(found.body)["data"]}
        if BASE not in models:
            raise ModelError(
                f"{self.target.url}: serves {', '.join(models)}, and no {BASE!r}. Start it with --served-model-name {BASE}."
            )
        self.is_up = True
        return int(models[BASE].get("max_model_len") or 0)

    async def load(self, digest: str, folder: Path) -> None:
        """Has it read an adapter. Raises: Refusal with its words."""
        found = await self._exchange("POST", "/v1/load_lora_adapter", {"lora_name": digest, "lora_path": str(folder)})
        if found.status == 200 or b"already been loaded" in found.body:
            return
        if found.status == 0:
            self.is_up = False
            raise Refusal(503, f"vLLM is gone ({found.fault})", code="backend_failed", retry_after_s=2)
        raise Refusal(400, f"vLLM does not take the adapter: {_words(found)}", code="adapter_refused", param="ref")

    async def unload(self, digest: str) -> None:
        """Has it forget an adapter."""
        await self._exchange("POST", "/v1/unload_lora_adapter", {"lora_name": digest})

    async def answer(self, ask: Ask, stop_ids: Collection[int]) -> AsyncIterator[Event]:
        """The events of one answer; leaving early ends it in vLLM, too. Raises: Refusal."""
        body = request_of(ask, stop_ids)
        events: asyncio.Queue[Event | Refusal | None] = asyncio.Queue()
        reader = EventReader()

        def on_piece(status: int, data: bytes) -> None:
            if status == 200 and "stream" in body:
                for one in reader.feed(data):
                    _put(events, one, stop_ids)

        connection = self._idle.pop() if self._idle else Connection(self.target)
        task = asyncio.create_task(connection.exchange("POST", "/v1/completions", body, on_piece))
        task.add_done_callback(lambda _: events.put_nowait(None))
        self.live += 1
        is_whole = False
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Refusal):
                    raise event
                is_whole = is_whole or event.finish is not None
                yield event
            found = task.result()
            if found.status == 200 and "stream" not in body:
                _put(events, found.body, stop_ids)
                last = events.get_nowait()
                if isinstance(last, Refusal):
                    raise last
                yield last  # type: ignore[misc]
            elif not is_whole:
                self.is_up = self.is_up and not found.fault
                raise refusal_of(_words(found), found.status)
        finally:
            self.live -= 1
            if task.done():
                self._idle.append(connection)
            else:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def close(self) -> None:
        """Closes the connections that no answer uses."""
        while self._idle:
            await self._idle.pop().close()

    async def _exchange(self, method: str, path: str, body: JsonObject | None = None) -> Exchange:
        connection = Connection(self.target)
        found = await connection.exchange(method, path, body)
        await connection.close()
        return found


def _put(events: asyncio.Queue[Event | Refusal | None], data: bytes, stop_ids: Collection[int]) -> None:
    if data == b"[DONE]":
        return
    try:
        for event in events_of(data, stop_ids):
            events.put_nowait(event)
    except Refusal as refusal:
        events.put_nowait(refusal)


def _words(found: Exchange) -> object:
    try:
        return json.loads(found.body)
    except ValueError:
        return found.fault or found.body[:300].decode("utf-8", "replace")


class OwnVllm:
    """The process of a vLLM server that is started here, on a free port of this machine, with a key of its own."""

    def __init__(self, python: str, base: str, arguments: Sequence[str], log: IO[bytes] | int) -> None:
        key, port = secrets.token_hex(24), free_port()
        self.server = VllmServer(Target("127.0.0.1", port, token=key))
        command = [
            sys.executable, "-c", _HELPED, python, "-m", "vllm.entrypoints.cli.main", "serve", base, "--host", "127.0.0.1",
            "--port", str(port), "--served-model-name", BASE, "--enable-lora", *arguments,
        ]  # fmt: skip
        own = {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=inherited | own)

    def end(self) -> None:
        """Ends it and its children."""
        end_process(self.process, 20)
