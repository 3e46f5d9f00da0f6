"""The fault campaigns: `python tests/faults/run.py` is the short form, with `--full` the long one.

Prints what was tried and how each case ended; ends with 1 when one of them did not end well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# before torch is imported: one thread, or forking is not safe
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

import campaigns as c  # noqa: E402
from histories import histories  # noqa: E402
from lab import Lab, Tally, workplace  # noqa: E402

LONG = {"max_steps": 1500, "eval_steps": 300, "learning_rate": 1e-3, "keep_checkpoints": 2}


KINDS = ("logits", "gradient", "weight", "optimizer", "proof")
_SHARED: list[Lab] = []


def lab_for(folder: Path, full: bool, seed: int, **train: Any) -> Lab:
    """One of its own in the full form; the short form has time for one."""
    if full:
        return Lab(folder, seed, **train)
    if not _SHARED:
        _SHARED.append(Lab(folder))
    return _SHARED[0]


def kills(folder: Path, full: bool) -> Iterator[Tally]:
    lab = lab_for(folder, full, 0)
    yield c.kills_at_events(lab, range(1, lab.events + 1) if full else [4, *lab.random.sample(range(1, lab.events), 1)])


def power(folder: Path, full: bool) -> Iterator[Tally]:
    lab = lab_for(folder, full, 1)
    yield c.kills_at_events(
        lab, range(1, lab.events + 1) if full else lab.random.sample(range(1, lab.events), 1), power=True
    )


def random_kills(folder: Path, full: bool) -> Iterator[Tally]:
    lab = lab_for(folder, full, 2, save_steps=2)
    yield c.kills_at_random_times(lab, 150 if full else 1)
    yield c.signals_at_events(lab, 60 if full else 1)


def cycles(folder: Path, full: bool) -> Iterator[Tally]:
    if full:
        yield c.kill_and_resume(Lab(folder, seed=3, **LONG), 500)


def damage(folder: Path, full: bool) -> Iterator[Tally]:
    lab = lab_for(folder, full, 4)
    yield from c.damaged_loads(lab, 5000 if full else 80, 1000 if full else 20)
    yield c.damaged_resumes(lab, 150 if full else 1)


def disks(folder: Path, full: bool) -> Iterator[Tally]:
    """Needs root and mounts."""
    lab = lab_for(folder, full, 5)
    if c.can_mount(folder):
        yield c.full_disks(lab, range(4096, 4096 * 112, 4096) if full else (20_000, 80_000, 200_000, 400_000))
        yield c.read_only_disks(lab, 30 if full else 2)
    else:
        yield Tally("ENOSPC and EROFS", note="left out: nothing can be mounted here")


def closed(folder: Path, full: bool) -> Iterator[Tally]:
    lab = lab_for(folder, full, 6)
    yield c.closed_folders(lab, 30 if full else 1)


def numbers(folder: Path, full: bool) -> Iterator[Tally]:
    yield c.not_finite(lab_for(folder / "a", full, 7), 200 if full else 5, KINDS)
    if full:  # the short form is tests/training/test_out_of_memory.py
        yield c.out_of_memory(Lab(folder / "b", seed=8, dropout=0.0), 80)


def clock(folder: Path, full: bool) -> Iterator[Tally]:
    lab = lab_for(folder, full, 9)
    yield c.clocks(lab, 40 if full else 1)
    yield c.two_trainers(lab, 20 if full else 1)


def saves(folder: Path, full: bool) -> Iterator[Tally]:
    yield histories(folder, 10_000 if full else 25)


CAMPAIGNS: dict[str, Callable[[Path, bool], Iterator[Tally]]] = {
    "kills": kills, "power": power, "random": random_kills, "cycles": cycles, "damage": damage, "disks": disks,
    "closed": closed, "numbers": numbers, "clock": clock, "saves": saves,
}  # fmt: skip


def tallies(names: list[str], full: bool) -> Iterator[Tally]:
    with workplace() as folder:
        for name in names:
            yield from CAMPAIGNS[name](folder / name, full)


def in_parallel(names: list[str], jobs: int) -> list[Tally]:
    """The full form of each campaign in a process of its own."""

    def one(name: str) -> list[Tally]:
        done = subprocess.run(
            [sys.executable, __file__, "--full", "--json", name], capture_output=True, text=True, check=False
        )
        if not done.stdout:
            return [Tally(name, problems=[done.stderr[-2000:]])]
        return [Tally(**value | {"ends": Counter(value["ends"])}) for value in json.loads(done.stdout)]

    with ThreadPoolExecutor(jobs) as pool:
        return [tally for found in pool.map(one, names) for tally in found]


def table(found: list[Tally]) -> str:
    lines = ["| what was done | cases | how they ended |", "|---|---|---|"]
    for tally in found:
        ends = "; ".join(f"{count:,} {end}" for end, count in sorted(tally.ends.items(), key=lambda item: -item[1]))
        lines.append(f"| {tally.what} | {tally.tried:,} | {ends or tally.note} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CAMPAIGNS), help=f"of {', '.join(CAMPAIGNS)}")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    given = parser.parse_args()
    found = in_parallel(given.names, given.jobs) if given.page else list(tallies(given.names, given.full))
    if given.json:
        sys.stdout.write(json.dumps([vars(tally) for tally in found]))
    else:
        sys.stdout.write(table(found) + "\n" + "".join(f"PROBLEM {p}\n" for tally in found for p in tally.problems))
    if given.page:
        write_page(given.page, found)
    return 1 if any(tally.problems for tally in found) else 0


def write_page(page: Path, found: list[Tally]) -> None:
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    before, mark, _ = page.read_text(encoding="utf-8").partition("<!-- written by make faults -->\n")
    command = f"`make faults`, {datetime.now(UTC):%Y-%m-%d}, commit {head.stdout.strip() or 'unknown'}"
    page.write_text(f"{before}{mark}\n{command}\n\n{table(found)}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
