"""Facts that a running server tells of itself, and what the system tells of its processes."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field

import psutil

from inlay.errors import InlayError
from inlay.serving.load_client import Connection, Target

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(\{[^}]*\})? ([-+\w.]+)$", re.M)
_OF_INTEREST = re.compile(r"bytes|cache_usage|kv_blocks")


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Memory of a server."""

    rss_bytes: int | None = None
    """Resident memory of its processes, where they run on this machine; shared pages count in each."""
    parts: dict[str, float] = field(default_factory=dict)
    """By the server's own words: what `/metrics`, else `/health`, says in bytes or blocks."""


async def served_models(target: Target) -> tuple[str, list[str]]:
    """(name of its base, names of its other models in its order). Raises: InlayError where it does not say."""
    connection = Connection(target)
    found = await connection.exchange("GET", "/v1/models")
    await connection.close()
    try:
        models = json.loads(found.body)["data"]
        names = [str(one["id"]) for one in models]
        bases = [str(one["id"]) for one in models if (one.get("inlay") or {}).get("kind") == "base"]
    except (ValueError, KeyError, TypeError, AttributeError):
        fault = found.fault or f"HTTP {found.status}"
        raise InlayError(
            f"{target.url}/v1/models: no list of models ({fault}). Is a server of OpenAI's API there?"
        ) from None
    if not names:
        raise InlayError(f"{target.url}/v1/models: lists no model that this token may use.")
    base = (bases or names)[0]
    return base, [name for name in names if name != base]


async def server_memory(target: Target) -> ServerMemory:
    """Its memory in all, and by part where it tells."""
    connection, parts = Connection(target), dict[str, float]()
    metrics = await connection.exchange("GET", "/metrics")
    if metrics.status == 200:
        for name, labels, value in _SAMPLE.findall(metrics.body.decode("utf-8", "replace")):
            if _OF_INTEREST.search(name) and not name.endswith(("_bucket", "_created")):
                parts[name + labels] = float(value)
    health = await connection.exchange("GET", "/health")
    await connection.close()
    if not parts and health.status == 200:
        with contextlib.suppress(ValueError):
            _add_numbers(json.loads(health.body), "", parts)
    return ServerMemory(resident_bytes(target), parts)


def _add_numbers(value: object, name: str, parts: dict[str, float]) -> None:
    """Every number of a JSON value whose name speaks of memory."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _add_numbers(inner, f"{name}.{key}".strip("."), parts)
    elif isinstance(value, int | float) and not isinstance(value, bool) and _OF_INTEREST.search(name):
        parts[name] = float(value)


def resident_bytes(target: Target) -> int | None:
    """Resident memory of the process that listens on the port of this machine, with its children; None where not known."""
    if target.host not in ("127.0.0.1", "localhost", "::1"):
        return None
    for process in psutil.process_iter():
        try:
            if any(
                one.status == psutil.CONN_LISTEN and one.laddr.port == target.port
                for one in process.net_connections("tcp")
            ):
                family = [process, *process.children(recursive=True)]
                return sum(one.memory_info().rss for one in family)
        except (psutil.Error, OSError):
            continue
    return None
