"""inlay ab: a test on live traffic is shown, widened, stopped and begun again from the files of a library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.serving.aliases import AliasConfig
from inlay.serving.feedback import LiveTests
from inlay.serving.live_test import NO_SCORES
from inlay.serving.names import Asker
from inlay.serving.server import Record
from program import Ended

Inlay = Callable[..., Ended]


@pytest.fixture
def tests(tmp_path: Path) -> LiveTests:
    """Of a server that is running, whose alias has answered but has no score yet."""
    config = AliasConfig.model_validate({"arms": {"support:3": 50.0, "support:4": 50.0}})
    tests = LiveTests(tmp_path / "library", {"help": config})
    tests.begin()
    for n in range(40):
        tests.choose("help", Asker(f"id {n}", "local", f"user {n}"))
        tests.ended(Record("r", answer_id=f"id {n}", status=200, started=0.0, first_token=0.1))
    return tests


def test_without_scores_no_verdict_is_possible_and_with_them_show_has_the_outcome_and_what_it_assumes(
    tests: LiveTests, tmp_path: Path, inlay: Inlay
) -> None:
    shown = inlay("ab", "show", "help", "--library", str(tmp_path / "library"))
    assert NO_SCORES in shown.out
    assert "against" not in shown.out
    for n in range(40):
        arm = tests.choose("help", Asker("", "local", f"user {n}"))
        tests.score(f"id {n}", float(arm == "support:4"), "local")
    shown = inlay("ab", "show", "--library", str(tmp_path / "library"))
    assert "support:4 against support:3: better, since" in shown.out
    assert "Assumed: scores come from users who chose to give one" in shown.out
    (report,) = json.loads(inlay("ab", "show", "--json", "--library", str(tmp_path / "library")).out)
    assert report == json.loads(json.dumps(tests.report("help").to_json()))


def test_a_running_server_takes_over_what_ab_start_and_stop_change(
    tests: LiveTests, tmp_path: Path, inlay: Inlay
) -> None:
    library = ("--library", str(tmp_path / "library"))

    def shares() -> dict[str, float]:
        return {arm.name: arm.share for arm in tests.report("help").arms}

    inlay("ab", "start", "help", "support:3=80", "support:4=20%", *library)
    assert shares() == pytest.approx({"support:3": 0.8, "support:4": 0.2})
    inlay("ab", "stop", "help", "--keep", "support:4", *library)
    assert shares() == {"support:3": 0.0, "support:4": 1.0}
    assert tests.report("help").state == "stopped"
    inlay("ab", "start", "help", *library)
    assert (tests.report("help").state, shares()) == ("running", {"support:3": 0.5, "support:4": 0.5})
    assert sum(arm.answers for arm in tests.report("help").arms) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "hepl"), "unknown alias 'hepl'. Did you mean 'help'?"),
        (("start", "help"), "has been running since"),
        (("start", "help", "support:4"), "'support:4': is no share of an arm. Write ARM=PERCENT"),
        (("start", "help", "support:5=100"), "unknown arm 'support:5'"),
        (("start", "help", "support:4=20"), "weights are percentages that sum to 100"),
        (("stop", "help", "--keep", "base"), "unknown arm 'base'"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    tests: LiveTests, tmp_path: Path, inlay: Inlay, words: tuple[str, ...], message: str
) -> None:
    before = (tmp_path / "library" / "ab.jsonl").read_bytes()
    ended = inlay("ab", *words, "--library", str(tmp_path / "library"))
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert (tmp_path / "library" / "ab.jsonl").read_bytes() == before


def test_a_library_without_tests_says_how_one_begins(tmp_path: Path, inlay: Inlay) -> None:
    assert "begins when a server is started with an alias" in inlay("ab", "show", "--library", str(tmp_path)).out
    assert "begins when a server is started" in inlay("ab", "show", "help", "--library", str(tmp_path)).err
