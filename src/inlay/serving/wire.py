"""Messages between the front and its child processes: a length, then JSON. One message per step, with the events of all rows."""

from __future__ import annotations

import dataclasses
import json
from asyncio import IncompleteReadError, StreamReader
from collections.abc import Mapping
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from inlay.generation.request import Ask, Event, TokenLogprob
from inlay.serving.engine import Refusal
from inlay.typed_json import JsonObject, decode, encode


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a child process: names of what is served, and settings."""

    base: str
    """A base, a run or an adapter; of the latter two their base is served with them."""
    results: str
    """Folder of the runs."""
    library: str
    """Folder of the adapter library."""
    settings: JsonObject = field(default_factory=dict)
    """The section `serve` of the config."""
    adapters: Mapping[str, str] | None = field(default_factory=dict)
    """References by the names that are served; None for all of the library."""
    is_again: bool = False
    """Whether an earlier engine had them in memory: one that is gone meanwhile is left out."""
    own: Mapping[str, str] = field(default_factory=dict)
    """For the encoding child: references of adapters in memory, by identity."""


LARGEST_BYTES = 64 * 2**20
"""Of one message; a longer one is a defect of ours."""


def packed(message: JsonObject) -> bytes:
    """A message as it is sent."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(body) <= LARGEST_BYTES, f"a message of {len(body)} bytes"
    return len(body).to_bytes(4, "big") + body


async def received(reader: StreamReader) -> JsonObject | None:
    """The next message; None where the other side has gone."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        message: JsonObject = json.loads(await reader.readexactly(length))
    except (IncompleteReadError, ConnectionResetError):
        return None
    return message


def receive(connection: socket) -> JsonObject | None:
    """The same in a child process, which waits for it."""
    head = _exactly(connection, 4)
    body = _exactly(connection, int.from_bytes(head, "big")) if head else b""
    message: JsonObject | None = json.loads(body) if body else None
    return message


def _exactly(connection: socket, size: int) -> bytes:
    """So many bytes; none where the other side has gone."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return b""
        parts += part
    return bytes(parts)


def ask_to_json(ask: Ask) -> JsonObject:
    """An `Ask` as JSON."""
    return dict(encode(ask), salt=ask.salt.hex())


def ask_from_json(value: JsonObject) -> Ask:
    """The `Ask` of its JSON."""
    return decode(Ask, value | {"salt": bytes.fromhex(value["salt"])})


def event_to_json(event: Event) -> JsonObject:
    """An `Event` as JSON; fields at their defaults are left out. There is one for each token, so nothing is checked."""
    return {"row": event.row} | _changed(event, Event(0))


def event_from_json(value: JsonObject) -> Event:
    """The `Event` of its JSON."""
    found: dict[str, Any] = dict(value)
    found["ids"] = tuple(found.get("ids", ()))
    for name in ("logprobs", "prompt_logprobs"):
        if name in found:
            found[name] = tuple(None if one is None else _logprob(one) for one in found[name])
    return Event(**found)


def refusal_to_json(refusal: Refusal) -> JsonObject:
    """A `Refusal` as JSON."""
    return {
        "status": refusal.status, "message": str(refusal), "code": refusal.code, "param": refusal.param,
        "retry_after_s": refusal.retry_after_s,
    }  # fmt: skip


def refusal_from_json(value: JsonObject) -> Refusal:
    """The `Refusal` of its JSON."""
    return Refusal(
        value["status"],
        value["message"],
        code=value["code"],
        param=value["param"],
        retry_after_s=value["retry_after_s"],
    )


def template_too_long(seconds: float) -> Refusal:
    """The refusal of a conversation that keeps its chat template busy."""
    text = f"messages: the chat template did not end within {seconds:g} s for this conversation. Shorten it."
    return Refusal(400, text, code="template_failed", param="messages")


def _logprob(value: JsonObject) -> TokenLogprob:
    return TokenLogprob(value["id"], value["logprob"], tuple((id_, p) for id_, p in value.get("top", ())))


def _changed(value: Any, default: Any) -> JsonObject:
    """The fields that are not at their defaults, as JSON."""
    found: JsonObject = {}
    for part in dataclasses.fields(value):
        one = getattr(value, part.name)
        if one != getattr(default, part.name):
            found[part.name] = [_plain(item) for item in one] if isinstance(one, tuple) else one
    return found


def _plain(part: Any) -> Any:
    return dataclasses.asdict(part) if isinstance(part, TokenLogprob) else part
