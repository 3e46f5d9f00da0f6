"""A stopwatch for streamed answers over HTTP/1.1: the arrival of every piece is timed, and read only after the answer ended.

It is written on asyncio's streams, as the time of each event counts and the work between socket and clock is to be small.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from inlay.errors import UserError
from inlay.typed_json import JsonObject

Piece = tuple[float, bytes]
"""(when it came, by `time.perf_counter`; its bytes)"""
OnPiece = Callable[[int, bytes], None]
_READ_BYTES = 2**16
_GONE = (ConnectionError, asyncio.IncompleteReadError, OSError)


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test."""

    host: str
    port: int
    path: str = ""
    """Stands before `/v1`."""
    is_tls: bool = False
    token: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Its address, without the token."""
        return f"http{'s' if self.is_tls else ''}://{self.host}:{self.port}{self.path}"

    @staticmethod
    def of(url: str, token: str | None = None) -> Target:
        """The server at `http://HOST:PORT`, with or without `/v1` at the end. Raises: UserError for what is no such URL."""
        parts = urlsplit(url)
        try:
            port = (443 if parts.scheme == "https" else 80) if parts.port is None else parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or not port:
            raise UserError(f"{url}: not the URL of a server. Write it as http://127.0.0.1:8000.")
        path = parts.path.rstrip("/").removesuffix("/v1")
        return Target(parts.hostname, port, path, parts.scheme == "https", token or "")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its response."""

    sent_s: float
    status: int
    """0 where there was none."""
    pieces: tuple[Piece, ...]
    """The body as it came."""
    ended_s: float
    fault: str = ""
    """Why there is no whole response; else empty."""

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(data for _, data in self.pieces)


class Connection:
    """A kept connection to a server; opened when needed, and again after the server closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(
        self, method: str, path: str, body: JsonObject | None = None, on_piece: OnPiece | None = None
    ) -> Exchange:
        """Sends a request and reads its response to the end. A fault of the network is part of the result.

        `on_piece` gets the status and each piece as it comes.
        """
        message = self._message(method, path, body)
        was_open = self._streams is not None
        found = await self._once(message, on_piece)
        if was_open and found.status == 0 and not found.pieces:  # the server had closed a kept connection
            found = await self._once(message, on_piece)
        return found

    def _message(self, method: str, path: str, body: JsonObject | None) -> bytes:
        content = b"" if body is None else json.dumps(body).encode()
        target = self._target
        lines = [
            f"{method} {target.path}{path} HTTP/1.1", f"Host: {target.host}:{target.port}",
            "Content-Type: application/json", f"Content-Length: {len(content)}", "Accept: */*",
        ]  # fmt: skip
        if target.token:
            lines.append(f"Authorization: Bearer {target.token}")
        return "\r\n".join([*lines, "", ""]).encode() + content

    async def _once(self, message: bytes, on_piece: OnPiece | None) -> Exchange:
        sent_s, status, fault = time.perf_counter(), 0, ""
        pieces: list[Piece] = []

        def add(data: bytes) -> None:
            pieces.append((time.perf_counter(), data))
            if on_piece is not None:
                on_piece(status, data)

        try:
            reader, writer = await self._open()
            writer.write(message)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, fields = _parsed_head(head)
            await _read_body(reader, fields, add)
            if "close" in fields.get("connection", "") or _has_no_length(fields):
                await self.close()
        except _GONE as error:
            fault = f"the connection broke ({type(error).__name__})"
        except (asyncio.LimitOverrunError, ValueError) as error:
            fault = f"no HTTP/1.1 response ({error})"
        except asyncio.CancelledError:
            await self.close()
            raise
        if fault:
            await self.close()
        return Exchange(sent_s, status, tuple(pieces), time.perf_counter(), fault)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            secured = ssl.create_default_context() if self._target.is_tls else None
            self._streams = await asyncio.open_connection(self._target.host, self._target.port, ssl=secured)
        return self._streams

    async def close(self) -> None:
        """Closes it; an answer that is being made is thereby given up."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with contextlib.suppress(*_GONE):
                await writer.wait_closed()


def _parsed_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ", 2)[1]), fields


def _has_no_length(fields: dict[str, str]) -> bool:
    return fields.get("transfer-encoding") != "chunked" and "content-length" not in fields


async def _read_body(reader: asyncio.StreamReader, fields: dict[str, str], add: Callable[[bytes], None]) -> None:
    """Hands over each piece of the body as it comes."""
    if fields.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            data = await reader.readexactly(size + 2)
            add(data[:-2])
        while await reader.readuntil(b"\r\n") != b"\r\n":  # trailing fields
            pass
        return
    left = int(fields["content-length"]) if "content-length" in fields else None
    while left is None or left > 0:
        data = await reader.read(_READ_BYTES if left is None else min(left, _READ_BYTES))
        if not data:
            if left:
                raise ConnectionResetError
            return
        add(data)
        left = None if left is None else left - len(data)


class EventReader:
    """Server-sent events out of the pieces of a body, however the network cuts it."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is whole with this piece; comments are left out."""
        *whole, self._held = (self._held + data).replace(b"\r\n", b"\n").split(b"\n\n")
        found = []
        for event in whole:
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                found.append(b"\n".join(lines))
        return found


def server_sent_events(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The data of each event, with the time at which its last byte came."""
    reader = EventReader()
    for at_s, data in pieces:
        yield from ((at_s, event) for event in reader.feed(data))
