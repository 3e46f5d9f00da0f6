"""One call of train: which run it is, what must be true before it begins, the training, and the verdict."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from inlay.config import Config
from inlay.config.sections.data import TrainFile
from inlay.errors import ConfigError, InlayError
from inlay.runs.folder import Run
from inlay.runs.reporter import Figures, Reporter
from inlay.storage import path_exists, require_writable
from inlay.training.process import launch, require_data_parallel, save_on_signal, stop_with_stdin
from inlay.workflows.resume import Confirm, RunSelection, parse_extension, select_run


def train(
    config: Config, resume: bool, fresh: bool, reporter: Reporter, confirm: Confirm | None, extend: str | None = None,
    profile: bool = False,
) -> Run:  # fmt: skip
    """See `inlay.api.train`."""
    if resume and fresh:
        raise ConfigError("train: --resume and --fresh exclude each other. Give one.")
    if fresh and extend:
        raise ConfigError("train: --extend and --fresh exclude each other. Give one.")
    longer = parse_extension(extend) if extend else {}
    began = time.perf_counter()
    stop_with_stdin()
    with contextlib.ExitStack() as held:
        stop = held.enter_context(save_on_signal())
        # decided before torch is imported: who is refused learns it at once
        selection, refused = _early(config, resume or bool(extend), fresh, reporter, confirm, held)
        from inlay.training.process_group import join_process_group
        from inlay.workflows.train_process import prepare

        group = join_process_group(config.model.device)
        reporter = reporter if group.is_first else _Silent()
        with group.failing_together():
            if refused:
                raise refused
            run, process, begin = prepare(config, selection, longer, group, stop, reporter, held, began)
        if process:
            process.train(begin, profile)
    return run


def without_selection(config: Config) -> Config:
    """The config with the adapter of its last step: nothing inside the run is chosen on its held-out rows."""
    chosen = {"export": "last", "on_overfitting": "note", "on_plateau": "note", "early_stopping_patience": None}
    return config.model_copy(update={"train": config.train.model_copy(update=chosen)})


def _early(
    config: Config, resumes: bool, fresh: bool, reporter: Reporter, confirm: Confirm | None, held: contextlib.ExitStack
) -> tuple[RunSelection, InlayError | None]:
    """(the run that is meant, the error of this process): of several processes the others must learn it too.

    Raises: the reason, where there is one process.
    """
    started, selection = launch(), RunSelection(Run(Path()))
    try:
        require_data_parallel(os.environ)
        _refuse_early(config)
        if started.rank == 0:
            selection = select_run(config, resumes, fresh, confirm, reporter, held)
            reporter.stage("loading torch")
    except InlayError as error:
        if started.size == 1:
            raise
        return selection, error
    return selection, None


def _refuse_early(config: Config) -> None:
    """Raises for data and folders that cannot work, before torch is loaded and anything is computed."""
    from inlay.data.reading.folders import is_several
    from inlay.data.reading.read import stream_examples
    from inlay.data.reading.sources import is_data_name

    require_writable(Path(config.output.folder))
    files = [*config.data.train_files, *([TrainFile(path=config.data.eval)] if config.data.eval else [])]
    for file in files:
        path, columns = file.path, config.data.columns if file.columns is None else file.columns
        if path and (path_exists(Path(path)) or is_several(path) or is_data_name(path)):
            _, examples = stream_examples(
                path, file.format or config.data.format, columns, role_weights=config.data.weights_of_roles
            )
            next(examples, None)  # the first row shows whether the format fits


class _Silent:
    """The reporter of the ranks that do not speak."""

    def stage(self, text: str) -> None: ...
    def block(self, title: str, rows: list[tuple[str, str]]) -> None: ...
    def start(self, total: int, done: int, unit: str) -> None: ...
    def progress(self, done: int, values: Figures) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
