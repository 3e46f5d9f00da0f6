"""How long a durable save takes, and what saving costs a run: alone, and beside the training it must not hold up.

Run: python benchmarks/checkpoint_save.py [--folder FOLDER] [--saves 100] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from inlay import api
from inlay.data import example_tasks
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import Reporter
from inlay.training import checkpoint as checkpoints
from inlay.training.checkpoint import Progress, snapshot
from inlay.training.job import AdapterJob

WIDTH, RANK, LAYERS = 1024, 16, 80  # 80 pairs of 16 × 1024 float32 are 10.5 MB


class Quiet(Reporter):
    """Says nothing."""


def adapter() -> AdapterState:
    """A LoRA adapter of about 10 MB under PEFT's names."""
    tensors = {
        f"base_model.model.layers.{layer}.q_proj.lora_{side}.weight": torch.randn(*shape)
        for layer in range(LAYERS)
        for side, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))
    }
    return AdapterState({"r": RANK}, tensors)


def saves(folder: Path, count: int, with_optimizer: bool) -> list[float]:
    """Seconds of each of `count` durable saves of a 10 MB adapter; with AdamW's two moments beside it 31 MB."""
    state = adapter()
    parameters = [torch.nn.Parameter(t) for t in state.tensors.values()]
    optimizer = torch.optim.AdamW(parameters)
    if with_optimizer:
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    times = []
    for step in range(1, count + 1):
        began = time.perf_counter()
        checkpoints.write(folder, snapshot(state, optimizer, Progress(step=step)))
        times.append(time.perf_counter() - began)
        checkpoints.prune(folder, 2, [])
    return times


def share_of_a_run(folder: Path) -> dict[str, float]:
    """What saves hold the training thread up in a default run of the customer-support rows, and what they take beside it.

    Held up is: copying the state, waiting for the save before, and waiting for the last one.
    """
    held: list[float] = []
    written: list[float] = []
    save, write = AdapterJob.save_checkpoint, checkpoints.write

    def timed(kept: list[float], call: Any) -> Any:
        def inner(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                kept.append(time.perf_counter() - began)

        return inner

    AdapterJob.save_checkpoint = timed(held, save)
    checkpoints.write = timed(written, write)
    try:
        tree = {
            "model": {"base_model": "builtin:nano"},
            "data": {"train": str(example_tasks()["customer_support"].train)},
            "output": {"folder": str(folder)},
        }
        began = time.perf_counter()
        run = api.train(tree, reporter=Quiet())
        whole = time.perf_counter() - began
    finally:
        AdapterJob.save_checkpoint, checkpoints.write = save, write
    steps = sum("loss" in line for line in run.metrics)
    return {"run_s": whole, "steps": steps, "saves": len(written), "held_s": sum(held), "written_s": sum(written)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for what, full in (("adapter alone", False), ("with AdamW's state", True)):
            times = sorted(saves(folder / what.replace(" ", "-"), options.saves, full))
            found[what] = {
                "median_ms": statistics.median(times) * 1e3,
                "p95_ms": times[int(len(times) * 0.95) - 1] * 1e3,
                "most_ms": times[-1] * 1e3,
            }
        found["a default run"] = share_of_a_run(folder / "runs")
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['cores']} cores, load {found['load']:.1f}")
    for what in ("adapter alone", "with AdamW's state"):
        t = found[what]
        print(f"{what}: median {t['median_ms']:.0f} ms, p95 {t['p95_ms']:.0f} ms, most {t['most_ms']:.0f} ms")
    r = found["a default run"]
    print(
        f"a default run of {r['run_s']:.1f} s, {r['steps']} steps, {r['saves']} saves: training was held up "
        f"{r['held_s'] * 1e3:.0f} ms ({r['held_s'] / r['run_s']:.2%}); writing took {r['written_s'] * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
