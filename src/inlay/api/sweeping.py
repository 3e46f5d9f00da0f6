"""A search over settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay import config as configs
from inlay.adapters.names import as_config
from inlay.api.configs import assigned, config_of, of_section
from inlay.config import Config
from inlay.config.load import ConfigLike, read_tree
from inlay.config.sections.base import Assignments
from inlay.errors import ConfigError
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.training.process import require_alone

if TYPE_CHECKING:
    from inlay.workflows.sweep.result import SweepResult


def sweep(
    config: ConfigLike,
    over: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    confirm: str | None = None,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> SweepResult:
    """The best settings of a search, judged on rows that chose nothing; every trial is a run in the sweep's folder.

    `over` maps a setting to a list of values, or to `{"low": …, "high": …, "log": …}`. `settings` are those of the section
    `sweep`: method, trials, confirm. Of the held-out rows one half chooses the winner and the other judges it;
    `confirm` names a file of rows that judge in its place, or `none` to judge on the rows that choose. A second call
    resumes where the first stopped; `fresh` moves an earlier sweep of that name aside.

    Raises: ConfigError, DataError for what cannot work, before anything is trained; Interrupted after a signal.
    """
    from inlay.workflows.sweep.run import sweep as swept
    from inlay.workflows.sweep.space import checked_sweep

    require_alone("sweep")
    checked = as_config(config)
    given = dict(settings or {}) | {"over": dict(over)}
    own, space = checked_sweep(given, checked, [f"sweep.{name}" for name in given])
    return swept(checked, own, space, confirm, fresh, reporter or PlainReporter())


def sweep_settings(source: str, settings: Sequence[str], given: Assignments) -> tuple[Config, dict[str, Any]]:
    """(config of a run, section `sweep`) of a command line; a .yaml config may have the section. Raises: ConfigError."""
    own, others = of_section("sweep", settings)
    if not source.endswith((".yaml", ".yml")):
        return config_of(source, others, None, given), own
    tree = read_tree(Path(source))
    section = tree.pop("sweep", None) or {}
    config = configs.load(None, assigned(others, given), None, tree)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{source}: sweep: a section holds settings (got {section!r}).")
    return config, dict(section) | own
