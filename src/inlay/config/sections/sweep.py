"""The section sweep: what a search over settings tries. It belongs to the verb, not to a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inlay.config.sections.base import PositiveInt, Settings

SearchMethod = Literal["grid", "random", "qmc", "tpe", "gp"]


class SweepConfig(Settings):
    """The settings that a sweep tries, the way it chooses them, and the rows that judge the winner."""

    over: dict[str, Any] = Field(default_factory=dict)
    """Setting to a list of values, or to a range {low, high, log}."""
    method: SearchMethod = "tpe"
    """How trials are chosen: grid, random, qmc (evenly spread), tpe (from earlier trials), gp (Gaussian process)."""
    trials: PositiveInt = 16
    """Trials in all. The first one is the config as it is."""
    confirm: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the held-out rows that choose nothing and judge the winner."""
