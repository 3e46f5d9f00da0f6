"""A report as one HTML file: escaped by construction, light and dark, readable on a phone, nothing from outside.

    write_file(path, page("Data check", facts([("rows", "120")]), section("Lengths", histogram(counts, edges))))

Text is escaped wherever it is put in; only `Html`, which `tag` makes, passes as markup. Every function takes and gives
plain values, so any room may build a report. The page works without its script, which only filters lists.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final


class Html(str):
    """Markup. A plain `str` is text and gets escaped."""

    __slots__ = ()


Content = str | Iterable[str]


def tag(name: str, *content: Content, **attributes: object) -> Html:
    """An element. `class_` is the attribute class, `data_kind` is data-kind; None and False leave an attribute out."""
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{shown}>{joined(*content)}</{name}>")


def joined(*content: Content) -> Html:
    """The parts one after another, each escaped unless it is markup."""
    parts = [part for c in content for part in ([c] if isinstance(c, str) else c)]
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def section(title: str, *content: Content) -> Html:
    """A part of the page under a heading."""
    return tag("section", tag("h2", title), *content)


def note(*content: Content) -> Html:
    """A paragraph in a quieter tone."""
    return tag("p", *content, class_="note")


def badge(text: str, kind: str) -> Html:
    """A word on a coloured ground; `kind` is error, warning, note or good."""
    return tag("span", text, class_=f"badge {kind}")


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """Names and values beside each other."""
    return tag("dl", (joined(tag("dt", name), tag("dd", value)) for name, value in pairs))


def table(head: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways where it is too wide; the columns named in `numbers` are set to the right."""
    right = set(numbers)

    def cells(kind: str, row: Sequence[Content]) -> Html:
        return tag("tr", (tag(kind, c, class_="number" if n in right else None) for n, c in enumerate(row)))

    body = tag("tbody", (cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", head)), body), class_="wide")


def filtered(kinds: Sequence[str], items: Iterable[tuple[str, Content]]) -> Html:
    """A list of (kind, content) with a button for each kind and a box that searches the text."""
    found = [tag("li", content, data_kind=kind) for kind, content in items]
    buttons = [tag("button", kind, type="button", data_filter=kind, aria_pressed="true") for kind in kinds]
    search = tag("input", type="search", placeholder="search", aria_label="search")
    return tag("div", tag("div", buttons, search, class_="bar"), tag("ul", found), class_="filtered")


def histogram(
    counts: Sequence[int], edges: Sequence[float], marks: Sequence[tuple[str, float]] = (), unit: str = ""
) -> Html:
    """Bars for `counts` between neighbouring `edges` (one more than bars), and named vertical lines at `marks`."""
    width, height, top, foot = 640.0, 170.0, 34.0, 18.0
    low, high = edges[0], edges[-1]
    tallest = max(max(counts, default=0), 1)

    def x(value: float) -> float:
        return round((value - low) / ((high - low) or 1) * width, 1)

    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        tall = round(count / tallest * (height - top), 1)
        told = tag("title", f"{left:g} to {right:g}{' ' + unit if unit else ''}: {count:,}")
        box = {"x": x(left), "y": height - tall, "width": max(0.5, round(x(right) - x(left) - 1, 1)), "height": tall}
        bars.append(tag("rect", told, **box))
    lines = []
    for n, (name, value) in enumerate(m for m in marks if low <= m[1] <= high):
        at, side = x(value), "end" if x(value) > width * 0.8 else "start"
        line = tag("line", x1=at, x2=at, y1=12 * (n % 3), y2=height, class_="mark")
        text_at = {"x": at + (-3 if side == "end" else 3), "y": 9 + 12 * (n % 3)}
        lines.append(joined(line, tag("text", f"{name} {value:,.0f}", text_anchor=side, class_="mark", **text_at)))
    axis = [
        tag("text", f"{value:,.0f}", x=x(value), y=height + foot - 4, text_anchor=side)
        for value, side in ((low, "start"), ((low + high) / 2, "middle"), (high, "end"))
    ]
    view = f"0 0 {width:g} {height + foot:g}"
    return tag("svg", bars, lines, axis, viewBox=view, role="img", class_="histogram")


def page(title: str, *content: Content) -> str:
    """The whole file."""
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; img-src data:"
    head = joined(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    body = tag("body", tag("main", tag("h1", title), *content), tag("script", Html(_SCRIPT)))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


_STYLE: Final = """
:root { color-scheme: light dark; --ground: #fbfaf8; --panel: #fff; --text: #1d1d1f; --quiet: #6b6a70;
  --line: #e3e1dc; --accent: #3556b8; --error: #b3261e; --warning: #8a5a00; --good: #24733b; }
@media (prefers-color-scheme: dark) { :root { --ground: #17171a; --panel: #202024; --text: #ececee;
  --quiet: #a2a1a8; --line: #36353b; --accent: #8fa8f5; --error: #ff8a80; --warning: #f0b95a; --good: #7ed192; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 1rem;
  margin: 1rem 0; }
.note { color: var(--quiet); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .place { font: .85em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.place { color: var(--quiet); }
.badge { border: 1px solid; border-radius: 99px; padding: 0 .55rem; font-size: .8rem; color: var(--quiet); }
.error { color: var(--error); } .warning { color: var(--warning); } .good { color: var(--good); }
.bar { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .75rem; }
button, input { font: inherit; font-size: .9rem; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: 99px; padding: .15rem .8rem; }
button { cursor: pointer; } button[aria-pressed=true] { border-color: var(--accent); color: var(--accent); }
input { flex: 1; min-width: 8rem; }
ul { list-style: none; padding: 0; margin: 0; }
li { border-top: 1px solid var(--line); padding: .75rem 0; }
summary { cursor: pointer; color: var(--quiet); font-size: .9rem; }
.histogram { width: 100%; height: auto; display: block; }
.histogram rect { fill: var(--accent); opacity: .8; }
.histogram text { fill: var(--quiet); font-size: 11px; } .histogram .mark { stroke-width: 1; }
.histogram line.mark { stroke: var(--warning); stroke-dasharray: 3 3; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""

_SCRIPT: Final = """
for (const list of document.querySelectorAll(".filtered")) {
  const buttons = list.querySelectorAll("button"), search = list.querySelector("input");
  const show = () => {
    const on = new Set([...buttons].filter(b => b.ariaPressed === "true").map(b => b.dataset.filter));
    const asked = search.value.toLowerCase();
    for (const item of list.querySelectorAll("li[data-kind]"))
      item.hidden = !on.has(item.dataset.kind) || !item.textContent.toLowerCase().includes(asked);
  };
  for (const b of buttons) b.onclick = () => { b.ariaPressed = String(b.ariaPressed !== "true"); show(); };
  search.oninput = show;
}
"""
