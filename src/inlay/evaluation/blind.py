"""Preferences of a person who does not know whose an answer is: trials, judgements on disk, and their difference."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from inlay.evaluation.bootstrap import paired_bootstrap
from inlay.evaluation.comparison import ComparedRow, Comparison
from inlay.evaluation.metrics import Metric, ratio
from inlay.evaluation.verdict import Difference
from inlay.storage import read_lines, write_file
from inlay.typed_json import decode, encode

FILE = "preferences.jsonl"
Choice = Literal["left", "right", "alike"]
_PREFERENCE = Metric(
    name="preference", higher_is_better=True, description="share of the judged rows whose answer was preferred",
    size=2, value=ratio,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """The preference for one row, as a line of `preferences.jsonl`."""

    key: str
    """Digest of the row's texts."""
    preferred: str
    """base, adapter or alike."""
    at: str
    """Time in UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One row with two answers, as the judge sees it."""

    key: str
    question: str
    reference: str
    left: str
    right: str
    left_is: Literal["base", "adapter"]

    def preferred(self, choice: Choice) -> str:
        """base, adapter or alike."""
        if choice == "alike":
            return choice
        return self.left_is if choice == "left" else {"base": "adapter", "adapter": "base"}[self.left_is]


def trials(comparison: Comparison, judged: Sequence[str], chance: random.Random) -> list[Trial]:
    """The rows that are not judged yet, in random order, each with its answers on random sides.

    Rows with two equal answers are left out.
    """
    found: dict[str, Trial] = {}
    for row in comparison.rows:
        key = _key(row)
        if key in judged or not _differs(row):
            continue
        base, adapter = row.base_answer or "", row.adapter_answer or ""
        if chance.random() < 0.5:
            found[key] = Trial(key, row.question, row.reference, base, adapter, "base")
        else:
            found[key] = Trial(key, row.question, row.reference, adapter, base, "adapter")
    order = list(found.values())
    chance.shuffle(order)
    return order


def _differs(row: ComparedRow) -> bool:
    return row.adapter_answer is not None and row.base_answer != row.adapter_answer


def _key(row: ComparedRow) -> str:
    texts = json.dumps([row.question, row.reference, row.base_answer, row.adapter_answer])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def read_judgements(folder: Path) -> dict[str, Judgement]:
    """The judgements so far, by the key of the row; the last one of a row counts."""
    return {one.key: one for one in (decode(Judgement, line, FILE) for line in read_lines(folder / FILE))}


def write_judgement(folder: Path, trial: Trial, choice: Choice) -> None:
    """Adds one judgement; it is on the disk when this returns."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    every = read_judgements(folder) | {trial.key: Judgement(trial.key, trial.preferred(choice), now)}
    write_file(folder / FILE, "".join(json.dumps(encode(one)) + "\n" for one in every.values()))


def preference(comparison: Comparison, folder: Path, *, resamples: int, seed: int) -> Difference | None:
    """Share of the judged rows with the adapter's answer preferred, minus that of the base's; None without judgements.

    Only judgements of these very answers count.
    """
    judged = read_judgements(folder)
    here = [judged[key].preferred for key in dict.fromkeys(map(_key, comparison.rows)) if key in judged]
    if not here:
        return None
    base, adapter = (np.array([[float(preferred == side), 1.0] for preferred in here]) for side in ("base", "adapter"))
    return paired_bootstrap(base, adapter, _PREFERENCE, resamples=resamples, seed=seed)
