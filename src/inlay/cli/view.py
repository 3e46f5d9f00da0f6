"""What people see: progress on stderr, results as text for stdout."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from inlay.events import PlainReporter, Reporter, bytes_shown, duration_shown, shown

if TYPE_CHECKING:
    from inlay.api import Loaded
    from inlay.evaluation.compare import Comparison
    from inlay.run import Run


def reporter() -> Reporter:
    """A progress bar on a terminal, plain lines elsewhere. Always on stderr."""
    return TerminalReporter() if sys.stderr.isatty() else PlainReporter()


class TerminalReporter:
    """Rich's progress bar with the figures of the last step."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bar: Any = None
        self._task: Any = None

    def stage(self, text: str) -> None:
        self._console.print(f"… {text}", style="dim", markup=False)

    def block(self, title: str, rows: list[tuple[str, str]]) -> None:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        self._console.print(Panel(table, title=title, title_align="left", border_style="dim"))

    def start(self, total: int, done: int, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(unit),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(unit, total=total, completed=done, figures="")
        self._bar.start()

    def progress(self, done: int, values: dict[str, Any]) -> None:
        figures = "  ".join(f"{name} {shown(name, value)}" for name, value in values.items())
        self._bar.update(self._task, completed=done, figures=figures)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def confirm(as_json: bool) -> Callable[[str], bool] | None:
    """Asks on a terminal; None where nobody can answer."""
    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, default=True, err=True)


def after_training(run: Run) -> str:
    """Where everything is, and the next command to type."""
    result = run.record.get("result", {})
    best = f", best step {result['best_step']}" if result.get("best_step") is not None else ""
    return (
        f"\n{run.path}\n"
        f"  adapter/  from step {result.get('adapter_step')} of {result.get('steps')}{best}; opens with PEFT as it is\n"
        f"  reports/curves.png  config.yaml  run.json  metrics.jsonl  log.txt  checkpoints/\n"
        f"  took {duration_shown(result.get('time_s', 0.0))}\n"
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


def comparison_text(comparison: Comparison, run: Run) -> str:
    """The table, three rows side by side, the worst regressions, and the verdict last."""
    lines = [
        f"{comparison.adapter} against {comparison.base} on {comparison.n} of {comparison.available} held-out rows",
        "",
    ]
    header = f"{'metric':<12} {'base':>10} {'adapter':>10} {'difference':>11} {'95% interval':>22}  wins/ties/losses  verdict"
    lines += [header, "-" * len(header)]
    for name, d in comparison.metrics.items():
        mark = "*" if name == comparison.primary else " "
        interval = f"[{d.low:+.4g}, {d.high:+.4g}]"
        counts = f"{d.wins}/{d.ties}/{d.losses}"
        lines.append(
            f"{name + mark:<12} {d.base:>10.4g} {d.other:>10.4g} {d.difference:>+11.4g} {interval:>22}"
            f"  {counts:<16}  {d.verdict}"
        )
    lines.append("* decides the verdict")
    shown_rows = [r for r in comparison.rows if r.adapter_answer is not None][:3]
    for row in shown_rows:
        lines += ["", *_block(row.question, row.base_answer or "", row.adapter_answer or "", row.reference)]
    for prompt, base, adapter in comparison.prompts:
        lines += ["", *_block(prompt, base, adapter, None)]
    worst = comparison.regressions[:3]
    if worst:
        lines += ["", f"worse on {len(comparison.regressions)} of {comparison.n} rows by loss; the worst:"]
        lines += [f"  {r.source}: {r.base_loss:.3f} → {r.adapter_loss:.3f}  {_short(r.question)}" for r in worst]
    primary = comparison.metrics[comparison.primary]
    lines += [
        "",
        f"verdict: {comparison.verdict} by {comparison.primary}: {primary.difference:+.4f} "
        f"[{primary.low:+.4f}, {primary.high:+.4f}]; {primary.reason}",
        f"reports: {run.reports}/report.md compare.csv compare.json (took {duration_shown(comparison.time_s)})",
    ]
    return "\n".join(lines)


def _block(question: str, base: str, adapter: str, reference: str | None) -> list[str]:
    parts = [("asked", question), ("base", base), ("adapter", adapter)]
    parts += [("reference", reference)] if reference is not None else []
    return [line for name, text in parts for line in _labelled(name, text)]


def _labelled(name: str, text: str) -> list[str]:
    limited = text if len(text) <= 500 else text[:499] + "…"
    wrapped = [w for line in limited.split("\n") for w in textwrap.wrap(line, 96) or [""]] or [""]
    return [f"{name if n == 0 else '':>10} │ {line}" for n, line in enumerate(wrapped)]


def _short(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= 70 else joined[:69] + "…"


def evaluation_text(result: dict[str, Any]) -> str:
    lines = [f"{result['name']} on {result['n']} held-out rows"]
    return "\n".join(lines + [f"  {name:<12} {value:.4g}" for name, value in result["metrics"].items()])


def explanation_text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        default = "required" if row["required"] else f"default {row['default']!r}"
        lines += [
            f"{row['setting']}  ({row['type']}; {default})",
            *textwrap.wrap(row["doc"], 100, initial_indent="    ", subsequent_indent="    "),
        ]
    return "\n".join(lines)


def checkpoints_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no checkpoints"
    lines = [f"{'step':>7}  {'train loss':>10}  {'eval loss':>10}  {'size':>8}  state"]
    for row in rows:
        size = bytes_shown(row["size_bytes"]) if row["size_bytes"] else "?"
        state = ("best" if row["best"] else "whole") if row["valid"] else f"damaged: {row['fault']}"
        losses = "  ".join(
            f"{row[k]:>10.4f}" if row[k] is not None else f"{'–':>10}" for k in ("train_loss", "eval_loss")
        )
        lines.append(f"{row['step']:>7}  {losses}  {size:>8}  {state}")
    return "\n".join(lines)


def talk(loaded: Loaded, sampling: dict[str, Any], *, quiet: bool) -> list[dict[str, str]]:
    """The dialogue that was held. Ends at an empty line or end of input."""
    dialogue: list[dict[str, str]] = []
    while True:
        try:
            typed = input("" if quiet else "you: ")
        except (EOFError, KeyboardInterrupt):
            break
        if not typed.strip():
            break
        if typed.strip() == "/reset":
            dialogue = []
            continue
        dialogue.append({"role": "user", "content": typed})
        if quiet:
            answer = loaded.stream(dialogue, lambda text: None, **sampling)
        else:
            sys.stdout.write(f"{loaded.run.name}: ")
            answer = loaded.stream(dialogue, _write_now, **sampling)
            sys.stdout.write("\n")
        dialogue.append({"role": "assistant", "content": answer})
    return dialogue


def _write_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
