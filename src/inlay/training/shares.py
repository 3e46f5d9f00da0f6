"""The share of a step that each process has."""

from __future__ import annotations

from inlay.errors import ConfigError


def share_size(batch_size: int, size: int) -> int:
    """Rows of a step for each of `size` processes, where all are equally long."""
    return -(-batch_size // size)


def require_work(batch_size: int, drawn: int, processes: int) -> None:
    """Raises: ConfigError when a step has fewer rows than there are processes."""
    rows = min(batch_size, drawn)
    if rows >= processes:
        return
    known = f"a step has {batch_size}" if batch_size <= drawn else f"only {drawn} are to be trained on"
    more = "Raise train.batch_size" if batch_size <= drawn else "Give more rows"
    raise ConfigError(
        f"train.batch_size: {processes} processes share the rows of a step, and {known}: {processes - rows} would have "
        f"no work. {more}, or start {rows} process{'es' if rows > 1 else ''}."
    )
