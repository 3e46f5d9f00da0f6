"""The run folder: all files of one training run.

results/<name>/ config.yaml run.json metrics.jsonl log.txt heldout.jsonl checkpoints/ adapter/ (or model/) reports/
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.config import Config
from inlay.config.load import read_tree, validate
from inlay.config.renamed import with_current_names
from inlay.errors import RunError, unknown_name
from inlay.runs.record import Result, Rollback, RunRecord
from inlay.storage import append_line, explained, move_aside, path_exists, read_lines, write_file, write_json
from inlay.typed_json import JsonObject, encode

PROOFS = "proofs.json"


@dataclass(frozen=True, slots=True)
class Run:
    """A folder under `output.folder`. Cheap to make; every property reads the disk."""

    path: Path

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def config(self) -> Config:
        """The resolved config that the run was started with."""
        path = self.path / "config.yaml"
        return validate(with_current_names(read_tree(path)), str(path))

    @property
    def is_recorded(self) -> bool:
        """Whether there is a run.json; a start that was killed at once leaves none."""
        return (self.path / "run.json").exists()

    @property
    def record(self) -> RunRecord:
        """The contents of run.json. Raises: RunError when there is none, or it cannot be read."""
        path = self.path / "run.json"
        try:
            return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}).") from None

    @property
    def result(self) -> Result:
        """Steps, losses and verdict. Raises: RunError when the run is not finished."""
        found = self.record.result
        if found is None:
            raise RunError(f"{self.path}: has no result yet (status {self.status}).")
        return found

    @property
    def base_revision(self) -> str | None:
        """The commit of a hub's base that the run was trained on, whatever its branch holds by now."""
        recorded = self.record.base_commit if self.is_recorded else None
        return recorded or self.config.model.revision

    @property
    def status(self) -> str:
        """`running`, `finished`, `interrupted` or `failed`; `empty` before the first record."""
        return self.record.status if self.is_recorded else "empty"

    @property
    def caution(self) -> str:
        """A warning in one line for a run some of whose proofs failed; empty for any other."""
        try:
            found = json.loads((self.path / PROOFS).read_text(encoding="utf-8"))["proofs"]
            failed = [str(proof["name"]) for proof in found if proof["passed"] is False]
        except (OSError, ValueError, LookupError, TypeError):  # an earlier version, or none yet
            return ""
        if not failed:
            return ""
        return (
            f"warning: {self.path}: failed its proofs ({', '.join(failed)}), so it is not what was trained or measured. "
            f"What they found: inlay verify {shlex.quote(str(self.path))}."
        )

    @property
    def adapter(self) -> Path:
        """Folder of the adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """Folder of the model after full fine-tuning."""
        return self.path / "model"

    @property
    def trained(self) -> Path:
        """Folder of the result: `adapter/`, or after full fine-tuning `model/`."""
        return self.model if self.model.is_dir() else self.adapter

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def reports(self) -> Path:
        """Folder of the reports."""
        return self.path / "reports"

    @property
    def heldout(self) -> Path:
        """File of the held-out rows."""
        return self.path / "heldout.jsonl"

    @property
    def metrics(self) -> list[JsonObject]:
        """Every line of metrics.jsonl."""
        return read_lines(self.path / "metrics.jsonl")

    def write_record(self, record: RunRecord) -> None:
        """Replaces run.json: `run.write_record(replace(run.record, status=FINISHED))`."""
        write_json(self.path / "run.json", record.to_json())

    def log_metrics(self, values: Mapping[str, object]) -> None:
        """Adds a line to metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", values)

    def truncate_metrics(self, step: int, rollbacks: Sequence[Rollback] = ()) -> None:
        """Drops the metrics after `step`, which a resumed run writes again, and all rollbacks but these."""
        lines = [encode(rollback) for rollback in rollbacks]
        kept = [line for line in self.metrics if line.get("step", 0) <= step]
        kept = [line for line in kept if line.get("event") != "rollback" or line in lines]
        kept += [line for line in lines if line not in kept]
        write_file(self.path / "metrics.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def seal_metrics(self) -> list[Any]:
        """[bytes, sha256] of metrics.jsonl, after an fsync."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return [0, _sha256(b"")]
        with explained(path), path.open("rb+") as file:
            content = file.read()
            os.fsync(file.fileno())
        return [len(content), _sha256(content)]

    def mend_metrics(self, seal: Sequence[Any]) -> str | None:
        """A note for the user when metrics.jsonl no longer begins with the sealed bytes; None when it does.

        The damaged file then has another name, and its readable lines are in its place.
        """
        path = self.path / "metrics.jsonl"
        size, digest = seal
        with explained(path):
            content = path.read_bytes() if path.exists() else b""
            if _sha256(content[:size]) == digest:
                return None
            note = f"{path} is not what was written when the last checkpoint was saved"
            if path.exists():
                note += f": now {move_aside(path, 'damaged').name}, and its readable lines are kept"
        write_file(path, b"".join(line + b"\n" for line in content.split(b"\n") if _is_line(line)))
        return note + "."

    def log(self, text: str) -> None:
        """Adds to log.txt."""
        path = self.path / "log.txt"
        with explained(path), path.open("a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")

    def has_checkpoint(self) -> bool:
        """Whether any checkpoint lies in the run, damaged or not."""
        return self.checkpoints.is_dir() and any(self.checkpoints.glob("step-*"))


RunLike = str | Path | Run | None
"""A run, its name or its folder; None is the run trained last."""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_line(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def stem(config: Config) -> str:
    """`<data>-<model>` as a folder name."""
    first, *others = config.data.train_files
    data = re.sub(
        r"\.(gz|bz2|xz|zst|zip|jsonl|ndjson|json|csv|tsv|parquet|arrow|xlsx|txt)\b",
        "",
        Path(first.path.rstrip("/")).name,
    )
    data += f"-and-{len(others)}" if others else ""
    model = Path(config.model.base_model.rstrip("/")).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{data}-{model.removeprefix('builtin:')}").strip("-.") or "run"


def numbered(config: Config) -> list[Run]:
    """The runs that were named after this data and model, oldest first."""
    folder, prefix = Path(config.output.folder), stem(config)
    found = [p for p in folder.glob(f"{prefix}-*") if p.name[len(prefix) + 1 :].isdigit() and p.is_dir()]
    return [Run(path) for path in sorted(found, key=lambda p: int(p.name[len(prefix) + 1 :]))]


def next_numbered(config: Config) -> Run:
    """The first unused `<data>-<model>-<number>`."""
    return Run(Path(config.output.folder) / next_named(config.output.folder, stem(config)))


def next_named(folder: str | Path, prefix: str) -> str:
    """The first unused `<prefix>-<number>` in a folder."""
    used = [p.name[len(prefix) + 1 :] for p in Path(folder).glob(f"{prefix}-*")]
    return f"{prefix}-{max((int(n) for n in used if n.isdigit()), default=0) + 1}"


def caution_of(folder: Path) -> str:
    """`Run.caution` of the run that an adapter or model folder lies in; empty for any other folder."""
    return Run(folder.parent).caution if path_exists(folder.parent / "run.json") else ""


_MOVED_ASIDE = re.compile(r"\.old-\d+$")


def _started_at(path: Path) -> str:
    try:
        return Run(path).record.started_at
    except RunError:  # one broken folder must not hide the others
        return ""


def names(folder: str | Path) -> list[str]:
    """Names of the runs in a folder, without those that were moved aside."""
    found = (path.parent.name for path in Path(folder).glob("*/run.json"))
    return [name for name in found if not _MOVED_ASIDE.search(name)]


def find(name: RunLike, folder: str | Path = "results") -> Run:
    """The run of that name in `folder`, or of that path; without a name the one trained last.

    Raises: RunError naming the nearest run, or how to make one.
    """
    if isinstance(name, Run):
        return name
    if name is not None and path_exists(Path(name) / "run.json"):
        return Run(Path(name))
    runs = {one: Path(folder) / one for one in names(folder)}
    if name is None:
        if not runs:
            raise RunError(
                f"{folder}: no runs here yet. Make one: inlay train DATA.jsonl --model MODEL, or inlay demo."
            )
        return Run(max(runs.values(), key=_started_at))
    if str(name) not in runs:
        where = (
            f"no run at {name}"
            if "/" in str(name)
            else unknown_name("run", str(name), runs)
            if runs
            else f"no run {name!r}"
        )
        raise RunError(f"{folder}: {where}")
    return Run(runs[str(name)])


def split_step(name: str | Path | None) -> tuple[str | Path | None, int | None]:
    """(`RUN`, STEP) of `RUN@STEP`; (name, None) of any other name."""
    before, at, step = str(name or "").rpartition("@")
    if not at or not step.isdigit() or path_exists(Path(str(name))):
        return name, None
    return before or None, int(step)


def created(run: Run) -> bool:
    """Makes the folder of a new run; False when somebody else has made it first."""
    with explained(run.path):
        try:
            run.path.mkdir(parents=True)
        except FileExistsError:
            return False
    return True


def start_fresh(run: Run) -> Path | None:
    """Moves an old run of that name aside and returns where it went; None when there was none."""
    return move_aside(run.path) if run.path.exists() else None
