"""Trials proposed by Optuna. A proposal is a function of the seed, its number and the trials before it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inlay.config.load import in_yaml, parse_yaml
from inlay.config.sections.sweep import SweepConfig
from inlay.errors import ConfigError
from inlay.workflows.sweep.space import Space
from inlay.workflows.sweep.trials import Trial, Value

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STUDY: Final = "sweep"
"""Name of the study in study.db, for `optuna.load_study`."""
_ATTEMPTS: Final = 32
"""Proposals that may repeat an earlier trial before the space counts as tried."""


def require_optuna() -> None:
    """Raises: ConfigError naming the extra where Optuna is missing."""
    try:
        import optuna
    except ImportError:
        raise ConfigError('sweep: Optuna is not installed: pip install "inlay[sweep]".') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(space: Space, sweep: SweepConfig, past: Sequence[Trial]) -> Trial | None:
    """The trial after `past`; None where nothing new was found to try.

    Trial 0 is the config as it is. Nothing but the arguments decides, so an interrupted sweep proposes what an unbroken
    one does.
    """
    number = len(past)
    if number == 0:
        return Trial(0)
    if sweep.method == "grid":
        points = [dict(zip(space.choices, point, strict=True)) for point in itertools.product(*space.choices.values())]
        return Trial(number, points[number - 1]) if number <= len(points) else None
    tried = [trial.values for trial in past]
    for attempt in range(_ATTEMPTS):
        values = _proposed(space, sweep, past, attempt)
        if values not in tried:
            return Trial(number, values)
    return None


def _proposed(space: Space, sweep: SweepConfig, past: Sequence[Trial], attempt: int) -> dict[str, Value]:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samplers that Optuna calls experimental
        sampler = _sampler(sweep, space.config.train.seed, len(past), attempt)
        study = optuna.create_study(sampler=sampler, direction="minimize")
        known = distributions(space)
        if sweep.method == "qmc":  # the place in its sequence is the number of its proposals
            for _ in range(len(past) + attempt - 1):
                study.ask(known)
        else:
            for trial in past:
                study.add_trial(_frozen(trial, known))
        found = study.ask(known).params
    return {path: parse_yaml(value, path) if path in space.choices else value for path, value in found.items()}


def _sampler(sweep: SweepConfig, seed: int, number: int, attempt: int) -> BaseSampler:
    import numpy as np
    from optuna import samplers

    # a new one for each trial: what a sampler remembers is not on the disk
    own = int(np.random.SeedSequence((seed, number, attempt)).generate_state(1)[0])
    if sweep.method == "random":
        return samplers.RandomSampler(seed=own)
    if sweep.method == "qmc":
        return samplers.QMCSampler(scramble=True, seed=seed, warn_asynchronous_seeding=False)
    if sweep.method == "gp":
        return samplers.GPSampler(seed=own, deterministic_objective=True)
    return samplers.TPESampler(seed=own, multivariate=True)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna knows it. Values of a list are texts of YAML, as some of them are lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {
        path: CategoricalDistribution([in_yaml(value) for value in values]) for path, values in space.choices.items()
    }
    for path, ends in space.ranges.items():
        if isinstance(ends.low, int) and isinstance(ends.high, int):
            found[path] = IntDistribution(ends.low, ends.high, log=ends.log)
        else:
            found[path] = FloatDistribution(float(ends.low), float(ends.high), log=ends.log)
    return found


def _frozen(trial: Trial, known: Mapping[str, BaseDistribution]) -> FrozenTrial:
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    states = {"running": TrialState.RUNNING, "finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
    params: dict[str, Any] = {
        path: in_yaml(value) if isinstance(known[path], CategoricalDistribution) else value
        for path, value in trial.values.items()
    }
    attributes: Mapping[str, Any] = {"number": trial.number, "run": trial.run, "reason": trial.reason}
    return create_trial(
        state=states[trial.state],
        value=trial.loss if trial.state == "finished" else None,
        params=params,
        distributions={path: known[path] for path in params},
        user_attrs={key: value for key, value in attributes.items() if value != ""},
    )


def write_study(file: Path, trials: Sequence[Trial], space: Space) -> None:
    """A study of these trials that Optuna's own tools open, in place of what was at `file`."""
    import optuna
    from optuna.storages import RDBStorage

    file.unlink(missing_ok=True)
    storage = RDBStorage(f"sqlite:///{file.absolute()}")
    try:
        study: Study = optuna.create_study(storage=storage, study_name=STUDY, direction="minimize")
        known = distributions(space)
        for trial in trials:
            study.add_trial(_frozen(trial, known))
    finally:
        storage.engine.dispose()
