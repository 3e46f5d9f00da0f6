"""Retention: the loss on what a model was not trained for, general text and the other example tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from inlay.data.example_tasks import example_tasks
from inlay.data.reading.read import read_examples
from inlay.data.splits import draw, prompt_key
from inlay.data.types import Example
from inlay.evaluation.metrics import LOSS_METRICS
from inlay.evaluation.score import EvalSet, Score
from inlay.evaluation.verdict import Difference, paired_bootstrap

GENERAL = "general text"

Sets = Mapping[str, tuple[Example, ...]]
"""Rows by the name of their set."""


def retention_sets(trained_for: Iterable[Example], rows: int, seed: int) -> Sets:
    """At most `rows` rows of general text, and of each example task without a prompt of `trained_for`."""
    prompts = {prompt_key(example) for example in trained_for}
    general = Path(str(resources.files("inlay") / "builtin" / "general.jsonl"))
    found = {GENERAL: read_examples(str(general)).examples}
    for name, task in example_tasks().items():
        train, heldout = task.read()
        if prompts.isdisjoint(map(prompt_key, (*train, *heldout))):
            found[name] = heldout
    return {name: tuple(kept[n] for n in draw(len(kept), rows, seed)) for name, kept in found.items()}


def retention(
    sets: Sets,
    rows: EvalSet,
    base: Score,
    adapter: Score,
    *,
    resamples: int,
    seed: int,
    per_token: bool,
) -> dict[str, Difference]:
    """By set the difference of the loss, in bits per byte where the models have different tokenizers.

    `rows` and the scores are over the rows of all sets, one after the other.
    """
    found, start = {}, 0
    for name, kept in sets.items():
        part = slice(start, start + len(kept))
        start = part.stop
        units = base.weight[part] if per_token else np.maximum(rows.trained_bytes[part], 1)
        fits = (base.weight[part] > 0) & (adapter.weight[part] > 0)  # a row may be too long for a model
        if not fits.any():
            continue
        scale = 1.0 if per_token else math.log(2)
        sides = [np.stack([side.nll[part] / scale, units], 1)[fits] for side in (base, adapter)]
        metric = LOSS_METRICS["loss" if per_token else "bits_per_byte"]
        found[name] = paired_bootstrap(sides[0], sides[1], metric, resamples=resamples, seed=seed)
    return found
