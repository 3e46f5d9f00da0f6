"""The section output: folder and name of a run."""

from __future__ import annotations

import re

from pydantic import field_validator

from inlay.config.sections.base import Settings


class OutputConfig(Settings):
    """Folder and name of a run."""

    folder: str = "results"
    """Folder that holds all runs."""
    name: str | None = None
    """Name of the run; by default data and model with a number."""

    @field_validator("name")
    @classmethod
    def _is_one_folder(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[^\s./\\][^/\\\x00-\x1f]{0,199}", name):
            raise ValueError(f"must be one plain folder name of at most 200 characters (got {name!r})")
        return name
