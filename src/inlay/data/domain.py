"""The example tasks that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from inlay.data.reading.read import read_examples
from inlay.data.types import Example
from inlay.errors import DataError, unknown_name


@dataclass(frozen=True, slots=True)
class Domain:
    """Training rows and held-out rows that ask in other words what training teaches."""

    name: str
    train: Path
    heldout: Path

    def read(self) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """(training examples, held-out examples)."""
        return read_examples(str(self.train)).examples, read_examples(str(self.heldout)).examples


def domains() -> dict[str, Domain]:
    """Every example task by name."""
    folder = Path(str(resources.files("inlay") / "builtin" / "domains"))
    found = sorted(p for p in folder.iterdir() if (p / "train.jsonl").is_file())
    return {p.name: Domain(p.name, p / "train.jsonl", p / "heldout.jsonl") for p in found}


def find_domain(name: str) -> Domain:
    """The example task of that name. Raises: DataError when there is none."""
    known = domains()
    if name not in known:
        raise DataError(f"data: {unknown_name('example task', name, known)}")
    return known[name]
