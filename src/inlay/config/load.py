"""Reading a config: defaults, then a preset, then a YAML file, then `--set`; later wins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from inlay.config.settings import Config
from inlay.errors import ConfigError, unknown_name


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with numbers as people write them (`2e-4`) and without silent duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises: ConfigError naming line and cause."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: not usable YAML: {error}.") from None


def section_of(path: str) -> type[BaseModel] | None:
    """The settings class of a section name, None for a plain top-level setting."""
    annotation = Config.model_fields[path].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def setting_paths() -> dict[str, Any]:
    """Every dotted setting name with its pydantic field."""
    paths: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        section = section_of(name)
        if section is None:
            paths[name] = field
        else:
            paths |= {f"{name}.{key}": sub for key, sub in section.model_fields.items()}
    return paths


def presets() -> dict[str, Path]:
    """Name to file of every preset that ships with the package."""
    folder = Path(str(resources.files("inlay") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_tree(path: Path) -> dict[str, Any]:
    """The nested mapping in a YAML file. Raises: ConfigError when there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        raise ConfigError(f"{path}: empty. Write at least model.base_model and data.train.")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections (got {type(tree).__name__}).")
    return tree


def preset_tree(name: str) -> dict[str, Any]:
    """The settings of a preset, without its description."""
    found = presets()
    if name not in found:
        raise ConfigError(f"--preset: {unknown_name('preset', name, found)}")
    tree = read_tree(found[name])
    tree.pop("description", None)
    return tree


def parse_assignment(text: str) -> tuple[str, Any]:
    """`adapter.rank=8` as a dotted name and its YAML value."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set: needs key=value (got {text!r}), for example --set adapter.rank=8.")
    key = key.strip()
    known = setting_paths()
    if key not in known and key.rpartition(".")[0] not in known:  # data.columns.prompt=utterance reaches into a mapping
        raise ConfigError(f"--set: {_unknown_setting(key, known)}")
    return key, parse_yaml(value, f"--set {key}") if value else ""


def _unknown_setting(key: str, known: Mapping[str, Any]) -> str:
    tail = key.rpartition(".")[2]
    same_tail = [path for path in known if path.rpartition(".")[2] == tail]
    if same_tail:
        return f"unknown setting {key!r}. Did you mean {same_tail[0]!r}?"
    section = key.partition(".")[0]
    inside = [path for path in known if path.startswith(section + ".")]
    return unknown_name("setting", key, inside or known)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new nested mapping; values of `over` win."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def nested(assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as a nested mapping."""
    tree: dict[str, Any] = {}
    for path, value in assignments.items():
        *sections, leaf = path.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[leaf] = value
    return tree


def load(
    file: Path | None = None,
    assignments: Mapping[str, Any] | None = None,
    preset: str | None = None,
    tree: Mapping[str, Any] | None = None,
) -> Config:
    """The checked config of a file (or a nested mapping in its place), with assignments of dotted names over it.

    Raises: ConfigError naming every setting at fault, one per line.
    """
    tree = read_tree(file) if file else dict(tree or {})
    over = nested(assignments or {})
    name = preset or over.get("preset") or tree.get("preset")
    if name is not None:
        tree = merge(preset_tree(str(name)), tree) | {"preset": name}
    return validate(merge(tree, over), str(file) if file else "config")


def validate(tree: Mapping[str, Any], where: str) -> Config:
    """The Config of a nested mapping; every fault named by its dotted setting."""
    _refuse_unknown(tree, where)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = dict.fromkeys(_fault_lines(error))  # a union reports a field several times
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _refuse_unknown(tree: Mapping[str, Any], where: str) -> None:
    known = setting_paths()
    for name, value in tree.items():
        if name not in Config.model_fields:
            guess = [path for path in known if path.rpartition(".")[2] == name]
            hint = f"unknown section {name!r}. Did you mean {guess[0]!r}?" if guess else None
            raise ConfigError(f"{where}: {hint or unknown_name('section', str(name), Config.model_fields)}")
        section = section_of(name)
        if section is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name}: a section holds settings (got {value!r}).")
        for key in value:
            if f"{name}.{key}" not in known:
                raise ConfigError(f"{where}: {_unknown_setting(f'{name}.{key}', known)}")


_REQUIRED = {
    "model.base_model": "say which model to fine-tune: --model FOLDER, a hub id, or builtin:nano",
    "data.train": "say what to train on: inlay train DATA.jsonl",
    "model": "say which model to fine-tune: --model FOLDER, a hub id, or builtin:nano",
    "data": "say what to train on: inlay train DATA.jsonl",
}


def _fault_lines(error: ValidationError) -> list[str]:
    known = setting_paths()
    by_path: dict[str, list[Any]] = {}
    for fault in error.errors(include_url=False, include_context=False):
        parts = [str(part) for part in fault["loc"]]
        path = next((p for p in (".".join(parts[:2]), parts[0] if parts else "") if p in known), ".".join(parts[:2]))
        by_path.setdefault(path or "config", []).append(fault)
    lines = []
    for path, faults in by_path.items():
        fault = faults[-1]
        if fault["type"] == "missing":
            lines.append(f"{path}: missing; {_REQUIRED.get(path, 'it has no default')}.")
            continue
        wanted = " or ".join(dict.fromkeys(_plain(f["msg"]) for f in faults))
        got = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"  # a fault between settings
        lines.append(f"{path}: {wanted}{got}.")
    return lines


def _plain(message: str) -> str:
    return message.removeprefix("Input ").removeprefix("Value error, ").removeprefix("should be ").strip()


def choices(annotation: Any) -> list[str]:
    """The literal values an annotation allows, flattened."""
    found: list[str] = []
    for argument in get_args(annotation):
        found += choices(argument) if get_args(argument) else [argument] if isinstance(argument, str) else []
    return found
