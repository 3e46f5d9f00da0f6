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
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from inlay.data.encoding.encoder import Encoder
from inlay.errors import DataError
from inlay.generation.admission import Queue
from inlay.generation.blocks import BLOCK, Pool, blocks_for
from inlay.generation.choice import NO_TOKEN, ChoiceRow, Constraint, choose, logprobs_of
from inlay.generation.prefixes import Match, Prefixes
from inlay.generation.request import Ask, Event, Finish, TokenLogprob
from inlay.generation.text import AnswerText, Detokenizer
from inlay.generation.work import Forward, Segment, Work

STEP_S: Final = 0.2
"""Longest step, about: a long prompt delays the other answers by no more at a time."""
_FEWEST_TOKENS, _TRIED_TOKENS, _MOST_TOKENS = 16, 64, 1024
_RATE_S = 5.0
"""Tokens per second are measured over so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most that is computed at once."""

    rows: int = 32
    """Answers."""
    adapters: int = 32
    """Different adapters among them."""
    step_tokens: int | None = None
    """Tokens of prompts in one step; None: as many as a step of `STEP_S` takes, measured at the start."""


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
    """Of the key/value pool."""
    blocks_used: int
    """Blocks of the answers that are being computed."""
    blocks_kept: int
    """Blocks of the prefix cache; answers may share them, and what nobody else holds gives way."""
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

    def retire(self, digest: str) -> None:
        """Nobody new gets it; its memory goes with the last holder."""
        raise NotImplementedError

    def __contains__(self, digest: object) -> bool:
        """Whether `hold` would succeed."""
        raise NotImplementedError


class TextStream(Protocol):
    """Text of one answer, token by token."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        raise NotImplementedError

    def add(self, id: int) -> str:  # noqa: A002
        """The text that is final with this token."""
        raise NotImplementedError

    def end(self) -> str:
        """The text that was held back, at the end of the answer."""
        raise NotImplementedError


def _texts_of(encoder: Encoder) -> Callable[[Ask], AnswerText]:
    tokens = Detokenizer(encoder.tokenizer)
    return lambda ask: tokens.answer(ask.sampling.stop)


class _Row:
    """One answer, waiting or being computed."""

    def __init__(
        self, number: int, ask: Ask, room: int, choice: ChoiceRow, text: TextStream, stop_ids: frozenset[int]
    ) -> None:
        self.number, self.ask, self.room, self.choice, self.text = number, ask, room, choice, text
        self.stop_ids = stop_ids
        self.ids = list(ask.prompt)
        """Of prompt and answer."""
        self.computed = 0
        """Tokens whose keys and values are in the blocks."""
        self.cached = 0
        """Of those, found in the prefix cache."""
        self.blocks: list[int] = []
        self.is_running = False
        self.prompt_logprobs: list[TokenLogprob | None] = [None] if ask.prompt_logprobs else []
        self._has_begun = False

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

    def see_prompt(self, logits_NV: Tensor) -> None:
        """Takes in the logits of the next tokens of the prompt."""
        seen = len(self.prompt_logprobs)
        ids = self.ask.prompt[seen : seen + len(logits_NV)]
        tops = [self.ask.sampling.logprobs or 0] * len(ids)
        self.prompt_logprobs += logprobs_of(logits_NV[: len(ids)], ids, tops)

    def event(self, **fields: Any) -> Event:
        """The next event; the first one tells of the prompt, too."""
        if not self._has_begun:
            self._has_begun = True
            fields |= {"cached_tokens": self.cached, "prompt_logprobs": tuple(self.prompt_logprobs)}
            self.prompt_logprobs = []
        return Event(self.number, **fields)

    def segment(self, start: int, count: int) -> Segment:
        """Its next so many tokens, which begin at `start` in the step."""
        return Segment(start, start + count, self.computed, self.blocks, self.adapter, self.is_answering)


class Loop:
    """Answers asks by steps of a `Forward`."""

    def __init__(
        self, forward: Forward, encoder: Encoder, bank: Bank | None = None, limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic, *, grammars: Callable[[Ask], Constraint] | None = None,
        texts: Callable[[Ask], TextStream] | None = None, stop_ids: Callable[[Ask], frozenset[int]] | None = None,
    ) -> None:  # fmt: skip
        """`bank` holds the adapters that asks may name; the forward asks the same. `grammars` makes the rule of an ask's
        grammar, `texts` what turns its tokens into text; `stop_ids` gives the ids that end it, by default the encoder's."""
        self.forward, self.limits = forward, limits or Limits()
        self._grammars, self._texts = grammars, texts or _texts_of(encoder)
        self._stop_ids = stop_ids or (lambda ask: encoder.stop_ids)
        self._bank, self._clock = bank, clock
        self._step_tokens = self.limits.step_tokens or _measured_step(forward)
        self._pool = Pool(forward.blocks)
        self._prefixes = Prefixes(self._pool)
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
        room = max(0, min(ask.sampling.max_new_tokens, limit - length))
        if blocks_for(length + room) > self._pool.size:
            raise DataError(
                f"prompt: {length} tokens with {room} more need memory for {length + room}; there is some for "
                f"{self._pool.size * BLOCK}. Shorten it, or ask for fewer tokens."
            )
        rule = self._grammars(ask) if self._grammars is not None and ask.grammar is not None else None
        stop_ids = self._stop_ids(ask)
        choice = ChoiceRow(ask.prompt, ask.sampling, stop_ids, ask.choice, rule)
        row = _Row(next(self._numbers), ask, room, choice, self._texts(ask), stop_ids)
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

    def retire(self, adapter: str) -> None:
        """Nobody new gets the adapter; answers with it end as they began, and its prefixes go with the last of them."""
        assert self._bank is not None, "an adapter, and no bank"
        self._bank.retire(adapter)
        self._forget_unused(adapter)

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
            self._pool.size, len({block for row in self._running for block in row.blocks}), len(self._prefixes), self._prompt_tokens, self._hits, self._answer_tokens,
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
            if row.computed <= len(row.ask.prompt):
                self._keep_prefix(row, row.computed // BLOCK * BLOCK)
        events = self._choose(logits_WV, wanted)
        self._note(self._clock() - begun, len(work.ids_T))
        return events

    def _admit(self) -> None:
        while (row := self._waiting.pop(self._fits_adapter, self._take_blocks)) is not None:
            row.is_running = True
            self._running.append(row)
            self._prompt_tokens += len(row.ask.prompt)
            self._hits += row.cached

    def _fits_adapter(self, row: _Row) -> bool:
        adapters = {other.adapter for other in self._running} - {None}
        return row.adapter is None or row.adapter in adapters or len(adapters) < self.limits.adapters

    def _take_blocks(self, row: _Row) -> bool:
        """Whether there are blocks for its prompt and its whole answer, so that it never waits again."""
        if len(self._running) >= self.limits.rows:
            return False
        asked = () if row.ask.prompt_logprobs else row.ask.prompt[:-1]
        if self._begin_after(row, self._prefixes.match(row.salt, row.adapter, asked)):
            return True
        # nobody else will give blocks back: those of its own prefix make room
        return not self._running and self._begin_after(row, Match([], None, 0))

    def _begin_after(self, row: _Row, known: Match) -> bool:
        """Whether there are blocks for what follows the known beginning, whose blocks are held; else they are let go."""
        more = blocks_for(row.cost) - len(known.blocks)
        self._prefixes.evict(more - self._pool.free)
        if is_there := more <= self._pool.free:
            row.blocks = [*known.blocks, *self._pool.take(more)]
            row.computed = row.cached = known.tokens
            if known.tail is not None:
                self.forward.copy_block(known.tail, row.blocks[len(known.blocks)], known.tail_tokens)
        else:
            self._pool.release(known.blocks)
        if known.tail is not None:
            self._pool.release([known.tail])
        return is_there

    def _keep_prefix(self, row: _Row, tokens: int) -> None:
        """Lets others begin where so many tokens of its prompt end."""
        self._prefixes.add(row.salt, row.adapter, row.ask.prompt[:tokens], row.blocks)

    def _forget_unused(self, adapter: str) -> None:
        if (
            self._bank is not None
            and adapter not in self._bank
            and all(r.adapter != adapter for r in self._rows.values())
        ):
            self._prefixes.forget(adapter)

    def _parts(self) -> list[tuple[_Row, int]]:
        """(answer, its tokens in this step): one of each answer that is begun, then pieces of prompts."""
        parts = [(row, 1) for row in self._running if row.is_answering]
        room = self._step_tokens
        for row in self._running:
            if room and not row.is_answering:
                count = min(room, len(row.ask.prompt) - row.computed)
                parts.append((row, count))
                room -= count
        return parts

    def _choose(self, logits_WV: Tensor, wanted: Sequence[_Wanted]) -> list[Event]:
        for one in wanted:
            if one.row.prompt_logprobs:
                one.row.see_prompt(logits_WV[one.first : one.last + 1])
        ended = [one for one in wanted if one.gives_next]
        events = [self._finished(one.row, "length") for one in ended if not one.row.room]
        going = [one for one in ended if one.row.room]
        if going:
            places = [one.last for one in going]
            logits_BV = logits_WV if places == list(range(len(logits_WV))) else logits_WV[places]
            chosen = choose(logits_BV, [one.row.choice for one in going])
            for one, id_, logprob in zip(going, chosen.ids, chosen.logprobs, strict=True):
                events.append(self._took(one.row, id_, logprob))
        return events

    def _took(self, row: _Row, chosen: int, logprob: TokenLogprob | None) -> Event:
        if chosen == NO_TOKEN:
            return self._finished(
                row, "failed", reason="no token can be chosen: the logits are no numbers, or all are ruled out"
            )
        if chosen in row.stop_ids and not row.ask.sampling.ignore_eos:
            return self._finished(row, "stop", text=row.text.end())
        row.ids.append(chosen)
        row.choice.append(chosen)
        self._answer_tokens += 1
        new = {"ids": (chosen,), "logprobs": () if logprob is None else (logprob,)}
        text = row.text.add(chosen)
        if row.text.stopped:
            return self._finished(row, "stop", text=text, **new)
        if row.choice.is_complete:
            return self._finished(row, "stop", text=text + row.text.end(), **new)
        if row.answered >= row.room:
            return self._finished(row, "length", text=text + row.text.end(), **new)
        return row.event(text=text, **new)

    def _finished(self, row: _Row, finish: Finish, **fields: Any) -> Event:
        self._leave(row)
        return row.event(finish=finish, **fields)

    def _leave(self, row: _Row) -> None:
        del self._rows[row.number]
        if row.is_running:
            self._running.remove(row)
            if row.is_answering:  # nobody writes into its last block any more
                self._keep_prefix(row, len(row.ask.prompt))
            self._pool.release(row.blocks)
        else:
            self._waiting.remove(row)
        if row.adapter is not None and self._bank is not None:
            self._bank.release(row.adapter)
            self._forget_unused(row.adapter)

    def _note(self, seconds: float, tokens: int) -> None:
        self._step_seconds = seconds
        self._steps.append((seconds, tokens))
        while len(self._steps) > 1 and sum(took for took, _ in self._steps) > _RATE_S:
            self._steps.popleft()


class _Wanted(NamedTuple):
    """Rows of logits that one answer wants of a step."""

    row: _Row
    first: int
    last: int
    gives_next: bool
    """Whether the last one gives the next token."""


def _measured_step(forward: Forward) -> int:
    """Tokens of a prompt that a step computes in `STEP_S`."""
    count = min(_TRIED_TOKENS, forward.context_length, forward.blocks * BLOCK)
    segment = Segment(0, count, 0, range(forward.blocks), None, False)
    work = Work(torch.zeros(count, dtype=torch.long), torch.arange(count), (segment,), torch.zeros(0, dtype=torch.long))
    took = []
    for _ in range(2):  # the first one reads the weights into memory
        begun = time.perf_counter()
        forward.logits(work)
        took.append(time.perf_counter() - begun)
    fitting = int(count * STEP_S / max(min(took), 1e-6))
    return max(_FEWEST_TOKENS, min(fitting, _MOST_TOKENS) // _FEWEST_TOKENS * _FEWEST_TOKENS)


def _work(parts: Sequence[tuple[_Row, int]]) -> tuple[Work, list[_Wanted]]:
    """(the work of a step, the logits that it is wanted for)"""
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    segments, wanted = [], []
    for row, count in parts:
        segments.append(row.segment(len(ids), count))
        end = row.computed + count
        ids += row.ids[row.computed : end]
        positions += range(row.computed, end)
        gives_next = end == len(row.ids)
        more = count if row.prompt_logprobs and not row.is_answering else int(gives_next)
        if more:
            wanted.append(_Wanted(row, len(places), len(places) + more - 1, gives_next))
            places += range(len(ids) - more, len(ids))
    return Work(
        torch.tensor(ids), torch.tensor(positions), tuple(segments), torch.tensor(places, dtype=torch.long)
    ), wanted
