"""A config file of another trainer as keys and values."""

from __future__ import annotations

import json
from pathlib import Path

from inlay.config.foreign.imported import Keys
from inlay.config.load import parse_yaml
from inlay.errors import ConfigError


def read_keys(path: Path) -> Keys:
    """The keys of a YAML or JSON file, without those that are null. Raises: ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if path.suffix == ".json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}.") from None
    else:
        value = parse_yaml(text, str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: holds no settings. Give a config of LLaMA-Factory or Axolotl.")
    return {key: inner for key, inner in value.items() if inner is not None}
