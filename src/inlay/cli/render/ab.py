"""A test on live traffic: shares and counts of its arms, and the outcome."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inlay.serving.live_test import ArmReport, LiveReport


def reports_text(reports: Sequence[LiveReport]) -> str:
    """One block for each test."""
    return "\n\n".join(map(report_text, reports)) or "No test yet. One begins when a server is started with an alias."


def report_text(report: LiveReport) -> str:
    """A line for each arm, the outcome of each against the first, and what it assumes."""
    rule = (
        f"false alarms at most {report.alpha:.0%}, the same within {report.margin:g}, at most {report.horizon:,} scores"
    )
    width = max(len("arm"), *(len(arm.name) for arm in report.arms))
    lines = [f"{report.alias}: {report.state}, begun {report.started}; {rule}", ""]
    lines.append(f"{'arm':<{width}}{'share':>8}{'answers':>9}{'failed':>8}{'scores':>8}{'mean':>8}")
    lines += [
        f"{arm.name:<{width}}{arm.share:>8.1%}{arm.answers:>9,}{arm.failed:>8,}{arm.scores:>8,}{_shown(arm.mean):>8}"
        for arm in report.arms
    ]
    lines += [f"{arm.name}: gets no users: {arm.guard}" for arm in report.arms if arm.guard]
    compared = [arm for arm in report.arms if arm.outcome is not None]
    lines += ["" for _ in compared[:1]] + [_outcome(arm, report) for arm in compared]
    if report.assumes:
        lines += textwrap.wrap(f"Assumed: {'; '.join(report.assumes)}.", 100)
    return "\n".join(lines + [report.note] * bool(report.note))


def _outcome(arm: ArmReport, report: LiveReport) -> str:
    first = report.arms[0].name
    when = f", since {arm.ended_at:,} scores" if arm.ended_at else ""
    return f"{arm.name} against {first}: {arm.outcome}{when}; difference {arm.difference:+.3f} [{arm.low:+.3f}, {arm.high:+.3f}]"


def _shown(mean: float | None) -> str:
    return "" if mean is None else f"{mean:.3f}"
