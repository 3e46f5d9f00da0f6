"""Where a router sends prompts of its adapters that it has not seen, general text, and tasks that it has never heard of.

Run: PYTHONPATH=src python benchmarks/router.py A.jsonl B.jsonl …     (the data of the adapters; no model is loaded)
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from inlay.adapters.router import Router, names_of
from inlay.data.example_tasks import example_tasks
from inlay.data.reading.read import read_examples
from inlay.data.splits import by_content
from inlay.evaluation.score import prompt_text
from inlay.workflows.fit_router import Side, fitted_router, general_parts

BASE = "base"


def sides(path: str) -> tuple[list[str], list[str], list[str]]:
    """Prompts to fit, to calibrate and to judge: 80, 2 and 18 percent."""
    examples = read_examples(path).examples
    fit, other = by_content(examples, 0.2)
    judge, calibrate = by_content([examples[n] for n in other], 0.1)
    texts = [prompt_text(examples[n]) for n in other]
    return [prompt_text(examples[n]) for n in fit], [texts[n] for n in calibrate], [texts[n] for n in judge]


def line(name: str, router: Router, prompts: Sequence[str]) -> str:
    """A row of the table."""
    sent = Counter(router.choose(prompt).arm or BASE for prompt in prompts)
    return (
        f"| {name} | {len(prompts):,} | "
        + " | ".join(f"{sent[arm] / len(prompts):.1%}" for arm in names_of(router.arms))
        + " |"
    )


def main(paths: Sequence[str]) -> None:
    """Prints the table."""
    names, parts = [Path(path).stem for path in paths], [sides(path) for path in paths]
    general = general_parts()
    tasks = {
        name: [[prompt_text(one) for one in side] for side in task.read()] for name, task in example_tasks().items()
    }

    def router(left_out: Sequence[str] = ()) -> Router:
        others = [task for name, task in tasks.items() if name not in left_out]
        fit = [Side(0, general[0]), *(Side(0, task[0]) for task in others)]
        calibrate = [Side(0, general[1]), *(Side(0, task[1]) for task in others)]
        fit += [Side(n, part[0]) for n, part in enumerate(parts, 1)]
        calibrate += [Side(n, part[1]) for n, part in enumerate(parts, 1)]
        return fitted_router(names, fit, calibrate, general[1], "")

    whole = router()
    print(f"| prompts of | number | {' | '.join(names_of(names))} |\n|---|---{'|---' * len(names_of(names))}|")
    for name, part in zip(names, parts, strict=True):
        print(line(name, whole, part[2]))
    print(line("general text", whole, general[2]))
    for name, task in tasks.items():
        print(line(f"{name}, left out of the fit", router([name]), task[1]))
    alone = router(list(tasks))
    for name, task in tasks.items():
        print(line(f"{name}, no example task in the fit", alone, task[1]))
    prompts = [prompt for part in parts for prompt in part[2]]
    times = []
    for _ in range(5):
        began = time.process_time()
        for prompt in prompts:
            whole.choose(prompt)
        times.append((time.process_time() - began) / len(prompts))
    print(
        f"\nA query takes {1e6 * min(times):.0f} µs of CPU; threshold {whole.threshold:.2f}, temperature {whole.temperature:.2f}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
