"""A comparison as one HTML file: verdict, metrics with intervals, and every row to look at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from types import MappingProxyType

from inlay.errors import count_shown
from inlay.evaluation.compare import ComparedRow, Comparison
from inlay.evaluation.costs import HEAD
from inlay.evaluation.metrics import BEHAVIOUR, LOSS_METRICS, METRICS
from inlay.evaluation.summary import caveat_text, p_shown, preference_text, style_relevance_text
from inlay.evaluation.task_metrics import TASK_METRICS
from inlay.evaluation.verdict import Difference
from inlay.reports.charts import Line, differences, interval, lines
from inlay.reports.html import Html, Item, badge, facts, filtered, joined, note, page, section, table, tag
from inlay.runs.guard_events import Incident
from inlay.runs.reporter import change_shown, duration_shown, figure_shown, interval_shown, signed
from inlay.typed_json import JsonObject

_MOST_ROWS = 1000
_LONGEST = 20_000
_BADGES = {"better": "good", "worse": "error", "not distinguishable": "note"}

History = Sequence[JsonObject]
"""Lines of metrics.jsonl."""
Histories = Mapping[str, History]
"""Training curves to show, by the name of their run."""
Incidents = Mapping[str, Sequence[Incident]]
"""Incidents that the guards handled, by the name of their run."""


def comparison_page(comparison: Comparison, histories: Histories, incidents: Incidents = MappingProxyType({})) -> str:
    """The complete file, with the further models of the comparison below each other."""
    every = [comparison, *comparison.also]
    if len(every) == 1:
        title = f"{comparison.adapter} against {comparison.base}"
        return page(title, *_verdict(comparison), *_parts(comparison, histories, incidents), _reading(comparison))
    parts = [
        tag("details", tag("summary", f"{c.adapter} against {c.base}"), *_verdict(c), *_parts(c, {}, {}),
            class_="part", open=c is comparison)
        for c in every
    ]  # fmt: skip
    title = f"{len(every)} models against {comparison.base}"
    return page(
        title,
        _overview(every),
        *_seeds(comparison),
        *_curves(histories),
        *_incidents(incidents),
        *parts,
        _reading(comparison),
    )


# --- what was found ------------------------------------------------------------------------------------------


def _verdict(c: Comparison) -> list[Html]:
    primary = c.metrics[c.primary]
    found = tag(
        "p", badge(c.verdict, _BADGES[c.verdict]), f" {c.primary} {figure_shown(primary.base)} → ",
        tag("b", figure_shown(primary.other)), f" ({_change(primary)})", class_="lead",
    )  # fmt: skip
    drawn = ", drawn by seed from those within max_length" if c.n < c.available else ""
    about = facts(
        [
            ("in short", f"{c.headline}."),
            *((("people", f"{preference_text(c.preference, c.base, c.adapter)}."),) if c.preference else ()),
            ("reason", primary.reason),
            ("rows", f"{c.n} of {count_shown(c.available, 'held-out row')}{drawn}"),
            *(("note", caveat_text(one)) for one in c.caveats),
            ("took", duration_shown(c.time_s)),
        ]
    )
    return [tag("section", found, about)]


def _overview(every: Sequence[Comparison]) -> Html:
    first = every[0]
    wanted = dict.fromkeys((first.primary, first.loss_metric, first.answer_metric))
    names = [name for name in wanted if name is not None]
    body = [
        [c.adapter, badge(c.verdict, _BADGES[c.verdict]), *(_change(c.metrics[name]) for name in names)] for c in every
    ]
    head = ["model", "verdict", *names]
    caveats = note(*(f"{caveat_text(one)} " for one in first.caveats))
    return section(f"Against {first.base}", table(head, body), caveats)


def _seeds(c: Comparison) -> list[Html]:
    about = "The interval is over rows and seeds: it holds for another training of this config on rows like these."
    return [section(level.title, *_metrics(level.metrics), note(about)) for level in c.seeds]


def _parts(c: Comparison, histories: Histories, incidents: Incidents) -> list[Html]:
    parts = [section("Metrics", *_metrics(c.metrics, c.adjusted_p, c.primary)), *_spreads(c)]
    if c.behaviour:
        scores = (f" {style_relevance_text(one)}." for one in c.style_relevance)
        about = note("Shares of the answers. They have no part in the verdict.", *scores)
        parts.append(section("Behaviour of the answers", *_metrics(c.behaviour), about))
    if any(c.speed):
        about = note("On this machine, with whatever else ran on it.")
        parts.append(section("Length and speed of the answers", _speed(c), about))
    if c.bills:
        stated = note(f"Cost: {c.bills[0].costs.stated}. Requests answered in batches; no time of loading a model.")
        body = [one.cells() for one in c.bills]
        parts.append(section("Costs", table(HEAD, body, range(1, len(HEAD)), roomy=[2, 5]), stated))
    if c.retention:
        about = note("Loss on rows that none of these models was trained for.")
        parts.append(section("Retention: what was not trained for", *_metrics(c.retention), about))
    if c.groups:
        parts.append(_groups(c))
    parts += [*_curves(histories), *_incidents(incidents), _rows(c)]
    if c.prompts:
        parts.append(section("Extra prompts", (_prompt(c, *prompt) for prompt in c.prompts)))
    return parts


def _metrics(
    found: Mapping[str, Difference], adjusted: Mapping[str, float | None] | None = None, primary: str | None = None
) -> list[Html]:
    """A table that fits a phone, and behind a click the one with every figure."""
    short = [
        [
            joined(name, " ", badge("decides", "note")) if name == primary else name,
            figure_shown(d.base), figure_shown(d.other), figure_shown(d.difference, "+"),
            _drawn(d),
            tag("span", d.verdict.replace("distinguish", "distin\u00adguish\u00ad"), class_=_BADGES[d.verdict]),
        ]
        for name, d in found.items()
    ]  # fmt: skip
    head = ["", "before", "after", "change", "worse ← 0 → better", "verdict"]
    full = [
        [
            name, f"{d.base:.6g}", f"{d.other:.6g}", f"{d.difference:+.6g}",
            interval_shown(d, "{:+.4g}".format), "" if d.mde is None else f"{d.mde:.2g}",
            p_shown(adjusted[name] if adjusted else d.p),
            f"{d.wins} / {d.ties} / {d.losses}", f"{d.n}",
        ]
        for name, d in found.items()
    ]  # fmt: skip
    p = "p (Holm)" if adjusted else "p"
    every = table(
        ["", "before", "after", "change", "95% interval", "detectable", p, "wins / ties / losses", "rows"],
        full, range(1, 9),
    )  # fmt: skip
    return [
        table(head, short, range(1, 4), roomy=[4]),
        tag("details", tag("summary", "every figure"), every),
    ]


def _speed(c: Comparison) -> Html:
    body = [
        [name, f"{s['tokens_per_answer']:.1f}", f"{s['tokens_per_s']:,.0f}", f"{s['time_per_answer_s']:.3f}",
         f"{s['batch_size']}"]
        for name, s in ((n, one.to_json()) for n, one in zip((c.base, c.adapter), c.speed, strict=True) if one)
    ]  # fmt: skip
    head = ["", "tokens each", "tokens/s", "seconds each", "in a batch"]
    return table(head, body, range(1, 5), roomy=[4])


def _groups(c: Comparison) -> Html:
    about = note("The same rows by length, source and label. Of many groups one may differ by chance.")
    shown: list[Html] = []
    for by in dict.fromkeys(group.by for group in c.groups):
        found = {
            f"{group.name} ({count_shown(group.n, 'row')}): {metric}": d
            for group in c.groups
            if group.by == by
            for metric, d in group.differences.items()
        }
        shown += [tag("h3", f"By {by}"), *_metrics(found)]
    return section("By group", about, shown)


def _drawn(d: Difference) -> Html | str:
    """The interval as a drawing whose right side is the better one; a dash where there is none."""
    if d.interval is None:
        return "—"
    low, high = d.interval
    placed = (low, d.difference, high) if d.higher_is_better else (-high, -d.difference, -low)
    return interval(*placed, _BADGES[d.verdict])


def _change(d: Difference) -> str:
    return change_shown(d, signed)


# --- drawings ------------------------------------------------------------------------------------------------


def _curves(histories: Histories) -> list[Html]:
    found = [(name, *_lines(history)) for name, history in histories.items()]
    shown = [
        tag(
            "figure", tag("figcaption", name, class_="name"), lines(drawn, "step", "loss, nats per token"), note(legend)
        )
        for name, drawn, legend in found
        if drawn
    ]
    return [section("Loss during training", tag("div", shown, class_="columns"))] if shown else []


def _incidents(incidents: Incidents) -> list[Html]:
    rows = [
        [*([name] if len(incidents) > 1 else []), str(one.step), one.kind, one.found, one.done]
        for name, found in incidents.items()
        for one in found
    ]
    head = [*(["run"] if len(incidents) > 1 else []), "step", "guard", "found", "done"]
    return [section("Incidents of the guards", table(head, rows))] if rows else []


def _lines(history: History) -> tuple[list[Line], str]:
    trained = _points(history, "loss")
    held = _points(history, "eval_loss")
    drawn = [Line("training loss", trained, "quiet")] if trained else []
    drawn += [Line("held-out loss", held)] if held else []
    best = min(held, key=lambda point: point[1], default=None)
    legend = "Thin: training loss." + (
        f" Dotted line: held-out loss, {best[1]:.3f} at step {best[0]:g} at its best." if best else ""
    )
    return drawn, legend


def _points(history: History, key: str) -> list[tuple[float, float]]:
    found = [(float(line["step"]), float(line[key])) for line in history if line.get(key) is not None]
    return [(step, value) for step, value in found if math.isfinite(value)]


def _spreads(c: Comparison) -> list[Html]:
    shown = [_spread("loss", [r.adapter_loss - r.base_loss for r in c.rows], higher_is_better=False)]
    name = c.answer_metric
    if name is not None:
        changes = [r.scores[name][1] - r.scores[name][0] for r in c.rows if name in r.scores]
        shown.append(_spread(name, changes, higher_is_better=c.metrics[name].higher_is_better))
    about = note(f"Change of each row from {c.base} to {c.adapter}. Green is better, red is worse.")
    return [section("Row by row", about, tag("div", shown, class_="columns"))]


def _spread(name: str, changes: Sequence[float], *, higher_is_better: bool) -> Html:
    drawn = differences(changes, higher_is_better=higher_is_better, show=lambda value: figure_shown(value, "+"))
    return tag(
        "figure", tag("figcaption", f"change of {name}, {count_shown(len(changes), 'row')}", class_="name"), drawn
    )


# --- rows ----------------------------------------------------------------------------------------------------


def _rows(c: Comparison) -> Html:
    """Every row with both answers, the worst first; of very many those whose loss changed most."""
    name = c.answer_metric
    ranked = sorted(enumerate(c.rows), key=lambda pair: (c.gain(pair[1]), -_loss_change(pair[1])))
    if len(ranked) > _MOST_ROWS:
        moved = sorted(ranked, key=lambda pair: -abs(_loss_change(pair[1])))[:_MOST_ROWS]
        kept = {n for n, _ in moved}
        ranked = [(n, row) for n, row in ranked if n in kept]
    about = f"Better or worse by {name or 'loss'}" + (", where that is equal by loss. " if name else ". ")
    if len(ranked) < len(c.rows):
        about += f"Shown are the {_MOST_ROWS:,} of {len(c.rows):,} rows whose loss changed most; compare.csv has all. "
    orders = [("worst first", "rank", 1), ("best first", "rank", -1)]
    orders += [("loss: worst first", "loss", -1), ("loss: best first", "loss", 1)] if name else []
    orders += [("as in the file", "at", 1)]
    coloured = [("missing in the other answer", "other"), ("missing in the reference", "reference")]
    items = [_item(c, row, {"rank": rank, "at": n}) for rank, (n, row) in enumerate(ranked)]
    kinds = [kind for kind in ("better", "worse", "same") if any(item.kind == kind for item in items)]
    answered = any(row.adapter_answer is not None for _, row in ranked)
    return section("Rows", note(about), filtered(kinds, items, orders, coloured if answered else ()))


def _loss_change(row: ComparedRow) -> float:
    return row.adapter_loss - row.base_loss


def _item(c: Comparison, row: ComparedRow, places: Mapping[str, float]) -> Item:
    kind = _sign(c.gain(row)) or _sign(-_loss_change(row)) or "same"
    return Item(kind, _shown(c, row, kind), {**places, "loss": round(_loss_change(row), 6)})


def _sign(gain: float) -> str:
    return "better" if gain > 0 else "worse" if gain < 0 else ""


def _shown(c: Comparison, row: ComparedRow, kind: str) -> Html:
    figures = [f"loss {row.base_loss:.3f} → {row.adapter_loss:.3f}"]
    picked = [name for name in dict.fromkeys((c.primary, c.answer_metric)) if name in row.scores]
    figures += [f"{name} {figure_shown(row.scores[name][0])} → {figure_shown(row.scores[name][1])}" for name in picked]
    place = tag("span", Path(row.source).name, class_="place", title=row.source)
    coloured = badge(kind, {"better": "good", "worse": "error"}.get(kind, "note"))
    head = tag("p", coloured, " ", tag("span", ", ".join(figures), class_="note"), " ", place)
    if row.adapter_answer is None:
        reference = [_text("reference", row.reference)] if row.reference else []
        return joined(head, _text("prompt" if reference else "text", row.question), *reference)
    return joined(head, _text("prompt", row.question), _pair(c, row.base_answer, row.adapter_answer, row.reference),
                  _text("reference", row.reference))  # fmt: skip


def _pair(c: Comparison, base: str | None, adapter: str | None, reference: str | None) -> Html:
    sides = [(c.base, base or "", adapter or ""), (c.adapter, adapter or "", base or "")]
    shown = (
        _text(name, *_coloured(_cut(text), {"other": _cut(other), "reference": reference}))
        for name, text, other in sides
    )
    return tag("div", shown, class_="columns answers")


def _coloured(text: str, others: Mapping[str, str | None]) -> Iterable[str]:
    if not text.strip():
        return [tag("span", "(empty)", class_="note")]
    return [tag("mark", run, class_=" ".join(names)) if names else run for run, names in marked(text, others)]


def _text(name: str, *content: str) -> Html:
    return tag("div", tag("div", name, class_="name"), tag("p", map(_cut, content), class_="text"))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST or isinstance(text, Html) else text[:_LONGEST] + "…"


def _prompt(c: Comparison, prompt: str, base: str, adapter: str) -> Html:
    return tag("div", _text("prompt", prompt), _pair(c, base, adapter, None), data_mark="other")


# --- how to read it ------------------------------------------------------------------------------------------


def _reading(c: Comparison) -> Html:
    texts = [name for name in c.metrics if name not in LOSS_METRICS]
    described = [
        ("interval", "holds the true difference in 95 of 100 draws of rows like these; paired, by bootstrap. "
         "It does not cover other seeds or other training data."),
        ("not distinguishable", "these rows show no difference; there may still be one"),
        ("detectable", "the smallest true difference that rows like these show in 95 of 100 comparisons"),
        ("p (Holm)", "corrected for the number of metrics; below 0.05 a difference holds among all of them"),
        ("wins", f"rows on which {c.adapter} is better"),
        ("answers", f"greedy; metrics of answers: {', '.join(texts) or 'none'}"),
    ]  # fmt: skip
    always = [*LOSS_METRICS.values(), *BEHAVIOUR.values()]
    described += [(metric.name, metric.description) for metric in always]
    known = {**METRICS, **TASK_METRICS}
    described += [(f"{name}, computed", known[name].signature()) for name in texts if name in known]
    return tag("section", tag("details", tag("summary", "How to read this"), facts(described)))


_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
_NONE: tuple[str, ...] = ()
_MOST_WORDS = 1500
"""Longer texts are not aligned: it takes time with the square of their length."""


def marked(text: str, others: Mapping[str, str | None]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The text in runs, each with the names of the others in which its words are missing; spaces go with the run.

    A word is missing where it is not in both texts when they are laid beside each other: order counts. An other of
    None marks nothing.
    """
    pieces = _PIECES.findall(text)
    words = [n for n, piece in enumerate(pieces) if not piece.isspace()]
    spoken = [pieces[n] for n in words]
    lacking: dict[int, list[str]] = {n: [] for n in words}
    for name, other in others.items():
        for n in _unmatched(spoken, other):
            lacking[words[n]].append(name)
    yield from _runs(pieces, {n: tuple(names) for n, names in lacking.items()})


def _unmatched(words: list[str], other: str | None) -> Iterable[int]:
    if other is None:
        return ()
    against = [piece for piece in _PIECES.findall(other) if not piece.isspace()]
    if words == against or max(len(words), len(against)) > _MOST_WORDS:
        return ()
    matcher = SequenceMatcher(None, words, against, autojunk=False)
    shared = {n for block in matcher.get_matching_blocks() for n in range(block.a, block.a + block.size)}
    return (n for n in range(len(words)) if n not in shared)


def _runs(pieces: list[str], lacking: Mapping[int, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    run, kind = "", _NONE
    for n, piece in enumerate(pieces):
        # a space is marked as both words beside it are
        here = lacking[n] if n in lacking else tuple(name for name in kind if name in lacking.get(n + 1, ()))
        if here != kind and run:
            yield run, kind
            run = ""
        run, kind = run + piece, here
    if run:
        yield run, kind
