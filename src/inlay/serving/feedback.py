"""Tests of aliases in a running server: the arm of a request, scores by `POST /v1/feedback`, and `/admin/aliases`.

The events lie in `ab.jsonl` of the library, the answers of late in `ab-answers.jsonl`; servers of one library share both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from inlay.errors import UserError
from inlay.serving import live_test
from inlay.serving.aliases import AliasConfig, require_arms
from inlay.serving.door import CLIENT_GONE
from inlay.serving.engine import Refusal
from inlay.serving.live_events import (
    ANSWERS,
    EVENTS,
    Answered,
    Answers,
    Event,
    Scored,
    Started,
    Weighed,
    answer_of,
    event_of,
    line_of,
    now,
)
from inlay.serving.live_test import LiveReport, LiveTest
from inlay.serving.names import Asker, Choice
from inlay.serving.route import ERRORS, StrictRoute
from inlay.serving.server import Record, Server, principal_of
from inlay.serving.shared_log import SharedLog

_KEPT_ANSWERS: Final = 100_000
"""Answers that can be scored."""
_LARGEST_ANSWERS: Final = 32 << 20
"""Bytes of the file of answers, of which the earlier one is kept beside it."""
_LOOK_S: Final = 1.0
"""So often other processes' events are read."""


class LiveTests:
    """The tests of all aliases of a server, and its answers of late that can be scored."""

    def __init__(self, folder: Path, aliases: Mapping[str, AliasConfig]) -> None:
        """The tests of an earlier server; `begin` makes them those of these aliases. Raises: StorageError."""
        self.configs = dict(aliases)
        self._events, self._answers = SharedLog(folder / EVENTS), SharedLog(folder / ANSWERS)
        self._tests: dict[str, LiveTest] = {}
        self._known: dict[str, Answered | None] = {}
        self._waiting: dict[str, Answered] = {}
        self._looked_at = 0.0
        self._take(self._events.new_lines())
        for line in SharedLog(self._answers.old_path).new_lines():
            if (earlier := answer_of(line)) and earlier.id not in self._known:
                self._know(earlier.id, earlier)

    def begin(self) -> None:
        """Goes on with each test; begins one where an alias is new, or declared otherwise. Raises: StorageError."""
        for name, config in self.configs.items():
            for event in self._beginning(name, config):
                self._add(event)
        self._read_answers()

    def test_of(self, alias: str) -> LiveTest:
        """The test of an alias, with what other processes did to it. Raises: Refusal 404."""
        if alias not in self.configs:
            known = ", ".join(self.configs) or "none"
            raise Refusal(404, f"{alias[:80]!r}: no alias has this name. Aliases: {known}.", code="alias_not_found")
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._take(self._events.new_lines())
        if alias not in self._tests:
            raise Refusal(503, f"{alias!r}: its models are not loaded yet.", code="loading", retry_after_s=1)
        return self._tests[alias]

    def choose(self, alias: str, asker: Asker) -> str:
        """The arm that answers a request. Raises: Refusal 400 where the alias needs a key and there is none."""
        test, config = self.test_of(alias), self.configs[alias]
        key = _key_of(config.key, asker)
        if key is None and config.key_required:
            raise Refusal(
                400, f"model: {alias!r} shares users out by {config.key}, which this request does not have. Send it.",
                code="missing_key", param=None if config.key.startswith("header:") else config.key,
            )  # fmt: skip
        unit, arm = test.arm_of(f"user\n{asker.principal}\n{key}" if key is not None else f"request\n{asker.id}")
        if asker.id:
            self._waiting[asker.id] = Answered(
                alias, test.started.test, asker.id, unit, arm, test.split.shares, asker.principal
            )
        return arm

    def ended(self, record: Record) -> None:
        """Keeps what came of a request, so that it can be scored; takes out an arm that fails too often."""
        answer = self._waiting.pop(record.answer_id, None)
        is_failed = record.status == 500 or "failed" in record.finishes
        if answer is None or not (is_failed or record.status in (200, CLIENT_GONE)):
            return  # refused, which is no fault of the arm
        ttft_s = None if record.first_token is None else round(record.first_token - record.started, 4)
        done = replace(answer, is_failed=is_failed, ttft_s=ttft_s)
        for line in self._answers.append(line_of(done)):
            self._take_answer(line)
        self._rotate()

    def score(self, id_: str, score: float, by: str) -> bool:
        """Whether the score counts: it is the first of its user in the running test. Raises: Refusal 404, 409."""
        if id_ not in self._known and id_ not in self._waiting:
            self._read_answers()  # another server of this library may have given it
        answer = self._waiting.get(id_) or self._known.get(id_)
        if id_ in self._known and self._known[id_] is None:
            raise Refusal(
                409, f"id: {id_!r} has a score already. The first one stands.", code="already_scored", param="id"
            )
        if answer is None or answer.by != by:
            raise Refusal(
                404, f"id: no answer to score has the id {id_[:80]!r}. It is the id of an answer that an alias gave you, one of "
                f"the last {_KEPT_ANSWERS:,}.", code="answer_not_found", param="id",
            )  # fmt: skip
        self._take(self._events.new_lines())
        is_first = self.test_of(answer.alias).counts(answer)
        self._add(Scored(answer.alias, answer.test, id_, answer.unit, answer.arm, answer.shares, float(score), now()))
        return is_first

    def start(self, alias: str, weights: Mapping[str, float] | None) -> LiveReport:
        """Begins the test of an alias again, or changes the weights of one that runs. Raises: Refusal, UserError."""
        self._add(live_test.started_anew(self.test_of(alias), weights))
        return self.report(alias)

    def stop(self, alias: str, keep: str | None) -> LiveReport:
        """Ends the test of an alias. Raises: Refusal, UserError."""
        self._add(live_test.stopped(self.test_of(alias), keep))
        return self.report(alias)

    def report(self, alias: str) -> LiveReport:
        """The test of an alias by now. Raises: Refusal 404."""
        self._take(self._events.new_lines())
        self._read_answers()
        return self.test_of(alias).report()

    def reports(self) -> list[LiveReport]:
        """The tests of all aliases."""
        return [self.report(alias) for alias in self.configs]

    def _beginning(self, name: str, config: AliasConfig) -> list[Event]:
        """The events that make the test of an alias that of its settings; none where it is that already."""
        test = self._tests.get(name)
        if test is None or not test.started.has_rule_of(config):
            return [Started.of(name, config)]
        if dict(test.started.declared) != dict(config.arms):
            return [Weighed(name, config.arms, "file", now())]
        return []

    def _add(self, event: Event) -> None:
        self._take(self._events.append(line_of(event)))

    def _take(self, lines: list[dict[str, object]]) -> None:
        self._looked_at = time.monotonic()
        for line in lines:
            event = event_of(line)
            if event is not None:
                live_test.apply(self._tests, event)
            if isinstance(event, Scored):
                self._know(event.id, None)

    def _read_answers(self) -> None:
        for line in self._answers.new_lines():
            self._take_answer(line)

    def _take_answer(self, line: dict[str, object]) -> None:
        answer = answer_of(line)
        test = self._tests.get(answer.alias) if answer else None
        if answer is None or test is None:
            return
        if answer.id not in self._known:
            self._know(answer.id, answer)
        exceeded = test.answer(answer)
        if exceeded is not None:
            self._add(exceeded)
            self._add(Weighed(answer.alias, test.without(answer.arm), "guard", now()))

    def _know(self, id_: str, answer: Answered | None) -> None:
        self._known[id_] = answer
        if len(self._known) > _KEPT_ANSWERS:
            del self._known[next(iter(self._known))]

    def _rotate(self) -> None:
        """Begins a new file of answers where it has grown large; their numbers go into the log of events."""
        if not self._answers.rotate(_LARGEST_ANSWERS):
            return
        for name, test in self._tests.items():
            self._add(Answers(name, test.started.test, dict(test.answered), dict(test.failed)))


def add_tests(server: Server, tests: LiveTests, where: str) -> None:
    """Makes the aliases names of a server whose models are loaded, and begins their tests.

    Raises: ConfigError where an arm is none of the models; StorageError.
    """
    adapters = server.names.adapters()
    models = {*adapters, *(adapter.ref for adapter in adapters.values()), server.names.base, "base"}
    require_arms(tests.configs, models, where)
    tests.begin()
    server.names.aliases.update({name: LiveAlias(name, tests) for name in tests.configs})
    server.observers.append(tests)


@dataclass(frozen=True, slots=True)
class LiveAlias:
    """One alias, as `Names` asks it."""

    name: str
    tests: LiveTests

    def choose(self, asker: Asker) -> Choice:
        """The arm that answers this request. Raises: Refusal."""
        return Choice(self.tests.choose(self.name, asker))

    def summary(self) -> str:
        """Arms with their shares."""
        shares = self.tests.test_of(self.name).split.shares
        return "alias of " + ", ".join(f"{arm} ({share:.0%})" for arm, share in shares.items())


def _key_of(key: str, asker: Asker) -> str | None:
    """The user of a request; None where it does not say."""
    kind, _, header = key.partition(":")
    found = asker.headers.get(header.lower()) if kind == "header" else getattr(asker, kind)
    return found or None


class Feedback(BaseModel):
    """Body of POST /v1/feedback."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(min_length=1, max_length=128)] = Field(description="The id of the answer.")
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(description="From 0 (bad) to 1 (good).")


class FeedbackTaken(BaseModel):
    """Answer of POST /v1/feedback."""

    id: str
    counted: bool = Field(description="false: its user has scored before, or the test has ended.")


class Start(BaseModel):
    """Body of POST /admin/aliases/{name}/start."""

    model_config = ConfigDict(extra="forbid", strict=True)
    weights: Annotated[dict[str, float], Field(max_length=8)] | None = Field(
        None, description="Percentages of the arms. Of a running test they change the shares; it goes on."
    )


class Stop(BaseModel):
    """Body of POST /admin/aliases/{name}/stop."""

    model_config = ConfigDict(extra="forbid", strict=True)
    keep: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="The arm that all users get from now on; none leaves the shares as they are."
    )


class Aliases(BaseModel):
    """Answer of GET /admin/aliases."""

    aliases: list[LiveReport]


Name = Annotated[str, InPath(max_length=128, description="The name that requests give as `model`.")]


def feedback_router(tests: LiveTests) -> APIRouter:
    """The routes of scores and of tests."""
    router = APIRouter(route_class=StrictRoute, responses=ERRORS)

    @router.post("/v1/feedback", summary="Score an answer of an alias")
    async def feedback(body: Feedback, request: Request) -> FeedbackTaken:
        return FeedbackTaken(id=body.id, counted=tests.score(body.id, body.score, principal_of(request).name))

    @router.get("/admin/aliases", summary="Tests of all aliases")
    async def aliases() -> Aliases:
        return Aliases(aliases=tests.reports())

    @router.get("/admin/aliases/{name}", summary="The test of one alias")
    async def alias(name: Name) -> LiveReport:
        return tests.report(name)

    @router.post("/admin/aliases/{name}/start", summary="Begin a test again, or change the shares of a running one")
    async def start(name: Name, body: Start) -> LiveReport:
        try:
            return tests.start(name, body.weights)
        except UserError as error:
            raise Refusal(409 if body.weights is None else 400, str(error), code="test_not_started") from None

    @router.post("/admin/aliases/{name}/stop", summary="End a test")
    async def stop(name: Name, body: Stop) -> LiveReport:
        try:
            return tests.stop(name, body.keep)
        except UserError as error:
            raise Refusal(409 if body.keep is None else 400, str(error), code="test_not_stopped") from None

    return router
