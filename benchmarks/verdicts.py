"""How often verdicts are right: no effect, an effect of the printed detectable size, and one model sampled twice.

    OMP_NUM_THREADS=1 python benchmarks/verdicts.py [--comparisons 2000] [--seeds 24] [--skip-model]

Rows are made up, but for the last part: there `builtin:nano` answers held-out rows at temperature 1 with several seeds,
and every two of its samples are compared. Minutes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.data.encoding.encoder import Encoder
from inlay.data.example_tasks import find_example_task
from inlay.evaluation.metrics import METRICS
from inlay.evaluation.verdict import Difference, compare_scores
from inlay.generation.generate import answers
from inlay.generation.request import Sampling
from inlay.models.base import find_base

RESAMPLES = 2000
RIGHT = METRICS["exact_match"]
Sides = tuple[np.ndarray, np.ndarray]


def rows(scores: np.ndarray) -> np.ndarray:
    return np.stack([scores, np.ones(len(scores))], 1)


def spread(kind: str, n: int, draw: np.random.Generator) -> Callable[[float], Sides]:
    """Both sides' scores of n rows as a function of the true effect; the luck of the rows is drawn once."""
    if kind == "right or wrong":
        # a fifth of the rows comes out differently, as two models of the same quality do
        luck, base = draw.random(n), (draw.random(n) < 0.5).astype(float)

        def made(effect: float) -> Sides:
            changed = np.where(luck < 0.1 + effect / 2, 1.0, np.where(luck > 0.9 + effect / 2, -1.0, 0.0))
            before = np.where(changed == 0, base, changed < 0)
            return before, before + changed

        return made
    noise = draw.normal(0, 1, n) if kind == "normal" else draw.exponential(1, n) - draw.exponential(1, n)
    return lambda effect: (np.zeros(n), noise + effect)


def verdicts(kind: str, n: int, count: int) -> tuple[float, float, float]:
    """(mean detectable effect, % found at that size, % left alone where there is none)"""
    draw = np.random.default_rng(n)
    made = [spread(kind, n, draw) for _ in range(count)]

    def compared(effect: float) -> list[Difference]:
        pairs = {}
        for k, one in enumerate(made):
            before, after = one(effect)
            pairs[str(k)] = (rows(before), rows(after), RIGHT)
        return list(compare_scores(pairs, resamples=RESAMPLES, seed=n).values())

    idle = compared(0.0)
    effect = float(np.mean([d.mde for d in idle if d.mde is not None]))
    found = np.mean([d.verdict == "better" for d in compared(effect)])
    return effect, 100 * float(found), 100 * float(np.mean([d.verdict == "not distinguishable" for d in idle]))


def sampled_twice(seeds: int, count: int) -> dict[str, tuple[int, int]]:
    """By metric (pairs of samples that are told apart, pairs)."""
    folder = str(find_base("builtin:nano").folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    asked = find_example_task("customer_support").read()[1][:count]
    prompts = [encoder.prompt(row.prompt, row.tools) for row in asked]
    references = [row.messages[len(row.prompt)].content for row in asked]
    samples = [
        answers(model, encoder, prompts, Sampling(max_new_tokens=32, temperature=1.0, seed=seed), 64)
        for seed in range(seeds)
    ]
    metrics = {name: METRICS[name] for name in ("token_f1", "rouge_l", "bleu", "chrf")}
    statistics = [
        {
            name: np.stack([m.statistics(said, wanted) for said, wanted in zip(one, references, strict=True)])
            for name, m in metrics.items()
        }
        for one in samples
    ]
    told = dict.fromkeys(metrics, 0)
    pairs = list(combinations(statistics, 2))
    for before, after in pairs:
        found = compare_scores({n: (before[n], after[n], m) for n, m in metrics.items()}, resamples=RESAMPLES)
        for name, d in found.items():
            told[name] += d.verdict != "not distinguishable"
    return {name: (told[name], len(pairs)) for name in metrics}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--comparisons", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--skip-model", action="store_true")
    given = parser.parse_args()
    draw = np.random.default_rng(0)
    big = {str(k): (rows(draw.random(10_000)), rows(draw.random(10_000)), METRICS["token_f1"]) for k in range(10)}
    began, cpu = time.perf_counter(), time.process_time()
    compare_scores(big, resamples=10_000)
    print(
        f"10,000 resamples over 10,000 rows x 10 metrics: {time.perf_counter() - began:.2f} s "
        f"({time.process_time() - cpu:.2f} s CPU, load {os.getloadavg()[0]:.1f})"
    )
    print("| row differences | n | detectable | found, % | no effect left alone, % |\n|---|---|---|---|---|")
    for kind in ("normal", "exponential - exponential", "right or wrong"):
        for n in (50, 100, 200):
            effect, found, alone = verdicts(kind, n, given.comparisons)
            print(f"| {kind} | {n} | {effect:.3f} | {found:.1f} | {alone:.1f} |", flush=True)
    if not given.skip_model:
        for name, (told, pairs) in sampled_twice(given.seeds, 64).items():
            print(f"one model, two seeds, {name}: told apart in {told} of {pairs} pairs ({100 * told / pairs:.1f}%)")


if __name__ == "__main__":
    main()
