"""People judge without knowing whose an answer is; what they say is kept at once and gets an interval."""

from __future__ import annotations

import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest

from comparisons import made
from inlay.evaluation.blind import FILE, Choice, preference, read_judgements, serve_trials, trials, write_judgement
from inlay.evaluation.compare import Comparison
from inlay.evaluation.html import comparison_page
from inlay.evaluation.report import as_markdown


def judged(comparison: Comparison, folder: Path, count: int, wanted: str) -> None:
    for trial in trials(comparison, list(read_judgements(folder)), random.Random(1))[:count]:
        side: Choice = "left" if trial.left_is == wanted else "right"
        write_judgement(folder, trial, side)


def test_every_pair_that_differs_is_asked_once_on_sides_and_in_an_order_of_chance() -> None:
    found = made(200)
    differ = [r for r in found.rows if r.base_answer != r.adapter_answer]
    first, second = (trials(found, [], random.Random(seed)) for seed in (1, 2))
    assert len(first) == len(differ) < 200
    assert {t.question for t in first} == {r.question for r in differ}
    assert [t.key for t in first] != [t.key for t in second]
    assert 0.35 < sum(t.left_is == "base" for t in first) / len(first) < 0.65
    by_question = {r.question: r for r in differ}
    for trial in first:
        row = by_question[trial.question]
        sides = (trial.left, trial.right) if trial.left_is == "base" else (trial.right, trial.left)
        assert sides == (row.base_answer, row.adapter_answer)


def test_what_was_judged_is_not_asked_again_and_the_last_word_counts(tmp_path: Path) -> None:
    found = made()
    judged(found, tmp_path, 3, "base")
    left = trials(found, list(read_judgements(tmp_path)), random.Random(1))
    assert len(left) == len(trials(found, [], random.Random(1))) - 3
    write_judgement(tmp_path, left[0], "alike")
    write_judgement(tmp_path, left[0], "left")
    assert len(read_judgements(tmp_path)) == 4
    assert read_judgements(tmp_path)[left[0].key].preferred == left[0].left_is


def test_preferences_get_an_interval_and_go_into_every_report(tmp_path: Path) -> None:
    found = made()
    assert preference(found, tmp_path, resamples=200, seed=0) is None
    judged(found, tmp_path, 12, "adapter")
    judged(found, tmp_path, 2, "base")
    d = preference(found, tmp_path, resamples=200, seed=0)
    assert d is not None
    assert (d.wins, d.losses, d.ties, d.n) == (12, 2, 0, 14)
    assert d.difference == pytest.approx(10 / 14)
    assert d.verdict == "better"
    assert d.test == "mcnemar"
    with_it = replace(found, preference=d)
    for text in (as_markdown(with_it, False), comparison_page(with_it, {})):
        assert "judged blindly: fine-tuned preferred on 12 of 14 rows, base on 2, 0 alike: better (" in text
    assert with_it.to_json()["preference"]["wins"] == 12
    other = replace(found, rows=tuple(replace(r, adapter_answer="Something else.") for r in found.rows))
    assert preference(other, tmp_path, resamples=200, seed=0) is None  # what was said is of other answers


class Sitting:
    """A judge at the page of a running server."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        self.told: list[str] = []
        started = threading.Event()

        def tell(text: str) -> None:
            self.told.append(text)
            started.set()

        self.thread = threading.Thread(target=serve_trials, args=(comparison, folder, tell))
        self.thread.start()
        assert started.wait(20)
        found = re.search(r"http://\S+", self.told[0])
        self.address = found[0] if found else ""

    def page(self, address: str | None = None, host: str | None = None, **form: str) -> str:
        data = urlencode(form).encode() if form else None
        request = urllib.request.Request(address or self.address, data, {"Host": host} if host else {})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())


@pytest.fixture
def sitting(tmp_path: Path) -> Iterator[Sitting]:
    begun = Sitting(made(), tmp_path)
    yield begun
    if begun.thread.is_alive():
        begun.page(choice="finish")
    begun.thread.join(20)
    assert not begun.thread.is_alive()


def test_the_page_asks_until_the_judge_is_done_and_never_says_whose_an_answer_is(
    sitting: Sitting, tmp_path: Path
) -> None:
    count = len(trials(made(), [], random.Random()))
    for n in range(3):
        text = sitting.page()
        assert f"{n} of {count} judged" in text
        assert "fine-tuned" not in text
        assert "&lt;script&gt;" in text  # an answer stays text
        key = re.search(r'name="key" value="(\w+)"', text)
        assert key
        sitting.page(key=key[1], choice=("left", "right", "alike")[n])
        assert len((tmp_path / FILE).read_text().splitlines()) == n + 1  # it is kept before the next is shown
    assert "3 judged" in sitting.page(choice="finish")
    sitting.thread.join(20)
    assert len(read_judgements(tmp_path)) == 3


def test_the_page_is_for_who_knows_its_address_on_this_machine(sitting: Sitting, tmp_path: Path) -> None:
    root = sitting.address.rsplit("/", 2)[0]
    for address, host in ((root + "/", None), (root + "/guess/", None), (sitting.address, "elsewhere.example")):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            sitting.page(address, host)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            sitting.page(address, host, choice="finish")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        sitting.page(choice="nonsense", key="x")
    sitting.page(choice="left", key="no such row")
    assert read_judgements(tmp_path) == {}


def test_where_nothing_is_left_to_judge_nothing_is_served(tmp_path: Path) -> None:
    same = replace(made(), rows=tuple(replace(r, adapter_answer=r.base_answer) for r in made().rows))
    told: list[str] = []
    serve_trials(same, tmp_path, told.append)
    assert told == ["nothing to judge: every row was judged before, or both answers are equal."]
