"""Width and colours of the terminal."""

from __future__ import annotations

import os
import shutil
import sys


def width() -> int:
    """Columns of the terminal that stdout is, at most 120; a file or a pipe gets 120."""
    return min(120, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 120


def is_coloured() -> bool:
    """True if stdout is a terminal that takes colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
