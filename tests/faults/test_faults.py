"""What is done to runs here must end well. `make faults` does it thousands of times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def problems(*names: str) -> list[str]:
    """In a process of its own with one thread: it forks a child for every training."""
    done = subprocess.run([sys.executable, str(RUN), "--json", *names], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert all(sum(tally["ends"].values()) > 0 for tally in found), found
    return [problem for tally in found for problem in tally["problems"]]


def test_runs_that_are_killed_cut_off_damaged_or_run_dry_end_as_the_unbroken_run_or_say_why() -> None:
    assert problems("kills", "power", "random", "damage", "numbers", "clock", "saves") == []


@pytest.mark.mount
def test_a_disk_that_is_full_read_only_or_closed_ends_a_run_with_one_line_and_loses_nothing() -> None:
    assert problems("disks", "closed") == []
