"""Everything that changes a test of an alias: the lines of its log, and of the log of answers."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Literal

from inlay.serving.aliases import AliasConfig
from inlay.typed_json import JsonObject, Mistyped, decode, encode

EVENTS, ANSWERS = "ab.jsonl", "ab-answers.jsonl"
"""Files of a library: the events of all tests; the answers of late."""


@dataclass(frozen=True, slots=True)
class Started:
    """A new test of an alias; what an earlier one counted is no part of it."""

    alias: str
    test: str
    """Its number, drawn by chance."""
    secret: str
    """Key of the users' places, in hexadecimal. It never leaves the server."""
    arms: Mapping[str, float]
    """The first is compared with each other one."""
    margin: float
    horizon: int
    alpha: float
    error_rate: float | None = None
    p95_ttft_s: float | None = None
    declared: Mapping[str, float] = field(default_factory=dict)
    """The weights in the file of aliases when it was read last."""
    at: str = ""
    event: Literal["start"] = "start"

    @staticmethod
    def of(alias: str, config: AliasConfig) -> Started:
        """A test by the settings of an alias."""
        return Started(
            alias, secrets.token_hex(4), secrets.token_hex(16), config.arms, config.margin, config.horizon, config.alpha,
            config.guards.error_rate, config.guards.p95_ttft_s, config.arms, now(),
        )  # fmt: skip

    def again(self, arms: Mapping[str, float] | None = None) -> Started:
        """The same test anew: nothing is counted yet, and users are shared out anew."""
        return replace(
            self, test=secrets.token_hex(4), secret=secrets.token_hex(16), arms=dict(arms or self.arms), at=now()
        )

    def has_rule_of(self, config: AliasConfig) -> bool:
        """Whether an alias is still declared as it was, but for the weights."""
        other = Started.of(self.alias, config)
        return list(self.declared) == list(config.arms) and self._rule == other._rule

    @property
    def _rule(self) -> tuple[float | None, ...]:
        return self.margin, self.horizon, self.alpha, self.error_rate, self.p95_ttft_s


@dataclass(frozen=True, slots=True)
class Weighed:
    """Other weights for the arms of a running test."""

    alias: str
    arms: Mapping[str, float]
    why: str
    """`guard`, `file`, or who changed them."""
    at: str = ""
    event: Literal["weights"] = "weights"


@dataclass(frozen=True, slots=True)
class Scored:
    """A score for one answer. It counts if it is the first of its user in this test."""

    alias: str
    test: str
    id: str
    """Of the answer."""
    unit: str
    """The user, as a hash."""
    arm: str
    shares: Mapping[str, float]
    """Of all arms when the user got this one."""
    score: float
    at: str = ""
    event: Literal["score"] = "score"


@dataclass(frozen=True, slots=True)
class Guarded:
    """An arm that exceeded a limit."""

    alias: str
    test: str
    arm: str
    guard: str
    limit: float
    share: float
    """Of its answers that failed, or were too slow."""
    answers: int
    at: str = ""
    event: Literal["guard"] = "guard"


@dataclass(frozen=True, slots=True)
class Answers:
    """Numbers of answers up to now, of which the own lines need not be kept."""

    alias: str
    test: str
    answered: Mapping[str, int]
    failed: Mapping[str, int]
    event: Literal["answers"] = "answers"


@dataclass(frozen=True, slots=True)
class Stopped:
    """The end of a test."""

    alias: str
    keep: str | None
    """The arm that all users get from now on; None leaves the weights as they are."""
    at: str = ""
    event: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer of an arm; a line of a log of its own."""

    alias: str
    test: str
    id: str
    unit: str
    arm: str
    shares: Mapping[str, float]
    by: str
    """The principal, who alone may score it."""
    is_failed: bool = False
    ttft_s: float | None = None
    event: Literal["answer"] = "answer"


Event = Started | Weighed | Scored | Guarded | Answers | Stopped
_EVENTS: Final = {
    "start": Started,
    "weights": Weighed,
    "score": Scored,
    "guard": Guarded,
    "answers": Answers,
    "stop": Stopped,
}


def event_of(line: JsonObject) -> Event | None:
    """The event of a line of the log; None of one that is none, such as that of a newer inlay."""
    kind = _EVENTS.get(str(line.get("event")))
    try:
        found: Event | None = decode(kind, line) if kind else None
    except Mistyped:
        return None
    return found


def answer_of(line: JsonObject) -> Answered | None:
    """The answer of a line; None of one that is none."""
    try:
        return decode(Answered, line) if line.get("event") == "answer" else None
    except Mistyped:
        return None


def line_of(event: Event | Answered) -> JsonObject:
    """An event as a line of the log."""
    line: JsonObject = encode(event)
    return line


def now() -> str:
    """The time for a log."""
    return datetime.now(UTC).isoformat(timespec="seconds")
