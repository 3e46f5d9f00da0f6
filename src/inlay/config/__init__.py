"""Every setting of a run: its type, default, documentation, and how it is read."""

from inlay.config.load import load, parse_assignment, presets, validate, validate_section
from inlay.config.settings import Config

__all__ = ["Config", "load", "parse_assignment", "presets", "validate", "validate_section"]
