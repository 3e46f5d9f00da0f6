"""A comparison: its table, answers side by side, and the verdict."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from inlay.cli.render.costs import bills_text
from inlay.errors import count_shown
from inlay.evaluation.summary import caveat_text, preference_text, style_relevance_text
from inlay.runs.reporter import change_shown, duration_shown, figure_shown, interval_shown, signed

if TYPE_CHECKING:
    from inlay.evaluation.compare import Comparison
    from inlay.evaluation.seeds import SeedLevel


def comparisons_text(comparison: Comparison, columns: int) -> str:
    """Every comparison, one after the other."""
    texts = [comparison_text(one, columns) for one in (comparison, *comparison.also)]
    return "\n\n".join([*texts, *(_seeds_text(one, columns) for one in comparison.seeds)])


def _seeds_text(level: SeedLevel, columns: int) -> str:
    lines = [*textwrap.wrap(level.title, columns), ""]
    lines.append(f"{'metric':<14} {'change':>8} {'95% interval':^18} {'spread':>8} verdict over rows and seeds")
    for name, d in level.metrics.items():
        interval = interval_shown(d, signed)
        spread = figure_shown(level.spread(name))
        lines.append(f"{name:<14} {figure_shown(d.difference, '+'):>8} {interval:^18} {spread:>8} {d.verdict}")
    return "\n".join(lines)


def comparison_text(comparison: Comparison, columns: int) -> str:
    """The table, three rows side by side, the worst regressions, and at the end the verdict."""
    lines = [
        f"{comparison.adapter} against {comparison.base} on {comparison.n} of "
        f"{count_shown(comparison.available, 'held-out row')}",
        "",
        *_table(comparison, columns),
    ]
    for row in [r for r in comparison.rows if r.adapter_answer is not None][:3]:
        lines += ["", *_block(row.question, row.base_answer or "", row.adapter_answer or "", row.reference, columns)]
    for prompt, base, adapter in comparison.prompts:
        lines += ["", *_block(prompt, base, adapter, None, columns)]
    if wrong := comparison.worse_answers:
        lines += [
            "",
            f"answers worse on {len(wrong)} of {count_shown(comparison.n, 'row')} by {comparison.answer_metric}; the worst:",
        ]
        row = wrong[0]
        lines += _block(row.question, row.base_answer or "", row.adapter_answer or "", row.reference, columns)
    worst = comparison.regressions[:3]
    if worst:
        lines += [
            "",
            f"worse on {len(comparison.regressions)} of {count_shown(comparison.n, 'row')} by loss; the worst:",
        ]
        lines += [
            _short(f"  {r.source}: {r.base_loss:.3f} → {r.adapter_loss:.3f}  {r.question}", columns) for r in worst
        ]
    primary = comparison.metrics[comparison.primary]
    change = change_shown(primary, "{:+.4f}".format)
    verdict = f"verdict: {comparison.verdict} by {comparison.primary}: {change}; {primary.reason}"
    broke = [f"{name}: {d.base:.1%} → {d.other:.1%}" for name, d in comparison.behaviour.items() if d.base or d.other]
    lines += ["", *textwrap.wrap(f"answers: {', '.join(broke)}", columns)] if broke else []
    lines += [
        line for one in comparison.style_relevance for line in textwrap.wrap(f"  {style_relevance_text(one)}", columns)
    ]
    lines += bills_text(comparison.bills)
    elsewhere = [f"{name}: {figure_shown(d.difference, '+')} {d.verdict}" for name, d in comparison.retention.items()]
    lines += ["", *textwrap.wrap(f"loss elsewhere: {', '.join(elsewhere)}", columns)] if elsewhere else []
    lines += ["", *textwrap.wrap(verdict, columns), *textwrap.wrap(comparison.headline, columns)]
    if comparison.preference:
        text = preference_text(comparison.preference, comparison.base, comparison.adapter)
        lines += textwrap.wrap(text, columns)
    lines += [line for one in comparison.caveats for line in textwrap.wrap(f"note: {caveat_text(one)}", columns)]
    lines.append(
        f"reports: {comparison.reports}/report.html report.md compare.csv evaluation.json "
        f"(took {duration_shown(comparison.time_s)})"
    )
    return "\n".join(lines)


def _table(comparison: Comparison, columns: int) -> list[str]:
    """One line a metric within 78 columns; wins, ties and losses where there is room for them."""
    wide = columns >= 100
    counts_head = f" {'wins/ties/losses':>16}" if wide else ""
    header = f"{'metric':<14} {'base':>8} {'adapter':>8} {'change':>8} {'95% interval':^18}{counts_head} verdict"
    lines = [header, "-" * (len(header) + len("not distinguishable") - len("verdict"))]
    for name, d in comparison.metrics.items():
        mark = "*" if name == comparison.primary else ""
        interval = interval_shown(d, signed)
        counts = f" {f'{d.wins}/{d.ties}/{d.losses}':>16}" if wide else ""
        lines.append(
            f"{name + mark:<14} {figure_shown(d.base):>8} {figure_shown(d.other):>8} {figure_shown(d.difference, '+'):>8} "
            f"{interval:^18}{counts} {d.verdict}"
        )
    return [*lines, "* decides the verdict"]


def _block(question: str, base: str, adapter: str, reference: str | None, columns: int) -> list[str]:
    parts = [("prompt", question), ("base", base), ("adapter", adapter)]
    parts += [("reference", reference)] if reference is not None else []
    return [line for name, text in parts for line in _labelled(name, text, columns)]


def _labelled(name: str, text: str, columns: int) -> list[str]:
    limited = text if len(text) <= 500 else text[:499] + "…"
    wrapped = [w for line in limited.split("\n") for w in textwrap.wrap(line, columns - 13) or [""]] or [""]
    return [f"{name if n == 0 else '':>9} │ {line}".rstrip() for n, line in enumerate(wrapped)]


def _short(text: str, columns: int) -> str:
    line = "  " + " ".join(text.split())
    return line if len(line) <= columns else line[: columns - 1] + "…"
