"""Settings of the data as a user types them, for messages that tell the way out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping


def columns_to_type(columns: Mapping[str, str]) -> str:
    """`columns: {prompt: ask}` of a config, and behind it `--set data.columns.prompt=ask` of a command line."""
    pairs = ", ".join(f"{field}: {column}" for field, column in columns.items())
    options = " ".join(_option(f"data.columns.{field}={column}") for field, column in columns.items())
    return f"columns: {{{pairs}}}, or {options}"


def format_to_type(name: str) -> str:
    """`--set data.format=NAME`."""
    return _option(f"data.format={name}")


def _option(assignment: str) -> str:
    return f"--set {shlex.quote(assignment)}"
