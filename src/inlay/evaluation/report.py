"""An evaluation as files: the reports of a comparison, and one JSON document that every number can be computed from.

report.html is to look at, report.md to read, compare.csv and compare.json have every row and value of a comparison.
`evaluation.json` has models, metrics and comparisons; `evaluation.rows.jsonl` has a line for each row with every model's
answer and statistics. A total is the metric's value of the summed statistics.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from inlay.errors import count_shown
from inlay.evaluation.compare import ComparedRow, Comparison
from inlay.evaluation.costs import HEAD
from inlay.evaluation.html import Histories, Incidents, comparison_page
from inlay.evaluation.measured_model import MeasuredModel, RowStatistics
from inlay.evaluation.metrics import TextMetric
from inlay.evaluation.score import prompt_text
from inlay.evaluation.summary import caveat_text, p_shown, preference_text, style_relevance_text
from inlay.evaluation.task_metrics import confusion, labels_of
from inlay.evaluation.verdict import Difference
from inlay.runs.guard_events import as_markdown as incidents_table
from inlay.runs.reporter import change_shown, interval_shown
from inlay.storage import write_file, write_json

_SHOWN = 3
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""First characters of a formula in a spreadsheet, full-width forms too."""
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")


def write_reports(
    comparison: Comparison, folder: Path, histories: Histories, incidents: Incidents = MappingProxyType({})
) -> None:
    """Writes the four files; each replaces an earlier one at once. The other arguments are those of `comparison_page`."""
    curves = (folder / "curves.png").exists()
    write_file(folder / "report.html", comparison_page(comparison, histories, incidents))
    write_file(folder / "compare.csv", as_csv(comparison))
    write_json(folder / "compare.json", comparison.to_json())
    write_file(folder / "report.md", as_markdown(comparison, curves, incidents))


def as_csv(comparison: Comparison) -> str:
    """One line a held-out row. A text that a spreadsheet would take for a formula has a ' before it."""
    names = [m for m in comparison.metrics if any(m in row.scores for row in comparison.rows)]
    text = io.StringIO()
    writer = csv.writer(text)
    scores = [f"{m}_{side}" for m in names for side in ("base", "adapter")]
    writer.writerow(["source", "question", "reference", "base", "adapter", "loss_base", "loss_adapter", *scores])
    for r in comparison.rows:
        values = [f"{v:.6g}" for m in names for v in r.scores.get(m, (float("nan"),) * 2)]
        losses = [f"{r.base_loss:.6g}", f"{r.adapter_loss:.6g}"]
        texts = (str(r.source), r.question, r.reference, r.base_answer or "", r.adapter_answer or "")
        writer.writerow([*map(harmless, texts), *losses, *values])
    return text.getvalue()


def harmless(text: str) -> str:
    """The text as a cell that no spreadsheet computes: with a ' before it where it begins as a formula does.

    Source: OWASP, CSV Injection.
    """
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def as_markdown(comparison: Comparison, curves: bool, incidents: Incidents = MappingProxyType({})) -> str:
    """The verdict, the table, the answers side by side and the worst regressions."""
    c, primary = comparison, comparison.metrics[comparison.primary]
    # a row may also be missing because it did not fit, which is decided before the draw
    drawn = " (drawn by seed from those within max_length)" if c.n < c.available else ""
    lines = [
        f"# {c.adapter} against {c.base}: {c.verdict}",
        "",
        f"By {c.primary}: {change_shown(primary, '{:+.4g}'.format)} "
        f"({100 * primary.level:g}% interval) on {c.n} of {count_shown(c.available, 'held-out row')}{drawn}; {primary.reason}.",
        "",
        f"{c.headline}.",
        *([f"\n{preference_text(c.preference, c.base, c.adapter)}."] if c.preference else []),
        *(f"\n{caveat_text(one)}" for one in c.caveats),
        "",
        *_table(c.metrics, c.adjusted_p),
        "",
        "Detectable: the smallest true difference that rows like these show in 95 of 100 comparisons. "
        "p: two-sided, by Holm over the metrics.",
    ]
    if c.behaviour:
        lines += ["", "## Behaviour of the answers", "", *_table(c.behaviour, None)]
        lines += ["", *(f"- {style_relevance_text(one)}." for one in c.style_relevance)] if c.style_relevance else []
    lines += ["", *_speed(c)] if any(c.speed) else []
    if c.bills:
        lines += ["", "## Costs", "", *_bills(c)]
    if c.retention:
        lines += ["", "## Retention: loss on what was not trained for", "", *_table(c.retention, None)]
    for level in c.seeds:
        lines += ["", f"## {_one_line(level.title)}", "", *_table(level.metrics, None)]
    if c.groups:
        lines += ["", "## By group", "", *_groups(c)]
    if curves:
        lines += ["", "![training and held-out loss](curves.png)"]
    for name, found in incidents.items():
        lines += ["", f"## Incidents of the guards in {name}", "", *incidents_table(found)]
    shown = [r for r in c.rows if r.adapter_answer is not None][:_SHOWN]
    lines += ["", "## Side by side", *(line for r in shown for line in _side_by_side(r))]
    for prompt, base, adapter in c.prompts:
        lines += ["", f"**{_one_line(prompt)}**", "", f"- base: {_one_line(base)}", f"- adapter: {_one_line(adapter)}"]
    if c.answer_metric is not None:
        lines += ["", f"## Worst answers by {c.answer_metric}"]
        lines += [line for r in c.worse_answers[:_SHOWN] for line in _side_by_side(r)] or ["", "No answer got worse."]
    lines += ["", "## Worst regressions by loss"]
    lines += [line for r in c.regressions[:_SHOWN] for line in _side_by_side(r)] or ["", "No row got worse."]
    return "\n".join(lines) + "\n"


def _table(differences: dict[str, Difference], adjusted: Mapping[str, float | None] | None) -> list[str]:
    lines = [
        "| metric | base | adapter | difference | interval | detectable | p | wins / ties / losses | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, d in differences.items():
        detectable, p = "" if d.mde is None else f"{d.mde:.2g}", d.p if adjusted is None else adjusted[name]
        lines.append(
            f"| {name} | {d.base:.4g} | {d.other:.4g} | {d.difference:+.4g} "
            f"| {interval_shown(d, '{:+.4g}'.format)} | {detectable} | {p_shown(p)} "
            f"| {d.wins} / {d.ties} / {d.losses} | {d.verdict} |"
        )
    return lines


def _speed(c: Comparison) -> list[str]:
    """Length and speed of the answers, without a verdict: other programs may have been running."""
    lines = ["| model | tokens an answer | tokens/s | seconds an answer | batch |", "|---|---|---|---|---|"]
    for name, speed in zip((c.base, c.adapter), c.speed, strict=True):
        if speed is not None:
            s = speed.to_json()
            lines.append(
                f"| {name} | {s['tokens_per_answer']:.1f} | {s['tokens_per_s']:.0f} | {s['time_per_answer_s']:.3f} "
                f"| {s['batch_size']} |"
            )
    return lines


def _bills(c: Comparison) -> list[str]:
    rows = [list(HEAD), ["---"] * len(HEAD), *(one.cells() for one in c.bills)]
    return [*(f"| {' | '.join(row)} |" for row in rows), "", f"Cost: {c.bills[0].costs.stated}."]


def _groups(c: Comparison) -> list[str]:
    lines = [
        "| by | rows | metric | base | adapter | difference | interval | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for g in c.groups:
        for name, d in g.differences.items():
            lines.append(
                f"| {g.by}: {_one_line(g.name)} | {g.n} | {name} | {d.base:.4g} | {d.other:.4g} | {d.difference:+.4g} "
                f"| {interval_shown(d, '{:+.4g}'.format)} | {d.verdict} |"
            )
    return lines


def _side_by_side(row: ComparedRow) -> list[str]:
    return [
        "",
        f"**{_one_line(row.question)}** ({row.source}, loss {row.base_loss:.3f} → {row.adapter_loss:.3f})",
        "",
        f"- base: {_one_line(row.base_answer or '')}",
        f"- adapter: {_one_line(row.adapter_answer or '')}",
        f"- reference: {_one_line(row.reference)}",
    ]


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= 400 else joined[:399] + "…"


SCHEMA = 1
DOCUMENT, ROWS = "evaluation.json", "evaluation.rows.jsonl"


def write_document(
    folder: Path, models: Sequence[MeasuredModel], comparison: Comparison | None, about: Mapping[str, object]
) -> dict[str, object]:
    """Writes both files and gives the document. `about` is put into it as it is."""
    first = models[0]
    document = {
        "schema": SCHEMA,
        "kind": "eval" if comparison is None else "compare",
        **about,
        "n": len(first.rows.examples),
        "rows_file": ROWS,
        "metrics": {name: _described(one) for name, one in first.statistics.items()},
        "models": [_model(one) for one in models],
        "comparisons": [] if comparison is None else [_alone(c) for c in (comparison, *comparison.also)],
    }
    write_json(folder / DOCUMENT, document)
    write_file(folder / ROWS, "".join(_row_lines(models)))
    return document


def _described(statistics: RowStatistics) -> dict[str, object]:
    metric = statistics.metric
    return {
        "description": metric.description,
        "higher_is_better": metric.higher_is_better,
        "signature": metric.signature() if isinstance(metric, TextMetric) else None,
        "n": len(statistics.rows),
        "of": "answers" if metric.of_answers else "references",
    }


def _model(one: MeasuredModel) -> dict[str, object]:
    """Name, totals, time and speed; labels and confusion where the references are labels."""
    speed = one.score.speed
    values: dict[str, object] = {
        "name": one.name, "kind": one.facts.kind, "base": one.facts.base,
        "totals": {name: statistics.total for name, statistics in one.statistics.items()},
        "time_s": round(one.score.time_s, 3),
        "speed": None if speed is None else speed.to_json(),
    }  # fmt: skip
    answered = one.answered
    labels = labels_of([one.rows.references[n] for n in answered])
    pairs = [(one.answer(n), one.rows.references[n]) for n in answered]
    return values | ({"labels": list(labels), "confusion": confusion(labels, pairs)} if labels else {})


def _alone(comparison: Comparison) -> dict[str, object]:
    return {key: value for key, value in comparison.to_json().items() if key != "also"}


def _row_lines(models: Sequence[MeasuredModel]) -> list[str]:
    rows = models[0].rows
    places = {name: {n: k for k, n in enumerate(one.rows)} for name, one in models[0].statistics.items()}
    lines = []
    for n, example in enumerate(rows.examples):
        row = {
            "row": n, "source": str(example.source), "question": prompt_text(example),
            "reference": rows.references.get(n),
            "models": [
                {
                    "answer": one.score.answers[n],
                    "statistics": {m: one.statistics[m].values_NS[at[n]].tolist() for m, at in places.items() if n in at},
                }
                for one in models
            ],
        }  # fmt: skip
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines
