"""The report of `data check` as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator

from inlay.data.checks.findings import Finding
from inlay.data.checks.report import DataReport
from inlay.data.checks.survey import FileFacts

_SHOWN = 3  # places of a finding; --json and --html have more


def report_text(report: DataReport, columns: int) -> str:
    """What is in each file, each finding with its first places and its fix, and the sum."""
    lines = [line for facts in report.files for line in file_lines(facts, columns)]
    for finding in report.findings:
        lines += ["", *_finding(finding, columns)]
    counts = ", ".join(f"{n} {word if n == 1 else word + 's'}" for word, n in _counts(report).items() if n)
    lines += ["", f"{report.rows:,} rows: {counts or 'nothing was found'}"]
    return "\n".join(lines)


def file_lines(facts: FileFacts, columns: int) -> list[str]:
    rows = [("format", f"{facts.format} ({facts.why})" if facts.why else facts.format)]
    unusable = f", {facts.faulty:,} cannot be used" if facts.faulty else ""
    rows.append(("rows", f"{facts.rows:,}{unusable}"))
    if facts.rows:
        rows.append(("turns", _turns(facts)))
        rows.append(("scripts", _shares(facts.scripts, facts.rows)))
    lines = [f"{facts.file}{' (held out)' if facts.held_out else ''}"]
    for name, value in rows:
        lines += textwrap.wrap(value, columns, initial_indent=f"  {name:<8} ", subsequent_indent=" " * 11)
    return lines


def _turns(facts: FileFacts) -> str:
    roles = ", ".join(f"{count:,} {role}" for role, count in facts.roles.most_common())
    fewest, most = min(facts.turns), max(facts.turns)
    return f"{fewest if fewest == most else f'{fewest} to {most}'} a row: {roles}"


def _shares(counts: Counter[str], total: int) -> str:
    common = counts.most_common(5)
    rest = [f"{len(counts) - 5} more"] if len(counts) > 5 else []
    return ", ".join([f"{name} {count / total:.1%}" if count < total else name for name, count in common] + rest)


def _counts(report: DataReport) -> dict[str, int]:
    return {"error": report.count("error"), "warning": report.count("warning"), "note": report.count("note")}


def _finding(finding: Finding, columns: int) -> Iterator[str]:
    yield from textwrap.wrap(f"{finding.severity}: {finding.title}: {finding.count:,}", columns, subsequent_indent="  ")
    for place in finding.places[:_SHOWN]:
        line = f"  {place}"
        if place.shown and finding.kind.startswith("unreadable"):
            yield from textwrap.wrap(line, columns, subsequent_indent="    ")
        else:
            yield line if len(line) <= columns else line[: columns - 1] + "…"
    if finding.count > _SHOWN:
        yield f"  and {finding.count - min(_SHOWN, len(finding.places)):,} more"
    yield from textwrap.wrap(f"fix: {finding.fix}", columns, initial_indent="  ", subsequent_indent="       ")
