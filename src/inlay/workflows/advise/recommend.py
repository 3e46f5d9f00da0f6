"""The recommendation: a rule of thumb from the rows alone, then the cheapest of the arms that no other was shown to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from inlay.data.types import Example
from inlay.errors import count_shown
from inlay.evaluation.costs import Costs, money_shown
from inlay.evaluation.metrics import token_f1_statistics, word_tokens
from inlay.evaluation.score import prompt_and_reference
from inlay.evaluation.task_metrics import labels_of
from inlay.evaluation.verdict import Difference, holm
from inlay.runs.reporter import change_shown, figure_shown, signed
from inlay.workflows.advise.arms import MeasuredArm
from inlay.workflows.advise.passages import Index

FEW: Final = 50
"""With fewer training rows, examples in the prompt are tried first."""
MANY: Final = 200
"""From this number on, a fine-tuned model usually learns both form and content."""
FOUND: Final = 0.6
"""Share of the answers' own words in the retrieved passages from which these are taken to hold the answers."""


@dataclass(frozen=True, slots=True)
class RuleOfThumb:
    """A suggestion with its reasons, from the rows alone."""

    suggestion: str
    reasons: tuple[str, ...]
    facts: dict[str, float | int]

    def to_json(self) -> dict[str, object]:
        """Suggestion, reasons and facts."""
        return {
            "kind": "rule of thumb", "suggestion": self.suggestion, "reasons": list(self.reasons), "facts": self.facts,
        }  # fmt: skip


def rule_of_thumb(
    train: int, heldout: Sequence[Example], index: Index, passages: int, *, documents: bool
) -> RuleOfThumb:
    """The suggestion from `train` training rows, the held-out rows and the index."""
    pairs = [prompt_and_reference(e) for e in heldout]
    facts = _facts(train, pairs, index, passages)
    reasons: list[str] = []
    labels = labels_of([answer for _, answer in pairs])
    found, own = facts["answer_words_retrieved"], facts["answer_words_not_in_question"]
    if labels:
        per_label = train / len(labels)
        reasons.append(f"the answers are {len(labels)} labels with {per_label:.0f} training rows each")
        holds = False
    else:
        holds = found >= FOUND and own >= 0.3
        reasons.append(
            f"{own:.0%} of an answer's words are not in its question, and {found:.0%} of those stand in the {passages} "
            f"nearest {'passages of the documents' if documents else 'training rows'}"
        )
    reasons.append(
        f"{count_shown(train, 'training row')} ({'few' if train < FEW else 'enough to start' if train < MANY else 'plenty'})"
    )
    if train < FEW:
        suggestion = "base + retrieval" if holds else "base + few-shot"
    elif labels:
        suggestion = "adapter"
    elif holds and documents:
        suggestion = "adapter + retrieval" if train >= MANY else "base + retrieval"
    else:
        suggestion = "adapter"
        if holds:
            reasons.append("the training rows themselves hold the answers, and an adapter learns them")
    if documents and not holds:
        reasons.append("the documents do not hold the answers, so retrieving from them can help little")
    return RuleOfThumb(suggestion, tuple(reasons), facts)


def _facts(train: int, pairs: Sequence[tuple[str, str]], index: Index, passages: int) -> dict[str, float | int]:
    found, own, copied = [], [], []
    for prompt, answer in pairs:
        nearest = index.nearest(prompt, passages)
        words = set(word_tokens(answer))
        own.append(len(words - set(word_tokens(prompt))) / len(words) if words else 0.0)
        if (share := index.coverage(nearest, answer, prompt)) is not None:
            found.append(share)
        if nearest and (turns := index.passages[nearest[0]].turns):
            copied.append(float(token_f1_statistics(turns[-1].content, answer)[0]))
    facts: dict[str, float | int] = {
        "train_rows": train,
        "heldout_rows": len(pairs),
        "answer_words": float(np.median([len(word_tokens(answer)) for _, answer in pairs])),
        "answer_words_not_in_question": float(np.mean(own)),
        "answer_words_retrieved": float(np.mean(found)) if found else 0.0,
        "passages": len(index.passages),
        "passages_left_out": len(index.left_out),
    }
    if copied:  # token F1 of answering with the answer of the nearest training row
        facts["copying_token_f1"] = float(np.mean(copied))
    return facts


Differ = Callable[[str, str], Mapping[str, Difference]]
"""(before, after) to `after` minus `before` by metric."""


@dataclass(frozen=True, slots=True)
class ArmCosts:
    """Cost of an arm: once, of 1,000 requests, and of all requests."""

    machine: Costs
    requests: int
    training_s: float
    """Seconds of training the adapter."""

    def once(self, one: MeasuredArm) -> float:
        """Cost of training; 0 for an arm without the adapter."""
        return self.machine.of_work(self.training_s) if one.arm.adapted else 0.0

    def per_1000(self, one: MeasuredArm) -> float:
        """Cost of 1,000 requests."""
        return self.machine.per_1000_requests(one.request_s)

    def total(self, one: MeasuredArm) -> float:
        """Cost of training and of all requests."""
        return self.once(one) + self.per_1000(one) * self.requests / 1000


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An arm that could be served."""

    arm: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Arm and reasons."""
        return {"arm": self.arm, "reasons": list(self.reasons)}


def recommend(found: Sequence[MeasuredArm], differ: Differ, metrics: Sequence[str], costs: ArmCosts) -> Recommendation:
    """The cheapest of the best arms. `metrics` are the one that decides and the loss; two arms are alike where neither
    distinguishes them."""
    metric = metrics[0]
    arms = {one.arm.name: one for one in found if not one.arm.is_ceiling}
    base, *others = arms
    against_base = {name: differ(base, name) for name in others}
    adjusted = holm({name: against_base[name][metric].p for name in others})
    better = [n for n in others if against_base[n][metric].verdict == "better"]
    shown = [n for n in better if (p := adjusted[n]) is not None and p < 0.05]
    if not shown:
        return Recommendation(base, tuple(_nothing_helps(against_base, metric)))
    first = against_base[shown[0]][metric]
    sign = 1 if first.higher_is_better else -1
    best = max(shown, key=lambda name: sign * against_base[name][metric].other)
    alike = [n for n in shown if all(differ(best, n)[m].verdict != "worse" for m in metrics)]
    chosen = min(alike, key=lambda name: costs.total(arms[name]))
    d = against_base[chosen][metric]
    reasons = [f"{chosen}: {_change(metric, d)} against {base}"]
    if chosen != best:
        reasons.append(f"{best} is not distinguishable from it and costs more")
    reasons += [_against(name, chosen, differ, metrics, costs, arms) for name in others if name != chosen]
    reasons += _room_above(found, arms, differ, metric)
    return Recommendation(chosen, tuple(reasons))


def _change(metric: str, d: Difference) -> str:
    return f"{metric} {figure_shown(d.base)} → {figure_shown(d.other)} ({change_shown(d, signed)})"


def _nothing_helps(against_base: Mapping[str, Mapping[str, Difference]], metric: str) -> list[str]:
    reasons = [f"no arm answers better than the base by {metric} (Holm-corrected over all arms)"]
    for name, by_metric in against_base.items():
        reasons.append(f"{name}: {_change(metric, by_metric[metric])}, {by_metric[metric].verdict}")
    detectable = [d.mde for by_metric in against_base.values() if (d := by_metric[metric]).mde is not None]
    if detectable:
        reasons.append(f"these rows show a difference from about {max(detectable):.2g} on; more rows show smaller ones")
    return reasons


def _against(
    name: str, chosen: str, differ: Differ, metrics: Sequence[str], costs: ArmCosts, arms: Mapping[str, MeasuredArm]
) -> str:
    """Another arm against the chosen one: by the first metric that distinguishes them, and by cost."""
    by_metric = differ(chosen, name)
    deciding = next((m for m in metrics if by_metric[m].verdict != "not distinguishable"), metrics[0])
    d = by_metric[deciding]
    own = costs.per_1000(arms[chosen])
    times = costs.per_1000(arms[name]) / own if own else 1.0
    return f"{name}: {deciding} {change_shown(d, signed)} " \
           f"against {chosen}: {d.verdict}, at {times:.2g} times its cost a request"  # fmt: skip


def _room_above(
    found: Sequence[MeasuredArm], arms: Mapping[str, MeasuredArm], differ: Differ, metric: str
) -> list[str]:
    """Improvement that better retrieval could still bring."""
    reasons = []
    for one in found:
        served = f"{one.arm.name.rpartition(' + ')[0]} + retrieval"
        if one.arm.is_ceiling and served in arms:
            d = differ(served, one.arm.name)[metric]
            outlook = (
                f"at most about {figure_shown(abs(d.difference))} is left for better retrieval"
                if d.verdict == "better"
                else "better retrieval would show no improvement on these rows"
            )
            reasons.append(
                f"{one.arm.name} (passages chosen by the answer): {_change(metric, d)} against {served}: {outlook}"
            )
    return reasons


def cost_lines(found: Sequence[MeasuredArm], costs: ArmCosts) -> list[str]:
    """Assumptions, and the cost of training."""
    lines = [f"cost: {costs.machine.stated}; time of a request where they are answered in batches"]
    adapted = next((one for one in found if one.arm.adapted), None)
    if adapted is not None:
        once = costs.once(adapted)
        lines.append(
            f"training the adapter: {costs.training_s:,.0f} s, {money_shown(once)} once, "
            f"{costs.machine.energy_kwh(costs.training_s):.2g} kWh; chosen for {costs.requests:,} requests in all"
        )
    return lines
