"""What is recommended, from made-up arms whose true order is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inlay.evaluation.costs import Costs, money_shown
from inlay.evaluation.metrics import LOSS_METRICS, METRICS
from inlay.evaluation.verdict import Difference, compare_scores
from inlay.workflows.advise.arms import ARMS, Arm
from inlay.workflows.advise.recommend import ArmCosts, recommend

ROWS = 80


@dataclass(frozen=True)
class Made:
    """As much of a measured arm as the recommendation looks at."""

    arm: Arm
    request_s: float


def recommended(right: Mapping[str, float], seconds: Mapping[str, float] | None = None, training_s: float = 0.0) -> Any:
    """The recommendation where each arm has this share of right answers (0.2 if not named); the loss says nothing."""
    draws = np.random.default_rng(0).random(ROWS)
    answers = {arm.name: np.stack([draws < right.get(arm.name, 0.2), np.ones(ROWS)], 1).astype(float) for arm in ARMS}
    loss = np.stack([draws, np.ones(ROWS)], 1)

    def differ(before: str, after: str) -> Mapping[str, Difference]:
        pairs = {
            "token_f1": (answers[before], answers[after], METRICS["token_f1"]), "loss": (loss, loss, LOSS_METRICS["loss"])
        }  # fmt: skip
        return compare_scores(pairs, resamples=500)

    found: Any = [Made(arm, (seconds or {}).get(arm.name, 1.0)) for arm in ARMS]
    return recommend(found, differ, ("token_f1", "loss"), ArmCosts(Costs(1.0, 100.0), 1000, training_s))


def test_where_nothing_helps_the_base_is_recommended_with_what_these_rows_could_show() -> None:
    found = recommended({"base + few-shot": 0.22})
    assert found.arm == "base"
    assert "no arm answers better" in found.reasons[0]


def test_a_ceiling_is_never_recommended() -> None:
    assert (
        recommended({"base + oracle": 0.99, "adapter + oracle": 0.99, "base + retrieval": 0.6}).arm
        == "base + retrieval"
    )


def test_of_arms_that_are_alike_the_cheaper_is_recommended() -> None:
    right = {"adapter": 0.7, "adapter + retrieval": 0.71, "base + retrieval": 0.7}
    seconds = {"base + retrieval": 3.0, "adapter + retrieval": 4.0, "adapter": 1.0}
    assert recommended(right, seconds).arm == "adapter"
    # training that a thousand requests cannot pay off
    assert recommended(right, seconds, training_s=1e6).arm == "base + retrieval"


def test_the_better_arm_is_recommended_whatever_it_costs() -> None:
    found = recommended({"adapter": 0.4, "adapter + retrieval": 0.8}, {"adapter + retrieval": 50.0})
    assert found.arm == "adapter + retrieval"
    assert any(reason.startswith("adapter: token_f1") and "worse" in reason for reason in found.reasons)


def test_money_keeps_two_digits_however_small() -> None:
    assert [money_shown(x) for x in (0, 1234.5, 0.046, 0.00312, 0.0000004)] == [
        "0.00",
        "1,234.50",
        "0.046",
        "0.0031",
        "0.00000040",
    ]
