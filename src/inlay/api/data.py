"""Data files: checked, counted, split; and the rows of an example task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from inlay.api.configs import config_of
from inlay.config import Config
from inlay.config.load import UNSET
from inlay.config.sections.data import TrainFile
from inlay.data.checks.html import check_page
from inlay.data.checks.lengths import Model
from inlay.data.checks.report import DataReport, check_files
from inlay.data.checks.rules_of_thumb import cost
from inlay.data.example_tasks import find_example_task
from inlay.data.write_split import write_split
from inlay.errors import ConfigError, DataError
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.storage import write_file
from inlay.typed_json import JsonObject


def check_data(
    *sources: str | Path,
    eval: str | Path | None = None,  # noqa: A002
    model: str | None = None,
    settings: Sequence[str] = (),
    only_count: bool = False,
    reporter: Reporter | None = None,
) -> DataReport:
    """The report on data files, or on those of a config: contents, and findings with a fix; `eval` names held-out rows.

    With a model, lengths are in its tokens and its chat template is tried on every row. `settings` are `key=value`
    texts, such as data.format=alpaca. `only_count` runs no checks. Raises: ConfigError, DataError,
    ModelError.
    """
    first = str(sources[0])
    is_config = first.endswith((".yaml", ".yml"))
    given = {"data.eval": eval and str(eval), "model.base_model": model}
    config = config_of(first, settings, given=given, partial=not is_config)
    files = [*config.data.train_files, *(TrainFile(path=str(source)) for source in sources[1:])]
    base = None if config.model.base_model == UNSET else _checked_model(config)
    return check_files(files, config.data, base, only_count=only_count, bar=reporter or PlainReporter())


def _checked_model(config: Config) -> Model:
    from inlay.api.data_with_base import checked_model

    return checked_model(config)


def write_data_page(report: DataReport, path: str | Path) -> Path:
    """The path of the report of `check_data`, now written as one self-contained HTML file. Raises: StorageError."""
    write_file(Path(path), check_page(report))
    return Path(path)


def data_stats(
    *sources: str | Path, model: str | None = None, price: float | None = None, settings: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> tuple[DataReport, JsonObject]:  # fmt: skip
    """The report on data files, without checks, and the cost of an epoch; `price` is that of a million training tokens.

    Raises: as `check_data`.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"price: must be 0 or more (got {price}).")
    if price is not None and model is None and not str(sources[0]).endswith((".yaml", ".yml")):
        raise ConfigError("price: it is that of tokens, which need a model. Name one with --model.")
    report = check_data(*sources, model=model, settings=settings, only_count=True, reporter=reporter)
    return report, cost(report.lengths, report.parameters, price)


def split_data(source: str | Path, *, to: str | Path = ".", settings: Sequence[str] = ()) -> JsonObject:
    """Paths and row counts of the two parts that `train` would make of a file, now written. Raises: DataError."""
    config = config_of(str(source), settings, partial=True)
    if isinstance(config.data.train, list):
        raise ConfigError("data split: takes one file, not a mixture. Split each of them.")
    return write_split(config.data.train, Path(to), config.data)


def make_data(name: str, *, to: str | Path = ".") -> JsonObject:
    """Paths and row counts of the training and held-out rows of an example task, now written.

    Raises: DataError for an unknown task or when one of the files is already there.
    """
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
