"""Configs: from a command line, of other trainers, shown, explained, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inlay import config as configs
from inlay.config import Config
from inlay.config.foreign.import_config import import_config as read_foreign
from inlay.config.load import preset_tree, read_tree
from inlay.config.render import ExplainedSetting, as_yaml, explain, starter
from inlay.config.sections.advise import AdviseConfig
from inlay.config.sections.base import Assignments
from inlay.config.sections.generation import GenerationConfig
from inlay.errors import ConfigError, RunError, nearest
from inlay.runs import folder as runs
from inlay.storage import write_file
from inlay.typed_json import JsonObject


def config_of(
    source: str,
    settings: Sequence[str] = (),
    preset: str | None = None,
    given: Assignments | None = None,
    *,
    partial: bool = False,
) -> Config:
    """The config of a command line: a YAML file or a data file, `key=value` texts, and options that were given.

    With `partial` the base may be missing. Raises: ConfigError.
    """
    if not source:
        raise ConfigError("the name of the data is empty. Name a data file, a hub dataset or a .yaml config.")
    assignments = assigned(settings, given or {})
    if source.endswith((".yaml", ".yml")):
        return configs.load(Path(source), assignments, preset, partial=partial)
    return configs.load(None, {"data.train": source} | assignments, preset, partial=partial)


def assigned(settings: Sequence[str], given: Assignments) -> dict[str, object]:
    """Setting to value of `key=value` texts, then of options, where they were given. Raises: ConfigError."""
    values: dict[str, object] = dict(map(configs.parse_assignment, settings))
    return values | {path: value for path, value in given.items() if value is not None}


def of_section(name: str, settings: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(value by setting of `key=value` texts of that section, the other texts). Raises: ConfigError."""
    own = [text for text in settings if text.startswith(f"{name}.")]
    values = {path.removeprefix(f"{name}."): value for path, value in map(configs.parse_assignment, own)}
    return values, [text for text in settings if text not in own]


def init(path: str | Path = "inlay.yaml", *, preset: str | None = None, force: bool = False) -> Path:
    """The path of a commented config to start from, now written. Raises: ConfigError when the file is already there."""
    target = Path(path)
    if target.exists() and not force:
        raise ConfigError(f"{target}: is already there. Give another path, or --force to replace it.")
    write_file(target, starter(preset))
    return target


def sampling_of(settings: Sequence[str]) -> dict[str, object]:
    """Setting to value of `key=value` texts of the section generation, its name left out or not. Raises: ConfigError."""
    full = [text if text.startswith(("generation.", "=")) else f"generation.{text}" for text in settings]
    values = {path.removeprefix("generation."): value for path, value in map(configs.parse_assignment, full)}
    configs.validate_section(GenerationConfig, values)
    return values


def advise_settings(settings: Sequence[str]) -> tuple[AdviseConfig, list[str]]:
    """(the section advise of `key=value` texts, the other texts). Raises: ConfigError."""
    values, others = of_section("advise", settings)
    return configs.validate_section(AdviseConfig, values, given=[f"advise.{key}" for key in values]), others


def show_config(what: str | None, *, folder: str = "results") -> tuple[Any, str]:
    """(value, text) of a config file, a run's config or a preset; of the list of presets when `what` is None."""
    found = configs.presets()
    if what is None:
        about = {name: read_tree(path).get("description", "") for name, path in found.items()}
        width = max(map(len, about), default=0)
        return about, "\n".join(f"{name:<{width}}  {text}" for name, text in about.items())
    if what in found:
        return preset_tree(what), found[what].read_text(encoding="utf-8").rstrip()
    if what.endswith((".yaml", ".yml")):
        config = configs.load(Path(what))
        return config.model_dump(), as_yaml(config, {}, f"{what} with every default filled in.").rstrip()
    try:
        run = runs.find(what, folder)
    except RunError:
        guess = nearest(what, found)
        hint = f" Did you mean the preset {guess!r}?" if guess else f" Presets: {', '.join(found)}."
        raise ConfigError(f"{what}: neither a preset, nor a .yaml file, nor a run in {folder}.{hint}") from None
    return run.config.model_dump(), (run.path / "config.yaml").read_text(encoding="utf-8").rstrip()


def explain_config(setting: str | None = None) -> list[ExplainedSetting]:
    """Documentation of a setting, of a section, or of all."""
    return explain(setting)


def import_config(path: str | Path, *, dataset: str | None = None, to: str | Path | None = None) -> JsonObject:
    """A config of LLaMA-Factory or Axolotl as one of inlay: its text, settings, and what has no counterpart.

    Written to `to` if given. Raises: ConfigError when the file is neither, or `to` is there already.
    """
    found = read_foreign(Path(path), dataset)
    text = found.as_yaml(str(path))
    if to is not None:
        if Path(to).exists():
            raise ConfigError(f"{to}: is already there. Name another file with --out.")
        Path(to).write_text(text, encoding="utf-8")
    return {
        "kind": found.kind, "config": found.values, "missing": found.missing, "text": text,
        "path": str(to) if to is not None else None,
    }  # fmt: skip
