"""Tasks of lm-evaluation-harness on a base and on the adapter over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from inlay.adapters.reference import Reference, config_of, opened
from inlay.config.measuring import changed
from inlay.evaluation import harness
from inlay.runs.reporter import Reporter


def measure_on_tasks(
    one: Reference,
    wanted: Sequence[str],
    limit: int | None,
    reporter: Reporter,
    over: Mapping[str, object] = MappingProxyType({}),
) -> harness.HarnessResult:
    """Scores of the base of a reference and of its adapter; see `inlay.api.harness`."""
    with harness.quietly():
        tasks = harness.find_tasks(wanted)
        if one.caution:
            reporter.note(one.caution)
        config = changed(config_of(one), over)
        ready = opened(one, config)
        sides: list[harness.RawScores] = []
        for name, state in ((one.base, None), (one.name, one.adapter(ready.ref))):
            if sides and state is None:
                sides.append(sides[0])
                break
            reporter.stage(f"{name}: {', '.join(tasks.names)}")
            model = ready.with_adapter(state)
            sides.append(
                harness.run_tasks(
                    tasks, model, ready.encoder, device=ready.device, dtype=ready.autocast_dtype,
                    batch_size=config.eval.batch_size, limit=limit,
                )
            )  # fmt: skip
    scores = harness.paired(sides[0], sides[1], config.eval.resamples, config.train.seed)
    return harness.HarnessResult(one.base, one.name, limit, tuple(scores))
