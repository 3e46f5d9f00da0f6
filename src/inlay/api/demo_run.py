"""The demo: a small built-in base trained on built-in rows."""

from __future__ import annotations

from inlay import config as configs
from inlay.api.evaluation import compare
from inlay.api.training import train
from inlay.data.example_tasks import find_example_task
from inlay.evaluation.compare import Comparison
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.reporter import Reporter
from inlay.training.process import require_alone


def demo(*, folder: str = "results", reporter: Reporter | None = None) -> tuple[Run, Comparison]:
    """A run of the built-in base on the built-in customer-support rows, and its comparison; numbered anew each time."""
    require_alone("demo")
    files = find_example_task("customer_support")
    config = configs.load(
        tree={
            "preset": "support",
            "model": {"base_model": "builtin:nano"},
            "data": {"train": str(files.train), "eval": str(files.heldout)},
            "train": {"epochs": 3},
            "eval": {"max_rows": 100, "max_new_tokens": 64},
            "output": {"folder": folder, "name": runs.next_named(folder, "demo")},
        }
    )
    run = train(config, reporter=reporter)
    return run, compare(run, reporter=reporter)
