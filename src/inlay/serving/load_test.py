"""A running server under several loads in turn, with what it holds in memory at the end of each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from inlay.errors import UserError
from inlay.runs.reporter import Reporter
from inlay.serving.load_client import Target
from inlay.serving.measure import Speed, measured
from inlay.serving.server_facts import ServerMemory, served_models, server_memory
from inlay.serving.timed_answers import understood
from inlay.serving.workloads import WORKLOADS, prompts, workload
from inlay.typed_json import JsonObject, encode


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Settings of a load test."""

    workloads: tuple[str, ...] = ("base", "adapters-8")
    adapters: tuple[str, ...] | None = None
    """Models that take turns; None for all that the server names beside its base."""
    clients: int = 8
    seconds: float = 20.0
    rate: float | None = None
    """Requests a second at random moments; None for clients that wait for their answers."""
    new_tokens: int = 64

    def __post_init__(self) -> None:
        """Raises: ConfigError for an unknown workload, UserError for a size that cannot be."""
        for name in self.workloads:
            workload(name)
        for name, value in (("clients", self.clients), ("seconds", self.seconds), ("new-tokens", self.new_tokens)):
            if not value > 0:
                raise UserError(f"--{name}: must be above 0 (got {value}).")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"--rate: must be above 0 (got {self.rate}).")


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One load of a server."""

    workload: str
    models: int
    """Distinct ones that were asked for."""
    clients: int
    rate: float | None
    new_tokens: int
    speed: Speed
    memory: ServerMemory

    def to_json(self) -> JsonObject:
        """All its numbers."""
        found: JsonObject = encode(self)
        return found


async def load_test(target: Target, options: LoadOptions, reporter: Reporter) -> list[LoadResult]:
    """The speed of the server under each load. Raises: InlayError where it does not answer; UserError."""
    base, served = await served_models(target)
    adapters = list(served if options.adapters is None else options.adapters)
    found = []
    for number, name in enumerate(options.workloads):
        load = WORKLOADS[name]
        if load.adapters and not adapters:
            raise UserError(
                f"{target.url}: serves no adapters, which the workload {name} asks for. Use --workload base."
            )
        if load.adapters > len(adapters):
            reporter.note(f"{name}: the server has {len(adapters)} of {load.adapters} adapters; these take turns")
        dialect = await understood(target, next(prompts(load, base, adapters)), options.new_tokens)
        if not dialect.more:
            reporter.note(f"{name}: the server does not take ignore_eos, so answers may end early")
        reporter.stage(f"{name}: {load.about}")
        speed = await measured(
            target, dialect, load, base, adapters, clients=options.clients, seconds=options.seconds,
            rate=options.rate, seed=number,
        )  # fmt: skip
        models = len({one.model for one in islice(prompts(load, base, adapters, number), 10_000)})
        memory = await server_memory(target)
        found.append(LoadResult(name, models, options.clients, options.rate, options.new_tokens, speed, memory))
    return found
