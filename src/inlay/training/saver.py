"""Writing checkpoints beside the training: copied at a step's end, written by one thread, durable before the run ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class Saver:
    """At most one save is under way. Its failure is raised where the next one begins, or at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "inlay-save")  # Python waits for it even when the program ends in a hurry
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()

    def save(self, write: Callable[[], None]) -> None:
        """Begins `write` once the save before it is on the disk. Raises: what that one raised."""
        self.wait()
        self._under_way = self._pool.submit(write)

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises: what the save raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
