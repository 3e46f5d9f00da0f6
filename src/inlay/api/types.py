"""The arguments that many verbs share: a config, a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inlay import config as configs
from inlay.config import Config
from inlay.config.sections.base import Assignments
from inlay.runs import folder as runs
from inlay.runs.folder import Run

ConfigLike = Config | Assignments | str | Path
"""A config, a nested mapping of settings, or the path of a YAML file."""
RunLike = str | Path | Run | None
"""A run, its name or its folder; None is the run trained last."""
Confirm = Callable[[str], bool]
"""Puts a yes-or-no question to the user."""


def as_config(config: ConfigLike) -> Config:
    """The checked config. Raises: ConfigError."""
    if isinstance(config, Config):
        return config
    if isinstance(config, (str, Path)):
        return configs.load(Path(config))
    return configs.load(tree=config)


def as_run(run: RunLike, folder: str) -> Run:
    """The run; a name is looked up in `folder`. Raises: RunError."""
    return run if isinstance(run, Run) else runs.find(run, folder)
