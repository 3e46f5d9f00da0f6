"""Measurement of how fast a server of OpenAI's API answers: time to first token, gaps between tokens, goodput, memory.

Two ways to load it. Closed loop: so many clients, each of which sends its next request when it has its answer. Open loop:
requests come at random moments (Poisson) whatever the server does; their times count from the moment at which they were due.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from inlay.serving.load_client import Connection, Target
from inlay.serving.timed_answers import REFUSED, Answer, Dialect, ask
from inlay.serving.workloads import Prompt, Workload, prompts

_LAG_EVERY_S: Final = 0.01
_MOST_OPEN: Final = 1024


async def closed_loop(
    target: Target, dialect: Dialect, source: Iterator[Prompt], clients: int, seconds: float
) -> list[Answer]:
    """The answers that so many clients began within the time; the last ones end after it."""
    ends_s = time.perf_counter() + seconds
    found: list[Answer] = []

    async def client() -> None:
        connection = Connection(target)
        try:
            while time.perf_counter() < ends_s:
                found.append(await ask(connection, dialect, next(source)))
                if found[-1].status == 0:
                    await asyncio.sleep(0.1)  # a server that is gone is not asked in a tight loop
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return found


async def open_loop(
    target: Target, dialect: Dialect, source: Iterator[Prompt], rate: float, seconds: float, seed: int = 0
) -> list[Answer]:
    """The answers to requests that came at random moments, `rate` a second in the mean."""
    draw = random.Random(seed)
    idle: list[Connection] = []
    found: list[Answer] = []

    async def one(prompt: Prompt, due_s: float) -> None:
        connection = idle.pop() if idle else Connection(target)
        found.append(await ask(connection, dialect, prompt, due_s))
        idle.append(connection)

    due_s = time.perf_counter()
    ends_s = due_s + seconds
    gate = asyncio.Semaphore(_MOST_OPEN)
    async with asyncio.TaskGroup() as group:
        while (due_s := due_s + draw.expovariate(rate)) < ends_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            await gate.acquire()
            group.create_task(one(next(source), due_s)).add_done_callback(lambda _: gate.release())
    for connection in idle:
        await connection.close()
    return found


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of times, in seconds."""

    p50: float
    p95: float
    p99: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """The percentiles, interpolated; None of no values."""
        if not values:
            return None
        p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
        return Spread(p50, p95, p99, max(values))


@dataclass(frozen=True, slots=True)
class ClientCost:
    """The stopwatch itself: what it takes from the machine, and how late it looks."""

    cpu_share: float
    """CPU seconds of this process for each second measured."""
    lag_s: Spread | None
    """Lateness of a clock of 10 ms in this process; times are wrong by about so much."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of a server under one load."""

    seconds: float
    """Time in which requests were begun; tokens are counted within it."""
    answers: int
    """Whole ones."""
    refused: int
    """Answered with 429 or 503."""
    failed: int
    """Ended in another way."""
    tokens_per_s: float
    answers_per_s: float
    goodput_per_s: float
    """Answers a second that were as soon as goodput demands."""
    good_share: float
    """Of all requests."""
    tokens_per_answer: float
    first_token_s: Spread | None
    gap_s: Spread | None
    answer_s: Spread | None
    """Time to the end of an answer."""
    refusal_s: Spread | None
    """Time to a refusal."""
    cached_share: float
    """Of the prompts' tokens, found in a prefix cache; by the server's count."""
    client: ClientCost
    faults: tuple[str, ...] = ()
    """The first few, each once."""


def speed_of(answers: Sequence[Answer], began_s: float, seconds: float, client: ClientCost) -> Speed:
    """The numbers of the answers to requests that were begun within the time."""
    whole = [one for one in answers if not one.fault]
    refused = [one for one in answers if one.status in REFUSED]
    ends_s = began_s + seconds
    good = [one for one in whole if one.is_good]
    inside = sum(
        one.tokens * sum(at_s <= ends_s for at_s in one.token_s) / len(one.token_s) for one in whole if one.token_s
    )
    ended = sum(one.ended_s <= ends_s for one in whole)
    prompt_tokens = sum(one.prompt_tokens for one in whole)
    started = [one for one in whole if one.token_s]
    return Speed(
        seconds=seconds,
        answers=len(whole),
        refused=len(refused),
        failed=len(answers) - len(whole) - len(refused),
        tokens_per_s=inside / seconds,
        answers_per_s=ended / seconds,
        goodput_per_s=sum(one.ended_s <= ends_s for one in good) / seconds,
        good_share=len(good) / len(answers) if answers else 0.0,
        tokens_per_answer=sum(one.tokens for one in whole) / len(whole) if whole else 0.0,
        first_token_s=Spread.of([one.first_token_s for one in started]),
        gap_s=Spread.of([gap for one in whole for gap in one.gaps_s]),
        answer_s=Spread.of([one.ended_s - one.due_s for one in whole]),
        refusal_s=Spread.of([one.ended_s - one.due_s for one in refused]),
        cached_share=sum(one.cached_tokens for one in whole) / prompt_tokens if prompt_tokens else 0.0,
        client=client,
        faults=tuple(dict.fromkeys(one.fault for one in answers if one.fault and one.status not in REFUSED))[:3],
    )


class Stopwatch:
    """Measures its own cost while it runs; `cost` is known at the end."""

    cost: ClientCost

    def __init__(self) -> None:
        self.began_s = time.perf_counter()


@asynccontextmanager
async def stopwatch() -> AsyncIterator[Stopwatch]:
    """Runs beside a measurement."""
    late_s: list[float] = []

    async def look() -> None:
        while True:
            due_s = time.perf_counter() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            late_s.append(max(0.0, time.perf_counter() - due_s))

    watch, cpu_s = Stopwatch(), time.process_time()
    task = asyncio.create_task(look())
    try:
        yield watch
    finally:
        task.cancel()
        took_s = time.perf_counter() - watch.began_s
        watch.cost = ClientCost((time.process_time() - cpu_s) / took_s, Spread.of(late_s))


async def capacity(target: Target, dialect: Dialect, source: Iterator[Prompt], clients: int, seconds: float) -> float:
    """Answers a second that the server makes for so many clients."""
    ends_s = time.perf_counter() + seconds
    found = await closed_loop(target, dialect, source, clients, seconds)
    return max(1, sum(not one.fault and one.ended_s <= ends_s for one in found)) / seconds


async def measured(
    target: Target, dialect: Dialect, load: Workload, base: str, adapters: Sequence[str], *,
    clients: int, seconds: float, rate: float | None = None, seed: int = 0,
) -> Speed:  # fmt: skip
    """The speed of the server under one load, after a moment of it that does not count.

    `rate` requests a second come at random moments; without it, and but for an overload, `clients` wait for their answers.
    """
    source = prompts(load, base, adapters, seed)
    warm_s = min(2.0, seconds / 4)
    await closed_loop(target, dialect, source, clients, warm_s)
    if load.overload:
        rate = load.overload * await capacity(target, dialect, source, clients, seconds / 2)
    async with stopwatch() as watch:
        if rate is None:
            answers = await closed_loop(target, dialect, source, clients, seconds)
        else:
            answers = await open_loop(target, dialect, source, rate, seconds, seed)
    return speed_of(answers, watch.began_s, seconds, watch.cost)
