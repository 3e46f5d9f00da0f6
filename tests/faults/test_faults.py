"""What is done to runs here must end well. `make faults` does it thousands of times."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from training_runs import Forked


def campaigns(names: tuple[str, ...], found: Path) -> None:
    import run

    found.write_text(json.dumps([vars(tally) for tally in run.tallies(list(names), full=False)]))


def problems(folder: Path, *names: str) -> list[str]:
    """In a process of its own with one thread: it forks a child for every training."""
    code, said = Forked(partial(campaigns, names, folder / "found.json"), folder).wait(300)
    assert code == 0, said
    found = json.loads((folder / "found.json").read_text())
    assert all(sum(tally["ends"].values()) > 0 for tally in found), found
    return [problem for tally in found for problem in tally["problems"]]


def test_runs_that_are_killed_cut_off_damaged_or_run_dry_end_as_the_unbroken_run_or_say_why(
    tmp_path: Path,
) -> None:
    assert problems(tmp_path, "kills", "power", "random", "damage", "numbers", "clock", "saves") == []


@pytest.mark.mount
def test_a_disk_that_is_full_read_only_or_closed_ends_a_run_with_one_line_and_loses_nothing(tmp_path: Path) -> None:
    assert problems(tmp_path, "disks", "closed") == []
