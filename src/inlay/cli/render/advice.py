"""Advice as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from inlay.evaluation.costs import money_shown
from inlay.evaluation.summary import caveat_text
from inlay.runs.reporter import change_shown, figure_shown, signed
from inlay.workflows.advise.recommend import cost_lines

if TYPE_CHECKING:
    from inlay.workflows.advise.advise import Advice, Outcome


def advice_text(advice: Advice, columns: int) -> str:
    """The rule of thumb; after a measurement also the table, the recommendation and what weakens it."""
    thumb = advice.thumb
    lines = [f"rule of thumb: {thumb.suggestion}", *_listed(thumb.reasons, columns)]
    lines += _listed(["a guess from the rows alone; no model was measured"], columns)
    if (outcome := advice.outcome) is None:
        return "\n".join([*lines, "Measure it: the same command without --quick."])
    lines += ["", "the same for all:", *_listed(outcome.about, columns), "", *_table(outcome), ""]
    lines += [f"recommendation: {outcome.recommendation.arm}", *_listed(outcome.recommendation.reasons, columns)]
    lines += [
        "note:",
        *_listed([caveat_text(one) for one in outcome.caveats], columns),
        f"reports: {outcome.reports}/report.html, advice.json",
    ]
    return "\n".join(lines)


def _table(outcome: Outcome) -> list[str]:
    metric = outcome.metrics[0]
    shown = [metric] if metric == "loss" else [metric, "loss"]
    head = f"{'arm':<21}" + "".join(f" {name:>9}" for name in shown)
    head += f"  {'against base':<26} {'prompt':>7} {'answer':>7} {'latency':>9} {'per 1,000':>10}"
    lines = [head, "-" * len(head)]
    base = outcome.arms[0].arm.name
    for one in outcome.arms:
        differences = outcome.differences(base, one.arm.name)
        d = differences[metric]
        change = change_shown(d, signed)
        name = one.arm.name + ("*" if one.arm.is_ceiling else "")
        values = "".join(f" {figure_shown(differences[m].other):>9}" for m in shown)
        lines.append(
            f"{name:<21}{values}  {change if one.arm.name != base else '':<26} {one.prompt_tokens:>7.0f} "
            f"{one.answer_tokens:>7.0f} {one.latency_s * 1000:>6.0f} ms {money_shown(outcome.costs.per_1000(one)):>10}"
        )
    lines.append("* passages chosen with the answer in hand: a ceiling for retrieval, not a way to serve")
    return [
        *lines,
        f"prompt, answer: mean tokens of a request; {metric} decides",
        *cost_lines(outcome.arms, outcome.costs),
    ]


def _listed(texts: tuple[str, ...] | list[str], columns: int) -> list[str]:
    return [
        line for text in texts for line in textwrap.wrap(text, columns, initial_indent="  - ", subsequent_indent="    ")
    ]
