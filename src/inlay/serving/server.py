"""The parts that every route of the server shares, and the record of a request that metrics and A/B tests read."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol, cast

from starlette.requests import Request

from inlay.generation.request import Finish
from inlay.serving.auth import Auth, Principal
from inlay.serving.engine import Engine, ServedAdapter
from inlay.serving.limits import Gate
from inlay.serving.names import Names, Target


@dataclass(slots=True)
class Record:
    """One request, from the door to its last byte. It holds no text of the client."""

    id: str
    """Sent as X-Request-Id."""
    method: str = ""
    route: str = ""
    """Path as the route declares it; empty where none fits."""
    principal: str = ""
    status: int = 0
    """499: the client went away."""
    code: str = ""
    """Of the error, where there was one."""
    answer_id: str = ""
    """Of the answer, as in its body."""
    target: Target | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finishes: list[Finish] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    """Time of the first event with tokens, by the same clock."""
    token_times: list[tuple[float, int]] = field(default_factory=list)
    """(time, tokens) of every event."""
    ended: float = 0.0


class Observer(Protocol):
    """Gets the record of every request at its end."""

    def ended(self, record: Record) -> None:
        """Must be quick and raise nothing."""
        raise NotImplementedError


@dataclass(slots=True)
class Server:
    """Engine, names, tokens and limits of one running server; routes take it from the app with `server_of`."""

    engine: Engine
    names: Names
    auth: Auth
    gate: Gate
    observers: list[Observer] = field(default_factory=list)
    origins: frozenset[str] = frozenset()
    """Web pages of these origins may ask from a browser, such as `https://example.org`."""

    async def retire(self, adapter: ServedAdapter) -> None:
        """Takes an adapter out of memory once no request holds it, unless a name leads to it again by then."""
        while self.names.is_held(adapter.digest):
            await asyncio.sleep(0.02)
        if not self.names.is_used(adapter.digest):
            await self.engine.retire(adapter.digest)


def server_of(request: Request) -> Server:
    """The server that a request came to."""
    return cast(Server, request.app.state.server)


def principal_of(request: Request) -> Principal:
    """Who asks. The door has let it in."""
    return cast(Principal, request.state.principal)


def record_of(request: Request) -> Record:
    """The record of this request."""
    return cast(Record, request.state.record)
