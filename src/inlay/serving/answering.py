"""One request on its way to its answers: the model is looked up, the prompt encoded, the answers are asked for and counted."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from starlette.requests import Request

from inlay.generation.request import Ask, Event, TokenLogprob
from inlay.serving import replies
from inlay.serving.engine import EncodedPrompt, Engine, EngineState, Refusal
from inlay.serving.errors import invalid
from inlay.serving.limits import Reserved, require_ready
from inlay.serving.names import Asker, Target
from inlay.serving.schemas import DEFAULT_MAX_TOKENS, SamplingFields
from inlay.serving.server import Record, Server, principal_of, record_of, server_of
from inlay.serving.stream import Answers
from inlay.typed_json import JsonObject

BEGINNING_S: Final = 10.0
"""A stream begins with its first token, or after so long without one; what goes wrong before has a status of its own."""
CHARACTERS_PER_TOKEN: Final = 4
"""Guess of a prompt's length before it is encoded."""

Encode = Callable[[Engine, str | None], Awaitable[Sequence[EncodedPrompt]]]
"""The prompts of a request, by the tokenizer and template of an adapter's identity, or of the base."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, as the routes have in common."""

    id_prefix: str
    model: str
    fields: SamplingFields
    encode: Encode
    characters: int
    """Of all prompts, about."""
    max_tokens: int | None = None
    """Longest answer; 0: only the prompt is read."""
    max_length: int | None = None
    """Longest prompt and answer together, in place of it."""
    n: int = 1
    temperature: float = 1.0
    """Where the request names none."""
    logprobs: int | None = None
    prompt_logprobs: bool = False
    is_streamed: bool = False
    text: str = ""
    """Last turn of the user, for A/B tests and routers."""
    user: str | None = None
    safety_identifier: str | None = None


@dataclass(slots=True)
class Answering:
    """Answers that are being computed, and all that their form over HTTP needs."""

    id: str
    server: Server
    record: Record
    target: Target
    prompts: Sequence[EncodedPrompt]
    n: int
    seed: int
    answers: Answers
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self) -> JsonObject:
        """The fields of `replies.OpenAIReply`."""
        target = self.target
        return {
            "id": self.id,
            "created": self.created,
            "model": target.name,
            "system_fingerprint": f"inlay-{(target.identity or self.server.names.base_identity or 'base')[:16]}",
            "inlay": replies.AnsweredBy(adapter=target.ref, identity=target.identity, seed=self.seed),
        }

    def usage(self) -> replies.Usage:
        """Tokens up to now."""
        record = self.record
        return replies.Usage(
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            total_tokens=record.prompt_tokens + record.completion_tokens,
            prompt_tokens_details=replies.CachedTokens(cached_tokens=record.cached_tokens),
        )

    def headers(self) -> Mapping[str, str]:
        """Headers of the answer."""
        return self.target.headers


async def start(request: Request, wanted: Wanted) -> Answering:
    """Asks the engine for the answers; the door ends them with the request. Raises: Refusal."""
    server, record, who = server_of(request), record_of(request), principal_of(request)
    answer_id = record.answer_id = f"{wanted.id_prefix}{uuid.uuid4().hex}"
    asker = Asker(answer_id, who.name, wanted.user, wanted.safety_identifier, dict(request.headers), wanted.text)
    require_ready(server.engine.state())  # names are known when the adapters are loaded, not before
    target = record.target = server.names.resolve(wanted.model, who, asker)
    closing = request.state.closing
    closing.enter_context(server.names.held(target))
    guess = wanted.characters // CHARACTERS_PER_TOKEN + wanted.n * (
        wanted.max_tokens or wanted.max_length or DEFAULT_MAX_TOKENS
    )
    reserved = closing.enter_context(server.gate.entered(who, server.engine.state(), guess))
    prompts = await wanted.encode(server.engine, target.identity)
    seed = secrets.randbelow(2**31) if wanted.fields.seed is None else wanted.fields.seed
    asks = _asks(wanted, prompts, target, seed, who.salt, server.engine.state())
    count = _Count(record, reserved, prompts, asks, reads_only=wanted.max_tokens == 0)
    closing.callback(lambda: server.gate.used(who, record.prompt_tokens + record.completion_tokens))
    limit = server.gate.limits.events_waiting if wanted.is_streamed else None
    answers = await closing.enter_async_context(Answers(server.engine, asks, seen=count, limit=limit))
    answering = Answering(answer_id, server, record, target, prompts, wanted.n, seed, answers)
    if wanted.is_streamed:
        await answers.begun(min(BEGINNING_S, server.gate.limits.comment_seconds))
    return answering


def _asks(
    wanted: Wanted, prompts: Sequence[EncodedPrompt], target: Target, seed: int, salt: bytes, state: EngineState
) -> list[Ask]:  # fmt: skip
    """n asks for each prompt. Raises: Refusal for ids outside the vocabulary, for prompts that the context has no room for."""
    ids = [int(key) for key in wanted.fields.logit_bias or {}]
    _require_in_vocabulary(ids, "logit_bias", state)
    asks = []
    for prompt in prompts:
        _require_in_vocabulary(prompt.ids, "prompt", state)
        if not prompt.ids:
            raise invalid("an empty prompt has no tokens to go on from", "prompt")
        most = _longest_answer(wanted, len(prompt.ids), state.context_length)
        sampling = wanted.fields.sampling(
            seed % 2**64, most, temperature=wanted.temperature, logprobs=wanted.logprobs, stop=prompt.stop
        )
        asks += [
            Ask(prompt.ids, sampling, target.digest, salt, choice, prompt.grammar, wanted.prompt_logprobs)
            for choice in range(wanted.n)
        ]
    return asks


def _longest_answer(wanted: Wanted, prompt_tokens: int, context: int) -> int:
    """Tokens of the answer at most. Raises: Refusal 400 with the numbers that do not fit."""
    room = context - prompt_tokens if context else DEFAULT_MAX_TOKENS
    if room < 1:
        raise Refusal(
            400, f"The prompt has {prompt_tokens:,} tokens; the context of {context:,} has no room for an answer. "
            "Shorten the prompt.", code="context_length_exceeded",
        )  # fmt: skip
    if wanted.max_length is not None:
        if wanted.max_length <= prompt_tokens:
            raise invalid(
                f"prompt and answer together have at most {wanted.max_length:,} tokens, and the prompt has {prompt_tokens:,}. "
                "Make it larger, or give max_new_tokens", "max_length",
            )  # fmt: skip
        return min(room, wanted.max_length - prompt_tokens)
    most = min(room, DEFAULT_MAX_TOKENS) if wanted.max_tokens is None else max(1, wanted.max_tokens)
    if context and most > room:
        raise Refusal(
            400, f"The prompt's {prompt_tokens:,} tokens and {most:,} of the answer exceed the context of {context:,}. "
            f"Ask for at most {room:,}.", code="context_length_exceeded", param="max_tokens",
        )  # fmt: skip
    return most


def _require_in_vocabulary(ids: Sequence[int], param: str, state: EngineState) -> None:
    if state.vocabulary_size and ids and max(ids) >= state.vocabulary_size:
        raise invalid(f"token id {max(ids)} is not below {state.vocabulary_size}, the size of the vocabulary", param)


class _Count:
    """Counts the tokens of a request as they come: in its record, and in what the gate holds reserved."""

    def __init__(
        self, record: Record, reserved: Reserved, prompts: Sequence[EncodedPrompt], asks: Sequence[Ask], *, reads_only: bool
    ) -> None:  # fmt: skip
        """`reads_only`: the one token that an ask has at least is dropped."""
        self._record, self._reserved, self._reads_only = record, reserved, reads_only
        self._left = [len(ask.prompt) + ask.sampling.max_new_tokens for ask in asks]
        self._is_read = [False] * len(asks)
        self._prompt_tokens = [len(ask.prompt) for ask in asks]
        record.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        reserved.set(sum(self._left))

    def __call__(self, number: int, event: Event) -> Event:
        record = self._record
        if self._reads_only:
            event = replace(
                event, ids=(), text="", logprobs=(), finish="length" if event.finish == "stop" else event.finish
            )
        if not self._is_read[number]:
            self._is_read[number] = True
            self._left[number] -= self._prompt_tokens[number]
            record.cached_tokens += event.cached_tokens
        if event.ids:
            now = time.monotonic()
            record.first_token = record.first_token or now
            record.token_times.append((now, len(event.ids)))
            record.completion_tokens += len(event.ids)
            self._left[number] -= len(event.ids)
        if event.finish is not None:
            record.finishes.append(event.finish)
            self._left[number] = 0
        self._reserved.set(sum(self._left))
        return event


def finish_of(event: Event) -> replies.TextFinish:
    """Why an answer ended, in OpenAI's words; one that failed is an error before it comes here."""
    return "length" if event.finish == "length" else "stop"


@dataclass(slots=True)
class Whole:
    """One answer, complete."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    finish: replies.TextFinish = "stop"


async def whole_answers(answering: Answering) -> list[Whole]:
    """Every answer of a request, when all are complete. Raises: Refusal."""
    found = [Whole() for _ in range(len(answering.prompts) * answering.n)]
    async for arrived in answering.answers.arriving():
        if arrived is not None:
            one, event = found[arrived.answer], arrived.event
            one.text += event.text
            one.ids += event.ids
            one.logprobs += event.logprobs
            one.prompt_logprobs += event.prompt_logprobs
            one.finish = finish_of(event)
    return found


class TokenTexts:
    """The texts of tokens, asked for once."""

    def __init__(self, engine: Engine, identity: str | None) -> None:
        self._engine, self._identity = engine, identity
        self._known: dict[int, bytes] = {}

    async def learn(self, tokens: Sequence[TokenLogprob | None], ids: Sequence[int] = ()) -> None:
        """Asks for those that are not known yet."""
        needed = {*ids, *(id_ for one in tokens if one for id_ in (one.id, *(top for top, _ in one.top)))}
        new = sorted(needed - self._known.keys())
        if new:
            self._known.update(zip(new, await self._engine.token_texts(new, self._identity), strict=True))

    def bytes_of(self, id_: int) -> bytes:
        """The bytes of a token."""
        return self._known[id_]

    def text_of(self, id_: int) -> str:
        """Its text; the bytes in hexadecimal for one that is only a part of a character."""
        raw = self._known[id_]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
