"""The section eval: held-out scores and comparisons."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inlay.config.sections.base import PositiveInt, Settings


class EvalConfig(Settings):
    """Measurements on held-out rows."""

    max_rows: PositiveInt = 200
    """Score at most this many held-out rows, drawn by the training seed."""
    batch_size: PositiveInt = 16
    """Rows per forward pass when scoring and generating."""
    metric: str = "auto"
    """Metric that decides the verdict; `auto` is held-out loss."""
    prompts: list[str] = Field(default_factory=list)
    """Extra prompts answered by base and adapter side by side."""
    max_new_tokens: PositiveInt = 128
    """Longest answer generated for a comparison, in tokens. Comparisons decode greedily."""
    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples of a confidence interval."""
    retention_rows: Annotated[int, Field(ge=0)] = 24
    """Rows of general text, and of each example task not trained on, whose loss a comparison also measures; 0 measures
    none."""
