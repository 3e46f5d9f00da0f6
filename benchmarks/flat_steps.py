"""Whether a long run grows, or one over many rows: what steps of `builtin:nano` take, and its peak memory.

    python benchmarks/flat_steps.py [--steps 5000] [--json]
    python benchmarks/flat_steps.py --rows 1000,10000,100000,1000000 --steps 60

Prints each tenth of the run: median seconds of a step, and the peak of resident memory so far. A run does not grow when
the last tenth takes as long as the second, and the peak has stood still since. With `--rows` one run for each number of
made-up rows, each in a process of its own, after a start that only prepares them: the median cost of a token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_prepare import write_rows

import inlay
from inlay import api

ROWS = Path(inlay.__file__).parent / "builtin" / "domains" / "customer_support" / "train.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rows", help="numbers of rows, in place of one long run")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.one:
            print(json.dumps(of_a_token(given.one, given.steps, given.batch, folder)))
            return
        if given.rows:
            found = [by_rows(int(count), given.steps, given.batch, folder) for count in given.rows.split(",")]
            print(json.dumps(found, indent=1) if given.json else rows_table(found))
            return
        found = tenths(given.steps, given.batch, folder)
    print(json.dumps(found, indent=1) if given.json else table(found))


def by_rows(count: int, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    path = folder / f"{count}.jsonl"
    write_rows(path, count)
    command = [sys.executable, __file__, "--one", str(path), "--batch", str(batch), "--steps"]
    environment = os.environ | {"INLAY_CACHE": str(folder / "cache")}
    for how_many in (1, steps):
        done = subprocess.run([*command, str(how_many)], capture_output=True, text=True, check=True, env=environment)
    path.unlink()
    return {"rows": count} | json.loads(done.stdout.splitlines()[-1])


def of_a_token(path: Path, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    lines = [line for line in trained(path, steps, batch, folder) if "loss" in line]
    per_s = statistics.median([line["tokens_per_s"] for line in lines[len(lines) // 4 :]])
    return {"token_us": 1e6 / per_s, "peak_bytes": lines[-1]["memory_bytes"]}


def rows_table(found: list[dict[str, Any]]) -> str:
    rows = [f"| {t['rows']:,} | {t['token_us']:.0f} µs | {t['peak_bytes'] / 1e6:,.0f} MB |" for t in found]
    return "\n".join(["| rows | a token | peak |", "|---|---|---|", *rows])


def trained(rows: Path, steps: int, batch: int, folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    config = {
        "model": {"base_model": "builtin:nano"},
        "data": {"train": str(rows)},
        "train": {"max_steps": steps, "batch_size": batch, "on_overfitting": "note", "learning_rate": 1e-5},
        "eval": {"max_rows": 16, "retention_rows": 0},
        "output": {"folder": str(folder)},
        "track": {"trackers": []},
    }
    return list(api.train(config).metrics)


def tenths(steps: int, batch: int, folder: Path) -> list[dict[str, Any]]:
    lines = [line for line in trained(ROWS, steps, batch, folder) if "loss" in line]
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
