"""The report of `data check` as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator

from inlay.data.checks.findings import Finding, Place
from inlay.data.checks.report import DataReport
from inlay.data.checks.survey import FileFacts
from inlay.errors import count_shown
from inlay.typed_json import JsonObject

_SHOWN = 3  # places of a finding; --json and --html have more
_LONG = 100


def report_text(report: DataReport, columns: int) -> str:
    """The contents of each file, each finding with its first places and its fix, and the total."""
    lines = [line for facts in report.files for line in file_lines(facts, columns)]
    for finding in report.findings:
        lines += ["", *_finding(finding, columns)]
    counts = ", ".join(count_shown(n, word) for word, n in _counts(report).items() if n)
    lines += ["", *lengths_lines(report, columns)]
    lines += ["", f"{count_shown(report.rows, 'row')}: {counts or 'nothing was found'}"]
    return "\n".join(lines)


def lengths_lines(report: DataReport, columns: int, *, whole: bool = False) -> list[str]:
    """Lengths, the tokens that a max_length would lose, and rules of thumb; all limits with `whole`."""
    found = report.lengths
    if not len(found.lengths):
        return []
    of = f" of {report.model}" if report.model else " (with --model: in its tokens)"
    share = f"{found.total:,} in all, {found.total_trained:,} trained ({found.trained_share:.1%})"
    lines = [f"lengths in {found.unit}{of}", f"  {share}"]
    shown = "  ".join(f"p{p} {value:,}" for p, value in found.percentiles().items())
    lines += textwrap.wrap(shown, columns, initial_indent="  ", subsequent_indent="  ")
    limits = found.max_lengths if whole else found.max_lengths[-4:]
    if limits:
        total, rows = max(1, found.total_trained), len(found.lengths)
        lines.append(f"  {'max_length':>10}  {'longer rows':>18}  {'trained tokens lost by drop':>28}  {'by cut':>16}")
        for limit in limits:
            cells = [
                f"{count:,} ({count / of_all:.1%})"
                for count, of_all in ((limit.longer, rows), (limit.lost_by_drop, total), (limit.lost_by_cut, total))
            ]
            lines.append(f"  {limit.max_length:>10,}  {cells[0]:>18}  {cells[1]:>28}  {cells[2]:>16}")
    for advice in report.advice:
        text = f"{advice.about}: {advice.text} (a heuristic)"
        lines += textwrap.wrap(text, columns, subsequent_indent="  ")
    return lines


def stats_text(report: DataReport, cost: JsonObject, columns: int) -> str:
    """The contents of each file, the lengths with every limit, and the cost."""
    lines = [line for facts in report.files for line in file_lines(facts, columns)]
    for finding in report.findings:
        lines += ["", *_finding(finding, columns)]
    lines += ["", *lengths_lines(report, columns, whole=True)]
    if cost["operations"] is not None:
        lines.append(f"an epoch: {cost['tokens']:,} tokens, about {cost['operations']:.1e} floating operations")
    if cost["price"] is not None:
        lines.append(f"  {cost['price']:,.2f} at the given price of a million tokens")
    return "\n".join(lines)


def file_lines(facts: FileFacts, columns: int) -> list[str]:
    """Format, rows, turns and scripts of one file."""
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


def _place(place: Place, columns: int) -> Iterator[str]:
    line = f"  {place.where}: {place.shown}".removesuffix(": ")
    if len(place.shown) > _LONG:  # an explanation, to be read whole
        yield from textwrap.wrap(line, columns, subsequent_indent="    ")
    else:
        yield _fitting(line, columns)
    if place.other_shown:
        yield _fitting(" " * (len(place.where) + 4) + place.other_shown, columns)


def _fitting(line: str, columns: int) -> str:
    return line if len(line) <= columns else line[: columns - 1] + "…"


def _finding(finding: Finding, columns: int) -> Iterator[str]:
    yield from textwrap.wrap(f"{finding.severity}: {finding.title}: {finding.count:,}", columns, subsequent_indent="  ")
    for place in finding.places[:_SHOWN]:
        yield from _place(place, columns)
    if finding.count > _SHOWN:
        yield f"  and {finding.count - _SHOWN:,} more"
    yield from textwrap.wrap(f"fix: {finding.fix}", columns, initial_indent="  ", subsequent_indent="       ")
