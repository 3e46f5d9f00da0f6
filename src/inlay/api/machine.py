"""Abilities of this machine, and the needs of a run on it."""

from __future__ import annotations

from pathlib import Path

from inlay.adapters.names import as_config
from inlay.config.load import ConfigLike
from inlay.evaluation.costs import Prices
from inlay.hardware.machine import Machine
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.workflows.doctor import examine
from inlay.workflows.plan import Plan
from inlay.workflows.plan import plan as planned


def doctor(*, quick: bool = False, folder: str = "results") -> Machine:
    """Versions, memory, devices, what really works here, and recommended settings; `to_json` gives them as one object."""
    return examine(quick, Path(folder))


def plan(
    config: ConfigLike,
    *,
    memory: str | None = None,
    calibrate: bool = False,
    cost: float | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """The memory and time that LoRA, QLoRA and full fine-tuning with this config would take; see `Plan`.

    Nothing is trained and no weights are loaded: config and tokenizer of the base are enough. `calibrate` loads the base
    and computes two micro batches of the run instead. `memory`, such as `8GB`, is the limit to plan for; by default
    `train.max_memory`, or what is free on this machine. Any of `cost`, `watts` and `utilisation`, as in `compare`, adds
    the cost of each method. Raises: UserError for a config, data or a base that cannot work.
    """
    prices = Prices.of(cost, watts, utilisation)
    return planned(as_config(config), memory, calibrate, reporter or PlainReporter(), prices)
