"""A connection that ends where its client sends a request too slowly, takes its answer too slowly, or speaks no HTTP."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from inlay.serving.engine import Refusal
from inlay.serving.errors import error_response
from inlay.serving.limits import Limits


def connections(limits: Limits) -> type[H11Protocol]:
    """The protocol of each connection, for `http` of uvicorn's config."""
    return type("Connection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(Refusal(503, "Too many connections are open.", code="overloaded", retry_after_s=1))
        else:
            self._start("request", self.limits.header_seconds, self._request_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop("request")
        elif "request" not in self._timers:  # the beginning of another request on the same connection
            self._start("request", self.limits.header_seconds, self._request_is_late)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # it came with the request before
            self._start("request", self.limits.header_seconds, self._request_is_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("answer", self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("answer")

    def send_400_response(self, msg: str) -> None:
        """The form of every error of the server, also for what is no HTTP."""
        most = self.limits.header_bytes
        message = f"This is no HTTP request, or its line and headers are longer than {most:,} bytes."
        self._refuse(Refusal(400, message, code="invalid_http"))

    def _request_is_late(self) -> None:
        if not self.conn.trailing_data[0]:  # opened, and never used
            self.transport.close()
            return
        self._refuse(Refusal(408, "The request did not arrive in time.", code="timeout"))

    def _refuse(self, refusal: Refusal) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error_response(refusal)
            headers = [(name, value) for name, value in response.raw_headers if name != b"connection"]
            phrase = HTTPStatus(refusal.status).phrase.encode()
            headers.append((b"connection", b"close"))
            start = h11.Response(status_code=refusal.status, headers=headers, reason=phrase)
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start(self, name: str, seconds: float, action: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, action)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()
