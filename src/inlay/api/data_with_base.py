"""Rows as training sees them; these verbs need the tokenizer of a base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inlay.api.configs import config_of
from inlay.config import Config
from inlay.data.checks.lengths import Model
from inlay.data.show_row import ShownRow, show_row
from inlay.engine.batch_invariance import groups_of_config
from inlay.methods.table import method_of
from inlay.models.base import find_base, parameter_count
from inlay.tasks.opened_base import OpenedBase


def show_data(
    source: str | Path, *, model: str | None = None, row: int | str | None = None, settings: Sequence[str] = ()
) -> ShownRow:
    """The row at line `row` of a data file (or of that of a config; of a mixture `FILE:LINE`), by default the first,
    exactly as training with the model sees it: ids, labels, weights, and where it lands.

    Raises: ConfigError, DataError, ModelError.
    """
    config = config_of(str(source), settings, given={"model.base_model": model})
    base = _opened(config)
    virtual = method_of(config).virtual_tokens(config)
    return show_row(config, base.encoder, base.context_length, row, groups_of_config(base.architecture, virtual).apart)


def checked_model(config: Config) -> Model:
    """The base of a config as the data checks need it. Raises: ModelError."""
    opened = _opened(config)
    return Model(
        name=config.model.base_model,
        encoder=opened.encoder,
        context_length=opened.context_length,
        parameters=parameter_count(opened.ref),
    )


def _opened(config: Config) -> OpenedBase:
    """The base of a config, whose tokenizer is its own; no weights are loaded. Raises: ModelError."""
    opened = OpenedBase.of(find_base(config.model.base_model, config.model.revision), config)
    opened.require_vocabulary()
    return opened
