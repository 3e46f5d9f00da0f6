"""The result of an import: the settings of inlay, and the keys that have no counterpart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inlay.config.load import in_yaml, nested
from inlay.config.other_trainers import why_left

Keys = dict[str, Any]
"""Keys and values of a config of another trainer, as its YAML or JSON holds them."""
_NO_SETTING: Final = "inlay has no such setting"
_PARTS: Final = {"data.train": "path", "data.format": "format", "data.columns": "columns", "max_rows": "max_rows"}


@dataclass
class Imported:
    """A config of another trainer, translated."""

    kind: str
    values: Keys = field(default_factory=dict)
    """Dotted setting of inlay to value."""
    origins: dict[str, str] = field(default_factory=dict)
    """The setting to the key that it comes from."""
    missing: dict[str, str] = field(default_factory=dict)
    """Keys without a counterpart, each with the reason."""

    def take(self, setting: str, value: Any, origin: str) -> None:
        """Sets a setting of inlay."""
        self.values[setting] = value
        self.origins[setting] = origin

    def leave(self, key: str, value: Any, why: str | None = None) -> None:
        """Lists a key that has no counterpart."""
        self.missing[f"{key}: {in_yaml(value)}"] = why or why_left(key) or _NO_SETTING

    def as_yaml(self, source: str) -> str:
        """The config as text; keys without a counterpart are listed above it as comments."""
        lines = [f"# From {source} ({self.kind})."]
        lines += ["# Without a counterpart:"] if self.missing else ["# Everything in it has a counterpart."]
        lines += [f"#   {key}  ({why})" for key, why in self.missing.items()]
        for section, inner in nested(self.values).items():
            lines.append(f"{section}:")
            for key, value in inner.items():
                lines.append(f"  {key}: {in_yaml(value)}  # {self.origins[f'{section}.{key}']}")
        return "\n".join(lines) + "\n"


def translate(found: Imported, setting: str, key: str, value: Any, names: Mapping[str, str]) -> None:
    """Takes a value under its name in inlay, or lists the key."""
    if value in names:
        found.take(setting, names[value], f"{key}: {value}")
    else:
        found.leave(key, value, f"{setting} takes {', '.join(dict.fromkeys(names.values()))}")


def take_eval_fraction(found: Imported, key: str, value: Any) -> None:
    """Takes the fraction of held-out rows, or lists the key."""
    if isinstance(value, int | float) and 0 < value < 1:
        found.take("data.eval_fraction", float(value), key)
    else:
        found.leave(key, value, "data.eval_fraction is a share between 0 and 1; inlay always holds rows out")


def take_train(found: Imported, parts: list[Imported], key: str, cap: int | None = None) -> None:
    """Takes one training file, or several as a mixture; settings that all share are set once, in the section data."""
    for part in parts:
        found.missing |= part.missing
        if cap is not None:
            part.values["max_rows"] = min(cap, part.values.get("max_rows", cap))
    parts = [part for part in parts if "data.train" in part.values] or parts[:1]
    if len(parts) == 1 and ("max_rows" not in parts[0].values or "data.train" not in parts[0].values):
        for setting in ("data.train", "data.format", "data.columns"):
            if setting in parts[0].values:
                found.take(setting, parts[0].values[setting], parts[0].origins[setting])
        return
    shared = [s for s in ("data.format", "data.columns") if len({in_yaml(p.values.get(s)) for p in parts}) == 1]
    for setting in shared:
        if setting in parts[0].values:
            found.take(setting, parts[0].values[setting], parts[0].origins[setting])
    entries = [{_PARTS[s]: value for s, value in part.values.items() if s not in shared} for part in parts]
    found.take("data.train", [entry["path"] if len(entry) == 1 else entry for entry in entries], key)


def take_held_out(found: Imported, part: Imported, key: str, written: Any) -> None:
    """Takes a held-out file, if its rows have the format and columns of the training rows."""
    found.missing |= part.missing
    mixed = "data.format" not in found.values and not part.values.get("data.columns")
    same = all(part.values.get(s) in (None, found.values.get(s)) for s in ("data.format", "data.columns"))
    if (mixed or same) and "data.train" in part.values:
        found.take("data.eval", part.values["data.train"], part.origins["data.train"] if key != "eval_dataset" else key)
    else:
        found.leave(key, written, "data.eval has the format of data.train")
