"""The front of the server and the processes behind it: prompts to ids, answers, adapters in and out of memory.

`serving.processes` speaks to two child processes; tests of the front to a stub.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from inlay.generation.request import Ask, Event
from inlay.typed_json import JsonObject

Condition = Literal["loading", "ready", "draining", "failed"]
"""Of the engine: not yet ready; answers; ends what runs and takes nothing new; gone, and not started again."""


class Refusal(Exception):
    """A request that gets no answer: what the client is told. `serving.errors` writes it as HTTP."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """`code` is a word for programs: `model_not_found`, `unsupported_parameter`, `context_length_exceeded`, `overloaded` …"""
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter in the engine's memory."""

    digest: str
    """Of its weights: what an `Ask` names, and the key of cached prefixes."""
    identity: str
    """Of weights, tokenizer and template: what a name points to, and what an answer reports."""
    ref: str
    """NAME:VERSION in the library, or the run or folder that it was loaded from; for people."""
    bytes: int = 0
    """Memory that it takes."""
    note: str = ""
    """What was said while it was loaded."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation to be written by the chat template of a base or adapter."""

    messages: Sequence[JsonObject]
    """Checked by the front: roles, texts, tool calls."""
    tools: Sequence[JsonObject] = ()
    switches: Mapping[str, bool] = field(default_factory=dict)
    """Switches of the template, such as `enable_thinking`."""
    identity: str | None = None
    """The adapter whose tokenizer and template are used; None for the base's."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """The form in which a chat template writes calls of tools, without special tokens; see `serving.tools`."""

    opening: str
    """Text before the JSON object of a call."""
    name_key: str
    arguments_key: str
    between: str
    """Text between the objects of two calls in one answer."""
    closing: str
    """Text after the last one."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Ids of a prompt, and what the server must know of it."""

    ids: tuple[int, ...]
    text: str = ""
    """As the template wrote it."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer beside the model's own end."""
    calls: CallForm | None = None
    """The form of calls, where the prompt has tools and the template shows them as JSON."""
    grammar: str | None = None
    """What the answer must match, as llguidance takes it."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """Condition and load of the engine by its last report; read without waiting."""

    condition: Condition
    why: str = ""
    """What it waits for, or why it failed."""
    running: int = 0
    """Answers that are being computed."""
    waiting: int = 0
    """Answers that wait for room."""
    queued_tokens: int = 0
    """Prompt and answer tokens still to compute for all of them, at most."""
    tokens_per_second: float = 0.0
    """Measured of late."""
    context_length: int = 0
    """Prompt and answer together have at most so many tokens."""
    vocabulary_size: int = 0
    """Ids are below it; the front refuses others in prompts and `logit_bias`. 0: not known yet."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """More for `/metrics` and `/health`, by name: `kv_blocks_used`, `kv_blocks`, `prefix_hits_tokens`, `adapters_bytes`, `step_seconds` …"""


class Engine(Protocol):
    """The processes behind the front. All calls raise `Refusal` where the client is to be told."""

    def state(self) -> EngineState:
        """Condition and load now."""
        raise NotImplementedError

    async def encode_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """Raises: Refusal 400 for what the template refuses, for special tokens in a text, for a template that takes too long;
        with the code `no_chat_template` where there is none."""
        raise NotImplementedError

    async def encode_text(self, text: str, identity: str | None = None) -> EncodedPrompt:
        """The ids of a text as it is, as `/v1/completions` takes it."""
        raise NotImplementedError

    async def token_texts(self, ids: Sequence[int], identity: str | None = None) -> list[bytes]:
        """The bytes of each token, for log-probabilities and `echo`."""
        raise NotImplementedError

    def answer(self, ask: Ask) -> AsyncIterator[Event]:
        """The events of one answer, the last one with `finish`. Closing the iterator before that cancels it."""
        raise NotImplementedError

    async def load(self, ref: str) -> ServedAdapter:
        """An adapter of the library, in memory. One that is there already is found by its digest.

        Raises: Refusal 404 for an unknown name, 409 for another base, 400 for one that cannot be served, 507 for no room.
        """
        raise NotImplementedError

    async def retire(self, digest: str) -> None:
        """No new answers with it; its memory is free when those that run with it have ended."""
        raise NotImplementedError
