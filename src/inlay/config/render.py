"""A config as text: the resolved file of a run, the starter file, the explanation of every setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from inlay.config.load import choices, preset_tree, section_of, setting_paths
from inlay.config.settings import Config
from inlay.errors import ConfigError, unknown_name


def as_yaml(config: Config, reasons: Mapping[str, str]) -> str:
    """The whole config; a value that was `auto` carries its reason behind it. Loads back as it is."""
    lines = ["# Resolved: what this run used. A comment gives the reason of a value that was left to inlay."]
    for name, value in config.model_dump().items():
        if section_of(name) is None:
            lines += _setting(name, value, reasons.get(name), "")
            continue
        lines.append(f"{name}:")
        for key, inner in value.items():
            lines += _setting(key, inner, reasons.get(f"{name}.{key}"), "  ")
    return "\n".join(lines) + "\n"


def _setting(key: str, value: Any, reason: str | None, indent: str) -> list[str]:
    return [f"{indent}{key}: {_flow(value)}" + (f"  # {' '.join(reason.split())}" if reason else "")]


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return text.strip().removesuffix("...").strip() or "''"


def explicit_values(config: Config, *, everything: bool = False) -> dict[str, Any]:
    """Dotted setting to value, of what was set by somebody; `everything` gives the defaults too."""
    values: dict[str, Any] = {}
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


def explain(path: str | None = None) -> list[dict[str, Any]]:
    """Name, type, default and documentation of one setting, of a section, or of all. Raises: ConfigError."""
    known = setting_paths()
    chosen = {p: f for p, f in known.items() if path is None or p == path or p.startswith(f"{path}.")}
    if not chosen:
        raise ConfigError(f"config explain: {unknown_name('setting', str(path), [*known, *Config.model_fields])}")
    return [
        {
            "setting": name,
            "type": _type_text(field.annotation),
            "default": None
            if field.default is PydanticUndefined and field.default_factory is None
            else _default(field),
            "required": field.is_required(),
            "doc": " ".join((field.description or "").split()),
        }
        for name, field in chosen.items()
    ]


def _default(field: Any) -> Any:
    return field.get_default(call_default_factory=True)


def _type_text(annotation: Any) -> str:
    literals = choices(annotation)
    text = str(annotation)
    names = [name for name in ("bool", "int", "float", "dict", "list") if name in text or annotation is eval(name)]
    if annotation is str or ("str" in text and not literals and not names):
        names.append("text")
    optional = [] if "None" not in text else ["empty"]
    return " or ".join([*[f"`{value}`" for value in literals], *names, *optional]) or "text"


def markdown() -> str:
    """docs/configuration.md, whole."""
    lines = [
        "# Settings",
        "",
        "Generated from the settings themselves (`make docs`). In YAML each section is a mapping; on the command line",
        "use `--set section.key=value`. `inlay config explain KEY` prints one of these.",
    ]
    section = None
    for row in explain():
        head = row["setting"].partition(".")[0]
        if head != section:
            section = head
            lines += ["", f"## {section}", "", "| setting | values | default | meaning |", "|---|---|---|---|"]
        default = "required" if row["required"] else f"`{_flow(row['default'])}`"
        kind = row["type"].replace("|", "\\|")
        lines.append(f"| `{row['setting']}` | {kind} | {default} | {row['doc'].replace('|', chr(92) + '|')} |")
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
            lines.append(f"  # {' '.join((known[path].description or '').split())}")
            lines += _setting(key, value, None, "  ")
    return "\n".join(lines) + "\n"
