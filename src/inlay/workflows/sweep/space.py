"""The settings that a sweep tries: checked before anything starts, and the config of each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.config import Config
from inlay.config.load import (
    in_yaml,
    merge,
    nested,
    parse_yaml,
    setting_paths,
    unknown_setting,
    validate,
    validate_section,
)
from inlay.config.sections.sweep import SweepConfig
from inlay.errors import ConfigError
from inlay.workflows.sweep.trials import Value

_SWEPT = ("adapter.", "train.")
_NOT = {
    "train.seed": "seeds are chance, and the best of several flatters itself. inlay compare judges several seeds as one.",
    "adapter.start_from": "trials start alike. Make one sweep for each start.",
    "train.branch_from": "trials start alike. Make one sweep for each start.",
}


def over_of(texts: Sequence[str]) -> dict[str, Any]:
    """The section `sweep.over` of texts such as `adapter.rank=4,8` and `train.learning_rate=5e-5..2e-3:log`."""
    found: dict[str, Any] = {}
    for text in texts:
        path, sign, values = text.partition("=")
        path = path.strip()
        if not sign or not path or not values.strip():
            raise ConfigError(
                f"--over: needs KEY=A,B,C or KEY=LOW..HIGH or KEY=LOW..HIGH:log (got {text!r}), for example "
                "--over adapter.rank=4,8,16."
            )
        if path in found:
            raise ConfigError(f"--over {path}: given twice. Name all its values in one.")
        found[path] = _range(path, values) if ".." in values else _list(path, values)
    return found


def _range(path: str, text: str) -> dict[str, Any]:
    ends, _, kind = text.partition(":")
    low, _, high = ends.partition("..")
    if kind not in ("", "log"):
        raise ConfigError(f"--over {path}: a range ends in :log or in nothing (got :{kind}).")
    numbers = [parse_yaml(end, f"--over {path}") for end in (low, high)]
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in numbers):
        raise ConfigError(f"--over {path}: a range has two numbers as its ends (got {text!r}).")
    return {"low": numbers[0], "high": numbers[1], "log": kind == "log"}


def _list(path: str, text: str) -> list[Any]:
    values = parse_yaml(f"[{text}]", f"--over {path}")
    assert isinstance(values, list)
    return values


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from one end to the other; whole numbers where both ends are."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly in the logarithm: for settings such as a learning rate."""

    @classmethod
    def of(cls, path: str, given: Mapping[str, Any]) -> Range:
        """The range that a config writes as {low, high, log}. Raises: ConfigError."""
        where = f"sweep.over {path}"
        if not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
            raise ConfigError(
                f"{where}: a range has low, high and log (got {', '.join(map(str, given)) or 'nothing'})."
            )
        low, high, log = given["low"], given["high"], given.get("log", False)
        if not all(type(end) in (int, float) for end in (low, high)) or not isinstance(log, bool):
            raise ConfigError(f"{where}: low and high are numbers, log is true or false (got {in_yaml(dict(given))}).")
        if not low < high:
            raise ConfigError(f"{where}: low {low} must be less than high {high}.")
        if log and low <= 0:
            raise ConfigError(f"{where}: a logarithmic range needs a low end above 0 (got {low}).")
        return cls(low, high, log)


@dataclass(frozen=True)
class Space:
    """Settings with the values that each may take, over one config."""

    config: Config
    choices: Mapping[str, list[Value]]
    """Setting to its values."""
    ranges: Mapping[str, Range]
    """Setting to its range; one whose ends are whole numbers takes whole numbers."""

    @classmethod
    def of(cls, config: Config, sweep: SweepConfig) -> Space:
        """The space of a sweep's `over`. Raises: ConfigError for a name or a value that no run would take."""
        if not sweep.over:
            raise ConfigError("sweep: names no setting to try. Give --over KEY=VALUES, or sweep.over in the config.")
        choices: dict[str, list[Value]] = {}
        ranges: dict[str, Range] = {}
        known = setting_paths()
        for path in sweep.over:
            if path not in known:
                raise ConfigError(f"sweep.over: {unknown_setting(path, known)}")
            if path in _NOT or not path.startswith(_SWEPT):
                why = _NOT.get(
                    path, "a sweep tries settings of adapter and train; all else is the same for each trial."
                )
                raise ConfigError(f"sweep.over {path}: cannot be swept: {why}")
            given = sweep.over[path]
            if isinstance(given, Mapping):
                ranges[path] = Range.of(path, given)
            elif isinstance(given, (list, tuple)):
                choices[path] = list(given)
            else:
                raise ConfigError(
                    f"sweep.over {path}: needs a list of values, or a range {{low, high, log}} (got {given!r})."
                )
        space = cls(config, choices, ranges)
        for path, values in choices.items():
            if not values:
                raise ConfigError(f"sweep.over {path}: an empty list. Name at least one value.")
            if any(one in values[:n] for n, one in enumerate(values)):
                raise ConfigError(f"sweep.over {path}: names a value twice ({', '.join(map(str, values))}).")
            for value in values:
                space.config_of({path: value})
        for path, ends in ranges.items():
            for value in (ends.low, ends.high):
                space.config_of({path: value})
        return space

    def config_of(self, values: Mapping[str, Value]) -> Config:
        """The config with these values in the place of its own. Raises: ConfigError."""
        return validate(merge(self.config.model_dump(), nested(values)), "sweep.over")

    @property
    def points(self) -> int | None:
        """Number of combinations; None where a range makes them endless."""
        if self.ranges:
            return None
        count = 1
        for values in self.choices.values():
            count *= len(values)
        return count


def checked_sweep(values: Mapping[str, Any], config: Config, given: Sequence[str] = ()) -> tuple[SweepConfig, Space]:
    """(settings of the sweep, what it tries). Raises: ConfigError for what cannot work, before anything starts."""
    sweep = validate_section(SweepConfig, values, given=given)
    space = Space.of(config, sweep)
    if sweep.method == "grid":
        if space.points is None:
            path = next(iter(space.ranges))
            raise ConfigError(
                f"sweep.over {path}: a grid needs values, not a range. Name them, or take another method."
            )
        if space.points + 1 > sweep.trials and "trials" in values:
            raise ConfigError(
                f"sweep.trials: the grid has {space.points} combinations beside the config as it is, more than "
                f"{sweep.trials} trials. Set {space.points + 1}, or take another method."
            )
        sweep = sweep.model_copy(update={"trials": space.points + 1})
    return sweep, space
