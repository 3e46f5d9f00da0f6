"""Data files: checked, shown, counted, split; and the rows of an example task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.api.configs import config_of
from inlay.config import Config
from inlay.config.load import UNSET
from inlay.errors import ConfigError, DataError
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.storage import write_file

if TYPE_CHECKING:
    from inlay.data.checks.lengths import Model
    from inlay.data.checks.report import DataReport
    from inlay.data.show_row import ShownRow
    from inlay.tasks.opened_base import OpenedBase


def check_data(
    *sources: str | Path,
    eval: str | Path | None = None,  # noqa: A002
    model: str | None = None,
    settings: Sequence[str] = (),
    only_count: bool = False,
    reporter: Reporter | None = None,
) -> DataReport:
    """What is in the files, or in the file of a config, and what is wrong with it; `eval` names held-out rows.

    With a model lengths are in its tokens and its chat template is tried on every row. `settings` are `key=value`
    texts, such as data.format=alpaca. `only_count` looks for nothing that is wrong. Raises: ConfigError, DataError,
    ModelError.
    """
    from inlay.config.sections.data import TrainFile
    from inlay.data.checks.report import check_files

    first = str(sources[0])
    is_config = first.endswith((".yaml", ".yml"))
    given = {"data.eval": eval and str(eval), "model.base_model": model}
    config = config_of(first, settings, given=given, partial=not is_config)
    files = [*config.data.train_files, *(TrainFile(path=str(source)) for source in sources[1:])]
    base_of = None if config.model.base_model == UNSET else _checked_model(config)
    return check_files(files, config.data, base_of, only_count=only_count, bar=reporter or PlainReporter())


def _checked_model(config: Config) -> Model:
    from inlay.data.checks.lengths import Model
    from inlay.models.base import parameter_count

    opened = _opened(config)
    return Model(
        name=config.model.base_model,
        encoder=opened.encoder,
        context_length=opened.context_length,
        parameters=parameter_count(opened.ref),
    )


def _opened(config: Config) -> OpenedBase:
    """The base of a config, whose tokenizer is its own; no weights are loaded. Raises: ModelError."""
    from inlay.models.base import find_base
    from inlay.tasks.opened_base import OpenedBase

    opened = OpenedBase.of(find_base(config.model.base_model, config.model.revision), config)
    opened.require_vocabulary()
    return opened


def show_data(
    source: str | Path, *, model: str | None = None, row: int | str | None = None, settings: Sequence[str] = ()
) -> ShownRow:
    """The row at line `row` of a data file (or of that of a config; of a mixture `FILE:LINE`), by default the first,
    exactly as training with the model sees it: ids, labels, weights, and where it lands.

    Raises: ConfigError, DataError, ModelError.
    """
    from inlay.data.show_row import show_row
    from inlay.engine.batch_invariance import groups_of_config
    from inlay.methods.table import method_of

    config = config_of(str(source), settings, given={"model.base_model": model})
    base = _opened(config)
    virtual = method_of(config).virtual_tokens(config)
    return show_row(config, base.encoder, base.context_length, row, groups_of_config(base.architecture, virtual).apart)


def write_data_page(report: DataReport, path: str | Path) -> Path:
    """Writes the report of `check_data` as one HTML file that needs no other. Raises: StorageError."""
    from inlay.data.checks.html import check_page

    write_file(Path(path), check_page(report))
    return Path(path)


def data_stats(
    *sources: str | Path, model: str | None = None, price: float | None = None, settings: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> tuple[DataReport, dict[str, Any]]:  # fmt: skip
    """What is in the files, and what an epoch over it costs; `price` is that of a million training tokens.

    Raises: as `check_data`.
    """
    from inlay.data.checks.rules_of_thumb import cost

    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"price: must be 0 or more (got {price}).")
    if price is not None and model is None and not str(sources[0]).endswith((".yaml", ".yml")):
        raise ConfigError("price: it is that of tokens, which need a model. Name one with --model.")
    report = check_data(*sources, model=model, settings=settings, only_count=True, reporter=reporter)
    return report, cost(report.lengths, report.parameters, price)


def split_data(source: str | Path, *, to: str | Path = ".", settings: Sequence[str] = ()) -> dict[str, Any]:
    """Writes the two parts that `train` would make of a file; gives their paths and row counts. Raises: DataError."""
    from inlay.data.write_split import write_split

    config = config_of(str(source), settings, partial=True)
    if isinstance(config.data.train, list):
        raise ConfigError("data split: takes one file, not a mixture. Split each of them.")
    return write_split(config.data.train, Path(to), config.data)


def make_data(name: str, *, to: str | Path = ".") -> dict[str, Any]:
    """Writes the training and held-out rows of an example task; gives the paths and row counts.

    Raises: DataError for an unknown task or when one of the files is already there.
    """
    from inlay.data.example_tasks import find_example_task

    task, written = find_example_task(name), {}
    targets = {"train": (task.train, "train"), "heldout": (task.heldout, "heldout")}
    places = {key: Path(to) / f"{name}_{part}.jsonl" for key, (_, part) in targets.items()}
    for path in places.values():
        if path.exists():
            raise DataError(f"{path}: is already there. Choose another folder with --to.")
    for key, (source, _) in targets.items():
        text = source.read_text(encoding="utf-8")
        write_file(places[key], text)
        written[key] = {"path": str(places[key]), "rows": len(text.splitlines())}
    return {"task": name, **written}
