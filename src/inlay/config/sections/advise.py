"""The section advise: what every arm of `inlay advise` gets. It belongs to the verb, not to a run."""

from __future__ import annotations

from inlay.config.sections.base import PositiveInt, Settings


class AdviseConfig(Settings):
    """One budget for all arms."""

    prompt_tokens: PositiveInt = 1024
    """Longest prompt of any arm, in tokens."""
    passages: PositiveInt = 4
    """Most examples or retrieved passages in a prompt."""
    requests: PositiveInt = 100_000
    """Requests over which the cost of training is spread."""
