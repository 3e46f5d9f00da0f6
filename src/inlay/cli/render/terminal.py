"""Width and colours of the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence


def width() -> int:
    """Columns of the terminal that stdout is, at most 120; a file or a pipe gets 120."""
    return min(120, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 120


def is_coloured() -> bool:
    """True if stdout is a terminal that takes colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, every column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
