"""Long work says how long it will still take, on a terminal and without one."""

from __future__ import annotations

import pytest

from inlay.runs import reporter
from inlay.runs.reporter import LateBar, Pace, PlainReporter
from parts import ToldBar


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(reporter.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_what_is_left_follows_the_mean_pace_once_the_first_part_has_warmed_up(clock: Clock) -> None:
    pace = Pace(20, 4)  # a resumed run
    assert pace.left_s(4) is None
    clock.now += 30
    assert pace.left_s(5) == 30 * 15
    for done in range(6, 11):
        clock.now += 2 if done % 2 else 4  # an evaluation every other step
        left_s = pace.left_s(done)
    assert left_s == pytest.approx(10 * (4 + 2 + 4 + 2 + 4) / 5)
    clock.now += 8
    assert pace.left_s(20) == 0


def test_lines_without_a_terminal_say_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = PlainReporter()
    reporter.start(4, 0, "answer")
    for done in range(1, 5):
        clock.now += 90
        reporter.progress(done, {})
    reporter.end()
    assert capsys.readouterr().err.splitlines() == [
        "  1/4  4 min 30 s left", "  2/4  3 min 00 s left", "  3/4  1 min 30 s left", "  4/4",
    ]  # fmt: skip


def test_a_bar_shows_only_where_there_is_enough_to_wait_for(clock: Clock) -> None:
    quick, slow = ToldBar(), ToldBar()
    with LateBar(quick, 3, "row") as bar:
        for done in (1, 2, 3):
            clock.now += 1
            bar.reached(done)
    assert quick.told == []
    with LateBar(slow, 30, "row") as bar:
        for done in (10, 20, 30):
            clock.now += 4
            bar.reached(done)
    assert slow.told == [(30, 20, "row"), 30, "end"]
