"""Profile of a run: every moment belongs to the innermost part that is at work."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

import torch

from inlay.hardware.probe import synchronize
from inlay.runs.reporter import duration_shown

P = ParamSpec("P")
T = TypeVar("T")

PARTS: Final = {
    "data": "reading rows and padding them into batches; the device waits for it",
    "forward": "the model's forward pass, without what stands below",
    "backward": "its backward pass, without what stands below",
    "attention": "scores and their mixtures, forward and backward",
    "adapter": "the adapter's own matmuls, forward and backward",
    "head": "logits and loss, with their gradient",
    "optimizer": "clipping, checking and applying the gradient",
    "evaluation": "held-out loss",
    "checkpoint": "what training waits for; writing goes on beside it",
    "other": "metrics, progress, and all else",
}
"""Each part in words. The autograd engine hides attention and adapter in forward and backward."""


class Profile:
    """Seconds by part since it began."""

    def __init__(self, device: str) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._device, self._thread = torch.device(device), threading.get_ident()
        self._parts, self._since = ["other"], time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges the time inside to the part of this name, and the time before to the part around it."""
        if threading.get_ident() != self._thread:  # autograd's and the saver's threads work beside it
            yield
            return
        self._charge()
        self._parts.append(name)
        try:
            yield
        finally:
            self._charge()
            self._parts.pop()

    def _charge(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def end(self) -> None:
        """Charges the time up to now."""
        self._charge()

    def rows(self) -> list[tuple[str, str]]:
        """(part, time, share and meaning) of the parts that took any, the longest first."""
        whole = sum(self.seconds.values()) or 1.0
        taken = sorted(((s, name) for name, s in self.seconds.items() if s > 0), reverse=True)
        return [(name, f"{s / whole:>4.0%}  {duration_shown(s):<8}  {PARTS[name]}") for s, name in taken]


_current: Profile | None = None


@contextmanager
def profiled(device: str) -> Iterator[Profile]:
    """Inside, everything that is `timed` is counted. One at a time."""
    global _current
    _current = profile = Profile(device)
    try:
        yield profile
    finally:
        _current = None
        profile.end()


def timed(part: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Counts a function's time as that part while a profile is taken; otherwise only calls it."""
    assert part in PARTS

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def called(*arguments: P.args, **options: P.kwargs) -> T:
            if _current is None:
                return function(*arguments, **options)
            with _current.part(part):
                return function(*arguments, **options)

        return called

    return wrap
