"""Settings that stored runs know by an earlier name. Configs that a user writes are read by today's names alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inlay.config.sections.base import Tree

RENAMED: Final = {"data.control_tokens": "data.special_tokens"}
"""First name of a setting -> its name today."""


def with_current_names(tree: Tree) -> Tree:
    """The nested mapping of a stored config.yaml under today's names."""
    return _renamed(tree, RENAMED)


def with_first_names(tree: Tree) -> Tree:
    """The nested mapping under the names that settings were first stored by: a digest over it outlives a renaming."""
    return _renamed(tree, {new: old for old, new in RENAMED.items()})


def _renamed(tree: Tree, names: Mapping[str, str]) -> Tree:
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
    for before, after in names.items():
        section, _, key = before.partition(".")
        if isinstance(found.get(section), dict) and key in found[section]:
            found[section][after.partition(".")[2]] = found[section].pop(key)
    return found
