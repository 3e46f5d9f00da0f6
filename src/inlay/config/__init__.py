"""The settings of a run: types, defaults, documentation, reading and checking."""

from inlay.config.load import load, parse_assignment, presets, validate, validate_section
from inlay.config.settings import Config

__all__ = ["Config", "load", "parse_assignment", "presets", "validate", "validate_section"]
