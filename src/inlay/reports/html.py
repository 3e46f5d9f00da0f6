"""A report as one HTML file: escaped by construction, light and dark, readable on a phone, nothing from outside.

    write_file(path, page("Data check", facts([("rows", "120")]), section("Rows", table(head, rows))))

Text is escaped wherever it is put in; only `Html`, which `tag` makes, passes as markup. Every function takes and gives
plain values, so any room may build a report; drawings are in `inlay.reports.charts`. The page works without its script, which
only filters, searches and sorts lists, and clicks the button whose `data_key` is pressed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final, NamedTuple


class Html(str):
    """Markup. A plain `str` is text and gets escaped."""

    __slots__ = ()


Content = str | Iterable[str]


def tag(name: str, /, *content: Content, **attributes: object) -> Html:
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


def table(
    head: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Iterable[int] = (), roomy: Iterable[int] = ()
) -> Html:
    """A table that scrolls sideways where it is too wide. The columns named in `numbers` are set to the right, those
    in `roomy` are left out on a phone."""
    classes = dict.fromkeys(numbers, "number")
    classes |= {n: f"{classes.get(n, '')} roomy".strip() for n in roomy}

    def cells(kind: str, row: Sequence[Content]) -> Html:
        return tag("tr", (tag(kind, c, class_=classes.get(n)) for n, c in enumerate(row)))

    body = tag("tbody", (cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", head)), body), class_="wide")


class Item(NamedTuple):
    """An entry of a `filtered` list."""

    kind: str
    content: Content
    keys: Mapping[str, float] = {}
    """Values that it can be sorted by."""


def filtered(
    kinds: Sequence[str],
    items: Iterable[Item],
    orders: Sequence[tuple[str, str, int]] = (),
    marks: Sequence[tuple[str, str]] = (),
) -> Html:
    """A list with a button for each kind, a box that searches the text, and a count of what is shown.

    `orders` offers to sort: (label, key, 1 for rising or -1 for falling). `marks` offers which `mark` elements are
    coloured: (label, class); the first is at the start.
    """
    found = [
        tag("li", item.content, data_kind=item.kind, **{f"data_{key}": value for key, value in item.keys.items()})
        for item in items
    ]
    bar: list[Html] = []
    if len(kinds) > 1:
        bar += [tag("button", kind, type="button", data_filter=kind, aria_pressed="true") for kind in kinds]
    bar.append(tag("input", type="search", placeholder="search", aria_label="search"))
    if orders:
        choices = [tag("option", label, value=f"{key} {sign}") for label, key, sign in orders]
        bar.append(tag("select", choices, aria_label="order"))
    bar.append(tag("output", f"{len(found)} of {len(found)}", class_="note"))
    shown = [tag("div", bar, class_="bar")]
    if marks:
        ways = [
            tag("button", label, type="button", data_marks=kind, aria_pressed="false" if n else "true")
            for n, (label, kind) in enumerate(marks)
        ]
        shown.append(tag("div", tag("span", "coloured:", class_="note"), ways, class_="bar"))
    return tag("div", shown, tag("ul", found), class_="filtered", data_mark=marks[0][1] if marks else None)


def page(title: str, *content: Content) -> str:
    """The complete file."""
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
  --line: #e3e1dc; --accent: #3556b8; --error: #b3261e; --warning: #8a5a00; --good: #24733b; --mark: #fbe7b2; }
@media (prefers-color-scheme: dark) { :root { --ground: #17171a; --panel: #202024; --text: #ececee;
  --quiet: #a2a1a8; --line: #36353b; --accent: #8fa8f5; --error: #ff8a80; --warning: #f0b95a; --good: #7ed192;
  --mark: #5a4a1c; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
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
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, .place { font: .85em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.place { color: var(--quiet); }
.badge { border: 1px solid; border-radius: 99px; padding: 0 .55rem; font-size: .8rem; color: var(--quiet);
  white-space: nowrap; }
.error { color: var(--error); } .warning { color: var(--warning); } .good { color: var(--good); }
.lead { font-size: 1.15rem; margin: 0 0 .75rem; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; margin-bottom: .75rem; }
button, input, select { font: inherit; font-size: .9rem; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: 99px; padding: .25rem .8rem; max-width: 100%; }
button { cursor: pointer; } button[aria-pressed=true] { border-color: var(--accent); color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
input { flex: 1; min-width: 8rem; }
ul { list-style: none; padding: 0; margin: 0; }
li { border-top: 1px solid var(--line); padding: .9rem 0; }
summary { cursor: pointer; color: var(--quiet); font-size: .9rem; }
details > :not(summary) { margin-top: .75rem; }
details.part > summary { color: var(--text); font-size: 1.3rem; font-weight: 600; margin-top: 2rem;
  overflow-wrap: anywhere; }
section > :last-child { margin-bottom: 0; }
figure { margin: 0; container-type: inline-size; } figcaption { margin-bottom: .35rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .75rem 1rem; }
.columns > section { margin: 0; } .columns + .bar { margin-top: 1rem; } details + .bar { margin-top: 1.5rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; margin: .1rem 0 0; }
.name { color: var(--quiet); font-size: .8rem; overflow-wrap: anywhere; }
li > p, li > div { margin: 0 0 .6rem; } li > :last-child { margin-bottom: 0; }
kbd { color: var(--quiet); font: inherit; }
.answers > div { background: var(--ground); border-radius: 8px; padding: .45rem .7rem .6rem; }
mark { background: none; color: inherit; }
[data-mark=other] mark.other, [data-mark=reference] mark.reference { background: var(--mark); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--quiet); font-size: 11px; } svg .axis { stroke: var(--line); }
svg .mark { stroke-width: 1; } svg line.mark { stroke: var(--warning); stroke-dasharray: 3 3; }
.histogram rect { fill: var(--accent); opacity: .8; }
.histogram .good { fill: var(--good); } .histogram .error { fill: var(--error); }
.histogram .note { fill: var(--quiet); }
.heat rect { fill: var(--accent); }
.interval { width: 11rem; } .interval line { stroke: currentColor; stroke-width: 3; stroke-linecap: round; }
.interval circle { fill: currentColor; } .interval line.axis { stroke: var(--quiet); stroke-width: 1; }
.lines path { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-linejoin: round; }
.lines circle { fill: var(--accent); } .lines .quiet path { stroke: var(--quiet); opacity: .55; }
.lines .quiet circle { display: none; } .lines .base path { stroke: var(--warning); stroke-dasharray: 5 4; }
.lines .base circle { display: none; }
@media (max-width: 40rem) { .roomy { display: none; } main { padding: 1rem .75rem 3rem; } section { padding: .85rem; }
  th, td { padding-right: .5rem; } th:last-child, td:last-child { padding-right: 0; } table { font-size: .85rem; }
  .histogram text, .lines text { font-size: 20px; } }
@container (max-width: 34rem) { .histogram text, .lines text { font-size: 15px; } }
@container (max-width: 24rem) { .histogram text, .lines text { font-size: 20px; } }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { .bar { display: none; } section { break-inside: avoid-page; } .text { max-height: none; } }
"""

_SCRIPT: Final = """
onkeydown = event => {
  if (event.target.matches("input, select") || event.repeat) return;
  document.querySelector(`[data-key="${CSS.escape(event.key)}"]`)?.click();
};
for (const list of document.querySelectorAll(".filtered")) {
  const shelf = list.querySelector("ul"), items = [...shelf.children], count = list.querySelector("output");
  const kinds = [...list.querySelectorAll("[data-filter]")], ways = [...list.querySelectorAll("[data-marks]")];
  const search = list.querySelector("input"), order = list.querySelector("select");
  const show = () => {
    const on = new Set(kinds.filter(b => b.ariaPressed === "true").map(b => b.dataset.filter));
    const wanted = search.value.toLowerCase();
    for (const item of items)
      item.hidden = kinds.length && !on.has(item.dataset.kind) || !item.textContent.toLowerCase().includes(wanted);
    count.value = `${items.filter(item => !item.hidden).length} of ${items.length}`;
  };
  for (const b of kinds) b.onclick = () => { b.ariaPressed = String(b.ariaPressed !== "true"); show(); };
  for (const b of ways) b.onclick = () => {
    list.dataset.mark = b.dataset.marks;
    for (const one of ways) one.ariaPressed = String(one === b);
  };
  search.oninput = show;
  if (order) order.onchange = () => {
    const [key, sign] = order.value.split(" ");
    shelf.append(...items.sort((a, b) => (a.dataset[key] - b.dataset[key]) * sign));
  };
}
"""
