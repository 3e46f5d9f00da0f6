"""The door: what every request passes before its route, and every answer on its way out. Nothing of a client's text is logged."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import traceback
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inlay.serving.engine import Refusal
from inlay.serving.errors import error_response, invalid
from inlay.serving.limits import Limits
from inlay.serving.server import Record, Server
from inlay.strict_json import parsed

LOG: Final = logging.getLogger("inlay.serving")
DEEPEST_JSON: Final = 64
CLIENT_GONE: Final = 499
_TOKENS_OF_DEPTH: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89abAB]")
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}
"""A browser asks with OPTIONS, before the request of a web page from elsewhere."""
_HELD_BACK_BODIES: Final = 8
"""A body too long is read and dropped up to so many times the limit, so that the client reads why."""


class StrictRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        """The value of the body. Raises: Refusal 400."""
        if not hasattr(self, "_strict"):
            self._strict = json_of(await self.body())
        return self._strict


def json_of(body: bytes) -> Any:
    """The JSON value of a body. Raises: Refusal 400 for what is not JSON, keys twice, NaN, lone surrogates, deep nesting."""
    if body.count(b"[") + body.count(b"{") > DEEPEST_JSON and _depth(body) > DEEPEST_JSON:
        raise invalid(f"The body is nested deeper than {DEEPEST_JSON} levels.", code="invalid_json")
    try:
        value = parsed(body.decode("utf-8"))
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise invalid("The body is not UTF-8.", code="invalid_json") from None
    except UnicodeEncodeError:
        raise invalid("The body has half of a surrogate pair, which is no character.", code="invalid_json") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise invalid(f"The body is not JSON: {error.msg} at {place}.", code="invalid_json") from None
    except ValueError as error:
        raise invalid(f"The body is not JSON that we read: {str(error)[:200]}", code="invalid_json") from None
    return value


def _depth(body: bytes) -> int:
    """Levels of the deepest value."""
    depth = deepest = 0
    for token in _TOKENS_OF_DEPTH.finditer(body):
        first = token[0][0]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


class Door:
    """Lets a request in, reads its body, ends its work when its client is gone, writes its line in the log."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(secrets.token_hex(8), scope["method"])
        outgoing = Outgoing(send, record, _origin_of(scope, self._server.origins))
        try:
            async with AsyncExitStack() as closing:
                scope.setdefault("state", {}).update(record=record, closing=closing)
                await self._answered(scope, receive, outgoing, record)
        finally:
            self._end(scope, record)

    async def _answered(self, scope: Scope, receive: Receive, send: Outgoing, record: Record) -> None:
        try:
            headers: dict[bytes, list[bytes]] = defaultdict(list)
            for name, value in scope["headers"]:
                headers[name.lower()].append(value)
            limits = self._server.gate.limits
            if scope["method"] == "OPTIONS" and send.origin:
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send)
                return
            if sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
                text = f"The headers are longer than {limits.header_bytes:,} bytes."
                raise Refusal(431, text, code="headers_too_large")
            address = (scope.get("client") or ("",))[0]
            principal = self._server.auth.admit(scope["path"], headers, address)
            if principal is not None:
                record.principal = principal.name
                scope["state"]["principal"] = principal
            _require_plain_json(scope["method"], headers)
            body = await _body_in_time(headers, receive, limits)
            await self._while_the_client_is_there(scope, receive, send, body)
        except Refusal as refused:
            await self._refuse(refused, scope, receive, send)
        except _ClientGone:
            record.status = CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - the client gets an id, the log the place
            place = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-4:]
            LOG.error(json.dumps({"id": record.id, "error": type(error).__name__, "place": place}))
            await self._refuse(defect(record), scope, receive, send)

    async def _while_the_client_is_there(self, scope: Scope, receive: Receive, send: Outgoing, body: bytes) -> None:
        """Runs the route. Raises: _ClientGone when the client has left before its answer was whole."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await asyncio.Event().wait()  # type: ignore[return-value]

        working = asyncio.ensure_future(self._app(scope, replayed, send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and not send.is_whole:
                raise _ClientGone
            await working
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Outgoing) -> None:
        if not send.has_begun:
            send.record.code = refusal.code
            await error_response(refusal)(scope, receive, send)

    def _end(self, scope: Scope, record: Record) -> None:
        """Tells the observers, and writes the line: ids, counts and names of ours."""
        record.ended = time.monotonic()
        record.route = getattr(scope.get("route"), "path", "")
        line = {
            "id": record.id, "method": record.method, "route": record.route, "status": record.status,
            "ms": round((record.ended - record.started) * 1000, 1), "principal": record.principal,
        }  # fmt: skip
        if record.target is not None:
            line |= {
                "model": record.target.name, "identity": record.target.identity, "prompt_tokens": record.prompt_tokens,
                "completion_tokens": record.completion_tokens, "finish": record.finishes,
            }  # fmt: skip
        if record.code:
            line["code"] = record.code
        LOG.info(json.dumps(line))
        for observer in self._server.observers:
            observer.ended(record)


def defect(record: Record) -> Refusal:
    """The error for what should not happen: an id, and no more."""
    return Refusal(500, f"A defect of the server; its log has the id {record.id}.", code="internal_error")


class Outgoing:
    """Passes an answer on to the client, and knows how far it is."""

    def __init__(self, send: Send, record: Record, origin: bytes | None) -> None:
        """`origin`: of a web page that may read the answer."""
        self._send, self.record, self.origin = send, record, origin
        self.has_begun = self.is_whole = False

    async def __call__(self, message: Message) -> None:
        """Sends one message."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.record.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.record.id.encode())]
            if self.origin:
                shown = (b"access-control-expose-headers", b"X-Request-Id, Retry-After")
                message["headers"] += [(b"access-control-allow-origin", self.origin), (b"vary", b"Origin"), shown]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_whole = True
        await self._send(message)


def _origin_of(scope: Scope, allowed: Collection[str]) -> bytes | None:
    """The origin of the web page that asks, where it may."""
    found = [value for name, value in scope["headers"] if name.lower() == b"origin"]
    return found[0] if len(found) == 1 and found[0].decode("latin-1") in allowed else None


class _ClientGone(Exception):
    """Nobody is there to be answered."""


async def _gone(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _require_plain_json(method: str, headers: Mapping[bytes, Sequence[bytes]]) -> None:
    """Raises: Refusal 415 for a body that is packed or is something else than JSON."""
    encodings = {value.strip().lower() for value in headers.get(b"content-encoding", ())}
    if encodings - {b"identity", b""}:
        raise Refusal(415, "Content-Encoding: packed bodies are not taken.", code="unsupported_encoding")
    kinds = [value.partition(b";")[0].strip().lower() for value in headers.get(b"content-type", ())]
    has_body = headers.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in headers
    if method in ("POST", "PUT", "PATCH") and has_body and kinds != [b"application/json"]:
        raise Refusal(415, "Content-Type: only application/json is taken.", code="unsupported_media_type")


async def _body_in_time(headers: Mapping[bytes, Sequence[bytes]], receive: Receive, limits: Limits) -> bytes:
    """The whole body. Raises: Refusal 408, 413, _ClientGone."""
    try:
        return await asyncio.wait_for(_body_of(headers, receive, limits), limits.body_seconds)
    except TimeoutError:
        raise Refusal(408, "The body did not arrive in time.", code="timeout") from None


async def _body_of(headers: Mapping[bytes, Sequence[bytes]], receive: Receive, limits: Limits) -> bytes:
    """The whole body. Raises: Refusal 413 for one that is too long, _ClientGone."""
    body = bytearray()
    size = 0
    most = limits.body_bytes
    announced = headers.get(b"content-length", [b"0"])[0]
    if announced.isdigit() and int(announced) > most * _HELD_BACK_BODIES:
        raise _too_long(most)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        size += len(message.get("body", b""))
        if size <= most:
            body += message.get("body", b"")
        if size > most * _HELD_BACK_BODIES or (size > most and not message.get("more_body", False)):
            raise _too_long(most)
        if not message.get("more_body", False):
            return bytes(body)


def _too_long(most: int) -> Refusal:
    return Refusal(413, f"The body is longer than {most:,} bytes.", code="body_too_large")
