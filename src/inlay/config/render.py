"""A config as text: the resolved file of a run, the starter file, the explanation of every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from inlay.config.describe import allowed
from inlay.config.load import VERB_SECTIONS, in_yaml, preset_tree, section_of, setting_paths, unknown_setting
from inlay.config.other_trainers import counterpart, in_words
from inlay.config.settings import Config
from inlay.errors import ConfigError, nearest


class ExplainedSetting(TypedDict):
    """One setting as `config explain --json` shows it; all is null where another trainer's name has no counterpart."""

    setting: str | None
    type: str | None
    default: Any
    required: bool | None
    doc: str | None
    elsewhere: NotRequired[str]
    """A sentence about the name of another trainer that was looked up."""


_RESOLVED = "Resolved: what this run used. A comment gives the reason of a value that was left to inlay."


def as_yaml(config: Config, reasons: Mapping[str, str], head: str = _RESOLVED) -> str:
    """The complete config, with the reason of each value that was `auto` as a comment. It loads back as the same config."""
    lines = [f"# {head}"]
    for name, value in config.model_dump().items():
        if section_of(name) is None:
            lines += _setting(name, value, reasons.get(name), "")
            continue
        lines.append(f"{name}:")
        for key, inner in value.items():
            lines += _setting(key, inner, reasons.get(f"{name}.{key}"), "  ")
    return "\n".join(lines) + "\n"


def _setting(key: str, value: Any, reason: str | None, indent: str) -> list[str]:
    return [f"{indent}{key}: {in_yaml(value)}" + (f"  # {' '.join(reason.split())}" if reason else "")]


def explicit_values(config: Config, *, everything: bool = False) -> dict[str, object]:
    """Dotted setting to value of the settings that were given; `everything` adds the defaults."""
    values: dict[str, object] = {}
    for name in Config.model_fields:
        section = getattr(config, name)
        if not isinstance(section, BaseModel):
            if everything or name in config.model_fields_set:
                values[name] = section
            continue
        for key in type(section).model_fields:
            if everything or key in section.model_fields_set:
                values[f"{name}.{key}"] = getattr(section, key)
    return values


def explain(path: str | None = None) -> list[ExplainedSetting]:
    """Name, type, default and documentation of one setting, of a section, or of all.

    The last part of a name is enough (`rank`). A name of another trainer (`lora_r`) gives the settings that it is here,
    the first with `elsewhere`, a sentence that says so; of one without a counterpart that sentence is all there is.
    Raises: ConfigError naming the nearest.
    """
    known = setting_paths()
    chosen = [name for name in known if path is None or name == path or name.startswith(f"{path}.")]
    theirs = counterpart(path) if path is not None and path not in Config.model_fields and path not in known else None
    chosen = chosen or [name for name in known if name.rpartition(".")[2] == path]
    if theirs is not None:
        return _explained(chosen or theirs.settings, known, f"{in_words(str(path), theirs)}.")
    if not chosen:
        raise ConfigError(f"config explain: {_unknown(str(path), known)}")
    return _explained(chosen, known)


def _explained(
    chosen: Sequence[str], known: Mapping[str, FieldInfo], elsewhere: str | None = None
) -> list[ExplainedSetting]:
    rows: list[ExplainedSetting] = [
        {
            "setting": name,
            "type": allowed(known[name]),
            "default": None if known[name].is_required() else _default(known[name]),
            "required": known[name].is_required(),
            "doc": _doc(known[name]),
        }
        for name in chosen
    ]
    if elsewhere is None:
        return rows
    nothing: ExplainedSetting = {"setting": None, "type": None, "default": None, "required": None, "doc": None}
    first = rows[0] if rows else nothing
    return [{**first, "elsewhere": elsewhere}, *rows[1:]]


_FEWEST_LETTERS, _MOST_NAMED = 4, 6


def _unknown(path: str, known: Mapping[str, FieldInfo]) -> str:
    """The message for an unknown setting or section, with near names, or else settings whose description has the word."""
    if "." not in path and (section := nearest(path, Config.model_fields, cutoff=0.7)):
        return f"unknown setting or section {path!r}. Did you mean {section!r}?"
    text = unknown_setting(path, known)
    if "Did you mean" in text or len(path) < _FEWEST_LETTERS:
        return text
    named = [name for name in known if path.lower() in f"{name} {known[name].description}".lower()]
    if not named:
        return text
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return f"unknown setting {path!r}. Settings whose description has the word: {', '.join(named[:_MOST_NAMED])}{more}."


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _doc(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def default_text(row: ExplainedSetting) -> str:
    """The default of an explained setting as YAML, or `required`."""
    return "required" if row["required"] else f"default {in_yaml(row['default'])}"


def markdown() -> str:
    """The text of docs/configuration.md."""
    lines = [
        "# Settings",
        "",
        "Generated from the settings themselves (`make docs`). In YAML each section is a mapping; on the command line",
        "use `--set section.key=value`. `inlay config explain KEY` prints one of these. It also understands names of other",
        "trainers, such as `lora_r` or `num_train_epochs`.",
    ]
    section = None
    for name, field in setting_paths().items():
        head = name.partition(".")[0]
        if head != section:
            section = head
            lines += ["", f"## {section}", ""]
            if section in VERB_SECTIONS:
                lines += [f"For `inlay {section}` only, with `--set`; the config of a run has none of these.", ""]
            lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        default = "required" if field.is_required() else f"`{in_yaml(_default(field))}`"
        kind, doc = (text.replace("|", "\\|") for text in (allowed(field), _doc(field)))
        lines.append(f"| `{name}` | {kind} | {default} | {doc} |")
    return "\n".join(lines) + "\n"


def starter(preset: str | None) -> str:
    """A short config to fill in, every line explained; with a preset's values where one is named."""
    tree = preset_tree(preset) if preset else {}
    shown = {
        "model": ["base_model", "quantization"],
        "adapter": ["rank", "alpha", "dropout", "target_modules"],
        "data": ["train", "eval", "max_length", "overlong"],
        "train": ["batch_size", "epochs", "learning_rate", "schedule", "seed"],
        "eval": ["max_rows", "metric", "prompts"],
        "output": ["folder", "name"],
    }
    example = {"model.base_model": "builtin:nano", "data.train": "data.jsonl"}
    known = setting_paths()
    lines = ["# inlay train FILE reads this. All settings: inlay config explain, or docs/configuration.md."]
    if preset:
        lines.append(f"preset: {preset}")
    for section, keys in shown.items():
        lines.append(f"{section}:")
        for key in keys:
            path = f"{section}.{key}"
            default = example.get(path, None if known[path].is_required() else _default(known[path]))
            value = tree.get(section, {}).get(key, default)
            lines.append(f"  # {_doc(known[path])}")
            lines += _setting(key, value, None, "  ")
    return "\n".join(lines) + "\n"
