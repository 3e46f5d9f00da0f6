"""One answer that is wanted from a model, and the pieces in which it comes. No torch: the front of the server uses these, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inlay.config.sections.generation import GenerationConfig

Finish = Literal["stop", "length", "cancelled", "failed"]
"""Why an answer ended: the model or a stop string; the length or the context; whoever asked; an error."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of choosing the next token. The default is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the answer has already; OpenAI's definition: the prompt does not count."""
    frequency_penalty: float = 0.0
    """The same for each time that the answer has it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, what is added to its logit)"""
    min_new_tokens: int = 0
    """No end of turn before so many tokens."""
    ignore_eos: bool = False
    """Goes on to `max_new_tokens` whatever the model says; for benchmarks."""
    logprobs: int | None = None
    """How many of the most likely tokens are told beside each chosen one; None tells no log-probabilities at all."""

    @staticmethod
    def of(config: GenerationConfig) -> Sampling:
        """The settings of a config."""
        return Sampling(**config.model_dump() | {"stop": tuple(config.stop)})


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted."""

    prompt: tuple[int, ...]
    """Ids; at least one."""
    sampling: Sampling = Sampling()
    adapter: str | None = None
    """Digest of the adapter's weights, as it was loaded; None for the base alone. Never a name."""
    salt: bytes = b""
    """Cached prefixes are shared only among those of the same salt; chosen by the server, never by a client."""
    choice: int = 0
    """Number among several answers to the same prompt with the same seed; each draws its own."""
    grammar: str | None = None
    """What the answer must match, as llguidance takes it (its JSON form)."""
    prompt_logprobs: bool = False
    """Whether the log-probability of each token of the prompt is told, too."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token, by the model's own distribution (before temperature, penalties and cuts)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-probability) of the most likely, best first; equal ones by id."""


@dataclass(frozen=True, slots=True)
class Event:
    """New tokens and text of one answer after one step."""

    row: int
    """The number that `Loop.add` gave."""
    ids: tuple[int, ...] = ()
    """New tokens; the one that ends the turn is not among them."""
    text: str = ""
    """Text that is final by now. The texts of all events, joined, are the answer: half a character or what may become a
    stop string is held back."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of `ids`, where asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """Of the prompt's tokens, where asked for, with the first event; None for the first token."""
    finish: Finish | None = None
    """Set in the last event of an answer."""
    reason: str = ""
    """Why it failed."""
    cached_tokens: int = 0
    """Tokens of the prompt that were in the prefix cache; told in the first event."""
