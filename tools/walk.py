"""Prints how far a reader travels: the files that one `train` and one `compare` run code of, and how often a call goes up.

python tools/walk.py       needs inlay installed; trains two steps of the built-in model in a temporary folder

Counted are the rooms above the engine: what a reader of the story has to open. A file counts when a function of it is
called, not when it is imported. A call that goes up is one from a lower room to a file of a higher one, such as a callback;
each pair of files counts once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = {
    "model": {"base_model": "builtin:nano", "device": "cpu"},
    "data": {"train": "rows.jsonl"},
    "train": {"max_steps": 2},
    "eval": {"max_rows": 8, "max_new_tokens": 4},
    "output": {"name": "walk"},
}


def ranks() -> dict[str, int]:
    """Room -> its layer in the import contract, 0 on top."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return {room.strip().removeprefix("inlay."): n for n, layer in enumerate(layers) for room in layer.split("|")}


class Walk:
    """Files of the package that code was run of while `call` ran, and the calls that went up."""

    def __init__(self, package: Path, call: Callable[[], Any]) -> None:
        self._package, self._ranks = f"{package}{os.sep}", ranks()
        self.files: set[str] = set()
        self.upward: set[tuple[str, str]] = set()
        sys.setprofile(self._see)
        try:
            self.result = call()
        finally:
            sys.setprofile(None)

    def story(self) -> list[str]:
        """Files of the rooms above the engine."""
        engine = self._ranks["engine"]
        return sorted(file for file in self.files if self._rank(file) < engine)

    def _rank(self, file: str) -> int:
        room = Path(file).parts[0].removesuffix(".py")
        return self._ranks.get(room, 99)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not code.co_filename.startswith(self._package):
            return
        caller = frame.f_back
        imported = (
            caller is not None and caller.f_code.co_name == "<module>" and code.co_filename == caller.f_code.co_filename
        )
        if imported or not code.co_flags & CO_OPTIMIZED:  # of a module that is imported: a table, the body of a class
            return
        file = code.co_filename.removeprefix(self._package)
        self.files.add(file)
        while caller and not caller.f_code.co_filename.startswith(self._package):
            caller = caller.f_back
        if caller:
            above = caller.f_code.co_filename.removeprefix(self._package)
            if self._rank(file) < self._rank(above):
                self.upward.add((above, file))


def walks() -> dict[str, Walk]:
    """The walk of `train` and that of `compare`."""
    import inlay

    package = Path(inlay.__file__).parent
    rows = (package / "builtin/domains/customer_support/train.jsonl").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Path("rows.jsonl").write_text("".join(rows.splitlines(keepends=True)[:60]), encoding="utf-8")
        with contextlib.redirect_stderr(io.StringIO()):
            train = Walk(package, lambda: inlay.train(SETTINGS, fresh=True))
            compare = Walk(package, lambda: inlay.compare(train.result))
    return {"train": train, "compare": compare}


def main() -> None:
    found = walks()
    if "--json" in sys.argv[1:]:
        print(json.dumps({name: [len(walk.story()), len(walk.upward)] for name, walk in found.items()}))
        return
    for name, walk in found.items():
        print(f"{name}: {len(walk.story())} files, {len(walk.upward)} calls upward")
        if "--list" in sys.argv[1:]:
            print(
                "\n".join([*(f"  {file}" for file in walk.story()), *(f"  {a} -> {b}" for a, b in sorted(walk.upward))])
            )


if __name__ == "__main__":
    main()
