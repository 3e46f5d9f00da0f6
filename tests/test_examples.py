"""The examples run as they stand, at a small size: a tiny base, three steps, eight rows."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay import api
from inlay.config import Config, load
from inlay.data import example_tasks

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SMALL: dict[str, Any] = {
    "model.device": "cpu",
    "model.dtype": "float32",
    "train.max_steps": 3,
    "train.batch_size": 8,
    "train.learning_rate": 1e-2,
    "eval.max_rows": 8,
    "eval.max_new_tokens": 4,
    "eval.resamples": 200,
    "eval.prompts": [],
    "eval.retention_rows": 0,
    "track.trackers": [],
}


def small(base: Path, folder: Path) -> dict[str, Any]:
    return SMALL | {"model.base_model": str(base), "output.folder": str(folder)}


def test_every_example_is_run_here() -> None:
    assert {p.name for p in EXAMPLES.iterdir() if p.is_file()} == {
        "train_and_compare.py",
        "support.yaml",
        "classify.yaml",
    }


@pytest.mark.parametrize(("name", "task"), [("support", "customer_support"), ("classify", "ticket_labels")])
def test_an_example_config_trains_and_compares_by_its_own_metric(
    name: str, task: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    as_written = load(EXAMPLES / f"{name}.yaml")
    rows = example_tasks()[task]
    assert Path(as_written.data.train).read_bytes() == rows.train.read_bytes()
    assert as_written.data.eval is not None
    assert Path(as_written.data.eval).read_bytes() == rows.heldout.read_bytes()
    config = load(EXAMPLES / f"{name}.yaml", small(tiny_base, tmp_path))
    run = api.train(config)
    assert run.status == "finished"
    comparison = api.compare(run)
    assert comparison.primary == ("loss" if config.eval.metric == "auto" else config.eval.metric)
    assert comparison.n == 8
    assert left_behind(run.path) == promised()


def left_behind(run: Path) -> tuple[set[str], set[str]]:
    """(names in the run folder, names in a checkpoint of it)."""
    checkpoint = next(run.glob("checkpoints/step-*"))
    return {p.name for p in run.iterdir() if not p.name.startswith(".")}, {p.name for p in checkpoint.iterdir()}


def promised() -> tuple[set[str], set[str]]:
    """The same, as README.md and docs/checkpoints.md have it."""
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("\nresults/")[1].split("```")[0]
    table = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8").split("## Writing")[0]
    return set(re.findall(r"^  ([\w.]+)", tree, re.M)), set(re.findall(r"^\| `([\w.]+)` \|", table, re.M))


def test_the_example_script_trains_compares_and_answers(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Config] = []

    def train_small(tree: dict[str, Any]) -> Any:
        written.append(load(tree=tree))
        return api.train(load(None, small(tiny_base, tmp_path), tree=tree))

    monkeypatch.setattr(inlay, "train", train_small)
    runpy.run_path(str(EXAMPLES / "train_and_compare.py"), run_name="__main__")
    assert written[0].model.base_model == "builtin:nano"
    assert capsys.readouterr().out.startswith(("better", "worse", "not distinguishable"))
