"""Whether a long run grows: seconds a step and peak memory of `builtin:nano` through thousands of steps.

    python benchmarks/flat_steps.py [--steps 5000] [--json]

Prints each tenth of the run: median seconds of a step, and the peak of resident memory so far. A run does not grow when
the last tenth takes as long as the second, and the peak has stood still since.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import inlay
from inlay import api

ROWS = Path(inlay.__file__).parent / "builtin" / "domains" / "customer_support" / "train.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        found = tenths(given.steps, given.batch, Path(folder))
    print(json.dumps(found, indent=1) if given.json else table(found))


def tenths(steps: int, batch: int, folder: Path) -> list[dict[str, Any]]:
    config = {
        "model": {"base_model": "builtin:nano"},
        "data": {"train": str(ROWS)},
        "train": {"max_steps": steps, "batch_size": batch, "on_overfitting": "note", "learning_rate": 1e-5},
        "eval": {"max_rows": 16, "retention_rows": 0},
        "output": {"folder": str(folder)},
        "track": {"trackers": []},
    }
    lines = [line for line in api.train(config).metrics if "loss" in line]
    took = [b["time_s"] - a["time_s"] for a, b in pairwise(lines)]
    size = len(took) // 10
    return [
        {
            "from_step": lines[k * size]["step"],
            "step_s": statistics.median(took[k * size : (k + 1) * size]),
            "peak_bytes": lines[(k + 1) * size]["memory_bytes"],
        }
        for k in range(10)
    ]


def table(found: list[dict[str, Any]]) -> str:
    rows = [f"| {t['from_step']} | {1000 * t['step_s']:.1f} ms | {t['peak_bytes'] / 1e6:,.0f} MB |" for t in found]
    return "\n".join(["| from step | a step | peak so far |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
