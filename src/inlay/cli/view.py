"""Results as text for people."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from inlay.runs.reporter import bytes_shown, duration_shown, figure_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inlay.evaluation.comparison import Comparison
    from inlay.evaluation.costs import Bill
    from inlay.evaluation.seeds import SeedLevel
    from inlay.runs.folder import Run


def width() -> int:
    """Columns of the terminal that stdout is, at most 120; a file or a pipe gets 120."""
    return min(120, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 120


def after_training(run: Run) -> str:
    """Where everything is, and the next command to type."""
    result = run.result
    best = f", best step {result.best_step}" if result.best_step is not None else ""
    stopped = ", stopped early" if result.stopped_early else ""
    made = run.trained.name
    opens = "transformers" if made == "model" else "PEFT"
    escaped = result.escape is not None and result.escape.tried
    branches = "  branches/escape  branches/decay: runs of their own\n" if escaped else ""
    return (
        f"\n{run.path}\n"
        f"  {made}/  from step {result.adapter_step} of {result.steps}{stopped}{best}; opens with {opens} as it is\n"
        f"  reports/curves.png  config.yaml  run.json  metrics.jsonl  log.txt  checkpoints/\n"
        f"{branches}"
        f"  took {duration_shown(result.time_s)}\n"
        f"Next: inlay compare {_argument(run)}\n"
        f'      inlay generate "…" --run {_argument(run)}'
    )


def after_demo(run: Run) -> str:
    return (
        f"\n\nNext: inlay chat {_argument(run)}\n"
        f'      inlay generate "My parcel is late." --run {_argument(run)}\n'
        "      inlay train YOUR_DATA.jsonl --model Qwen/Qwen2.5-0.5B-Instruct"
    )


def _argument(run: Run) -> str:
    return run.name if str(run.path.parent) == "results" else str(run.path)


def proofs_text(proved: dict[str, Any]) -> str:
    """A line for each proof, then how many of them hold."""
    words = {True: "pass", False: "FAIL", None: "?   "}
    lines = []
    for proof in proved["proofs"]:
        lines.append(f"{words[proof['passed']]}  {proof['name']:<18}  {proof['found']}")
        lines += [f"{'':26}{sample}" for sample in proof["samples"]]
    held = sum(proof["passed"] is True for proof in proved["proofs"])
    return "\n".join([*lines, "", f"{held} of {len(proved['proofs'])} proofs hold for {proved['run']}"])


def comparisons_text(comparison: Comparison, columns: int) -> str:
    """Every comparison, one after the other."""
    texts = [comparison_text(one, columns) for one in (comparison, *comparison.also)]
    return "\n\n".join([*texts, *(_seeds_text(one, columns) for one in comparison.seeds)])


def _seeds_text(level: SeedLevel, columns: int) -> str:
    lines = [*textwrap.wrap(level.title, columns), ""]
    lines.append(f"{'metric':<14} {'change':>8} {'95% interval':^18} {'spread':>8} verdict over rows and seeds")
    for name, d in level.metrics.items():
        interval = f"[{figure_shown(d.low, '+')}, {figure_shown(d.high, '+')}]"
        spread = figure_shown(level.spread(name))
        lines.append(f"{name:<14} {figure_shown(d.difference, '+'):>8} {interval:^18} {spread:>8} {d.verdict}")
    return "\n".join(lines)


def comparison_text(comparison: Comparison, columns: int) -> str:
    """The table, three rows side by side, the worst regressions, and the verdict last."""
    from inlay.evaluation.summary import caveat_text, preference_text, style_relevance_text

    lines = [
        f"{comparison.adapter} against {comparison.base} on {comparison.n} of {comparison.available} held-out rows",
        "",
        *_table(comparison, columns),
    ]
    for row in [r for r in comparison.rows if r.adapter_answer is not None][:3]:
        lines += ["", *_block(row.question, row.base_answer or "", row.adapter_answer or "", row.reference, columns)]
    for prompt, base, adapter in comparison.prompts:
        lines += ["", *_block(prompt, base, adapter, None, columns)]
    if wrong := comparison.worse_answers:
        lines += ["", f"answers worse on {len(wrong)} of {comparison.n} rows by {comparison.answer_metric}; the worst:"]
        row = wrong[0]
        lines += _block(row.question, row.base_answer or "", row.adapter_answer or "", row.reference, columns)
    worst = comparison.regressions[:3]
    if worst:
        lines += ["", f"worse on {len(comparison.regressions)} of {comparison.n} rows by loss; the worst:"]
        lines += [
            _short(f"  {r.source}: {r.base_loss:.3f} → {r.adapter_loss:.3f}  {r.question}", columns) for r in worst
        ]
    primary = comparison.metrics[comparison.primary]
    verdict = (
        f"verdict: {comparison.verdict} by {comparison.primary}: {primary.difference:+.4f} "
        f"[{primary.low:+.4f}, {primary.high:+.4f}]; {primary.reason}"
    )
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


def bills_text(bills: Sequence[Bill]) -> list[str]:
    """What each costs as a table, and what was assumed; nothing without bills."""
    from inlay.evaluation.costs import HEAD

    if not bills:
        return []
    rows = [list(HEAD), *(one.cells() for one in bills)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    table = [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return ["", *table, f"cost: {bills[0].costs.stated}"]


def _table(comparison: Comparison, columns: int) -> list[str]:
    """One line a metric within 78 columns; wins, ties and losses where there is room for them."""
    wide = columns >= 100
    counts_head = f" {'wins/ties/losses':>16}" if wide else ""
    header = f"{'metric':<14} {'base':>8} {'adapter':>8} {'change':>8} {'95% interval':^18}{counts_head} verdict"
    lines = [header, "-" * (len(header) + len("not distinguishable") - len("verdict"))]
    for name, d in comparison.metrics.items():
        mark = "*" if name == comparison.primary else ""
        interval = f"[{figure_shown(d.low, '+')}, {figure_shown(d.high, '+')}]"
        counts = f" {f'{d.wins}/{d.ties}/{d.losses}':>16}" if wide else ""
        lines.append(
            f"{name + mark:<14} {figure_shown(d.base):>8} {figure_shown(d.other):>8} {figure_shown(d.difference, '+'):>8} "
            f"{interval:^18}{counts} {d.verdict}"
        )
    return [*lines, "* decides the verdict"]


def _block(question: str, base: str, adapter: str, reference: str | None, columns: int) -> list[str]:
    parts = [("asked", question), ("base", base), ("adapter", adapter)]
    parts += [("reference", reference)] if reference is not None else []
    return [line for name, text in parts for line in _labelled(name, text, columns)]


def _labelled(name: str, text: str, columns: int) -> list[str]:
    limited = text if len(text) <= 500 else text[:499] + "…"
    wrapped = [w for line in limited.split("\n") for w in textwrap.wrap(line, columns - 13) or [""]] or [""]
    return [f"{name if n == 0 else '':>9} │ {line}".rstrip() for n, line in enumerate(wrapped)]


def _short(text: str, columns: int) -> str:
    line = "  " + " ".join(text.split())
    return line if len(line) <= columns else line[: columns - 1] + "…"


def evaluation_text(result: dict[str, Any]) -> str:
    lines = [f"{result['name']} on {result['n']} held-out rows"]
    lines += [f"  {name:<14} {value:.4g}" for name, value in result["metrics"].items()]
    if speed := result["speed"]:
        lines.append(
            f"  answers: {speed['tokens_per_answer']:.1f} tokens each, {speed['tokens_per_s']:.0f} tokens/s "
            f"in batches of {speed['batch_size']}"
        )
    return "\n".join(lines)


def harness_text(found: dict[str, Any]) -> str:
    """One line a task and metric: base, adapter, and the change with its interval."""
    lines = [f"{found['adapter']} against {found['base']}, by lm-evaluation-harness", ""]
    lines.append(f"{'task':<24} {'metric':<16} {'n':>6} {'base':>8} {'adapter':>8} {'change':>8} 95% interval")
    for score in found["scores"]:
        d = score["difference"]
        told = f"[{figure_shown(d['low'], '+')}, {figure_shown(d['high'], '+')}] {d['verdict']}" if d else "not known"
        lines.append(
            f"{score['task']:<24} {score['metric']:<16} {score['documents']:>6,} {figure_shown(score['base']):>8} "
            f"{figure_shown(score['adapter']):>8} {figure_shown(score['adapter'] - score['base'], '+'):>8} {told}"
        )
    return "\n".join(lines)


def methods_text(found: dict[str, Any], columns: int) -> str:
    """The methods in a table, those that could not run with the reason, and what the table shows."""
    from inlay.workflows.compare_methods import HEAD, REPORT, RESULT, cells

    rows = [list(HEAD), *(cells(row) for row in found["methods"] if not row["reason"])]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for row in found["methods"]:
        if row["reason"]:
            lines += textwrap.wrap(f"{row['method']}: {row['reason']}", columns)
    lines += ["", *(line for note in found["notes"] for line in textwrap.wrap(f"note: {note}", columns))]
    return "\n".join([*lines, f"a run for each, {RESULT} and {REPORT}: {found['folder']}"])


def folds_text(found: dict[str, Any], columns: int) -> str:
    """The folds by the metric that decides, every metric over all rows, and the verdict."""
    primary, head = found["primary"], f"{'base':>8} {'adapter':>8} {'change':>8} {'95% interval':^18}"
    lines = [f"{found['folds']} folds, {found['rows']:,} of {found['available']:,} rows held out once each", ""]
    lines.append(f"{primary:<14} {head} verdict")
    for n, fold in enumerate(found["per_fold"], 1):
        lines.append(_fold_line(f"fold {n} ({fold['n']})", fold["metrics"][primary]) + f" {fold['verdict']}")
    lines += ["", f"{'all rows':<14} {head} mean ± spread of the folds"]
    for name, metric in found["metrics"].items():
        spread = f"{figure_shown(metric['mean'])} ± {figure_shown(metric['spread'])}"
        lines.append(_fold_line(name + "*" * (name == primary), metric["pooled"]) + f" {spread}")
    pooled = found["metrics"][primary]["pooled"]
    verdict = (
        f"verdict: {found['verdict']} by {primary}: {pooled['difference']:+.4f} "
        f"[{pooled['low']:+.4f}, {pooled['high']:+.4f}] over all rows; {found['reason']}"
    )
    lines += ["* decides the verdict", "", *textwrap.wrap(verdict, columns)]
    lines += [line for note in found["notes"] for line in textwrap.wrap(f"note: {note}", columns)]
    return "\n".join([*lines, f"runs and folds.json: {found['folder']}"])


def _fold_line(head: str, d: dict[str, Any]) -> str:
    interval = f"[{figure_shown(d['low'], '+')}, {figure_shown(d['high'], '+')}]"
    return (
        f"{head:<14} {figure_shown(d['base']):>8} {figure_shown(d['adapter']):>8} "
        f"{figure_shown(d['difference'], '+'):>8} {interval:^18}"
    )


def explanation_text(rows: list[dict[str, Any]], columns: int) -> str:
    from inlay.config.render import default_text

    lines = []
    for row in rows:
        lines += textwrap.wrap(row.get("elsewhere", ""), columns, subsequent_indent="  ")
        if row["setting"] is None:
            continue
        lines += textwrap.wrap(
            f"{row['setting']}  ({row['type']}; {default_text(row)})", columns, subsequent_indent="  "
        )
        lines += textwrap.wrap(row["doc"], columns - 4, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def steps_text(rows: list[dict[str, Any]]) -> str:
    """Which checkpoints, and how much room they take."""
    steps = ", ".join(str(row["step"]) for row in rows)
    size = bytes_shown(sum(row["size_bytes"] or 0 for row in rows))
    return f"the checkpoint{'s' if len(rows) > 1 else ''} of step{'s' if len(rows) > 1 else ''} {steps} ({size})"


def checkpoint_text(details: dict[str, Any]) -> str:
    """One line a fact, then the files."""
    lines = [details["path"]]
    for name, value in details.items():
        if name not in ("path", "files", "inputs") and value is not None:
            lines.append(
                f"  {name.replace('_', ' '):<20} {value:.6g}"
                if isinstance(value, float)
                else f"  {name.replace('_', ' '):<20} {value}"
            )
    lines += [f"  {name.replace('_', ' '):<20} {digest[:12]}" for name, digest in details["inputs"].items()]
    lines += [f"  {name:<22} {bytes_shown(f['size']):>9}  {f['sha256'][:12]}" for name, f in details["files"].items()]
    return "\n".join(lines)


def checkpoints_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no checkpoints"
    lines = [f"{'step':>7}  {'train loss':>10}  {'eval loss':>10}  {'size':>8}  state"]
    for row in rows:
        size = bytes_shown(row["size_bytes"]) if row["size_bytes"] else "?"
        state = ("best" if row["best"] else "whole") if row["valid"] else f"damaged: {row['fault']}"
        state += ", pinned" if row["pinned"] else ""
        losses = "  ".join(
            f"{row[k]:>10.4f}" if row[k] is not None else f"{'–':>10}" for k in ("train_loss", "eval_loss")
        )
        lines.append(f"{row['step']:>7}  {losses}  {size:>8}  {state}")
    return "\n".join(lines)
