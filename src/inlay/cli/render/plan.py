"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.cli.render.costs import bills_text
from inlay.cli.render.terminal import aligned
from inlay.errors import count_shown
from inlay.runs.reporter import bytes_shown, duration_shown

if TYPE_CHECKING:
    from inlay.workflows.plan import Forecast, Plan

_HEAD = ("", "memory", "weights", "trained", "activations", "recomputed", "other", "a step", "the run", "fits")


def plan_text(plan: Plan) -> str:
    """The methods side by side, the largest sizes that fit, and the changes that help where nothing fits."""
    known = "two micro batches were computed" if plan.is_calibrated else "nothing was computed; --calibrate tries it"
    lines = [
        f"{plan.base}: {plan.parameters / 1e6:,.1f}M parameters in {plan.dtype} on {plan.device} ({known})",
        f"{count_shown(plan.steps, 'step')} of {count_shown(plan.batch_size, 'row')}, {plan.micro_batch_size} at once, "
        f"up to {count_shown(plan.max_length, 'token')}; "
        f"rank {plan.rank}; planned with {bytes_shown(plan.room_bytes)}",
        "",
        *aligned([_HEAD, *(_row(plan, one) for one in plan.forecasts)]),
        "",
        "trained: its fp32 weights, gradients and optimizer. recomputed: activations with train.gradient_checkpointing.",
        "other: logits or one layer's workspace, holes of the heap, Python, the libraries and the rows.",
        "",
        *_costs(plan),
    ]
    mine, largest = plan.forecast, plan.forecast.largest
    if mine.fits:
        rank = f", rank {largest.rank}" if largest.rank else ""
        lines.append(
            f"{mine.method} fits. Largest that fit, each alone: micro batch {largest.micro_batch_size}, length "
            f"{largest.max_length}{rank}."
        )
        return "\n".join(lines)
    lines.append(f"{mine.method} does not fit. What would help, each with those above it:")
    lines += aligned(
        [(f"  {c.setting}", bytes_shown(c.total_bytes), "fits" if c.fits else "too much") for c in plan.changes]
    )
    if not any(change.fits for change in plan.changes):
        lines.append("Nothing of this is enough: take a smaller base, or more memory.")
    return "\n".join(lines)


def _costs(plan: Plan) -> list[str]:
    if not plan.bills:
        return []
    note = "1,000 requests as long as these rows, in batches: a rough figure. stored: the adapter, or all weights."
    return [*bills_text(plan.bills)[1:], note, ""]


def _row(plan: Plan, one: Forecast) -> tuple[str, ...]:
    memory = one.memory
    trained = memory.adapter + memory.gradients + memory.optimizer
    other = one.total_bytes - memory.weights - trained - memory.activations
    return (
        one.method + (" (yours)" if one.method == plan.wanted else ""),
        bytes_shown(one.total_bytes), bytes_shown(memory.weights), bytes_shown(trained), bytes_shown(memory.activations),
        bytes_shown(one.recomputed.activations), bytes_shown(max(0, other)), duration_shown(one.step_s),
        duration_shown(one.train_s), "yes" if one.fits else "no",
    )  # fmt: skip
