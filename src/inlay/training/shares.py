"""What each process computes of a step: as much as the others, and never what depends on how many there are."""

from __future__ import annotations

from inlay.data.batches import dealt, micro_batches, shared_out
from inlay.errors import ConfigError
from inlay.training.job import AdapterJob


def share_size(batch_size: int, size: int) -> int:
    """Rows of a step for each of `size` processes, where all are equally long."""
    return -(-batch_size // size)


def share_of(job: AdapterJob, rows: list[int], at_once: int, rank: int, size: int) -> list[list[int]]:
    """The micro batches of a step that this rank computes: a function of the rows alone."""
    if not job.has_dropout:
        return shared_out(rows, job.lengths, at_once, size, padded=job.engine.name == "plain")[rank]
    # whole ones, so that the same numbers are drawn for them whatever the number of processes; where there are too few,
    # two for each process, of which one is short where the other is long
    enough = share_size(len(rows), at_once) >= size
    groups = micro_batches(rows, job.lengths, at_once if enough else share_size(len(rows), 2 * size))
    return dealt(groups, job.lengths, size)[rank]


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
