"""The loop: many answers at once, each step one forward pass over what all of them need next.

Answers join and leave between steps; a long prompt is computed in pieces, so that it delays the others by one step at most.
An answer does not depend on those beside it. One thread calls it.

Shapes: T tokens of a step, W wanted rows of logits, V vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inlay.data.encoding.encoder import Encoder
from inlay.errors import DataError
from inlay.generation.admission import Queue, Room
from inlay.generation.blocks import BLOCK, Pool, blocks_for
from inlay.generation.request import Ask, Event, Finish
from inlay.generation.work import Forward, Segment, Work

_RATE_S = 5.0
"""Tokens per second are measured over so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that is computed at once."""

    rows: int = 32
    """Answers."""
    adapters: int = 32
    """Different adapters among them."""
    step_tokens: int = 256
    """Tokens of prompts in one step."""


@dataclass(frozen=True, slots=True)
class LoopState:
    """Load of the loop just now."""

    running: int
    """Answers that are being computed."""
    waiting: int
    """Answers that wait for room."""
    queued_tokens: int
    """Tokens of prompts and answers still to compute for all of them, at most."""
    tokens_per_second: float
    """Computed tokens, of prompts and of answers, measured over the last seconds of work."""
    step_seconds: float
    """Of the last step."""
    blocks: int
    blocks_used: int
    prompt_tokens: int
    """Of all prompts that were begun so far."""
    prefix_hits_tokens: int
    """Of those, found in the prefix cache."""
    answer_tokens: int
    """Of all answers so far."""


class Bank(Protocol):
    """Adapters in memory, counted by those who hold them; see `inlay.generation.bank`."""

    def hold(self, digest: str) -> None:
        """Raises: AdapterError where it is not in memory, or is retired."""
        raise NotImplementedError

    def release(self, digest: str) -> None:
        """Ends one `hold`."""
        raise NotImplementedError


class _Row:
    """One answer, waiting or being computed."""

    def __init__(self, number: int, ask: Ask, room: int) -> None:
        self.number, self.ask, self.room = number, ask, room
        self.ids = list(ask.prompt)
        """Of prompt and answer."""
        self.computed = 0
        """Tokens whose keys and values are in the blocks."""
        self.blocks: list[int] = []
        self.text = ""
        self.is_running = False

    @property
    def salt(self) -> bytes:
        """Its principal."""
        return self.ask.salt

    @property
    def adapter(self) -> str | None:
        """Digest of its adapter."""
        return self.ask.adapter

    @property
    def cost(self) -> int:
        """Tokens of prompt and answer, at most."""
        return len(self.ask.prompt) + self.room

    @property
    def answered(self) -> int:
        """Tokens of its answer so far."""
        return len(self.ids) - len(self.ask.prompt)

    @property
    def is_answering(self) -> bool:
        """Whether its prompt has been computed."""
        return self.computed >= len(self.ask.prompt)

    def segment(self, start: int, count: int) -> Segment:
        """Its next so many tokens, which begin at `start` in the step."""
        return Segment(start, start + count, self.computed, self.blocks, self.adapter, self.is_answering)


class Loop:
    """Answers asks by steps of a `Forward`."""

    def __init__(
        self, forward: Forward, encoder: Encoder, bank: Bank | None = None, limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`bank` holds the adapters that asks may name; the forward asks the same."""
        self.forward, self.limits = forward, limits or Limits()
        self._encoder, self._bank, self._clock = encoder, bank, clock
        self._pool = Pool(forward.blocks)
        self._waiting = Queue(clock)
        self._rows: dict[int, _Row] = {}
        """All that are not finished, in the order in which they came."""
        self._running: list[_Row] = []
        self._numbers = itertools.count(1)
        self._steps: deque[tuple[float, int]] = deque()
        self._step_seconds, self._prompt_tokens, self._hits, self._answer_tokens = 0.0, 0, 0, 0

    # ------------------------------------------------------------ asks

    def add(self, ask: Ask) -> int:
        """The number of the answer, by which its events are known.

        Raises: DataError for a prompt that is empty, too long, or of unknown ids; AdapterError for an adapter that is not
        in memory, or is retired.
        """
        length, limit = len(ask.prompt), self.forward.context_length
        if not length:
            raise DataError("prompt: no tokens. Give it some text.")
        if length >= limit:
            raise DataError(f"prompt: {length} tokens fill the context of {limit}. Shorten it.")
        if not 0 <= min(ask.prompt) <= max(ask.prompt) < self.forward.vocabulary:
            wrong = next(i for i in ask.prompt if not 0 <= i < self.forward.vocabulary)
            raise DataError(f"prompt: has the id {wrong}; the vocabulary has 0 to {self.forward.vocabulary - 1}.")
        row = _Row(next(self._numbers), ask, max(0, min(ask.sampling.max_new_tokens, limit - length)))
        if blocks_for(row.cost) > self._pool.size:
            raise DataError(
                f"prompt: {length} tokens with {row.room} more need memory for {row.cost}; there is some for "
                f"{self._pool.size * BLOCK}. Shorten it, or ask for fewer tokens."
            )
        if ask.adapter is not None:
            assert self._bank is not None, "an adapter, and no bank"
            self._bank.hold(ask.adapter)
        self._rows[row.number] = row
        self._waiting.push(row)
        return row.number

    def cancel(self, number: int) -> None:
        """Ends an answer, whatever it is at; there are no more events of it. One that has ended is left alone."""
        if (row := self._rows.get(number)) is not None:
            self._leave(row)

    @property
    def live(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._rows)

    def drain(self) -> list[Event]:
        """Steps until all answers have ended: all their events."""
        events = []
        while self.live:
            events += self.step()
        return events

    def state(self) -> LoopState:
        """Load just now."""
        left = sum(row.cost - row.computed for row in self._rows.values())
        tokens = sum(count for _, count in self._steps)
        seconds = sum(took for took, _ in self._steps)
        return LoopState(
            len(self._running), len(self._waiting), left, tokens / seconds if seconds else 0.0, self._step_seconds,
            self._pool.size, self._pool.size - self._pool.free, self._prompt_tokens, self._hits, self._answer_tokens,
        )  # fmt: skip

    # ------------------------------------------------------------ a step

    def step(self) -> list[Event]:
        """One forward pass, and what it brought to each answer; nothing where there is nothing to compute."""
        begun = self._clock()
        self._admit()
        if not self._running:
            return []
        parts = self._parts()
        work, wanted = _work(parts)
        logits_WV = self.forward.logits(work)
        for row, count in parts:
            row.computed += count
        events = self._choose(logits_WV, wanted)
        self._note(self._clock() - begun, len(work.ids_T))
        return events

    def _admit(self) -> None:
        while (row := self._waiting.pop(self._room_for)) is not None:
            row.blocks = self._pool.take(blocks_for(row.cost))
            row.is_running = True
            self._running.append(row)
            self._prompt_tokens += len(row.ask.prompt)

    def _room_for(self, row: _Row) -> Room:
        if len(self._running) >= self.limits.rows or blocks_for(row.cost) > self._pool.free:
            return "no"
        adapters = {other.adapter for other in self._running} - {None}
        is_new = row.adapter is not None and row.adapter not in adapters
        return "not for its adapter" if is_new and len(adapters) >= self.limits.adapters else "yes"

    def _parts(self) -> list[tuple[_Row, int]]:
        """(answer, its tokens in this step): one of each answer that is begun, then pieces of prompts."""
        parts = [(row, 1) for row in self._running if row.is_answering]
        room = self.limits.step_tokens
        for row in self._running:
            if room and not row.is_answering:
                count = min(room, len(row.ask.prompt) - row.computed)
                parts.append((row, count))
                room -= count
        return parts

    def _choose(self, logits_WV: Tensor, wanted: Sequence[_Row]) -> list[Event]:
        events = []
        best = logits_WV.argmax(-1).tolist() if len(wanted) else []
        for row, chosen in zip(wanted, best, strict=True):
            events.append(self._took(row, chosen))
        return events

    def _took(self, row: _Row, chosen: int) -> Event:
        if chosen in self._encoder.stop_ids:
            self._leave(row)
            return Event(row.number, finish="stop")
        row.ids.append(chosen)
        self._answer_tokens += 1
        whole = self._encoder.text(row.ids[len(row.ask.prompt) :])
        new, row.text = whole[len(row.text) :], whole
        finish: Finish | None = "length" if row.answered >= row.room else None
        if finish:
            self._leave(row)
        return Event(row.number, (chosen,), new, finish=finish)

    def _leave(self, row: _Row) -> None:
        del self._rows[row.number]
        if row.is_running:
            self._running.remove(row)
            self._pool.release(row.blocks)
        else:
            self._waiting.remove(row)
        if row.adapter is not None and self._bank is not None:
            self._bank.release(row.adapter)

    def _note(self, seconds: float, tokens: int) -> None:
        self._step_seconds = seconds
        self._steps.append((seconds, tokens))
        while len(self._steps) > 1 and sum(took for took, _ in self._steps) > _RATE_S:
            self._steps.popleft()


def _work(parts: Sequence[tuple[_Row, int]]) -> tuple[Work, list[_Row]]:
    """(the work of a step, the answers whose next token it gives, in the order of its logits)"""
    ids: list[int] = []
    positions: list[int] = []
    segments, wanted, places = [], [], []
    for row, count in parts:
        segments.append(row.segment(len(ids), count))
        end = row.computed + count
        ids += row.ids[row.computed : end]
        positions += range(row.computed, end)
        if end == len(row.ids):
            wanted.append(row)
            places.append(len(ids) - 1)
    return Work(
        torch.tensor(ids), torch.tensor(positions), tuple(segments), torch.tensor(places, dtype=torch.long)
    ), wanted
