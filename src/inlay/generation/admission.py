"""Asks that wait for room: who is next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

PATIENCE_S: Final = 5.0
"""An ask that waits longer for room among the adapters keeps those of other adapters waiting, too, until it is in."""


class Waiter(Protocol):
    """One that waits."""

    @property
    def salt(self) -> bytes:
        """Its principal."""
        raise NotImplementedError

    @property
    def adapter(self) -> str | None:
        """Digest of its adapter."""
        raise NotImplementedError

    @property
    def cost(self) -> int:
        """Tokens of prompt and answer, at most."""
        raise NotImplementedError


class Queue:
    """Waiting asks. The principal (salt) that was given the fewest tokens is next; its own asks are first come, first served.

    Nobody starves: who has waited for long keeps the door shut for others, see `PATIENCE_S`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of_salt: dict[bytes, deque[tuple[float, Any]]] = {}
        self._given: dict[bytes, int] = {}
        """Tokens that each principal had, counted from a start that all share: newcomers begin at `_level`."""
        self._level = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._of_salt.values())

    def __iter__(self) -> Iterator[Any]:
        return (waiter for queue in self._of_salt.values() for _, waiter in queue)

    def push(self, waiter: Waiter) -> None:
        """Takes one in, at the end of its principal's queue."""
        self._given[waiter.salt] = max(self._given.get(waiter.salt, 0), self._level)
        self._of_salt.setdefault(waiter.salt, deque()).append((self._clock(), waiter))

    def remove(self, waiter: Waiter) -> None:
        """Takes one out that does not wait any more."""
        queue = self._of_salt[waiter.salt]
        kept = deque(pair for pair in queue if pair[1] is not waiter)
        assert len(kept) < len(queue), "it did not wait"
        self._set(waiter.salt, kept)

    def pop(self, fits_adapter: Callable[[Any], bool], take: Callable[[Any], bool]) -> Any | None:
        """The next one, for which `take` found room; None without. Who only lacks room for its adapter is passed over."""
        shut_for = self._shut_for(fits_adapter)
        for salt in sorted(self._of_salt, key=lambda salt: self._given[salt]):
            for _, waiter in self._of_salt[salt]:
                if shut_for is not None and waiter.adapter not in (None, shut_for):
                    continue
                if not fits_adapter(waiter):
                    continue
                if not take(waiter):  # smaller ones must not slip past it for ever
                    return None
                self.remove(waiter)
                self._level = self._given[salt]
                self._given[salt] += waiter.cost
                self._forget()
                return waiter
        return None

    def _shut_for(self, fits_adapter: Callable[[Any], bool]) -> str | None:
        """The adapter of the one that has waited longest, and too long, for room among the adapters."""
        begun = self._clock() - PATIENCE_S
        late = [
            pair for queue in self._of_salt.values() for pair in queue
            if pair[0] < begun and not fits_adapter(pair[1])
        ]  # fmt: skip
        return min(late, key=lambda pair: pair[0])[1].adapter if late else None

    def _set(self, salt: bytes, queue: deque[tuple[float, Any]]) -> None:
        if queue:
            self._of_salt[salt] = queue
        else:
            del self._of_salt[salt]

    def _forget(self) -> None:
        """Principals that are not ahead of a newcomer are newcomers."""
        for salt in [s for s, given in self._given.items() if given <= self._level and s not in self._of_salt]:
            del self._given[salt]
