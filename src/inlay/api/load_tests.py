"""The speed of a server under load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inlay.runs.reporter import PlainReporter, Reporter
from inlay.serving.load_client import Target
from inlay.serving.load_test import LoadOptions, LoadResult, load_test
from inlay.serving.started_server import started_server


def bench_serve(
    server: str,
    *,
    workloads: Sequence[str] = ("base", "adapters-8"),
    adapters: Sequence[str] | None = None,
    clients: int = 8,
    seconds: float = 20.0,
    rate: float | None = None,
    new_tokens: int = 64,
    token: str | None = None,
    reporter: Reporter | None = None,
) -> list[LoadResult]:
    """The speed of a server of OpenAI's API under each workload: time to first token, gaps, tokens per second, memory.

    `server` is a URL, whose `token` may be needed; or a base or run, for which `inlay serve` is started here with
    `adapters`, all that the library has for it by default. `clients` wait for each answer before they send again; with
    `rate` so many requests a second come at random moments instead. Each workload takes `seconds`.
    Raises: UserError for options that cannot be; InlayError for a server that does not answer.
    """
    chosen = None if adapters is None else tuple(adapters)
    options = LoadOptions(tuple(workloads), chosen, clients, seconds, rate, new_tokens)
    reporter = reporter or PlainReporter()
    if "://" in server:
        return asyncio.run(load_test(Target.of(server, token), options, reporter))
    reporter.stage(f"starting inlay serve {server}")
    with started_server([server, "--adapters", ",".join(chosen) if chosen else "all"]) as url:
        return asyncio.run(load_test(Target.of(url), options, reporter))
