"""Aliases of a server, as a file of settings declares them: one name for several models, with weights, that a test may compare.

aliases:
  support:
    arms: {support:3: 90, support:4: 10}     # percent; later arms are compared with the first
    guards: {error_rate: 0.02, p95_ttft_s: 1.5}
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from inlay.adapters.library import require_name
from inlay.config.describe import allowed
from inlay.config.load import parse_yaml
from inlay.config.sections.base import PositiveInt, Settings
from inlay.errors import AdapterError, ConfigError, unknown_name

Share = Annotated[float, Field(gt=0, lt=1)]
_KEY: Final = re.compile(r"user|safety_identifier|header:[A-Za-z0-9-]{1,64}")
_MOST_ARMS: Final = 8


class GuardConfig(Settings):
    """Limits of one arm. An arm other than the first that exceeds one gets no more requests."""

    error_rate: Share | None = None
    """Share of answers that fail."""
    p95_ttft_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds to the first token that at most 5% of answers exceed."""


class AliasConfig(Settings):
    """One alias: its arms, and when a test of them ends."""

    arms: Annotated[dict[str, float], Field(min_length=1, max_length=_MOST_ARMS)]
    """Models by name, as requests name them, with their share of users in percent."""
    key: str = "user"
    """What tells users apart: `user`, `safety_identifier`, or `header:NAME`. A user keeps the arm."""
    key_required: bool = False
    """Refuses a request without the key. Otherwise each such request is a user of its own."""
    margin: Share = 0.02
    """Mean scores that differ by less are the same."""
    horizon: PositiveInt = 20_000
    """Scores after which a test ends without a verdict."""
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Probability of a false better or worse, at most, over all arms."""
    guards: GuardConfig = GuardConfig()


def read_aliases(path: Path) -> dict[str, AliasConfig]:
    """The aliases of a file. Raises: ConfigError with one line for every mistake."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    if not isinstance(tree, Mapping) or not isinstance(tree.get("aliases"), Mapping) or not tree["aliases"]:
        raise ConfigError(
            f"{path}: declares no alias. Write: aliases: {{NAME: {{arms: {{support:3: 90, support:4: 10}}}}}}."
        )
    faults = [f"{unknown_name('section', str(key), ['aliases'])}" for key in tree if key != "aliases"]
    found: dict[str, AliasConfig] = {}
    for name, value in tree["aliases"].items():
        try:
            found[str(name)] = _checked(str(name), value)
        except ConfigError as error:
            faults += [f"aliases.{name}{line}" for line in str(error).splitlines()]
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    return found


def require_arms(aliases: Mapping[str, AliasConfig], models: Collection[str], where: str) -> None:
    """Raises: ConfigError with one line for every arm that the server does not have, and every alias with a name of a model.

    `models` are the names that requests may give, other than aliases.
    """
    faults = []
    adapters = {name.partition(":")[0] for name in models}
    for name, alias in aliases.items():
        if name in models or name in adapters:
            faults.append(
                f"aliases.{name}: is the name of a model here. Choose another for the alias, such as {name}-test."
            )
        faults += [
            f"aliases.{name}.arms: {unknown_name('model', arm, models)} Load it with --adapters."
            for arm in alias.arms
            if arm not in models
        ]
    if faults:
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in faults))


def _checked(name: str, value: Any) -> AliasConfig:
    """The settings of one alias. Raises: ConfigError, each line beginning behind `aliases.NAME`."""
    try:
        require_name(name, "alias")
    except AdapterError as error:
        raise ConfigError(f": {error}") from None
    if not isinstance(value, Mapping):
        raise ConfigError(
            f": an alias has settings (got {value!r}). Write: {{arms: {{support:3: 90, support:4: 10}}}}."
        )
    try:
        config = AliasConfig.model_validate(dict(value))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise ConfigError("\n".join(dict.fromkeys(_fault(fault) for fault in faults))) from None
    if rules := list(_broken_rules(config)):
        raise ConfigError("\n".join(rules))
    return config


def _broken_rules(config: AliasConfig) -> list[str]:
    """The faults that no single value has."""
    faults = []
    wrong = next((weight for weight in config.arms.values() if not 0 <= weight <= 100), None)
    if wrong is not None:
        faults.append(f".arms: a weight is a percentage from 0 to 100 (got {wrong:g}).")
    elif abs((total := math.fsum(config.arms.values())) - 100) > 1e-6:
        faults.append(f".arms: the weights sum to {total:g}. They are percentages: make them sum to 100.")
    if not _KEY.fullmatch(config.key):
        faults.append(f".key: must be user, safety_identifier or header:NAME (got {config.key!r}).")
    return faults


def _fault(fault: Any) -> str:
    """One fault that pydantic found."""
    place = [str(part) for part in fault["loc"]]
    section: Any = AliasConfig
    if place[0] == "guards" and len(place) > 1:
        section = GuardConfig
    key = place[1] if section is GuardConfig else place[0]
    fields: Mapping[str, FieldInfo] = section.model_fields
    where = "." + ".".join(place[: 2 if section is GuardConfig or key == "arms" else 1])
    if fault["type"] == "extra_forbidden":
        return f".{'.'.join(place[:-1])}: ".replace("..", ".").replace(".:", ":") + unknown_name(
            "setting", place[-1], fields
        )
    if fault["type"] == "missing":
        return f"{where}: missing. Write the models with their percentages: {{support:3: 90, support:4: 10}}."
    if key == "guards":
        return f"{where}: holds settings, {', '.join(GuardConfig.model_fields)} (got {fault['input']!r})."
    if key == "arms" and len(place) > 1:
        return f"{where}: must be a percentage (got {fault['input']!r})."
    return f"{where}: must be {allowed(fields[key])} (got {fault['input']!r})."
