"""Streamed answers of an OpenAI server, with the time of every piece: what is sent, and what is read of the response."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from inlay.errors import InlayError
from inlay.serving.load_client import Connection, Exchange, Target, server_sent_events
from inlay.serving.workloads import Prompt
from inlay.typed_json import JsonObject

FIRST_TOKEN_LIMIT_S: Final = 2.0
TOKEN_LIMIT_S: Final = 0.2
"""Goodput counts the answers whose first token came within the one, and each further token, in the mean, within the other."""
REFUSED: Final = (429, 503)
"""Status of a server that says that it has no room."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The times of one streamed answer, in seconds by `time.perf_counter`."""

    model: str
    due_s: float
    """When it was to be sent: all its times count from here."""
    ended_s: float
    token_s: tuple[float, ...] = ()
    """Arrival of each piece that brought text; a piece may hold several tokens, or several pieces one."""
    tokens: int = 0
    """By the server's count, else the pieces."""
    status: int = 200
    fault: str = ""
    """Why there is no whole answer; else empty."""
    text: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def first_token_s(self) -> float:
        """Time to first token."""
        return self.token_s[0] - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens (inter-token latency)."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_s)]

    @property
    def is_good(self) -> bool:
        """Whether it was whole and as soon as goodput demands."""
        if self.fault or not self.token_s:
            return False
        mean_s = (self.token_s[-1] - self.token_s[0]) / max(1, self.tokens - 1)
        return self.first_token_s <= FIRST_TOKEN_LIMIT_S and mean_s <= TOKEN_LIMIT_S


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of requests that a server takes."""

    is_chat: bool = True
    """`/v1/chat/completions`, else `/v1/completions`."""
    new_tokens: int = 64
    more: JsonObject = field(default_factory=lambda: {"ignore_eos": True})
    """Further fields, such as `ignore_eos`, with which all answers have the same length."""
    adapter_field: Callable[[str], JsonObject] | None = None
    """The fields that name an adapter, where it is not `model`."""

    def request(self, prompt: Prompt) -> tuple[str, JsonObject]:
        """Path and body of a streamed request."""
        content: JsonObject = {"prompt": prompt.text}
        if self.is_chat:
            content = {"messages": [{"role": "user", "content": prompt.text}]}
        named = self.adapter_field(prompt.model) if self.adapter_field else {"model": prompt.model}
        common = {
            "max_tokens": self.new_tokens, "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return ("/v1/chat/completions" if self.is_chat else "/v1/completions"), named | content | common | self.more


def answer_of(exchange: Exchange, model: str, due_s: float) -> Answer:
    """The times and the text of a response: of its events, or of the one object of an error."""
    bare = Answer(model, due_s, exchange.ended_s, status=exchange.status, fault=exchange.fault)
    if exchange.fault or exchange.status != 200:
        return replace(bare, fault=exchange.fault or f"HTTP {exchange.status}: {_message_of(exchange.body)}")
    token_s, texts, usage, finish, fault = [], [], JsonObject(), "", ""
    for at_s, data in server_sent_events(exchange.pieces):
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if "error" in event:
            fault = f"error in the stream: {_message_of(data)}"
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            finish = choice.get("finish_reason") or finish
            part = choice.get("delta") or choice
            text = (
                part.get("content") or part.get("text") or part.get("reasoning_content") or part.get("reasoning") or ""
            )
            if text or part.get("tool_calls"):
                token_s.append(at_s)
                texts.append(text)
    if not token_s and not usage:
        fault = fault or f"no events, but {exchange.body[:80]!r}"
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return replace(
        bare, token_s=tuple(token_s), tokens=usage.get("completion_tokens") or len(token_s), fault=fault,
        text="".join(texts), finish=finish, prompt_tokens=usage.get("prompt_tokens") or 0, cached_tokens=cached,
    )  # fmt: skip


def _message_of(body: bytes) -> str:
    try:
        found = json.loads(body)["error"]
        return str(found["message"] if isinstance(found, dict) else found)[:300]
    except (ValueError, KeyError, TypeError):
        return body[:120].decode("utf-8", "replace")


async def ask(connection: Connection, dialect: Dialect, prompt: Prompt, due_s: float | None = None) -> Answer:
    """One answer; what cannot be read is a fault of it."""
    path, body = dialect.request(prompt)
    exchange = await connection.exchange("POST", path, body)
    try:
        return answer_of(exchange, prompt.model, exchange.sent_s if due_s is None else due_s)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        return Answer(
            prompt.model, exchange.sent_s, exchange.ended_s, status=exchange.status, fault=f"unreadable: {error}"
        )


async def understood(target: Target, prompt: Prompt, new_tokens: int) -> Dialect:
    """The richest form of requests that the server answers. Raises: InlayError with its words where it answers none."""
    connection, faults = Connection(target), []
    try:
        for is_chat, more in itertools.product((True, False), ({"ignore_eos": True}, {})):
            dialect = Dialect(is_chat, new_tokens, JsonObject(more))
            found = await ask(connection, replace(dialect, new_tokens=min(4, new_tokens)), prompt)
            if not found.fault:
                return dialect
            faults.append(found.fault)
    finally:
        await connection.close()
    raise InlayError(f"{target.url}: no answer to {prompt.model!r}: {faults[0]}")
