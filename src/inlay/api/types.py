"""The arguments that many verbs share: a config, a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inlay import config as configs
from inlay.adapters.names import with_library_adapter
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
    """The checked config, in which a library adapter stands as its folder. Raises: ConfigError, AdapterError."""
    if isinstance(config, (str, Path)):
        config = configs.load(Path(config))
    elif not isinstance(config, Config):
        config = configs.load(tree=config)
    return with_library_adapter(config)


def as_run(run: RunLike, folder: str) -> Run:
    """The run; a name is looked up in `folder`. Raises: RunError."""
    return run if isinstance(run, Run) else runs.find(run, folder)
