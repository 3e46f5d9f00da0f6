"""Settings that a measurement of something trained may override: `--set` of compare, eval, harness and advise --run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from inlay.config.load import merge, nested, parse_assignment, setting_paths, validate
from inlay.config.sections.base import Assignments
from inlay.config.settings import Config
from inlay.errors import ConfigError

_EVERY: Final = tuple(path for path in setting_paths() if path.startswith("eval."))
TAKEN: Final[Mapping[str, tuple[str, ...]]] = {
    "compare": _EVERY,
    "eval": ("eval.max_rows", "eval.batch_size", "eval.max_new_tokens"),
    "harness": ("eval.batch_size", "eval.resamples"),
    "advise --run": tuple(path for path in _EVERY if path not in ("eval.prompts", "eval.retention_rows")),
}
"""Verb -> settings that it may override."""
_OF_A_FILE: Final = ("data.format", "data.columns")


def assigned(settings: Sequence[str], verb: str, data: str | None = None) -> dict[str, object]:
    """Dotted name to value of `key=value` texts for a verb of TAKEN; `data` is the file of `--data`.

    Raises: ConfigError for a setting that cannot take effect there, naming those that can.
    """
    values = dict(map(parse_assignment, settings))
    for path in values:
        of_a_file = path.startswith(_OF_A_FILE)
        if path in TAKEN[verb] or (of_a_file and data is not None):
            continue
        why = _why_not(path, verb, of_a_file)
        able = ", ".join([*TAKEN[verb], *(_OF_A_FILE if data is not None else ())])
        raise ConfigError(f"--set {path}: cannot take effect in {verb}: {why}. Settings that can: {able}.")
    return values


def _why_not(path: str, verb: str, of_a_file: bool) -> str:
    if of_a_file and verb in ("compare", "eval"):
        return "it says how a file is read, and none is given with --data"
    if path.startswith("generation."):
        return "its answers are greedy, so that a score does not depend on sampling (inlay generate takes it)"
    if path.startswith("eval."):
        return "no second model is compared there" if verb == "eval" else "nothing there depends on it"
    return "what it measures is trained already"


def changed(config: Config, over: Assignments) -> Config:
    """The config with the values of `assigned` over it; data.columns of the config is dropped if they set it.

    Raises: ConfigError for a value out of range.
    """
    if not over:
        return config
    tree = config.model_dump()
    if any(path.startswith("data.columns") for path in over):
        tree["data"]["columns"] = {}
    return validate(merge(tree, nested(over)), given=set(over))


def overrides_text(config: Config, over: Assignments) -> list[str]:
    """`eval.max_rows 50 (the run has 200)` for each value that differs from the config's."""
    texts = []
    for path, value in over.items():
        section, _, key = path.partition(".")
        before = getattr(getattr(config, section), key, None)
        if section == "eval" and value != before:
            texts.append(f"{path} {value} (in its config {before})")
    return texts
