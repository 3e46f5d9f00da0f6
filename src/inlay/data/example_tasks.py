"""The example tasks that ship with the package: rows to train on and rows to hold out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from inlay.data.reading.read import read_examples
from inlay.data.types import Example
from inlay.errors import DataError, unknown_name


@dataclass(frozen=True, slots=True)
class ExampleTask:
    """Training rows, and held-out rows with the same content in other words."""

    name: str
    train: Path
    heldout: Path

    def read(self) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """(training examples, held-out examples)."""
        return read_examples(str(self.train)).examples, read_examples(str(self.heldout)).examples


def example_tasks() -> dict[str, ExampleTask]:
    """Every example task by name."""
    folder = Path(str(resources.files("inlay") / "builtin" / "domains"))
    found = sorted(p for p in folder.iterdir() if (p / "train.jsonl").is_file())
    return {p.name: ExampleTask(p.name, p / "train.jsonl", p / "heldout.jsonl") for p in found}


def find_example_task(name: str) -> ExampleTask:
    """The example task of that name. Raises: DataError when there is none."""
    known = example_tasks()
    if name not in known:
        raise DataError(f"data: {unknown_name('example task', name, known)}")
    return known[name]
