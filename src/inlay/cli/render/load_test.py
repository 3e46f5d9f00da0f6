"""The speed of a server under load as text."""

from __future__ import annotations

from collections.abc import Sequence

from inlay.cli.render.terminal import aligned
from inlay.errors import count_shown
from inlay.runs.reporter import bytes_shown
from inlay.serving.load_test import LoadResult
from inlay.serving.measure import Spread

_HEAD = (
    "",
    "models",
    "tokens/s",
    "answers/s",
    "good/s",
    "good",
    "first token, ms",
    "between tokens, ms",
    "refused",
    "failed",
)


def results_text(results: Sequence[LoadResult]) -> str:
    """One row a load, then its memory, its faults, and the cost of the stopwatch."""
    rows = [_HEAD, *(_row(one) for one in results)]
    lines = aligned(rows)
    lines += ["", "Times are p50 / p95 / p99. good: first token within 2 s, then at most 200 ms a token in the mean."]
    for one in results:
        lines += _memory(one)
        if one.speed.refusal_s:
            lines.append(f"{one.workload}: a refusal took {_times(one.speed.refusal_s)} ms")
        lines += [f"{one.workload}: {fault}" for fault in one.speed.faults]
    last = results[-1].speed.client
    late = f"{last.lag_s.p99 * 1000:.1f} ms late (p99)" if last.lag_s else "not looked at"
    return "\n".join([*lines, f"The client took {last.cpu_share:.0%} of one core; its clock was {late}."])


def _row(one: LoadResult) -> tuple[str, ...]:
    speed = one.speed
    return (
        one.workload, str(one.models), f"{speed.tokens_per_s:.1f}", f"{speed.answers_per_s:.2f}",
        f"{speed.goodput_per_s:.2f}", f"{speed.good_share:.0%}", _times(speed.first_token_s), _times(speed.gap_s),
        str(speed.refused), str(speed.failed),
    )  # fmt: skip


def _times(spread: Spread | None) -> str:
    return " / ".join(f"{value * 1000:.0f}" for value in (spread.p50, spread.p95, spread.p99)) if spread else "none"


def _memory(one: LoadResult) -> list[str]:
    resident, parts = one.memory.rss_bytes, one.memory.parts
    shown = [] if resident is None else [f"{one.workload}: the server's processes hold {bytes_shown(resident)}"]
    named = [f"{name} {bytes_shown(value) if 'bytes' in name else f'{value:g}'}" for name, value in parts.items()]
    if named:
        shown.append(f"{one.workload}: {count_shown(len(named), 'part')}: {', '.join(named)}")
    return shown
