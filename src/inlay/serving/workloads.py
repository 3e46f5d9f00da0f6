"""Loads of a server by name: how many adapters take turns, how long prompts are, and when requests come."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from inlay.errors import ConfigError, unknown_name

_TEXT: Final = (
    "the of and to in is was for on that with as it be by from at or an are this have not which but had they you "
    "were their one all we can her has there been if more when will would who so no out up into do any your what "
    "them some time two other then than only its over new also these may first made like our people way day man "
    "year work life world state part place case week company system group number fact home water room area money "
    "story month lot right"
)
_WORDS: Final = tuple(_TEXT.split())
"""Common words, each of one token in most vocabularies: so many words are about so many tokens."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One load."""

    about: str
    adapters: int = 0
    """Distinct adapters that are asked for; 0 for the base alone."""
    order: Literal["turns", "zipf"] = "turns"
    """The adapters one after another, or with frequencies that fall as 1/rank^1.1."""
    prompt_words: int = 32
    shared_words: int = 0
    """Of all prompts alike, at their beginning."""
    long_prompt_words: int = 0
    """Of every 40th prompt, if not 0."""
    overload: float = 0.0
    """Requests come at so many times the rate that the server was just found to manage."""

    @property
    def is_about_adapters(self) -> bool:
        """Whether it has no sense without adapters; others take the base where there are none."""
        return bool(self.adapters) and not (self.shared_words or self.long_prompt_words or self.overload)


WORKLOADS: Final = {
    "base": Workload("the base alone"),
    **{f"adapters-{n}": Workload(f"{n} adapters in turn", n) for n in (1, 4, 8, 16, 32)},
    "zipf": Workload("64 adapters, the first far more often than the last (Zipf, exponent 1.1)", 64, "zipf"),
    "prefix": Workload("8 adapters, prompts that begin with the same 512 tokens", 8, shared_words=512),
    "long-prompt": Workload("8 adapters, every 40th prompt has 2,000 tokens", 8, long_prompt_words=2000),
    "overload": Workload("8 adapters, ten times the requests that the server manages", 8, overload=10.0),
}
_EVERY: Final = 40
_EXPONENT: Final = 1.1


def workload(name: str) -> Workload:
    """The load of that name. Raises: ConfigError for an unknown one."""
    if name not in WORKLOADS:
        raise ConfigError(unknown_name("workload", name, WORKLOADS))
    return WORKLOADS[name]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The content of one request."""

    model: str
    text: str


def prompts(load: Workload, base: str, adapters: Sequence[str], seed: int = 0) -> Iterator[Prompt]:
    """Prompts without end, the same for the same seed: so that every server gets the same ones. No two are alike."""
    draw = random.Random(seed)
    shared = " ".join(random.Random(1).choices(_WORDS, k=load.shared_words))  # the same for all seeds
    models = _models(load, base, adapters, draw)
    for number in itertools.count(1):
        is_long = load.long_prompt_words and number % _EVERY == 0
        words = load.long_prompt_words if is_long else load.prompt_words
        own = " ".join(draw.choices(_WORDS, k=words))
        yield Prompt(next(models), f"{shared} {own}".strip())


def _models(load: Workload, base: str, adapters: Sequence[str], draw: random.Random) -> Iterator[str]:
    chosen = list(adapters[: load.adapters]) or [base]
    if load.order == "turns":
        yield from itertools.cycle(chosen)
    weights = [1 / rank**_EXPONENT for rank in range(1, len(chosen) + 1)]
    while True:
        yield draw.choices(chosen, weights)[0]
