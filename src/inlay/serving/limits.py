"""Limits of what one client, and all together, may ask for: sizes, times, rates, and how long an answer may wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from inlay.serving.auth import Principal
from inlay.serving.engine import EngineState, Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes, times and rates. None: no such limit."""

    body_bytes: int = 2**20
    """Of a request's body."""
    header_bytes: int = 16 * 2**10
    """Of its line and headers."""
    header_seconds: float = 10.0
    """Until its line and headers are there."""
    body_seconds: float = 30.0
    """Until its body is there, too."""
    write_seconds: float = 60.0
    """A client that takes nothing of its answer for so long is cut off."""
    events_waiting: int = 256
    """Events of an answer that a client has not taken; with more of them the answer is cancelled."""
    comment_seconds: float = 10.0
    """A stream without news gets a comment line so often, so that no proxy takes it for dead."""
    max_wait_s: float = 30.0
    """A request that would wait longer than this is refused at once."""
    connections: int = 2048
    """Open at one time."""
    live_in_all: int = 1024
    """Requests that are being answered at one time."""
    requests_per_minute: int | None = None
    """Requests of one token."""
    tokens_per_minute: int | None = None
    """Tokens of one token's prompts and answers."""
    live_requests: int | None = None
    """Requests of one token that are being answered at one time."""


class Allowance:
    """So many per minute: full at first, and refilled evenly."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute, self._left, self._at = per_minute, float(per_minute), time.monotonic()

    def wait_s(self) -> float:
        """Seconds until something is left; 0 now."""
        now = time.monotonic()
        self._left = min(float(self._per_minute), self._left + (now - self._at) * self._per_minute / 60)
        self._at = now
        return 0.0 if self._left >= 1 else (1 - self._left) * 60 / self._per_minute

    def take(self, count: int) -> None:
        """May lead below nothing: what an answer took is known only afterwards."""
        self._left -= count


class Reserved:
    """Tokens of one request that are still to be computed, at most."""

    def __init__(self, gate: Gate, tokens: int) -> None:
        self._gate, self._tokens = gate, tokens
        gate.queued_tokens += tokens

    def set(self, tokens: int) -> None:
        """So many are left now."""
        self._gate.queued_tokens += max(0, tokens) - self._tokens
        self._tokens = max(0, tokens)


class Gate:
    """Lets requests in, and knows what those inside still need."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.live = 0
        """Requests inside."""
        self.queued_tokens = 0
        """Tokens that they still need, at most: known here at once, and by the engine only after its next step."""
        self._live_of: dict[str, int] = {}
        self._requests: dict[str, Allowance] = {}
        self._tokens: dict[str, Allowance] = {}

    @contextmanager
    def entered(self, who: Principal, state: EngineState, tokens: int) -> Iterator[Reserved]:
        """Inside, a request of about so many tokens is counted. Raises: Refusal 429, 503 with Retry-After."""
        require_ready(state)
        self._require_rates(who)
        self._require_short_wait(state)
        reserved = Reserved(self, tokens)
        self.live += 1
        self._live_of[who.name] = self._live_of.get(who.name, 0) + 1
        try:
            yield reserved
        finally:
            reserved.set(0)
            self.live -= 1
            self._live_of[who.name] -= 1
            if not self._live_of[who.name]:
                del self._live_of[who.name]

    def used(self, who: Principal, tokens: int) -> None:
        """Counts the tokens of a request against its principal's rate."""
        if who.name in self._tokens:
            self._tokens[who.name].take(tokens)

    def _require_rates(self, who: Principal) -> None:
        limits = self.limits
        if self.live >= limits.live_in_all:
            raise Refusal(
                429, f"{self.live} requests are being answered; no more fit.", code="overloaded", retry_after_s=1
            )
        if limits.live_requests is not None and self._live_of.get(who.name, 0) >= limits.live_requests:
            raise Refusal(
                429, f"This token has {limits.live_requests} requests running; it may have no more at once.",
                code="too_many_live_requests", retry_after_s=1,
            )  # fmt: skip
        for what, per_minute, kept in (
            ("requests", limits.requests_per_minute, self._requests), ("tokens", limits.tokens_per_minute, self._tokens),
        ):  # fmt: skip
            if per_minute is not None:
                wait = kept.setdefault(who.name, Allowance(per_minute)).wait_s()
                if wait:
                    message = f"This token may ask for {per_minute:,} {what} a minute."
                    raise Refusal(429, message, code="rate_limit_exceeded", retry_after_s=wait)
        if who.name in self._requests:
            self._requests[who.name].take(1)

    def _require_short_wait(self, state: EngineState) -> None:
        queued = max(state.queued_tokens, self.queued_tokens)
        wait = queued / state.tokens_per_second if state.tokens_per_second > 0 else 0.0
        if wait > self.limits.max_wait_s:
            raise Refusal(
                429, f"An answer would wait about {wait:.0f} s; this server lets nobody wait over {self.limits.max_wait_s:g} s.",
                code="overloaded", retry_after_s=wait,
            )  # fmt: skip


def require_ready(state: EngineState) -> None:
    """Raises: Refusal 503 while the engine does not answer."""
    if state.condition != "ready":
        messages = {
            "loading": "The server is loading its model.",
            "draining": "The server is shutting down and takes no new requests.",
            "failed": "The model cannot be reached.",
        }
        why = f" {state.why}" if state.why else ""
        retry = {"loading": 5.0, "draining": 10.0, "failed": 30.0}[state.condition]
        raise Refusal(503, messages[state.condition] + why, code=state.condition, retry_after_s=retry)
