"""The settings that were `auto`: what each became, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inlay.config import Config
from inlay.config.load import merge, nested, validate


@dataclass
class Choices:
    """Value and reason of each setting that was `auto`."""

    config: Config
    values: dict[str, object] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def settle(self, path: str, value: Any, reason: str) -> None:
        """Takes the value where the config leaves it open."""
        section, _, name = path.partition(".")
        if getattr(getattr(self.config, section), name) == "auto":
            self.values[path], self.reasons[path] = value, reason

    def config_settled(self) -> Config:
        """The config without `auto` where it was settled."""
        return validate(merge(self.config.model_dump(), nested(self.values)), "resolved config")
