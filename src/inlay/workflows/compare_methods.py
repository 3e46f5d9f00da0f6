"""Methods of fine-tuning side by side: one run each, one after another, over the same rows, split, seed and steps.

Each run is a process of its own, so that its peak of memory is its own, and stops with a checkpoint when this one dies.
The runs lie in one folder and are resumed like any other, so a comparison that was cut off goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from inlay.config import Config
from inlay.config.load import merge, nested, validate
from inlay.config.renamed import with_first_names
from inlay.config.render import as_yaml
from inlay.config.sections.base import Assignments
from inlay.errors import ConfigError, InlayError, Interrupted, RunError, unknown_name
from inlay.methods.table import METHODS, method_of
from inlay.reports import html
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.record import FINISHED
from inlay.runs.reporter import Reporter, bytes_shown, change_shown, duration_shown
from inlay.storage import explained, owned, write_file, write_json
from inlay.training.process import STOP_WITH_STDIN
from inlay.typed_json import JsonObject
from inlay.workflows import plan
from inlay.workflows.train_process import anchored

RESULT: Final = "methods.json"
REPORT: Final = "methods.html"
VARIANTS: Final[dict[str, Assignments]] = {
    "lora": {},
    "qlora": {"model.quantization": "nf4"},
    "rslora": {"adapter.rslora": True},
    "dora": {"adapter.dora": True},
    "lora+": {"train.lora_plus_ratio": 16.0},
    **{name: {"adapter.method": name} for name in METHODS if name != "lora"},
}
"""Name in --methods -> what it sets over the config."""
_LEFT_OPEN: Final = (
    "adapter.method", "adapter.rslora", "adapter.dora", "adapter.init", "adapter.start_from", "model.quantization",
    "train.lora_plus_ratio", "train.branch_from",
)  # fmt: skip
_PATIENCE_S: Final = 120.0
_NOTES: Final = (
    "one seed and one learning rate a method: another seed or a tuned rate moves each of them, so the order of near ones "
    "says little.",
    "the intervals are against the base, not between methods: inlay compare RUN RUN tells two of them apart.",
    "memory is the peak of a run's process while it trained, libraries included (on CUDA its tensors); saved is the weights "
    "that must be kept beside the base, for full fine-tuning in its place.",
)


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """Size, cost and held-out loss of one method that was trained."""

    trainable: int
    """Parameters."""
    share: float
    """Of all parameters of the model."""
    learning_rate: float
    memory_bytes: int
    """Peak of the run's process while it trained."""
    saved_bytes: int
    steps: int
    train_time_s: float
    time_s: float
    base_eval_loss: float
    eval_loss: float
    difference: float
    """Of the held-out loss, adapter minus base; `low` and `high` are its 95% interval."""
    low: float | None
    high: float | None
    verdict: str

    def summary(self) -> str:
        """Change of the loss, interval and verdict in one line."""
        return f"{change_shown(self, '{:+.4f}'.format)} {self.verdict}"


@dataclass(frozen=True, slots=True)
class ComparedMethod:
    """One method: its run, and either its figures or the reason why it was skipped."""

    method: str
    run: str
    status: str
    reason: str | None
    figures: MethodFigures | None

    def to_json(self) -> JsonObject:
        """The row of methods.json."""
        row = {"method": self.method, "run": self.run, "status": self.status, "reason": self.reason}
        return row | (asdict(self.figures) if self.figures else {})


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """All methods over the same rows, split, seed and steps."""

    folder: str
    methods: list[ComparedMethod]
    notes: list[str]

    def to_json(self) -> JsonObject:
        """The JSON object of `--json` and, with a digest of the settings, of methods.json."""
        return {"folder": self.folder, "methods": [row.to_json() for row in self.methods], "notes": self.notes}


def compare_methods(config: Config, names: Sequence[str], fresh: bool, reporter: Reporter) -> MethodComparison:
    """See `inlay.api.compare_methods`."""
    configs = _configs(config, names)
    folder = Path(config.output.folder) / (config.output.name or f"{runs.stem(config)}-methods")
    if fresh and (aside := runs.start_fresh(Run(folder))):
        reporter.note(f"moved what was at {folder} to {aside}")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        _require_same(folder, config)
        rows: list[ComparedMethod] = []
        for number, (name, one) in enumerate(configs.items(), 1):
            reporter.note(f"{name}: {number} of {len(configs)}")
            reason = _trained(folder, name, one, reporter)
            row = _row(Run(folder / name), name, reason)
            rows.append(row)
            reporter.note(f"{name}: {row.figures.summary() if row.figures else reason}")
        result = MethodComparison(str(folder), rows, list(_NOTES))
        write_json(folder / RESULT, result.to_json() | {"settings": _settings(config)})
        write_file(folder / REPORT, _page(result))
    return result


def _configs(config: Config, names: Sequence[str]) -> dict[str, Config]:
    """The config of each method. Raises: ConfigError for a name that means none, or a setting that --methods makes."""
    if not names:
        raise ConfigError(f"--methods: name some of {', '.join(VARIANTS)}.")
    for name in names:
        if name not in VARIANTS:
            raise ConfigError(f"--methods: {unknown_name('method', name, VARIANTS)}")
    for path in _LEFT_OPEN:
        section, _, key = path.partition(".")
        here = getattr(config, section)
        if getattr(here, key) != type(here).model_fields[key].default:
            raise ConfigError(f"{path}: what differs between methods is set by --methods. Leave it out.")
    return {name: _of_method(config, VARIANTS[name]) for name in dict.fromkeys(names)}


def _of_method(config: Config, changes: Assignments) -> Config:
    tree = anchored(config).model_dump()
    if "adapter.method" in changes:  # rank and the like are LoRA's, and so is its learning rate
        tree["adapter"], tree["train"]["learning_rate"] = {}, "auto"
    return validate(merge(tree, nested(changes)), "--methods")


def _settings(config: Config) -> str:
    """A digest of all that the rows of the table have in common."""
    tree = anchored(config).model_dump(mode="json", exclude={"output", "track"})
    return hashlib.sha256(json.dumps(with_first_names(tree), sort_keys=True).encode()).hexdigest()


def _require_same(folder: Path, config: Config) -> None:
    """Raises: RunError when the folder holds methods that were compared with other settings, or something else."""
    digest, path = _settings(config), folder / RESULT
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8")).get("settings")
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"{path}: cannot be read ({error}). Move the folder aside with --fresh.") from None
        if known != digest:
            raise RunError(
                f"{folder}: holds methods compared with other settings, and a table of both would mislead. "
                "Give another --name, or --fresh to move it aside."
            )
    elif (folder / "run.json").exists():
        raise RunError(f"{folder}: a run, not a comparison of methods. Give another --name.")
    else:
        write_json(path, {"folder": str(folder), "methods": [], "settings": digest})


def _trained(folder: Path, name: str, config: Config, reporter: Reporter) -> str | None:
    """Trains what is still to be trained; why it could not be, None where it was. Raises: Interrupted."""
    run = Run(folder / name)
    if run.status == FINISHED:
        reporter.note(f"{name}: finished before")
        return None
    if method_of(config).trains_base:
        try:
            forecast = plan.plan(config, None, False, reporter).forecast
        except InlayError as error:
            return _first_line(str(error))
        if not forecast.fits:
            return f"does not fit: about {bytes_shown(forecast.total_bytes)} would be needed"
    output = config.output.model_copy(update={"folder": str(folder.absolute()), "name": name})
    path = folder / f"{name}.yaml"
    write_file(path, as_yaml(config.model_copy(update={"output": output}), {}, f"One of --methods: {name}."))
    command = [sys.executable, "-m", "inlay", "train", str(path), "--resume", "--json"]
    _wait_for(run, reporter)
    # its own session: Ctrl+C comes to it once, from here; its standard input ends with this process
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True, env=os.environ | {STOP_WITH_STDIN: "1"},
        ) as child,
        _forwarded(child) as received,
    ):  # fmt: skip
        assert child.stderr is not None
        assert child.stdout is not None
        for line in child.stderr:
            reporter.note(f"  {line.rstrip()}")
        printed = child.stdout.read()
        code = child.wait()
    if received:
        raise Interrupted(
            f"interrupted while {name} was trained. What is finished is kept: the same command goes on.", received[0]
        )
    return None if code == 0 else _reason(code, printed)


def _wait_for(run: Run, reporter: Reporter) -> None:
    """Until nobody trains there: when a comparison was killed, its method still writes a checkpoint."""
    end, noted = time.monotonic() + _PATIENCE_S, False
    while run.path.is_dir() and time.monotonic() < end:
        try:
            with owned(run.path):
                return
        except RunError as error:
            if not noted:
                reporter.note(f"  {error}")
            noted = True
            time.sleep(0.2)


@contextlib.contextmanager
def _forwarded(child: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Inside, a signal that asks to stop is passed on to the child; those that came are in the list."""
    received: list[int] = []

    def forward(number: int, frame: object) -> None:  # noqa: ARG001
        received.append(number)
        if os.name != "nt":
            child.send_signal(number)
        elif child.stdin and not child.stdin.closed:  # it has no signals to send; the child stops when its input ends
            child.stdin.close()

    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield received
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(code: int, printed: str) -> str:
    if code < 0:
        return f"killed by signal {-code}" + (", most likely for want of memory" if code == -9 else "")
    try:
        return _first_line(str(json.loads(printed)["error"]))
    except (ValueError, KeyError, TypeError):
        return f"ended with exit code {code}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _row(run: Run, name: str, reason: str | None) -> ComparedMethod:
    if reason:
        return ComparedMethod(name, str(run.path), "skipped", reason, None)
    record, result = run.record, run.result
    figures = MethodFigures(
        trainable=record.trainable_parameters,
        share=record.trainable_parameters / record.total_parameters,
        learning_rate=float(run.config.train.learning_rate),
        memory_bytes=int(max(line.get("memory_bytes", 0) for line in run.metrics)),
        saved_bytes=sum(path.stat().st_size for path in run.trained.glob("*.safetensors")),
        steps=result.steps,
        train_time_s=result.train_time_s,
        time_s=result.time_s,
        base_eval_loss=result.base_eval_loss,
        eval_loss=result.eval_loss,
        difference=result.difference,
        low=result.low,
        high=result.high,
        verdict=result.verdict,
    )
    return ComparedMethod(name, str(run.path), FINISHED, None, figures)


HEAD: Final = (
    "method",
    "trained",
    "share",
    "rate",
    "memory",
    "steps",
    "time",
    "in all",
    "saved",
    "loss",
    "change",
    "verdict",
)


def cells(method: str, row: MethodFigures) -> list[str]:
    """The figures of a method under HEAD."""
    return [
        method, f"{row.trainable:,}", f"{row.share:.2%}", f"{row.learning_rate:.2g}", bytes_shown(row.memory_bytes),
        str(row.steps), duration_shown(row.train_time_s), duration_shown(row.time_s), bytes_shown(row.saved_bytes),
        f"{row.base_eval_loss:.3f} → {row.eval_loss:.3f}",
        change_shown(row, "{:+.3f}".format), row.verdict,
    ]  # fmt: skip


def _page(result: MethodComparison) -> str:
    rows = [cells(row.method, row.figures) for row in result.methods if row.figures]
    skipped = [html.note(f"{row.method}: {row.reason}") for row in result.methods if row.reason]
    table = html.table(HEAD, rows, numbers=range(1, 9), roomy=(3, 5, 7))
    notes = [html.note(text) for text in result.notes]
    return html.page("Methods side by side", html.section("Held-out loss, size and cost", table, *skipped), *notes)
