"""Drawings for a report: SVG that takes its colours from the page, so that it is right in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from inlay.reports.html import Html, joined, tag

_WIDTH = 640.0


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    marks: Sequence[tuple[str, float]] = (),
    unit: str = "",
    *,
    kinds: Sequence[str] = (),
    show: Callable[[float], str] = "{:,.0f}".format,
) -> Html:
    """Bars for `counts` between neighbouring `edges` (one more than bars), and named vertical lines at `marks`.

    `kinds` colours each bar: good, error, note, or nothing. `show` writes a value.
    """
    width, height, top, foot = _WIDTH, 190.0, 54.0, 24.0
    low, high = edges[0], edges[-1]
    tallest = max(max(counts, default=0), 1)

    def x(value: float) -> float:
        return round((value - low) / ((high - low) or 1) * width, 1)

    bars = []
    for n, (count, left, right) in enumerate(zip(counts, edges, edges[1:], strict=False)):
        tall = round(count / tallest * (height - top), 1)
        hint = tag("title", f"{left:g} to {right:g}{' ' + unit if unit else ''}: {count:,}")
        box = {"x": x(left), "y": height - tall, "width": max(0.5, round(x(right) - x(left) - 1, 1)), "height": tall}
        bars.append(tag("rect", hint, class_=kinds[n] if kinds else None, **box))
    lines = []
    for n, (name, value) in enumerate(m for m in marks if low <= m[1] <= high):
        at, side = x(value), "end" if x(value) > width * 0.8 else "start"
        line = tag("line", x1=at, x2=at, y1=17 * (n % 3), y2=height, class_="mark")
        text_at = {"x": at + (-4 if side == "end" else 4), "y": 16 + 17 * (n % 3)}
        lines.append(joined(line, tag("text", f"{name} {show(value)}", text_anchor=side, class_="mark", **text_at)))
    axis = [
        tag("text", show(value), x=x(value), y=height + foot - 5, text_anchor=side)
        for value, side in ((low, "start"), ((low + high) / 2, "middle"), (high, "end"))
    ]
    view = f"0 0 {width:g} {height + foot:g}"
    return tag("svg", bars, lines, axis, viewBox=view, role="img", class_="histogram")


def differences(values: Sequence[float], *, higher_is_better: bool, show: Callable[[float], str]) -> Html:
    """Histogram of values around 0: bars are coloured better or worse, the middle one neither.

    The outermost bars hold all that lies beyond them, a hundredth of the values at most.
    """
    ordered = sorted(map(abs, values))
    reach = ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0
    reach = reach or (ordered[-1] if ordered else 0.0) or 1.0
    bars = 31
    step = 2 * reach / bars
    counts = [0] * bars
    for value in values:
        counts[min(bars - 1, max(0, round(value / step) + bars // 2))] += 1
    kinds = ["error" if (n > bars // 2) != higher_is_better else "good" for n in range(bars)]
    kinds[bars // 2] = "note"
    mean = math.fsum(values) / len(values) if values else 0.0
    edges = [(n - bars / 2) * step for n in range(bars + 1)]
    return histogram(counts, edges, [("mean", mean)], kinds=kinds, show=show)


def interval(low: float, value: float, high: float, kind: str) -> Html:
    """A value with its interval on a line that has 0 in its middle; `kind` colours it."""
    reach = max(abs(low), abs(high), abs(value)) * 1.08 or 1.0

    def x(at: float) -> float:
        return round(88 + 86 * at / reach, 1)

    zero = tag("line", x1=88, x2=88, y1=2, y2=20, class_="axis")
    bar = tag("line", x1=x(low), x2=x(high), y1=11, y2=11)
    hint = tag("title", f"{value:+.4g} [{low:+.4g}, {high:+.4g}]")
    dot = tag("circle", cx=x(value), cy=11, r=4.5)
    return tag("svg", hint, zero, bar, dot, viewBox="0 0 176 22", role="img", class_=f"interval {kind}")


class Line(NamedTuple):
    """One line of `lines`."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = ""
    """quiet (thin), base (dashed), or nothing for the line that matters."""


def lines(drawn: Sequence[Line], x_name: str, y_name: str) -> Html:
    """The lines in one frame, each named at its end or, where that would not fit, above. Needs one point at least."""
    width, height, left, top, foot = _WIDTH, 250.0, 48.0, 30.0, 30.0
    every = [point for line in drawn for point in line.points]
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = _framed([y for _, y in every])

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x_low) / ((x_high - x_low) or 1) * (width - left - 6)
        up = (point[1] - y_low) / ((y_high - y_low) or 1) * (height - top - foot)
        return round(left + across, 1), round(height - foot - up, 1)

    axes = []
    for value in _ticks(y_low, y_high):
        _, y = at((x_low, value))
        axes += [tag("line", x1=left, x2=width, y1=y, y2=y, class_="axis")]
        axes += [tag("text", f"{value:g}", x=left - 6, y=y + 4, text_anchor="end")]
    for value, side in ((x_low, "start"), (x_high, "end")):
        axes.append(tag("text", f"{value:g}", x=at((value, y_low))[0], y=height - foot + 22, text_anchor=side))
    axes.append(tag("text", x_name, x=(width + left) / 2, y=height - foot + 22, text_anchor="middle"))
    axes.append(tag("text", y_name, x=0, y=16))
    body = [_drawn(line, [at(point) for point in line.points]) for line in drawn if line.points]
    return tag("svg", axes, body, viewBox=f"0 0 {width:g} {height:g}", role="img", class_="lines")


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Mapping[tuple[str, str], float], show: Callable[[float], str],
    low: float | None = None, high: float | None = None,
) -> Html:  # fmt: skip
    """A square for each value by (row, column), darker from `low` to `high`: by default the least and largest value."""
    found = list(values.values()) or [0.0]
    low, high = min(found) if low is None else low, max(found) if high is None else high
    left, size, head = 40.0, 22.0, 20.0
    wide = (_WIDTH - left) / max(len(columns), 1)
    squares = []
    for y, row in enumerate(rows):
        squares.append(tag("text", row, x=left - 6, y=head + size * y + 15, text_anchor="end"))
        for x, column in enumerate(columns):
            if (row, column) not in values:
                continue
            value = values[row, column]
            share = min(max((value - low) / ((high - low) or 1), 0.0), 1.0)
            squares.append(
                tag("rect", tag("title", f"{row} {column}: {show(value)}"), x=round(left + wide * x, 1), y=head + size * y,
                    width=round(wide - 1, 1), height=size - 1, fill_opacity=round(0.06 + 0.94 * share, 3))
            )  # fmt: skip
    named = [
        tag("text", column, x=round(left + wide * (x + 0.5), 1), y=head - 6, text_anchor="middle")
        for x, column in enumerate(columns)
    ]
    view = f"0 0 {_WIDTH:g} {head + size * len(rows):g}"
    scale = tag("p", f"{show(low)} light, {show(high)} dark", class_="note")
    return joined(tag("svg", named, squares, viewBox=view, role="img", class_="heat"), scale)


def _drawn(line: Line, places: Sequence[tuple[float, float]]) -> Html:
    path = tag("path", d="M" + "L".join(f"{x} {y}" for x, y in places))
    dots = [
        tag("circle", tag("title", f"{line.name}: {y:.4g} at {x:g}"), cx=place[0], cy=place[1], r=3)
        for place, (x, y) in zip(places, line.points, strict=True)
        if line.kind == "" and len(places) <= 60
    ]
    return tag("g", tag("title", line.name), path, dots, class_=line.kind or None)


def _framed(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or abs(low) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round values between the two, about five of them."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    for n in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield round(n * step, 12)
