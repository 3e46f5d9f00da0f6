"""A test of an alias on live traffic: which user gets which arm, what came of it, and the outcome by now.

Everything that changes it is an event, and lies in a log: the state after a restart is that of the same events. `inlay ab` makes
it from the log without a server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from inlay.errors import UserError, unknown_name
from inlay.serving.live_events import (
    ANSWERS,
    EVENTS,
    Answered,
    Event,
    Guarded,
    Scored,
    Started,
    Stopped,
    Weighed,
    answer_of,
    event_of,
    now,
)
from inlay.serving.sequential import ArmTest, Limit, Outcome, Rule
from inlay.serving.shared_log import SharedLog
from inlay.serving.split import Split, place_of
from inlay.typed_json import JsonObject

State = Literal["running", "stopped"]


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm of a test by now."""

    name: str
    share: float
    """Of users."""
    answers: int
    failed: int
    scores: int
    mean: float | None
    """Mean score; None without one."""
    guard: str = ""
    """The limit that it exceeded."""
    outcome: Outcome | None = None
    """Against the first arm; None of that one, and where there is no score."""
    ended_at: int | None = None
    """Scores after which the outcome was given."""
    difference: float | None = None
    """Mean score minus that of the first arm."""
    low: float | None = None
    high: float | None = None
    """Ends of its interval, which holds however often one looks."""


@dataclass(frozen=True, slots=True)
class LiveReport:
    """A test by now."""

    alias: str
    state: State
    started: str
    arms: tuple[ArmReport, ...]
    margin: float
    horizon: int
    alpha: float
    assumes: tuple[str, ...]
    """What must hold for the verdict to mean what it says."""
    note: str = ""

    def to_json(self) -> JsonObject:
        """The report as JSON."""
        return asdict(self)


ASSUMES: Final = (
    "scores come from users who chose to give one, and choose alike in all arms",
    "users are independent of each other; only the first score of each counts",
    "the difference is a mean over the time of the test",
)
NO_SCORES: Final = (
    'No scores have come, so no verdict is possible. Send them: POST /v1/feedback {"id": …, "score": 0 to 1}.'
)


class LiveTest:
    """State of one alias after the events so far."""

    def __init__(self, started: Started) -> None:
        self._begin(started)

    def _begin(self, started: Started) -> None:
        self.started = started
        self.state: State = "running"
        self.split = Split.of(started.arms)
        self.control, *self.others = started.arms
        alpha = started.alpha / max(1, len(self.others))
        rule = Rule(started.margin, started.horizon, alpha)
        self._tests = {arm: ArmTest(rule) for arm in self.others}
        self._scored: set[str] = set()
        self._sums: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        limits = {"error_rate": started.error_rate, "p95_ttft_s": 0.05 if started.p95_ttft_s else None}
        self._limits = {
            (arm, guard): Limit(limit) for arm in self.others for guard, limit in limits.items() if limit is not None
        }
        self.guarded: dict[str, str] = {}

    def apply(self, event: Event) -> None:
        """The state after an event of this alias."""
        if isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, Weighed):
            self.split = self.split.changed(event.arms)
            if event.why == "file":
                self.started = replace(self.started, declared=event.arms)
        elif isinstance(event, Stopped):
            self.state = "stopped"
            if event.keep is not None:
                self.split = self.split.changed({event.keep: 100})
        elif event.test != self.started.test:
            return
        elif isinstance(event, Scored):
            self._score(event)
        elif isinstance(event, Guarded):
            self.guarded[event.arm] = (
                f"{event.guard} above {event.limit:g}: {event.share:.3g} of {event.answers:,} answers"
            )
        else:
            self.answered, self.failed = Counter(event.answered), Counter(event.failed)

    def arm_of(self, key: str) -> tuple[str, str]:
        """(the user as a hash, its arm) of a key."""
        place = place_of(key, bytes.fromhex(self.started.secret))
        return f"{place:016x}", self.split.arm(place)

    def counts(self, answer: Answered) -> bool:
        """Whether a score of this answer would count."""
        return self.state == "running" and answer.test == self.started.test and answer.unit not in self._scored

    def answer(self, answer: Answered) -> Guarded | None:
        """Counts an answer. Gives the limit that its arm exceeds with it, unless it was found to before."""
        if answer.test != self.started.test:
            return None
        self.answered[answer.arm] += 1
        self.failed[answer.arm] += answer.is_failed
        is_slow = answer.ttft_s is not None and answer.ttft_s > (self.started.p95_ttft_s or 0)
        for guard, is_bad in (("error_rate", answer.is_failed), ("p95_ttft_s", is_slow)):
            watch = self._limits.get((answer.arm, guard))
            if watch is not None and watch.add_one(is_bad) and answer.arm not in self.guarded:
                limit = self.started.error_rate if guard == "error_rate" else self.started.p95_ttft_s
                assert limit is not None
                share = float(watch.sum_R[0]) / watch.n
                return Guarded(answer.alias, answer.test, answer.arm, guard, limit, share, watch.n, now())
        return None

    def without(self, arm: str) -> dict[str, float]:
        """Weights with which an arm gets no users; what it had goes to the first arm."""
        shares = self.split.shares
        freed = shares.pop(arm, 0.0)
        shares[self.control] = shares.get(self.control, 0.0) + freed
        return {name: 100 * share for name, share in shares.items()}

    def _score(self, event: Scored) -> None:
        if self.state != "running" or event.unit in self._scored:
            return
        self._scored.add(event.unit)
        self._sums[event.arm] = self._sums.get(event.arm, 0.0) + event.score
        self._counts[event.arm] += 1
        share_a = event.shares.get(self.control, 0.0)
        for arm, test in self._tests.items():
            share_b = event.shares.get(arm, 0.0)
            if share_a > 0 and share_b > 0:  # otherwise chance did not choose between the two
                side: Literal["a", "b", "other"] = (
                    "a" if event.arm == self.control else "b" if event.arm == arm else "other"
                )
                test.add_one(event.score, side, share_a, share_b)

    def report(self) -> LiveReport:
        """The test by now."""
        one, scores = self.started, sum(self._counts.values())
        arms = tuple(self._arm_report(arm) for arm in one.arms)
        note = "" if scores else NO_SCORES
        if not self.others:
            note = "One arm: there is nothing to compare."
        return LiveReport(
            one.alias, self.state, one.at, arms, one.margin, one.horizon, one.alpha, ASSUMES if scores else (), note
        )

    def _arm_report(self, arm: str) -> ArmReport:
        scores, test = self._counts[arm], self._tests.get(arm)
        mean = self._sums[arm] / scores if scores else None
        found = ArmReport(
            arm, self.split.shares.get(arm, 0.0), self.answered[arm], self.failed[arm], scores, mean,
            self.guarded.get(arm, ""),
        )  # fmt: skip
        if test is None or not test.n:
            return found
        low, high = test.interval()
        ended_at = int(test.ended_at_R[0]) or None
        return replace(found, outcome=test.outcome, ended_at=ended_at, difference=test.difference, low=low, high=high)


def stored_tests(folder: Path) -> dict[str, LiveTest]:
    """The tests by alias that lie in a library, whether a server is running or not. Raises: StorageError."""
    found: dict[str, LiveTest] = {}
    for event in map(event_of, SharedLog(folder / EVENTS).new_lines()):
        if event is not None:
            apply(found, event)
    for answer in map(answer_of, SharedLog(folder / ANSWERS).new_lines()):
        if answer is not None and answer.alias in found:
            found[answer.alias].answer(answer)
    return found


def apply(tests: dict[str, LiveTest], event: Event) -> None:
    """Applies an event to the test of its alias."""
    if event.alias in tests:
        tests[event.alias].apply(event)
    elif isinstance(event, Started):
        tests[event.alias] = LiveTest(event)


def started_anew(test: LiveTest, weights: Mapping[str, float] | None) -> Started | Weighed:
    """The event that begins a test again, or that changes the weights of one that runs. Raises: UserError."""
    if weights is not None:
        weights = _checked_weights(test, weights)
    if test.state == "stopped":
        return test.started.again(weights)
    if weights is None:
        raise UserError(
            f"{test.started.alias}: its test has been running since {test.started.at}. Give weights to change the shares "
            f"(for example {test.control}=80 {test.others[0] if test.others else 'ARM'}=20), or stop it first."
        )
    return Weighed(test.started.alias, weights, "user", now())


def stopped(test: LiveTest, keep: str | None) -> Stopped:
    """The event that ends a test. Raises: UserError."""
    if test.state == "stopped" and keep is None:
        raise UserError(f"{test.started.alias}: its test has been stopped already. Begin one: inlay ab start.")
    if keep is not None and keep not in test.started.arms:
        raise UserError(f"{test.started.alias}: {unknown_name('arm', keep, test.started.arms)}")
    return Stopped(test.started.alias, keep, now())


def _checked_weights(test: LiveTest, weights: Mapping[str, float]) -> dict[str, float]:
    """A weight for every arm. Raises: UserError."""
    alias = test.started.alias
    for arm in weights:
        if arm not in test.started.arms:
            raise UserError(f"{alias}: {unknown_name('arm', arm, test.started.arms)}")
    whole = {arm: float(weights.get(arm, 0)) for arm in test.started.arms}
    is_share = all(0 <= weight <= 100 for weight in whole.values())
    if not is_share or abs(math.fsum(whole.values()) - 100) > 1e-6:
        raise UserError(f"{alias}: weights are percentages that sum to 100 (got {dict(weights)}).")
    return whole
