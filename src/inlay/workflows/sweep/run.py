"""A sweep: trials one after another, each an ordinary run in the sweep's folder, then the winner.

`trials.json` is written after each proposal and each end, before anything acts on it; the runs are resumed like any
other. So the same command goes on where a sweep was cut off, and finds what an unbroken one finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.config import Config
from inlay.config.renamed import with_first_names
from inlay.config.sections.sweep import SweepConfig
from inlay.errors import DataError, InlayError, Interrupted, RunError, StorageError, count_shown
from inlay.runs import folder as runs
from inlay.runs.folder import Run
from inlay.runs.reporter import Figures, Reporter
from inlay.storage import explained, owned, sha256_of, write_file, write_json
from inlay.strict_json import parsed
from inlay.workflows import train
from inlay.workflows.sweep.propose import propose, require_optuna, write_study
from inlay.workflows.sweep.result import SweepResult
from inlay.workflows.sweep.space import Space
from inlay.workflows.sweep.trials import Trial, by_loss
from inlay.workflows.train_process import anchored

if TYPE_CHECKING:
    import numpy as np

    from inlay.evaluation.metrics import Array
    from inlay.tasks.opened_base import OpenedBase
    from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses

RESULT: Final = "sweep.json"
REPORT: Final = "sweep.html"
TRIALS: Final = "trials.json"
STUDY_FILE: Final = "study.db"
_LOSSES: Final = "losses"
_SAME_ROWS: Final = "none"


def sweep(
    config: Config, sweep: SweepConfig, space: Space, confirm: str | None, fresh: bool, reporter: Reporter
) -> SweepResult:
    """See `inlay.api.sweep`."""
    require_optuna()
    folder = Path(config.output.folder) / (config.output.name or f"{runs.stem(config)}-sweep")
    if fresh and (aside := runs.start_fresh(Run(folder))):
        reporter.note(f"moved what was at {folder} to {aside}")
    _require_rows(config, sweep, confirm)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        found = _Sweep(folder, config, sweep, space, confirm, reporter)
        found.train()
        return found.conclude()


def _require_rows(config: Config, sweep: SweepConfig, confirm: str | None) -> None:
    """Raises: DataError where too few rows would choose, or judge."""
    if confirm is not None:
        return
    from inlay.data.prepare import sides
    from inlay.workflows.sweep.winner import LEAST_ROWS

    count = min(len(sides(config.data)[1]), config.eval.max_rows)
    judge = round(count * sweep.confirm)
    if min(judge, count - judge) < LEAST_ROWS:
        raise DataError(
            f"{config.data.train_name}: {count_shown(count, 'held-out row')}, of which {count - judge} would choose the winner and "
            f"{judge} judge it. Each needs {LEAST_ROWS}. Give rows that judge with --confirm FILE, more held-out rows with "
            "data.eval or a larger data.eval_fraction, or --confirm none to judge on the rows that choose."
        )


class _Sweep:
    """One sweep at its folder, which this process owns."""

    def __init__(
        self, folder: Path, config: Config, sweep: SweepConfig, space: Space, confirm: str | None, reporter: Reporter
    ) -> None:
        self._folder, self._config, self._settings, self._space = folder, config, sweep, space
        self._confirm, self._reporter = confirm, reporter
        self._digest = _digest(config, sweep, confirm)
        self._trials = self._known_trials()
        self._base: OpenedBase | None = None
        self._rows: dict[str | None, HeldOutLosses] = {}

    def _known_trials(self) -> list[Trial]:
        """The trials of an earlier call. Raises: RunError for another sweep, or a folder of something else."""
        path = self._folder / TRIALS
        if not path.is_file():
            if (self._folder / "run.json").exists():
                raise RunError(f"{self._folder}: a run, not a sweep. Give another --name.")
            return []
        try:
            found = parsed(path.read_text(encoding="utf-8"))
            digest, trials = found["settings"], [Trial(**one) for one in found["trials"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: cannot be read ({error}). Move the folder aside with --fresh.") from None
        if digest != self._digest:
            raise RunError(
                f"{self._folder}: holds a sweep with other settings or rows, and trials of both would mislead. Give another --name, "
                "or --fresh to move it aside."
            )
        return trials

    def _write(self) -> None:
        trials = [dataclasses.asdict(trial) for trial in self._trials]
        write_json(self._folder / TRIALS, {"settings": self._digest, "trials": trials})

    def train(self) -> None:
        """Trains every trial that is not over yet. Raises: Interrupted."""
        count = self._settings.trials
        while True:
            if not self._trials or self._trials[-1].state != "running":
                if len(self._trials) >= count:
                    return
                proposed = propose(self._space, self._settings, self._trials)
                if proposed is None:
                    self._reporter.note(f"nothing new to try after {len(self._trials)} of {count} trials")
                    return
                name = str(self._folder / f"{proposed.number:03d}")
                self._trials.append(dataclasses.replace(proposed, run=name))
                self._write()
            trial = self._trials[-1]
            self._reporter.note(f"trial {trial.number} of {count - 1}: {trial.title}")
            self._trials[-1] = self._ended(trial)
            if self._trials[-1].state == "failed" and trial.number == 0:
                reason = self._trials[-1].reason
                raise DataError(
                    f"sweep: the config as it is cannot be trained, so there is nothing to compare with. {reason}"
                )
            self._write()
            self._note_place(self._trials[-1])

    def _ended(self, trial: Trial) -> Trial:
        began = time.perf_counter()
        try:
            run = train.train(self._config_of(trial), True, False, _Bars(self._reporter), None)
            loss = self._loss(trial, run)
        except Interrupted as error:
            raise Interrupted(
                f"interrupted in trial {trial.number}. What is trained is kept: the same command goes on.",
                error.exit_code - 128,
            ) from None
        except StorageError:
            raise
        except InlayError as error:
            return dataclasses.replace(trial, state="failed", reason=str(error).partition("\n")[0])
        return dataclasses.replace(
            trial, state="finished", loss=loss, parameters=run.record.trainable_parameters, steps=run.result.steps,
            time_s=round(time.perf_counter() - began, 3),
        )  # fmt: skip

    def _config_of(self, trial: Trial) -> Config:
        config = self._space.config_of(trial.values)
        output = config.output.model_copy(update={"folder": str(self._folder), "name": f"{trial.number:03d}"})
        # half of its held-out rows judge, so they choose nothing inside a trial
        return train.without_selection(config.model_copy(update={"output": output}))

    def _note_place(self, trial: Trial) -> None:
        if trial.state == "failed":
            self._reporter.note(f"trial {trial.number} failed: {trial.reason}")
            return
        finished = by_loss(self._trials)
        place, best = finished.index(trial) + 1, finished[0]
        lead = (
            "the best so far"
            if place == 1
            else f"place {place} of {len(finished)}; trial {best.number} leads with {best.loss:.4f}"
        )
        self._reporter.note(f"trial {trial.number}: held-out loss {trial.loss:.4f}, {lead}")

    # Losses of single rows

    def _measured(self, run: Run, rows: str | None) -> HeldOutLosses:
        """The rows of the runs, or those of a file, over the base, which is opened once."""
        from inlay.adapters.reference import reference
        from inlay.workflows.adapter_library.held_out_losses import HeldOutLosses

        if rows not in self._rows:
            self._rows[rows] = HeldOutLosses(reference(run, str(self._folder)), rows, self._reporter, self._base)
            self._base = self._rows[rows].base
        return self._rows[rows]

    def _nll(self, run: Run | None, rows: str | None) -> Array:
        """(N,) losses under the adapter of a run, None for the base: computed once and kept in the sweep's folder."""
        import numpy as np

        from inlay.adapters.reference import reference

        measured = self._measured(run or Run(Path(self._trials[0].run)), rows)
        name = "base" if run is None else run.name
        path = self._folder / _LOSSES / f"{name}{'-judge' if rows else ''}.npy"
        with contextlib.suppress(OSError, ValueError):
            stored: tuple[Array, Array] = np.load(path, allow_pickle=False)
            nll_N, measured.weight_N = stored
            return nll_N
        nll_N = measured.of(name, None if run is None else reference(run, str(self._folder)).adapter(measured.base.ref))
        kept = io.BytesIO()
        np.save(kept, np.stack([nll_N, measured.weight_N]), allow_pickle=False)
        path.parent.mkdir(exist_ok=True)
        write_file(path, kept.getvalue())
        return nll_N

    def _loss(self, trial: Trial, run: Run) -> float:
        """The loss on the rows that choose. Raises: DataError for one that is not finite."""
        import numpy as np

        nll_N = self._nll(run, None)
        if not np.isfinite(nll_N).all():
            raise DataError(f"trial {trial.number}: a held-out loss is not finite.")
        chosen, weight_N = self._choosing_rows, self._rows[None].weight_N
        return float(nll_N[chosen].sum() / weight_N[chosen].sum())

    @cached_property
    def _choosing_rows(self) -> np.ndarray:
        import numpy as np

        from inlay.data.splits import by_content

        examples = self._rows[None].rows.examples
        return np.arange(len(examples)) if self._confirm else np.array(by_content(examples, self._settings.confirm)[0])

    # The winner

    def conclude(self) -> SweepResult:
        """The winner, judged; also in sweep.json."""
        import numpy as np

        from inlay.workflows.sweep.report import sweep_page, trials_csv
        from inlay.workflows.sweep.winner import choose, least_gain, loss_between

        finished = [trial for trial in self._trials if trial.state == "finished"]  # the first one always is
        nll_TN = np.stack([self._nll(Run(Path(trial.run)), None) for trial in finished])
        rows = self._rows[None]
        choosing, groups = self._choosing_rows, rows.groups
        weight_N, seed, resamples = rows.weight_N, self._config.train.seed, self._config.eval.resamples
        choice = choose(
            nll_TN[:, choosing], weight_N[choosing], [trial.parameters or 0 for trial in finished],
            [groups[n] for n in choosing], resamples=resamples, seed=seed,
        )  # fmt: skip
        winner = finished[choice.winner]
        base_N, first_N, winner_N, weight_J, judges = self._judged(winner, nll_TN[0], nll_TN[choice.winner], choosing)
        compared = [
            loss_between(a, b, weight_J, judges, resamples=resamples, seed=seed)
            for a, b in ((base_N, winner_N), (base_N, first_N), (first_N, winner_N))
        ]
        least = least_gain(choice, compared[2])
        result = SweepResult(
            folder=str(self._folder), trials=self._trials, winner=winner,
            finalists=[finished[place].number for place in choice.finalists], against_base=compared[0],
            baseline_against_base=compared[1], tuning=compared[2], least_gain=least, optimism=choice.optimism,
            judged_on=self._judged_on(len(judges)), notes=self._notes(choice.optimism, least, len(finished)),
        )  # fmt: skip
        write_study(self._folder / STUDY_FILE, self._trials, self._space)
        write_file(self._folder / "trials.csv", trials_csv(self._trials))
        write_file(self._folder / REPORT, sweep_page(result))
        write_json(self._folder / RESULT, result.to_json())
        return result

    def _judged(
        self, winner: Trial, first_N: Array, winner_N: Array, choosing: np.ndarray
    ) -> tuple[Array, Array, Array, Array, Sequence[Any]]:
        """Losses of base, first trial and winner on the rows that judge, their weights, and the prompt of each."""
        import numpy as np

        if self._confirm not in (None, _SAME_ROWS):
            runs_ = Run(Path(self._trials[0].run)), Run(Path(winner.run))
            first_N, winner_N = (self._nll(run, self._confirm) for run in runs_)
            base_N, rows = self._nll(None, self._confirm), self._rows[self._confirm]
            return base_N, first_N, winner_N, rows.weight_N, rows.groups
        base_N, rows = self._nll(None, None), self._rows[None]
        judging = choosing if self._confirm else np.setdiff1d(np.arange(len(base_N)), choosing)
        groups = [rows.groups[n] for n in judging]
        return base_N[judging], first_N[judging], winner_N[judging], rows.weight_N[judging], groups

    def _judged_on(self, count: int) -> str:
        if self._confirm == _SAME_ROWS:
            return f"{count_shown(count, 'row')} that chose the winner too, which flatters it"
        rows = "" if self._confirm is None else f" of {self._confirm}"
        return f"{count_shown(count, 'row')}{rows} that chose nothing"

    def _notes(self, optimism: float, least: float | None, count: int) -> list[str]:
        return [
            f"the least of {count_shown(count, 'loss', 'losses')} flatters itself by about {optimism:.4f} nats per token on the rows "
            "that chose it.",
            *([f"a gain of {least:.4f} nats per token or more is found in 95 of 100 such sweeps."] if least else []),
            "every trial's adapter is that of its last step, so nothing was chosen on held-out rows inside a trial.",
            "one seed a trial: another seed moves each of them.",
        ]


def _digest(config: Config, sweep: SweepConfig, confirm: str | None) -> str:
    """A digest of all that the trials have in common; the number of trials may grow."""
    from inlay.data.prepare import data_hash

    tree = anchored(config).model_dump(mode="json", exclude={"output", "track"})
    own: Mapping[str, Any] = sweep.model_dump(mode="json", exclude={"trials"})
    others = [Path(path) for path in (config.data.eval, confirm) if path is not None]
    rows = [data_hash(config.data), *(sha256_of(path) for path in others if path.is_file())]
    text = json.dumps([with_first_names(tree), own, confirm, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Bars:
    """Passes on progress alone: the tables and notes of a trial are in its own log."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner

    def stage(self, text: str) -> None: ...
    def block(self, title: str, rows: list[tuple[str, str]]) -> None: ...
    def note(self, text: str) -> None: ...

    def start(self, total: int, done: int, unit: str) -> None:
        self._inner.start(total, done, unit)

    def progress(self, done: int, values: Figures) -> None:
        self._inner.progress(done, values)

    def end(self) -> None:
        self._inner.end()
