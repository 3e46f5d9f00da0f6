"""`GET /metrics` for Prometheus: figures of the engine as they are now, counts and times of the requests so far.

Names follow vLLM's with the prefix `inlay:`, so that its dashboards work. Labels come from the library's names and from
closed sets; no text of a client is ever one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from itertools import pairwise
from typing import Final

import psutil
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response

from inlay.serving.engine import Engine
from inlay.serving.server import Record

_FAST: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SLOW: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
_REASONS: Final = frozenset({
    "overloaded", "rate_limit_exceeded", "too_many_live_requests", "draining", "loading", "failed", "restarting",
    "invalid_api_key", "missing_scope", "model_not_found", "unsupported_parameter", "invalid_value", "invalid_prompt",
    "context_length_exceeded", "special_token", "template_failed", "adapter_gone",
})  # fmt: skip
"""Codes of refusals that have a series of their own; others are counted as `other`."""
_STATUSES: Final = frozenset(int(status) for status in HTTPStatus)
_GAUGES: Final[Mapping[str, str]] = {
    "kv_blocks": "Blocks of keys and values.",
    "kv_blocks_used": "Blocks of keys and values in use.",
    "adapters_bytes": "Memory of the adapters.",
    "adapters": "Adapters in memory.",
    "step_seconds": "Duration of the last step.",
}
"""Figures of the engine's state that are shown as they are."""


class Metrics:
    """Figures of one server. An `Observer` of its requests."""

    def __init__(self, engine: Engine, pids: Callable[[], Mapping[str, int]]) -> None:
        """`pids` gives the numbers of the server's processes by their names."""
        self._registry = registry = CollectorRegistry()
        registry.register(_Now(engine, pids))
        labels = ["model_name"]

        def counter(name: str, text: str, of: list[str]) -> Counter:
            return Counter(f"inlay:{name}", text, of, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"inlay:{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter("http_requests", "Requests by route and status.", ["route", "status"])
        self._refused = counter("refused", "Requests that got an error.", ["reason"])
        self._success = counter("request_success", "Answers by what ended them.", [*labels, "finished_reason"])
        self._prompt = counter("prompt_tokens", "Tokens of prompts.", labels)
        self._generated = counter("generation_tokens", "Tokens of answers.", labels)
        self._queried = counter("prefix_cache_queries", "Tokens of prompts that were looked up.", labels)
        self._hits = counter("prefix_cache_hits", "Tokens of prompts that were in the prefix cache.", labels)
        self._first = histogram("time_to_first_token_seconds", "Until the first token.", _FAST)
        self._between = histogram("inter_token_latency_seconds", "Between tokens of an answer.", _FAST)
        self._whole = histogram("e2e_request_latency_seconds", "Of a whole answer.", _SLOW)

    def ended(self, record: Record) -> None:
        """Counts a request at its end."""
        status = record.status if record.status == 499 or record.status in _STATUSES else 0
        self._requests.labels(record.route or "none", str(status)).inc()
        if record.code:
            self._refused.labels(record.code if record.code in _REASONS else "other").inc()
        if record.target is None or not record.prompt_tokens:
            return
        name = record.target.name
        self._prompt.labels(name).inc(record.prompt_tokens)
        self._generated.labels(name).inc(record.completion_tokens)
        self._queried.labels(name).inc(record.prompt_tokens)
        self._hits.labels(name).inc(record.cached_tokens)
        for finish in record.finishes:
            self._success.labels(name, finish).inc()
        if record.first_token is None:
            return
        self._first.labels(name).observe(record.first_token - record.started)
        self._whole.labels(name).observe(record.ended - record.started)
        if len(record.finishes) == 1:  # several answers at once have no order among their tokens
            times = record.token_times
            for (before, _), (at, tokens) in pairwise(times):
                if tokens:
                    self._between.labels(name).observe((at - before) / tokens)

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self._registry)


class _Now(Collector):
    """Gauges that are read when somebody asks."""

    def __init__(self, engine: Engine, pids: Callable[[], Mapping[str, int]]) -> None:
        self._engine, self._pids = engine, pids

    def collect(self) -> Iterator[Metric]:
        """The gauges of this moment."""
        state = self._engine.state()
        blocks = state.figures.get("kv_blocks", 0.0)
        share = state.figures.get("kv_blocks_used", 0.0) / blocks if blocks else 0.0
        now = {
            "num_requests_running": ("Answers that are being computed.", float(state.running)),
            "num_requests_waiting": ("Answers that wait for room.", float(state.waiting)),
            "kv_cache_usage_perc": ("Share of the blocks of keys and values in use; 1 is all.", share),
            "tokens_per_second": ("Tokens of answers per second of late.", state.tokens_per_second),
            "ready": ("1 while requests are answered.", float(state.condition == "ready")),
        } | {name: (text, state.figures[name]) for name, text in _GAUGES.items() if name in state.figures}
        for name, (text, value) in now.items():
            yield GaugeMetricFamily(f"inlay:{name}", text, value)
        memory = GaugeMetricFamily("inlay:rss_bytes", "Memory of the processes.", labels=["process"])
        for name, pid in self._pids().items():
            try:
                memory.add_metric([name], psutil.Process(pid).memory_info().rss)
            except psutil.Error:  # it ended just now
                continue
        yield memory


def metrics_router(metrics: Metrics) -> APIRouter:
    """The route `/metrics`."""
    router = APIRouter()

    @router.get("/metrics", response_class=Response, summary="Figures for Prometheus")
    async def show() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
