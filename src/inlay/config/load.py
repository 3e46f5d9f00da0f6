"""Reading a config: defaults, then a preset, then a YAML file, then `--set`; later wins."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from inlay.config.describe import allowed, is_mapping, is_text, is_text_mapping
from inlay.config.other_trainers import COUNTERPARTS, counterpart, in_words, nearest_name
from inlay.config.renamed import RENAMED_VALUES
from inlay.config.sections.advise import AdviseConfig
from inlay.config.sections.base import Assignments, Settings, Tree
from inlay.config.sections.serve import ServeConfig
from inlay.config.sections.sweep import SweepConfig
from inlay.config.settings import Config
from inlay.errors import ConfigError, nearest, unknown_name

Section = TypeVar("Section", bound=Settings)
ConfigLike = Config | Assignments | str | Path
"""A config, a nested mapping of settings, or the path of a YAML file."""
UNSET: Final = "-"
"""Stands for a required setting that a partial config leaves out."""
VERB_SECTIONS: Final[Mapping[str, type[Settings]]] = {
    "advise": AdviseConfig,
    "serve": ServeConfig,
    "sweep": SweepConfig,
}
"""Settings of one verb, which are no part of a run."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with numbers as people write them (`2e-4`), without silent duplicate keys, and with `off` as a word."""


class _Dumper(yaml.SafeDumper):
    """Quotes a text that the loader would read as a number."""


_BOOL = "tag:yaml.org,2002:bool"
for _kind in (_Loader, _Dumper):
    kept = {c: [r for r in found if r[0] != _BOOL] for c, found in _kind.yaml_implicit_resolvers.items()}
    _kind.yaml_implicit_resolvers = kept
    _kind.add_implicit_resolver(_BOOL, re.compile(r"^(?i:yes|no|true|false)$"), list("yYnNtTfF"))
    _kind.add_implicit_resolver(
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
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{place}: not valid YAML: {what}.") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: not usable YAML: {error}.") from None


def in_yaml(value: Any) -> str:
    """A value in one line of YAML; `parse_yaml` reads the same value back."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9
    )
    return text.strip().removesuffix("...").strip() or "''"


def section_of(path: str) -> type[Settings] | None:
    """The settings class of a section name, None for a plain top-level setting."""
    if path in VERB_SECTIONS:
        return VERB_SECTIONS[path]
    annotation = Config.model_fields[path].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def setting_paths() -> dict[str, FieldInfo]:
    """Every dotted setting name with its pydantic field; those of single verbs come last."""
    paths: dict[str, FieldInfo] = {}
    for name in section_names():
        section = section_of(name)
        if section is None:
            paths[name] = Config.model_fields[name]
        else:
            paths |= {f"{name}.{key}": sub for key, sub in section.model_fields.items()}
    return paths


def section_names() -> list[str]:
    """The top-level names of a config, then the sections of single verbs."""
    return [*Config.model_fields, *VERB_SECTIONS]


def presets() -> dict[str, Path]:
    """Name to file of every preset that ships with the package."""
    folder = Path(str(resources.files("inlay") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_tree(path: Path) -> Tree:
    """The nested mapping in a YAML file. Raises: ConfigError when there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file.{_near_by(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        raise ConfigError(f"{path}: empty. Write at least model.base_model and data.train.")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of sections (got {_KINDS.get(type(tree), type(tree).__name__)}). "
            "Training data is read from files such as .jsonl, .json, .csv, .parquet and .txt."
        )
    return tree


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}


def _near_by(path: Path) -> str:
    """A hint at a config file of a similar name in the same folder, or at how to make one."""
    there = path.parent.glob("*.y*ml") if path.parent.is_dir() else []
    close = nearest(path.name, [p.name for p in there])
    return f" Did you mean {path.with_name(close)}?" if close else f" Write one with: inlay init {path}"


def preset_tree(name: str) -> Tree:
    """The settings of a preset, without its description."""
    found = presets()
    if name not in found:
        raise ConfigError(unknown_name("preset", name, found))
    tree = read_tree(found[name])
    tree.pop("description", None)
    return tree


def parse_assignment(text: str) -> tuple[str, Any]:
    """`adapter.rank=8` as a dotted name and its YAML value; a setting that is text takes the text as it stands."""
    key, sign, value = text.partition("=")
    key = key.strip()
    if not sign or not key:
        raise ConfigError(f"--set: needs key=value (got {text!r}), for example --set adapter.rank=8.")
    known = setting_paths()
    parent = key.rpartition(".")[0]
    inside_mapping = parent in known and is_mapping(known[parent])  # data.columns.prompt=utterance
    if key not in known and not inside_mapping:
        raise ConfigError(f"--set: {unknown_setting(key, known)}")
    holds_text = (
        is_text_mapping(known[parent]) if inside_mapping else is_text(known[key]) and value not in ("null", "~")
    )
    if holds_text:
        return key, value
    return key, parse_yaml(value, f"--set {key}") if value else ""


def unknown_setting(key: str, known: Collection[str]) -> str:
    """The message for a name that is no setting, with the setting that was probably meant."""
    head, _, tail = key.rpartition(".")
    if key in section_names():
        first = next(path for path in known if path.startswith(key + "."))
        return f"{key!r} is a section. Name one of its settings, for example {first}."
    if head in known:
        return f"unknown setting {key!r}: {head} is one value and has no parts."
    if (theirs := counterpart(key)) and tail not in _last_parts(known):
        guess = f". Did you mean {' or '.join(map(repr, theirs.settings))}?" if theirs.settings else "."
        more = f" {in_words(key, theirs)}." if theirs.differs else ""
        return f"unknown setting {key!r}{guess}{more}"
    if meant := _near(key, known):
        return f"unknown setting {key!r}. Did you mean {' or '.join(map(repr, meant))}?"
    if name := nearest_name(key):
        return f"unknown setting {key!r}. Did you mean {name!r}? {in_words(name, COUNTERPARTS[name])}."
    inside = key.partition(".")[0] if key.partition(".")[0] in section_names() else ""
    return f"unknown setting {key!r}. Look them up with: inlay config explain {inside}".rstrip()


def _last_parts(known: Collection[str]) -> set[str]:
    return {path.rpartition(".")[2] for path in known}


def _near(key: str, known: Collection[str]) -> list[str]:
    """The settings with the same last part, else the nearest in the section of the name or in all."""
    tail = key.rpartition(".")[2]
    tails = {path: path.rpartition(".")[2] for path in known}
    inside = [path for path in known if path.startswith(key.partition(".")[0] + ".")]
    close = nearest(key, inside) or nearest(tail, tails.values())
    meant = [path for path in known if tails[path] == tail] or [p for p in known if close in (p, tails[p])]
    return [nearest(key, meant) or meant[0]] if len(meant) > 1 and "." in key else meant


def merge(under: Tree, over: Tree) -> Tree:
    """A new nested mapping; values of `over` win."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def nested(assignments: Assignments) -> Tree:
    """Dotted names as a nested mapping. Raises: ConfigError when a name reaches into a value that another name set."""
    tree: Tree = {}
    for path, value in assignments.items():
        *sections, leaf = path.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
            if not isinstance(here, dict):
                raise ConfigError(f"--set {path}: {'.'.join(sections)} was already set to {here!r}. Leave one out.")
        here[leaf] = value
    return tree


def load(
    file: Path | None = None,
    assignments: Assignments | None = None,
    preset: str | None = None,
    tree: Assignments | None = None,
    *,
    partial: bool = False,
) -> Config:
    """The checked config of a file (or a nested mapping in its place), with assignments of dotted names over it.

    `partial`, as in `validate`. Raises: ConfigError naming every setting at fault, one per line.
    """
    tree = read_tree(file) if file else dict(tree or {})
    if file and _is_of_another_trainer(tree):
        raise ConfigError(
            f"{file}: is a config of another trainer. Turn it into one of inlay: "
            f"inlay config import {file} --out {file.with_suffix('.inlay.yaml')}"
        )
    over = nested(assignments or {})
    name = preset or over.get("preset") or tree.get("preset")
    if name is not None:
        under, method = preset_tree(str(name)), merge(tree, over).get("adapter")
        if isinstance(method, Mapping) and method.get("method", "lora") != "lora":
            under.pop("adapter", None)  # what a preset says of adapters is of LoRA
        tree = merge(under, tree) | {"preset": name}
    return validate(merge(tree, over), str(file) if file else "", set(assignments or {}), partial=partial)


def checked_config(config: ConfigLike) -> Config:
    """The checked config. Raises: ConfigError."""
    if isinstance(config, Config):
        return config
    return load(Path(config)) if isinstance(config, (str, Path)) else load(tree=config)


def _is_of_another_trainer(tree: Tree) -> bool:
    """True for a config that `config import` can read: none of our sections, and keys of LLaMA-Factory or Axolotl."""
    ours = any(isinstance(tree.get(name), Mapping) for name in Config.model_fields)
    theirs = "model_name_or_path" in tree or "finetuning_type" in tree or isinstance(tree.get("datasets"), list)
    return theirs and not ours


def validate(tree: Tree, where: str = "", given: Collection[str] = (), *, partial: bool = False) -> Config:
    """The Config of a nested mapping. `where` names its file, `given` what was set on the command line.

    With `partial`, required settings that are missing are UNSET. Raises: ConfigError with one line for every setting at
    fault.
    """
    known_part, faults = _sift(tree)
    if partial:
        known_part = merge(nested(dict.fromkeys(_REQUIRED, UNSET)), known_part)
    try:
        config = Config.model_validate(known_part)
    except ValidationError as error:
        faults |= _faults(error, known_part, ignore_missing=bool(faults))
    if not faults:
        return config
    raise _refusal(faults, where, given)


def validate_section(
    section: type[Section], values: Assignments, where: str = "", given: Collection[str] = ()
) -> Section:
    """One section alone, such as `GenerationConfig`, with the messages that `validate` has for it. Raises: ConfigError."""
    name = next(name for name in section_names() if section_of(name) is section)
    known_part, faults = _sift_section(name, values)
    try:
        found = section.model_validate(known_part)
    except ValidationError as error:
        faults |= _faults(error, {name: known_part}, name, ignore_missing=bool(faults))
    if not faults:
        return found
    raise _refusal(faults, where, given)


def _refusal(faults: Mapping[str, str], where: str, given: Collection[str]) -> ConfigError:
    places = {path: f"{where}: " if where and path not in given else "" for path in faults}
    return ConfigError("\n".join(f"{places[path]}{text}" for path, text in faults.items()))


def _sift(tree: Tree) -> tuple[Tree, dict[str, str]]:
    """(the part of the tree whose names exist, a fault for each of the others). An empty section is left out."""
    known = setting_paths()
    kept: Tree = {}
    faults: dict[str, str] = {}
    for name, value in tree.items():
        if name in VERB_SECTIONS:
            faults[name] = f"{name}: settings of inlay {name}, not of a run; leave them out."
        elif name not in Config.model_fields:
            text = unknown_setting(str(name), known) if "." in str(name) else _unknown_section(str(name), known)
            faults[str(name)] = text
        elif section_of(name) is None:
            kept[name] = _plain_value(value)
        elif isinstance(value, Mapping):
            kept[name], unknown = _sift_section(name, value)
            faults |= unknown
        elif value is not None:
            faults[name] = f"{name}: a section holds settings (got {value!r})."
    return kept, faults


def _sift_section(name: str, values: Assignments) -> tuple[Tree, dict[str, str]]:
    """(the settings of a section that exist, a fault for each of the others)."""
    known = setting_paths()
    unknown = [key for key in values if f"{name}.{key}" not in known]
    faults = {f"{name}.{key}": unknown_setting(f"{name}.{key}", known) for key in unknown}
    return {key: _plain_value(value) for key, value in values.items() if key not in unknown}, faults


def _unknown_section(name: str, known: Collection[str]) -> str:
    if name in _last_parts(known):
        inside = [path for path in known if path.rpartition(".")[2] == name]
        return f"unknown section {name!r}. Did you mean {' or '.join(map(repr, inside))}?"
    if counterpart(name) or (nearest_name(name) and not nearest(name, Config.model_fields)):
        return unknown_setting(name, known)
    return unknown_name("section", name, Config.model_fields)


def _plain_value(value: Any) -> Any:
    """The value as YAML would hold it: a notebook may pass paths and tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain_value(item) for item in value] if isinstance(value, (list, tuple)) else value


_REQUIRED = {
    "model.base_model": "say which model to fine-tune: --model FOLDER, a hub id, or builtin:nano",
    "data.train": "say what to train on: inlay train DATA.jsonl, or data.train in a config",
}


def _faults(error: ValidationError, tree: Tree, *within: str, ignore_missing: bool) -> dict[str, str]:
    """Setting to message for the errors of pydantic; `within` is the section that was validated alone."""
    known = setting_paths()
    faults: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False):
        parts = [*within, *map(str, fault["loc"])]
        path = next((p for p in (".".join(parts[:2]), parts[0] if parts else "") if p in known), ".".join(parts[:2]))
        if fault["type"] == "missing":
            path = {"model": "model.base_model", "data": "data.train"}.get(path, path)
            if not ignore_missing:
                faults[path] = f"{path}: missing; {_REQUIRED[path]}."
        elif fault["type"] == "value_error":  # a rule of our own
            faults[path] = f"{path}: {fault['msg'].removeprefix('Value error, ')}."
        elif path in known:
            section, _, key = path.rpartition(".")
            value = tree[section][key] if section else tree[key]
            now = next((new for old, new in RENAMED_VALUES.get(path, {}).items() if old == value), None)
            renamed = f" Its name today is {now!r}." if now else ""
            faults[path] = f"{path}: must be {allowed(known[path])} (got {value!r}).{renamed}"
        else:
            faults[path] = f"{path}: {fault['msg']} (got {fault['input']!r})."
    return faults
