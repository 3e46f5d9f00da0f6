"""A report is one file that asks for nothing and runs nothing that a row brought along."""

from __future__ import annotations

import re

from html_elements import Elements
from inlay.reports.charts import histogram
from inlay.reports.html import Html, Item, badge, facts, filtered, page, section, table, tag

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


def whole(hostile: str) -> str:
    return page(
        hostile,
        section(hostile, facts([(hostile, hostile)]), badge(hostile, "error")),
        table([hostile], [[hostile]], numbers=[0]),
        filtered(
            ["error", hostile],
            [Item("error", hostile), Item(hostile, tag("a", hostile, title=hostile), {"n": 1})],
            [(hostile, hostile, 1)],
            [(hostile, hostile)],
        ),
        histogram([1, 2], [0, 1, 2], [(hostile, 1)], hostile),
    )


def test_what_a_row_says_stays_text_wherever_it_is_put() -> None:
    found = Elements(whole(HOSTILE))
    assert found.names.count("script") == 1
    assert "img" not in found.names
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.text.count(HOSTILE) >= 8


def test_only_the_pages_own_script_may_run_and_nothing_is_fetched() -> None:
    text = whole("fine")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert re.search(r"script-src 'sha256-[\w+/=]+'", policy[1])
    assert not re.search(r"https?://|src=|href=|@import|url\(", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_a_histogram_has_a_bar_for_each_count_within_its_frame() -> None:
    drawn = histogram([0, 5, 10], [0, 10, 20, 30], [("median", 12), ("outside", 99)], "tokens")
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', drawn)]
    assert heights[0] == 0
    assert heights[2] == 2 * heights[1] > 0
    assert "median 12" in drawn
    assert "outside" not in drawn
    assert "10 to 20 tokens: 5" in drawn


def test_a_histogram_of_nothing_and_of_one_value_can_be_drawn() -> None:
    assert histogram([], [0, 0]).startswith("<svg")
    assert "rect" in histogram([3], [5, 5])


def test_markup_is_kept_and_text_is_escaped() -> None:
    assert (
        tag("b", "<i>", Html("<i></i>"), class_="x", hidden=True, title=None)
        == '<b class="x" hidden>&lt;i&gt;<i></i></b>'
    )
