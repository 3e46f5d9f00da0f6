"""Settings and values that stored runs know by an earlier name. Configs that a user writes are read by today's names alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inlay.config.sections.base import Tree

RENAMED: Final = {"data.control_tokens": "data.special_tokens"}
"""First name of a setting -> its name today."""
RENAMED_VALUES: Final = {"train.engine": {"plain": "autograd", "direct": "handwritten"}}
"""Name of a setting today -> first name of a value -> its name today."""


def with_current_names(tree: Tree) -> Tree:
    """The nested mapping of a stored config.yaml under today's names."""
    return _with_values(_renamed(tree, RENAMED), RENAMED_VALUES)


def with_first_names(tree: Tree) -> Tree:
    """The nested mapping under the names that settings and values were first stored by: a digest over it outlives a
    renaming."""
    first = {path: {new: old for old, new in names.items()} for path, names in RENAMED_VALUES.items()}
    return _renamed(_with_values(tree, first), {new: old for old, new in RENAMED.items()})


def _renamed(tree: Tree, names: Mapping[str, str]) -> Tree:
    found = _copied(tree)
    for before, after in names.items():
        section, _, key = before.partition(".")
        if isinstance(found.get(section), dict) and key in found[section]:
            found[section][after.partition(".")[2]] = found[section].pop(key)
    return found


def _with_values(tree: Tree, names: Mapping[str, Mapping[str, str]]) -> Tree:
    found = _copied(tree)
    for path, values in names.items():
        section, _, key = path.partition(".")
        if isinstance(found.get(section), dict) and (value := found[section].get(key)) in [*values]:
            found[section][key] = values[value]
    return found


def _copied(tree: Tree) -> Tree:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
