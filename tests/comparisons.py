"""A comparison with every part that a report shows, from made-up scores: no model is needed."""

from __future__ import annotations

import numpy as np

from inlay.evaluation.caveats import SelectedCheckpoint
from inlay.evaluation.compare import ComparedRow, Comparison, Group
from inlay.evaluation.metrics import LOSS_METRICS, METRICS
from inlay.evaluation.verdict import Difference, compare_scores

HOSTILE = "<script>alert(1)</script>\"'<img src=x onerror=alert(1)>"
HISTORY = [
    *({"step": n, "loss": 3.0 - n / 10, "learning_rate": 1e-3, "grad_norm": 1.0} for n in range(1, 11)),
    *({"step": n, "eval_loss": 3.1 - n / 10} for n in (0, 5, 10)),
    {"event": "rollback", "step": 4},
    {"step": 11, "loss": float("nan")},
]


def made(rows: int = 40, adapter: str = "fine-tuned") -> Comparison:
    """`adapter` against "base" over so many rows: answers mostly better, some worse, some unchanged."""
    compared = tuple(_row(n) for n in range(rows))
    nll = [np.array([[getattr(r, f"{side}_loss") * 20, 20.0] for r in compared]) for side in ("base", "adapter")]
    scores = [np.array([[r.scores["token_f1"][side], 1.0] for r in compared]) for side in (0, 1)]
    found = compare_scores(
        {"loss": (*nll, LOSS_METRICS["loss"]), "token_f1": (*scores, METRICS["token_f1"])}, resamples=200
    )
    nothing = Difference(0.0, 0.0, 0.0, 0.0, 0.0, 0, rows, 0, rows, 0.95, False)
    groups = (Group("answer length", "3 to 9 tokens", 20, found), Group("answer length", "10 tokens", 20, found))
    return Comparison(
        "base", adapter, "loss", found, compared, (("A further prompt?", "One answer.", "Another answer."),), 2 * rows,
        12.0, behaviour={"empty": nothing}, retention={"general text": found["loss"]}, groups=groups, caveats=(SelectedCheckpoint(3),),
    )  # fmt: skip


def _row(n: int) -> ComparedRow:
    reference = f"Your parcel {n} leaves the store on Monday, and a card tells you the day."
    better, worse = f"Your parcel {n} leaves on Monday, and a card tells you the day.", f"I do not know {HOSTILE}."
    answers = [(worse, better), (better, worse), (better, better)][n % 5 - 2 if n % 5 > 2 else 0]
    scores = {"token_f1": (0.9 if answers[0] == better else 0.1, 0.9 if answers[1] == better else 0.1)}
    change = {better: -0.4, worse: 0.2}[answers[1]] + (n % 7) / 50 if answers[0] != answers[1] else 0.0
    return ComparedRow(
        f"/a/long/folder/heldout.jsonl:{n + 1}", f"When does parcel {n} come?", reference, answers[0], answers[1],
        2.0, 2.0 + change, scores,
    )  # fmt: skip
