"""An engine without a model: its tokens are the bytes of UTF-8, and an answer follows from its ask alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from inlay.generation.request import Ask, Event, TokenLogprob
from inlay.serving.auth import Auth
from inlay.serving.engine import ChatPrompt, EncodedPrompt, EngineState, Refusal, ServedAdapter
from inlay.serving.limits import Gate, Limits
from inlay.serving.names import Names
from inlay.serving.server import Server

BASE = "builtin:nano"
END = 0
"""The token that ends a turn."""


def adapter(ref: str) -> ServedAdapter:
    digest = sha256(ref.encode()).hexdigest()
    return ServedAdapter(digest, sha256(digest.encode()).hexdigest(), ref, bytes=1000)


@dataclass
class StubEngine:
    """Answers with the name of the adapter and the prompt's last words, one byte a step."""

    condition: str = "ready"
    seconds_per_token: float = 0.0
    context_length: int = 4096
    tokens_per_second: float = 0.0
    queued_tokens: int = 0
    words: str = "ok: héllo wörld 🎈 done"
    fail_at: int | None = None
    """The step at which an answer fails."""
    refuse: Refusal | None = None
    has_chat_template: bool = True
    asks: list[Ask] = field(default_factory=list)
    encoded: int = 0
    cancelled: int = 0
    running: int = 0
    retired: list[str] = field(default_factory=list)

    def state(self) -> EngineState:
        return EngineState(
            self.condition, running=self.running, context_length=self.context_length, vocabulary_size=256,  # type: ignore[arg-type]
            tokens_per_second=self.tokens_per_second, queued_tokens=self.queued_tokens,
        )  # fmt: skip

    async def encode_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        self.encoded += 1
        if not self.has_chat_template:
            raise Refusal(400, "messages: this base has no chat template.", code="no_chat_template", param="messages")
        text = "".join(f"<{turn['role']}>{turn['content']}" for turn in prompt.messages) + "<assistant>"
        return EncodedPrompt(tuple(text.encode()), text)

    async def encode_text(self, text: str, identity: str | None = None) -> EncodedPrompt:
        return EncodedPrompt(tuple(text.encode()), text)

    async def token_texts(self, ids: Sequence[int], identity: str | None = None) -> list[bytes]:
        return [bytes([id_]) for id_ in ids]

    async def answer(self, ask: Ask) -> AsyncIterator[Event]:
        self.asks.append(ask)
        if self.refuse is not None:
            raise self.refuse
        self.running += 1
        is_whole = False
        try:
            for event in events_of(ask, self.words):
                await asyncio.sleep(self.seconds_per_token)
                if self.fail_at is not None and len(event.ids) and ask.sampling.seed >= 0:
                    self.fail_at -= 1
                    if self.fail_at < 0:
                        event = replace(event, finish="failed", reason="a step failed")
                is_whole = event.finish is not None
                yield event
                if is_whole:
                    return
        finally:
            self.running -= 1
            self.cancelled += not is_whole

    async def load(self, ref: str) -> ServedAdapter:
        return adapter(ref)

    async def retire(self, digest: str) -> None:
        self.retired.append(digest)


def events_of(ask: Ask, words: str) -> list[Event]:
    """The answer of an ask: words, then what tells adapter, seed and choice. One byte a step; a whole character as text."""
    who = ask.adapter[:6] if ask.adapter else "base"
    salted = sha256(repr((ask.prompt, ask.sampling.seed, ask.choice, who)).encode()).hexdigest()[:4]
    data = f"{words} {who} {salted}".encode()
    most = ask.sampling.max_new_tokens
    finish = "stop" if len(data) <= most and not ask.sampling.ignore_eos else "length"
    data = (data * (most // len(data) + 1))[:most] if finish == "length" else data
    events, held = [], b""
    for number, byte in enumerate(data):
        held += bytes([byte])
        try:
            text, held = held.decode(), b""
        except UnicodeDecodeError:
            text = ""
        events.append(Event(0, (byte,), text, logprobs=_logprobs([byte], ask)))
        if number == 0:
            prompt = (None, *_logprobs(ask.prompt[1:], ask)) if ask.prompt_logprobs else ()
            events[0] = replace(events[0], prompt_logprobs=prompt, cached_tokens=2)
    text = data.decode("utf-8", "replace")
    for stop in ask.sampling.stop:
        if stop in text:
            return [Event(0, tuple(data), text[: text.index(stop)], logprobs=_logprobs(data, ask), finish="stop")]
    events[-1] = replace(events[-1], text=events[-1].text + held.decode("utf-8", "replace"), finish=finish)  # type: ignore[arg-type]
    return events


def _logprobs(ids: Sequence[int], ask: Ask) -> tuple[TokenLogprob, ...]:
    count = ask.sampling.logprobs
    if count is None:
        return ()
    return tuple(TokenLogprob(id_, -0.5, tuple(((id_ + n) % 256, -0.5 - n) for n in range(count))) for id_ in ids)


def server(
    engine: StubEngine | None = None, *, auth: Auth | None = None, limits: Limits | None = None,
    adapters: Sequence[str] = ("support:3", "code:2"),
) -> Server:  # fmt: skip
    """A server over the stub, with adapters under the names of their tags."""
    names = Names(BASE, "ba5e" * 16)
    for ref in adapters:
        names.put(f"{ref.partition(':')[0]}:prod", adapter(ref))
    return Server(engine or StubEngine(), names, auth or Auth(), Gate(limits or Limits()))
