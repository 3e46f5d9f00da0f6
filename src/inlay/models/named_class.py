"""The model class that a base's config.json names, where inlay trains another one.

Of a vision-language base inlay trains the text model alone, whose module names are shorter. Programs that load the
complete model would ignore an adapter with these names, without an error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from inlay.models.base import BaseRef, weight_files

_ROOT: Final = "base_model.model."
_PART: Final = re.compile(r"\.(lora_|ia3_)")


@dataclass(frozen=True, slots=True)
class NamedClass:
    """The class that config.json names, and the names of its modules."""

    name: str
    trained: str
    """The class that is trained."""
    prefixes: dict[str, str]
    """Prefix of module names in the trained class -> in the named class; the longest that fits is taken."""
    unproven: str = ""
    """Reason why the weights of both classes could not be matched; then nothing is renamed."""

    def there(self, module: str) -> str:
        """The name of a module of the trained class in the named one."""
        return _moved(module, self.prefixes)

    @property
    def opened_in(self) -> str:
        """The class of transformers in which the saved adapter has its effect."""
        return self.trained if self.unproven else self.name

    def summary(self) -> str:
        """For the pre-flight block and the card."""
        if self.unproven:
            return f"{self.trained}; config.json names {self.name}, in which the adapter has no effect: {self.unproven}"
        return f"{self.trained}, saved under the names of {self.name}, which config.json names"


def named_class(base: BaseRef, model: Any) -> NamedClass | None:
    """The class that the base's config.json names; None where it is the class of `model`, the bare base."""
    import transformers
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(base.folder), trust_remote_code=False)
    trained, name = type(model).__name__, (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(transformers, name, None)
    if type(config) is type(model.config) or name == trained or kind is None:
        return None
    try:
        with torch.device("meta"):
            whole = kind(config)
        prefixes = _prefixes(sources_in_files(base, model), sources_in_files(base, whole))
    except Exception as error:  # noqa: BLE001 -- insides of transformers: without them nothing is proven, and the summary says so
        return NamedClass(name, trained, {}, f"its weights could not be matched ({type(error).__name__}: {error})")
    if not prefixes:
        return NamedClass(name, trained, {}, "it takes the weights of the file to other places")
    return NamedClass(name, trained, prefixes)


def renamed(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """An adapter's tensors under the module names that the prefixes give."""
    return {_ROOT + _moved(name.removeprefix(_ROOT), prefixes): tensor for name, tensor in tensors.items()}


def pattern_for_both(tensors: Iterable[str], prefixes: Mapping[str, str]) -> str:
    """A regular expression for PEFT's `target_modules` that matches exactly the modules of these tensors, in either class."""
    modules = {_PART.split(name.removeprefix(_ROOT))[0] for name in tensors}
    names = {name for module in modules for name in (module, _moved(module, prefixes))}
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    plain = set()
    for name in names:
        before, number, after = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name).groups() if re.search(r"\.\d+\.", name) else (name, "", "")  # type: ignore[union-attr]  # fmt: skip
        if number:
            numbers[before, after].add(int(number))
        else:
            plain.add(re.escape(name))
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (before, after), found in numbers.items():
        alike[before, tuple(sorted(found))].append(re.escape(after))
    parts = [
        f"{re.escape(before)}({'|'.join(map(str, found))})({'|'.join(sorted(after))})"
        for (before, found), after in sorted(alike.items())
    ]
    return "|".join([*parts, *sorted(plain)])


def reverse(prefixes: Mapping[str, str]) -> dict[str, str]:
    """Prefixes for the way back: named class -> trained class."""
    return {new: old for old, new in prefixes.items()}


def _moved(name: str, prefixes: Mapping[str, str]) -> str:
    for old in sorted(prefixes, key=len, reverse=True):
        if not old or name == old or name.startswith(f"{old}."):
            rest = name[len(old) :].removeprefix(".")
            return f"{prefixes[old]}.{rest}" if prefixes[old] else rest
    return name


def _prefixes(here: Mapping[str, frozenset[str]], there: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Prefix here -> prefix there, matched by the weights in the files that fill each parameter; empty where it is ambiguous."""
    places: dict[frozenset[str], list[str]] = defaultdict(list)
    for name, sources in there.items():
        places[sources].append(name)
    found: dict[str, str] = {}
    for name, sources in here.items():
        ways = [_without_common_end(name, other) for other in places[sources]]
        if not ways:
            return {}
        old, new = min(ways, key=lambda way: len(way[0]) + len(way[1]))
        if found.setdefault(old, new) != new:
            return {}
    return found if len({*found.values()}) == len(found) else {}


def _without_common_end(one: str, two: str) -> tuple[str, str]:
    left, right = one.split("."), two.split(".")
    while left and right and left[-1] == right[-1]:
        del left[-1], right[-1]
    return ".".join(left), ".".join(right)


def sources_in_files(base: BaseRef, model: Any) -> dict[str, frozenset[str]]:
    """Parameter of a model, which may be on the meta device -> names in the base's files that transformers fills it from."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own, prefix = {name: True for name, _ in model.named_parameters()}, model.base_model_prefix
    found: dict[str, set[str]] = defaultdict(set)
    for path in weight_files(base.folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, _ = rename_source_key(key, renamings, converters, prefix, own)
                if name not in own and key in own:
                    name, _ = rename_source_key(key, [], [], prefix, own)
                if name in own:
                    found[name].add(key)
    return {name: frozenset(keys) for name, keys in found.items()}
