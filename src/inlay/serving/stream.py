"""The events of the answers to one request as they come, and the stream of server-sent events that carries them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple, Self, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inlay.generation.request import Ask, Event
from inlay.serving.engine import Engine, Refusal

COMMENT: Final = b": still working\n\n"
DONE: Final = b"data: [DONE]\n\n"


def sse(body: bytes) -> bytes:
    """One server-sent event. JSON has no line breaks of its own."""
    return b"data: " + body + b"\n\n"


class Arrived(NamedTuple):
    """One event of one of the answers."""

    answer: int
    """Number of its ask."""
    event: Event


class Answers:
    """The answers to several asks, computed from `async with` on. Leaving it early cancels what still runs."""

    def __init__(
        self, engine: Engine, asks: Sequence[Ask], *, seen: Callable[[int, Event], Event], limit: int | None = None
    ) -> None:
        """`seen` gets each event at its time and gives what is kept of it. When nobody takes more than `limit` events of an
        ask, all asks are cancelled."""
        self._engine, self._asks, self._seen = engine, asks, seen
        self._limit = limit * len(asks) if limit else None
        self._waiting: deque[Arrived] = deque()
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._compute(number, ask)) for number, ask in enumerate(self._asks)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def begun(self, patience_s: float) -> None:
        """Returns when there is a first event, or after so many seconds. Raises: what went wrong before it."""
        await self._wait(patience_s)
        if self._error is not None and not self._waiting:
            raise self._error

    async def arriving(self, patience_s: float | None = None) -> AsyncGenerator[Arrived | None]:
        """Every event; None whenever so many seconds have brought nothing. Raises: Refusal, or what went wrong."""
        running = len(self._asks)
        while running:
            if not self._waiting:
                if self._error is not None:
                    raise self._error
                if not await self._wait(patience_s):
                    yield None
                continue
            arrived = self._waiting.popleft()
            running -= arrived.event.finish is not None
            yield arrived

    async def _wait(self, patience_s: float | None) -> bool:
        """Whether something came in time."""
        if not self._waiting and self._error is None:
            self._news.clear()
            try:
                async with asyncio.timeout(patience_s):  # wait_for loses a cancellation that comes with the news
                    await self._news.wait()
            except TimeoutError:
                return False
        return True

    async def _compute(self, number: int, ask: Ask) -> None:
        try:
            async with aclosing(cast("AsyncGenerator[Event]", self._engine.answer(ask))) as events:
                async for fresh in events:
                    event = self._seen(number, fresh)
                    _require_success(event)
                    self._waiting.append(Arrived(number, event))
                    self._news.set()
                    if event.finish is not None:
                        return
                    if self._limit is not None and len(self._waiting) > self._limit:
                        self._waiting.clear()
                        raise Refusal(408, "The client read its answer too slowly.", code="client_too_slow")
            raise Refusal(503, "The answer broke off.", code="failed", retry_after_s=1)
        except Exception as error:  # noqa: BLE001 - raised where the events are taken
            self._error = self._error or error
            self._news.set()
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()


def _require_success(event: Event) -> None:
    """Raises: Refusal for an answer that ended without its end."""
    if event.finish == "failed":
        raise Refusal(500, f"The answer failed: {event.reason or 'no reason is known'}.", code="failed")
    if event.finish == "cancelled":
        message = f"The server ended the answer{f': {event.reason}' if event.reason else ''}."
        raise Refusal(503, message, code="cancelled", retry_after_s=10)


class EventStream(Response):
    """Sends chunks as they come; whatever happens, their generator is closed."""

    def __init__(self, chunks: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        kept = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
        super().__init__(headers=kept, media_type="text/event-stream")
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. The door cancels it when the client is gone."""
        async with aclosing(self._chunks) as chunks:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
