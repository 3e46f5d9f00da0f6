"""The engine behind the front: an encoding child and an engine child, started, spoken to, and started again when they end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from inlay.errors import InlayError
from inlay.generation.request import Ask, Event
from inlay.serving import wire
from inlay.serving.child_process import ChildProcess, ending_in_words
from inlay.serving.engine import ChatPrompt, EncodedPrompt, EngineState, Refusal, ServedAdapter
from inlay.typed_json import JsonObject, decode, encode

ENCODING: Final = "inlay.serving.encoding"
ENGINE: Final = "inlay.serving.engine_child"
VLLM: Final = "inlay.serving.backends.vllm"
"""Modules that the children run."""
MOST_EVENTS: Final = 256
"""Of one answer, not yet taken by its client."""
_MOST_ENCODING: Final = 256
"""Prompts that wait to be encoded."""
_ENCODE_S: Final = 2.0
_OWN_ENCODER_S: Final = 65.0
"""Until the process is ended: half a second over what it allows itself."""
_PATIENCE_S: Final = 20.0
"""For a child that is being started again."""
_DEATHS, _WITHIN_S = 3, 60.0
"""So many in so short a time, and it is not started again."""


class ChildFailedError(InlayError):
    """A child process could not be started, or ended too often."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervised:
    """One of the children: the process that runs now, and a new one when it ends."""

    def __init__(
        self, name: str, module: str, log: Path, first: Callable[[], JsonObject],
        on_message: Callable[[JsonObject], None], on_end: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`name` is for messages; `first` makes the first message; `on_end` gets in words how a process ended."""
        self._name, self._module, self._log, self._first = name, module, log, first
        self._on_message, self._on_end = on_message, on_end
        self.child: ChildProcess | None = None
        self.is_ready = asyncio.Event()
        self.was_ready = False
        self._is_meant = False
        self._deaths: deque[float] = deque(maxlen=_DEATHS)

    def kill(self) -> None:
        """Ends the process, as its request asks for it; a new one is started."""
        if self.child is not None:
            self._is_meant = True
            self.child.kill()

    async def run(self) -> None:
        """Runs until it is cancelled. Raises: ChildFailedError."""
        while True:
            ending = await self._one()
            self._on_end(ending)
            if self._is_meant:
                self._is_meant = False
                continue
            self._deaths.append(time.monotonic())
            recent = [at for at in self._deaths if at > time.monotonic() - _WITHIN_S]
            if len(recent) == _DEATHS or not self.was_ready:
                often = f" {_DEATHS} times within {_WITHIN_S:.0f} s" if self.was_ready else " before it was ready"
                raise ChildFailedError(
                    f"{self._name} ended{often}: it {ending}.{_last_line(self._log)} Its output: {self._log}"
                )
            await asyncio.sleep(0.1 * 2 ** len(recent))

    async def _one(self) -> str:
        """One process from its start to its end, which is given in words."""
        child = self.child = await ChildProcess.start(self._module, self._log)
        try:
            await child.send({"start": self._first()})
            while (message := await child.receive()) is not None:
                if "failed" in message:
                    raise ChildFailedError(message["failed"], message["exit_code"])
                if "ready" in message:
                    self.was_ready = True
                    self.is_ready.set()
                self._on_message(message)
        except BaseException:
            child.kill()
            raise
        finally:
            self.is_ready.clear()
            self.child = None
            code = await child.ended()
        return ending_in_words(code)


@dataclass(slots=True)
class _Answer:
    """Events of one answer that its client has not taken yet."""

    events: deque[Event | Refusal] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    has_ended: bool = False

    def put(self, event: Event | Refusal) -> bool:
        """Adds an event; False where the client is too far behind, and the answer ends with that."""
        if self.has_ended:
            return True
        fits = len(self.events) < MOST_EVENTS
        if not fits:
            event = Event(0, finish="cancelled", reason="the client does not read its answer")
        self.events.append(event)
        self.has_ended = isinstance(event, Refusal) or event.finish is not None
        self.news.set()
        return fits


class Processes:
    """An `Engine` of two child processes."""

    def __init__(
        self, start: wire.Start, logs: Path, most_requests: int = 512, *, encoding: str = ENCODING, engine: str = ENGINE
    ) -> None:
        """`logs` is a folder for what the children print."""
        self._start, self._most_requests = start, most_requests
        self._encoding = Supervised(
            "the process that encodes prompts", encoding, logs / "encoding.log",
            self._first_of_encoding, self._on_reply, self._on_encoding_end,
        )  # fmt: skip
        self._engine = Supervised(
            "the process with the model", engine, logs / "engine.log",
            self._first_of_engine, self._on_news, self._on_engine_end,
        )  # fmt: skip
        self._state = EngineState("loading", "The base is being opened.")
        self._is_open = False
        self._count = 0
        self._answers: dict[int, _Answer] = {}
        self._changes: dict[int, asyncio.Future[ServedAdapter]] = {}
        """Loads that are under way."""
        self._reply: asyncio.Future[JsonObject] | None = None
        self._turn = asyncio.Lock()
        self._encoding_waiting = 0
        self._exchanges: set[asyncio.Task[JsonObject | Refusal]] = set()
        self._loaded: dict[str, ServedAdapter] = {}
        """In the engine's memory, by identity; loaded again into the next engine."""
        self.named: dict[str, ServedAdapter] = {}
        """Adapters that the server was started with, by the names given."""
        self.base = ""
        self.base_identity = ""
        """Id of the base, and digest of it with its tokenizer and template; known once it is ready."""

    async def run(self) -> None:
        """Runs both children until it is cancelled. Raises: ChildFailedError, with condition `failed` from then on."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._encoding.run())
                group.create_task(self._engine.run())
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            self._state = dataclasses.replace(self._state, condition="failed", why=str(first))
            raise first from None

    async def ready(self) -> None:
        """Waits until both children answer, and adapters loaded at the start have their encoders."""
        await self._encoding.is_ready.wait()
        await self._engine.is_ready.wait()
        for adapter in list(self._loaded.values()):
            await self._exchange({"own": adapter.identity, "ref": adapter.ref}, _OWN_ENCODER_S)
        self._is_open = True

    def drain(self) -> None:
        """From now on the condition is `draining`."""
        self._state = dataclasses.replace(self._state, condition="draining", why="")

    def end_answers(self, reason: str) -> int:
        """Ends every answer with an event that it failed, and why; the number of them."""
        running = {number: answer for number, answer in self._answers.items() if not answer.has_ended}
        for number, answer in running.items():
            answer.put(Event(0, finish="failed", reason=reason))
            self._send({"cancel": number})
        return len(running)

    def pids(self) -> dict[str, int]:
        """Number of each process, by its name."""
        children = {"encoding": self._encoding.child, "engine": self._engine.child}
        return {"front": os.getpid()} | {name: child.pid for name, child in children.items() if child is not None}

    # ---------------------------------------------------------------- Engine

    def state(self) -> EngineState:
        """Condition and load now."""
        state = self._state
        if state.condition == "ready" and not self._is_open:
            return dataclasses.replace(state, condition="loading", why="Chat templates are being opened.")
        if state.condition == "ready" and not self._engine.is_ready.is_set():
            return dataclasses.replace(state, condition="loading", why="The model is being loaded again.")
        return state

    async def encode_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """See `Engine`."""
        return decode(EncodedPrompt, (await self._exchange({"chat": encode(prompt)}))["encoded"])

    async def encode_text(self, text: str, identity: str | None = None) -> EncodedPrompt:
        """See `Engine`."""
        return decode(EncodedPrompt, (await self._exchange({"text": text, "identity": identity}))["encoded"])

    async def token_texts(self, ids: Sequence[int], identity: str | None = None) -> list[bytes]:
        """See `Engine`."""
        reply = await self._exchange({"token_texts": list(ids), "identity": identity})
        return [bytes.fromhex(one) for one in reply["texts"]]

    async def answer(self, ask: Ask) -> AsyncIterator[Event]:
        """See `Engine`."""
        child = self._engine.child
        if child is None or not self._engine.is_ready.is_set():
            raise _gone("The model is being loaded.")
        if len(self._answers) >= self._most_requests:
            text = f"{self._most_requests} answers are computed or wait. Try again later."
            raise Refusal(429, text, code="overloaded", retry_after_s=1)
        number = self._number()
        answer = self._answers[number] = _Answer()
        try:
            await child.send({"add": number, "ask": wire.ask_to_json(ask)})
            while True:
                while not answer.events:
                    answer.news.clear()
                    await answer.news.wait()
                event = answer.events.popleft()
                if isinstance(event, Refusal):
                    raise event
                yield event
                if event.finish is not None:
                    return
        finally:
            del self._answers[number]
            if not answer.has_ended:
                self._send({"cancel": number})

    async def load(self, ref: str) -> ServedAdapter:
        """See `Engine`."""
        found = await self._load(ref)
        try:
            await self._exchange({"own": found.identity, "ref": found.ref}, _OWN_ENCODER_S)
        except Refusal:
            if not self._is_loaded(found.digest):
                self._send({"retire": found.digest})
            raise
        self._loaded[found.identity] = found
        return found

    async def _load(self, ref: str) -> ServedAdapter:
        if not self._engine.is_ready.is_set():
            raise _gone("The model is being loaded.")
        number = self._number()
        future = self._changes[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"load": number, "ref": ref})
            found: ServedAdapter = await future
            return found
        finally:
            del self._changes[number]

    async def retire(self, digest: str) -> None:
        """See `Engine`."""
        self._send({"retire": digest})
        for identity in [one.identity for one in self._loaded.values() if one.digest == digest]:
            del self._loaded[identity]
            with contextlib.suppress(Refusal):
                await self._exchange({"drop": identity})

    def _is_loaded(self, digest: str) -> bool:
        return any(one.digest == digest for one in self._loaded.values())

    # ---------------------------------------------------------------- the engine child

    def _first_of_engine(self) -> JsonObject:
        start = encode(self._start)
        if self._engine.was_ready:  # what has been loaded and retired since counts, not what it was started with
            start |= {"adapters": {one.ref: one.ref for one in self._loaded.values()}, "is_again": True}
        return dict(start)

    def _on_news(self, message: JsonObject) -> None:
        for number, event in message.get("events", ()):
            if (answer := self._answers.get(number)) is not None and not answer.put(wire.event_from_json(event)):
                self._send({"cancel": number})
        if "state" in message:
            condition = "draining" if self._state.condition == "draining" else "ready"
            self._state = decode(EngineState, message["state"] | {"condition": condition})
        elif "progress" in message and self._state.condition == "loading":
            self._state = dataclasses.replace(self._state, why=message["progress"])
        if "ready" in message:
            named = {name: decode(ServedAdapter, one) for name, one in message["ready"]["adapters"].items()}
            self._loaded = {one.identity: one for one in named.values()}
            self.named, self.base = self.named or named, message["ready"]["base"]
            self.base_identity = message["ready"]["identity"]
        if "loaded" in message and (future := self._changes.get(message["loaded"])) and not future.done():
            future.set_result(decode(ServedAdapter, message["adapter"]))
        if "refused" in message:
            self._refuse(message["number"], wire.refusal_from_json(message["refused"]))

    def _refuse(self, number: int, refusal: Refusal) -> None:
        if (future := self._changes.get(number)) and not future.done():
            future.set_exception(refusal)
        elif answer := self._answers.get(number):
            answer.put(refusal)

    def _on_engine_end(self, ending: str) -> None:
        """Everybody who waits for the process gets an error, and may ask again."""
        for number in [*self._answers, *self._changes]:
            answer = self._answers.get(number)
            if answer is not None and answer.events and not answer.has_ended:
                answer.put(
                    Event(0, finish="failed", reason="The process with the model ended; it is being started again.")
                )
            else:
                self._refuse(number, _gone("The process with the model ended; it is being started again."))

    def _send(self, message: JsonObject) -> None:
        if self._engine.child is not None:
            self._engine.child.send_soon(message)

    def _number(self) -> int:
        self._count += 1
        return self._count

    # ---------------------------------------------------------------- the encoding child

    def _first_of_encoding(self) -> JsonObject:
        return dict(encode(self._start), own={one.identity: one.ref for one in self._loaded.values()})

    async def _exchange(self, message: JsonObject, seconds: float = _ENCODE_S) -> JsonObject:
        """The child's reply. Raises: Refusal."""
        if self._encoding_waiting >= _MOST_ENCODING:
            raise Refusal(429, f"{_MOST_ENCODING} prompts wait to be encoded.", code="overloaded", retry_after_s=1)
        # in a task of its own: a client that goes away must not leave its reply to the next one
        task = asyncio.create_task(self._reply_to(message, seconds))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)
        reply = await asyncio.shield(task)
        if isinstance(reply, Refusal):
            raise reply
        return reply

    async def _reply_to(self, message: JsonObject, seconds: float) -> JsonObject | Refusal:
        self._encoding_waiting += 1
        try:
            async with self._turn:
                return await self._reply_in_turn(message, seconds)
        finally:
            self._encoding_waiting -= 1

    async def _reply_in_turn(self, message: JsonObject, seconds: float) -> JsonObject | Refusal:
        try:
            await asyncio.wait_for(self._encoding.is_ready.wait(), _PATIENCE_S)
        except TimeoutError:
            return _gone("The process that encodes prompts is being started.")
        assert self._encoding.child is not None
        self._reply = asyncio.get_running_loop().create_future()
        self._encoding.child.send_soon(message)
        try:
            reply = await asyncio.wait_for(self._reply, seconds)
        except TimeoutError:
            self._encoding.kill()
            self._encoding.is_ready.clear()
            return wire.template_too_long(seconds)
        finally:
            self._reply = None
        return wire.refusal_from_json(reply["refused"]) if "refused" in reply else reply

    def _on_reply(self, message: JsonObject) -> None:
        if self._reply is not None and not self._reply.done() and "ready" not in message:
            self._reply.set_result(message)

    def _on_encoding_end(self, ending: str) -> None:
        if self._reply is not None and not self._reply.done():
            text = "The process that encodes prompts ended; it is being started again."
            self._reply.set_result({"refused": wire.refusal_to_json(_gone(text))})


def _last_line(log: Path) -> str:
    """The last line that a process printed, as a sentence; empty where it printed none."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f" It printed: {lines[-1][:200]}." if lines else ""


def _gone(text: str) -> Refusal:
    return Refusal(503, text, code="restarting", retry_after_s=2)
