"""Tables of scores: eval, harness, compare-methods, cross-validate."""

from __future__ import annotations

import textwrap

from inlay.cli.render.terminal import aligned
from inlay.errors import count_shown
from inlay.evaluation.verdict import Difference
from inlay.runs.reporter import change_shown, figure_shown, interval_shown, signed
from inlay.typed_json import JsonObject
from inlay.workflows.compare_methods import HEAD, REPORT, RESULT, MethodComparison, cells
from inlay.workflows.cross_validate import CrossValidation


def evaluation_text(result: JsonObject) -> str:
    """The metrics of one model, and its speed."""
    lines = [f"{result['name']} on {count_shown(result['n'], 'held-out row')}"]
    lines += [f"  {name:<14} {value:.4g}" for name, value in result["metrics"].items()]
    if speed := result["speed"]:
        lines.append(
            f"  answers: {speed['tokens_per_answer']:.1f} tokens each, {speed['tokens_per_s']:.0f} tokens/s "
            f"in batches of {speed['batch_size']}"
        )
    return "\n".join(lines)


def harness_text(found: JsonObject) -> str:
    """One line a task and metric: base, adapter, and the change with its interval."""
    lines = [f"{found['adapter']} against {found['base']}, by lm-evaluation-harness", ""]
    lines.append(f"{'task':<24} {'metric':<16} {'n':>6} {'base':>8} {'adapter':>8} {'change':>8} 95% interval")
    for score in found["scores"]:
        d = score["difference"]
        change = f"[{figure_shown(d['low'], '+')}, {figure_shown(d['high'], '+')}] {d['verdict']}" if d else "not known"
        lines.append(
            f"{score['task']:<24} {score['metric']:<16} {score['documents']:>6,} {figure_shown(score['base']):>8} "
            f"{figure_shown(score['adapter']):>8} {figure_shown(score['adapter'] - score['base'], '+'):>8} {change}"
        )
    return "\n".join(lines)


def methods_text(found: MethodComparison, columns: int) -> str:
    """The methods in a table, the reasons of those that could not run, and notes."""
    rows = [list(HEAD), *(cells(row.method, row.figures) for row in found.methods if row.figures)]
    lines = aligned(rows)
    for row in found.methods:
        if row.reason:
            lines += textwrap.wrap(f"{row.method}: {row.reason}", columns)
    lines += ["", *(line for note in found.notes for line in textwrap.wrap(f"note: {note}", columns))]
    return "\n".join([*lines, f"a run for each, {RESULT} and {REPORT}: {found.folder}"])


def folds_text(found: CrossValidation, columns: int) -> str:
    """The folds by the metric that decides, every metric over all rows, and the verdict."""
    primary, head = found.primary, f"{'base':>8} {'adapter':>8} {'change':>8} {'95% interval':^18}"
    lines = [f"{len(found.per_fold)} folds, {found.rows:,} of {found.available:,} rows held out once each", ""]
    lines.append(f"{primary:<14} {head} verdict")
    for n, fold in enumerate(found.per_fold, 1):
        lines.append(_fold_line(f"fold {n} ({fold.n})", fold.metrics[primary]) + f" {fold.verdict}")
    lines += ["", f"{'all rows':<14} {head} mean ± spread of the folds"]
    for name, metric in found.metrics.items():
        spread = f"{figure_shown(metric.mean)} ± {figure_shown(metric.spread)}"
        lines.append(_fold_line(name + "*" * (name == primary), metric.pooled) + f" {spread}")
    decided = found.decided
    change = change_shown(decided, "{:+.4f}".format)
    verdict = f"verdict: {decided.verdict} by {primary}: {change} over all rows; {decided.reason}"
    lines += ["* decides the verdict", "", *textwrap.wrap(verdict, columns)]
    lines += [line for note in found.notes for line in textwrap.wrap(f"note: {note}", columns)]
    return "\n".join([*lines, f"runs and folds.json: {found.folder}"])


def _fold_line(head: str, d: Difference) -> str:
    interval = interval_shown(d, signed)
    return (
        f"{head:<14} {figure_shown(d.base):>8} {figure_shown(d.other):>8} "
        f"{figure_shown(d.difference, '+'):>8} {interval:^18}"
    )
