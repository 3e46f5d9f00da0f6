"""The page of a comparison holds what was found, row by row, and marks the words that differ."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparisons import HISTORY, HOSTILE, made
from html_elements import Elements
from inlay.evaluation import html
from inlay.evaluation.html import comparison_page, marked
from inlay.evaluation.metrics import METRICS
from inlay.evaluation.report import write_reports
from inlay.reports.charts import Line, differences, interval, lines
from inlay.runs.guard_events import Incident


def test_the_page_holds_the_verdict_the_figures_and_every_row_and_runs_nothing_that_a_row_says() -> None:
    found = made()
    text = comparison_page(found, {"fine-tuned": HISTORY})
    page = Elements(text)
    said = " ".join(page.text)
    assert f"{found.headline}." in said
    assert "selected on these rows (best of 3)" in said
    assert page.names.count("li") == 40
    assert page.names.count("script") == 1
    assert "img" not in page.names
    assert "onerror" in said
    for name, d in found.metrics.items():
        assert name in said
        assert f"[{d.low:+.4g}, {d.high:+.4g}]" in said
    assert "held-out loss, 2.100 at step 10 at its best" in said
    assert METRICS["token_f1"].signature() in said
    assert not re.search(r"https?://|@import|url\(|nan", text)


def test_rows_are_ordered_worst_first_and_know_what_they_are() -> None:
    text = comparison_page(made(), {})
    kinds = re.findall(r'<li data-kind="(\w+)"', text)
    assert kinds == sorted(kinds, key=["worse", "same", "better"].index)
    assert set(kinds) == {"better", "worse", "same"}
    assert [int(n) for n in re.findall(r'data-rank="(\d+)"', text)] == list(range(40))


def test_further_models_are_laid_beside_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = comparison_page(replace(made(), also=(made(adapter="other"),)), {})
    assert "2 models against base" in text
    assert text.count('class="part"') == 2
    assert text.count("<script>") == 1


def test_of_very_many_rows_those_that_changed_most_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_MOST_ROWS", 10)
    found = made()
    text = comparison_page(found, {})
    assert "10 of 40 rows whose loss changed most" in text
    shown = {int(n) for n in re.findall(r'data-at="(\d+)"', text)}
    moved = sorted(range(40), key=lambda n: -abs(found.rows[n].adapter_loss - found.rows[n].base_loss))[:10]
    assert shown == set(moved)


def test_documents_have_no_answers_and_still_a_page() -> None:
    rows = tuple(replace(r, base_answer=None, adapter_answer=None, scores={}) for r in made().rows)
    found = replace(made(), rows=rows, metrics={"loss": made().metrics["loss"]}, behaviour={}, prompts=())
    text = comparison_page(found, {})
    assert "no answers to judge" in text
    assert 'class="columns answers"' not in text


def test_all_reports_are_written(tmp_path: Path) -> None:
    write_reports(made(), tmp_path, {"fine-tuned": HISTORY})
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "report.md", "compare.csv", "compare.json"}


def test_the_incidents_of_the_guards_are_in_both_reports(tmp_path: Path) -> None:
    met = {"fine-tuned": [Incident(7, "skipped", "step 7: loss is nan", "the step changed nothing")], "other": []}
    write_reports(made(), tmp_path, {}, met)
    assert "## Incidents of the guards in fine-tuned" in (tmp_path / "report.md").read_text()
    assert "| 7 | skipped | step 7: loss is nan | the step changed nothing |" in (tmp_path / "report.md").read_text()
    assert "<td>fine-tuned</td>" in (tmp_path / "report.html").read_text().replace(' class="n"', "")
    assert "step 7: loss is nan" in (tmp_path / "report.html").read_text()


def test_words_that_the_other_text_lacks_are_marked_in_runs() -> None:
    runs = list(marked("The red lamp is here.", {"a": "The lamp is not here.", "b": "The red lamp"}))
    assert runs == [("The ", ()), ("red", ("a",)), (" lamp ", ()), ("is here.", ("b",))]
    assert list(marked("one two", {"a": None})) == [("one two", ())]
    assert list(marked("", {"a": "x"})) == []


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_marking_loses_no_character(text: str, other: str | None) -> None:
    assert "".join(run for run, _ in marked(text, {"a": other, "b": text})) == text
    assert all("b" not in names for _, names in marked(text, {"a": other, "b": text}))


def test_differences_are_coloured_by_what_is_better() -> None:
    drawn = differences([-2.0, -1.0, 0.0, 0.01, 1.0], higher_is_better=False, show="{:+.1f}".format)
    kinds = re.findall(r'<rect class="(\w+)"[^>]*height="([\d.]+)"', drawn)
    assert [kind for kind, tall in kinds if float(tall)] == ["good", "good", "note", "error"]
    assert "mean -0.4" in drawn
    assert "<rect" in differences([], higher_is_better=True, show=str)
    assert "<rect" in differences([0.0, 0.0], higher_is_better=True, show=str)


def test_an_interval_and_a_line_can_be_drawn_from_next_to_nothing() -> None:
    assert 'cx="88.0"' in interval(0.0, 0.0, 0.0, "note")
    assert "<path" in lines([Line("a", [(1.0, 2.0)])], "step", HOSTILE)
    assert HOSTILE not in lines([Line("a", [(1.0, 2.0)])], "step", HOSTILE)
