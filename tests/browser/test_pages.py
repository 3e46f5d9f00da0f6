"""The report in a real browser: readable at every width and in both colours, and its lists do what they offer.

Screenshots go to the folder that INLAY_SCREENS names, if any.
"""

from __future__ import annotations

import io
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chromium import started
from comparisons import HISTORY, made
from inlay.evaluation.blind import read_judgements, serve_trials
from inlay.evaluation.html import comparison_page

pytestmark = pytest.mark.browser

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = started(playwright)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`opened(html, size, **context)` shows a page and fails when it asks for anything or complains."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def show(html: str, size: str = "desktop", **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def report() -> str:
    return comparison_page(replace(made(), also=(made(adapter="other"),)), {"fine-tuned": HISTORY})


def pixels(png: bytes) -> list[tuple[int, int, int]]:
    """Some pixels of a screenshot."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").resize((image.width // 3, image.height // 3), Image.Resampling.NEAREST)
        return list(small.get_flattened_data() if hasattr(small, "get_flattened_data") else small.getdata())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_readable(opened: Callable[..., Any], report: str, size: str, scheme: str) -> None:
    page = opened(report, size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]  # nothing sticks out
    assert page.evaluate(UNREADABLE) == []
    shot = page.screenshot()
    if folder := os.environ.get("INLAY_SCREENS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"report-{size}-{scheme}.png"), full_page=True)
    seen = pixels(shot)
    bright = sorted(sum(pixel) / 3 for pixel in seen)[len(seen) // 2]
    assert bright > 230 if scheme == "light" else bright < 50
    assert len(set(seen)) > 20  # text, lines and colours, not an empty page


UNREADABLE = """
() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const faint = new Set();
  for (const e of document.querySelectorAll("main *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), ink = e.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(channels(ink)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faint.add(`${e.tagName}.${e.className.baseVal ?? e.className}`);
    if (!e.closest("svg") && parseFloat(style.fontSize) < 12) faint.add(`small ${e.tagName}`);
    const box = e.getBoundingClientRect();
    if (e.closest("svg") && box.height < 9) faint.add(`small ${e.textContent}`);
    if (!e.closest(".wide") && box.width && box.right > innerWidth + 1) faint.add(`outside ${e.textContent}`);
  }
  return [...faint];
}
"""
"""Names text of too little contrast (WCAG AA), too small, or beyond the edge."""


def test_the_tables_fit_a_phone_without_scrolling(opened: Callable[..., Any], report: str) -> None:
    page = opened(report, "phone")
    wide = "[...document.querySelectorAll('.wide')].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{wide}.map(e => e.innerText)") == []


def test_rows_are_filtered_searched_and_sorted(opened: Callable[..., Any]) -> None:
    page = opened(comparison_page(made(), {}))
    rows, count = page.locator("li[data-kind]"), page.locator(".filtered output")
    assert count.inner_text() == "40 of 40"
    assert rows.first.get_attribute("data-kind") == "worse"

    page.get_by_role("button", name="worse").click()
    assert page.locator("li[data-kind=worse]:visible").count() == 0
    assert page.locator("li[data-kind=better]:visible").count() > 0
    page.get_by_role("button", name="worse").click()
    page.get_by_placeholder("search").fill("Parcel 17 COME")
    assert count.inner_text() == "1 of 40"
    assert "parcel 17 come?" in page.locator("li:visible").text_content()

    page.get_by_placeholder("search").fill("")
    page.get_by_label("order").select_option("best first")
    assert rows.first.get_attribute("data-kind") == "better"
    page.get_by_label("order").select_option("as in the file")
    assert [int(row.get_attribute("data-at")) for row in rows.all()] == list(range(40))


def test_words_are_marked_against_the_other_answer_or_the_reference(opened: Callable[..., Any]) -> None:
    page = opened(comparison_page(made(), {}))
    row = page.locator("li[data-kind=better]").first
    coloured = "e => e.matches('li *') && getComputedStyle(e).backgroundColor !== 'rgba(0, 0, 0, 0)'"

    def marks() -> list[str]:
        return [str(mark.text_content()) for mark in row.locator("mark").all() if mark.evaluate(coloured)]

    against_other = marks()
    page.get_by_role("button", name="missing in the reference").click()
    assert against_other
    assert set(marks()) != set(against_other)
    assert all("Monday" not in mark for mark in marks())


def test_the_page_can_be_read_without_its_script(opened: Callable[..., Any], report: str) -> None:
    page = opened(report, java_script_enabled=False)
    assert page.locator("details.part").first.locator("li[data-kind]:visible").count() == 40


def test_two_answers_are_judged_from_the_keyboard_on_a_phone_or_a_desk(browser: Any, tmp_path: Path) -> None:
    told: queue.Queue[str] = queue.Queue()
    serving = threading.Thread(target=serve_trials, args=(made(), tmp_path, told.put))
    serving.start()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(re.findall(r"http://\S+", told.get(timeout=20))[0])
    assert page.evaluate(UNREADABLE) == []
    if folder := os.environ.get("INLAY_SCREENS"):
        page.screenshot(path=str(Path(folder) / "blind-phone.png"), full_page=True)
    for n, key in enumerate(("ArrowLeft", "ArrowDown", "ArrowRight"), 1):
        page.keyboard.press(key)
        page.get_by_text(f"{n} of ").wait_for()
    page.get_by_role("button", name="finish").click()
    page.get_by_text("3 judged").wait_for()
    page.close()
    serving.join(20)
    assert sorted(one.preferred == "alike" for one in read_judgements(tmp_path).values()) == [False, False, True]
