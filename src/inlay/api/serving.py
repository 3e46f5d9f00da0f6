"""One base with many adapters in this process, for notebooks and scripts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from inlay.adapters import reference
from inlay.adapters.gain import gains_of
from inlay.adapters.names import library_at
from inlay.config import validate_section
from inlay.config.sections.generation import GenerationConfig
from inlay.data.encoding.encoder import Encoder
from inlay.data.types import Message
from inlay.errors import AdapterError, DataError, InlayError, ModelError, unknown_name
from inlay.generation.bank import Bank
from inlay.generation.blocks import blocks_for
from inlay.generation.forwards import forward_of
from inlay.generation.generate import Answer, answer_of
from inlay.generation.loop import Limits, Loop
from inlay.generation.request import Ask, Sampling
from inlay.serving import opening

_ANSWERS: Final = 8
"""Answers of half the context that the key/value pool has room for, where nobody says how many tokens."""
_MORE: Final = {one.name for one in fields(Sampling)} - set(GenerationConfig.model_fields)
"""Settings of sampling that a config does not have."""


@dataclass(slots=True)
class _Pending:
    """One answer that a thread waits for."""

    ask: Ask
    ids: list[int] = field(default_factory=list)
    row: int | None = None
    error: InlayError | None = None
    is_finished: bool = False


class Host:
    """A base in memory that answers with any of several adapters; threads may ask at once, and share its steps.

    ```python
    host = inlay.Host("HuggingFaceTB/SmolLM2-135M-Instruct")
    host.load_adapter("support", "support:prod")      # a name of the library, a run, or the folder of an adapter
    host.load_adapter("code", "code:2")
    host.switch_adapter("support")                    # True; False for a name that is not loaded
    host.generate("Where is my parcel?", max_length=200)
    host.generate("Sort a list.", adapter_name="code", temperature=0.0)
    host.unload_adapter("code")
    ```
    """

    def __init__(
        self, base: str, *, folder: str = "results", library: str | None = None, max_adapters: int = 32,
        cache_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """`base` is a folder, a hub id or `builtin:nano`, or a run, whose base is meant then. `cache_tokens` are those of which
        keys and values are kept at once.

        Raises: RunError, ModelError for a base that is not there, or whose answers cannot share steps.
        """
        self._folder, self._library = folder, library_at(library, folder)
        named = reference.reference(base, folder, library=self._library).without_adapter()
        self._base = opening.opened(named)
        self._encoders: dict[str | None, Encoder] = {None: self._base.encoder}
        self._digests: dict[str, str] = {}
        self._current: str | None = None
        self._bank, context = Bank(), self._base.context_length
        tokens = max(context, cache_tokens or _ANSWERS * context // 2)
        forward = forward_of(self._base.model, blocks_for(tokens), self._bank, autocast_dtype=self._base.autocast_dtype)
        own = self._base.encoder
        self._loop = Loop(
            forward, own, self._bank, Limits(adapters=max_adapters),
            stop_ids=lambda ask: self._encoders.get(ask.adapter, own).stop_ids,
        )  # fmt: skip
        self._todo: deque[Callable[[], None]] = deque()
        """Done between two steps, by whoever steps."""
        self._pending: dict[int, _Pending] = {}
        self._turn, self._is_stepping = threading.Condition(), False

    @property
    def adapters(self) -> dict[str, str]:
        """Digest of the weights of each loaded adapter, by name."""
        return dict(self._digests)

    @property
    def current(self) -> str | None:
        """The adapter that answers where none is named; None for the base alone."""
        return self._current

    def load_adapter(self, name: str, ref: str) -> str:
        """Takes an adapter into memory under a name of your choice: what it is, such as `support:3`.

        `ref` is a name of the library, a run, a checkpoint or the folder of an adapter. A name that is taken goes over to the
        new one; answers that are under way end with the one that they began with.
        Raises: AdapterError, RunError for one that is not there, was made for another base, or changes more than it may.
        """
        named = reference.reference(ref, self._folder, library=self._library)
        state = named.adapter(self._base.ref)
        if state is None:
            raise AdapterError(f"{ref}: has no adapter. Name a run, a library adapter or the folder of one.")
        digest = opening.adapter_digests(named, state, self._base)[0]
        encoder = opening.opened(named).encoder
        self._bank.load(digest, gains_of(state, self._base.model))
        with self._turn:
            before, self._digests[name] = self._digests.get(name), digest
            self._encoders[digest] = encoder
        if before not in (None, digest):
            self._retire(before)
        return named.name

    def unload_adapter(self, name: str) -> None:
        """Takes an adapter away; its memory is free when the answers with it have ended. Raises: AdapterError."""
        digest = self._digest_of(name)
        with self._turn:
            del self._digests[name]
            if self._current == name:
                self._current = None
        self._retire(digest)

    def switch_adapter(self, name: str | None) -> bool:
        """Whether the adapter is loaded; if so, it answers from now on where none is named. None is the base alone."""
        if name is not None and name not in self._digests:
            return False
        self._current = name
        return True

    def generate(
        self, prompt: str | Sequence[Mapping[str, str]], adapter_name: str | None = None, max_length: int = 200, **sampling: Any
    ) -> str:  # fmt: skip
        """The answer to a text of a user or to the messages of a conversation, without the prompt.

        `max_length` counts the tokens of prompt and answer; `max_new_tokens` those of the answer, and goes before. Other
        keywords are settings of sampling, such as `temperature`, `top_p`, `seed`, `stop`.
        Raises: AdapterError for a name that is not loaded, ConfigError for a setting, DataError for a prompt that is too long.
        """
        name = adapter_name or self._current
        digest = None if name is None else self._digest_of(name)
        encoder = self._encoders[digest]
        more = {key: sampling.pop(key) for key in _MORE & set(sampling)}
        settings = Sampling.of(validate_section(GenerationConfig, dict(sampling)))
        turns = (
            [Message("user", prompt)] if isinstance(prompt, str) else [Message(t["role"], t["content"]) for t in prompt]
        )
        ids = encoder.prompt(turns)
        if "max_new_tokens" not in sampling:
            if len(ids) >= max_length:
                raise DataError(
                    f"prompt: {len(ids)} tokens leave no room for an answer in max_length {max_length}. Raise it, or give max_new_tokens."
                )
            settings = replace(settings, max_new_tokens=max_length - len(ids))
        ask = Ask(tuple(ids), replace(settings, **more), digest)
        try:
            return self._answered(_Pending(ask), encoder).text
        except AdapterError:
            if name is None or self._digests.get(name) in (None, digest):
                raise
        return self.generate(prompt, name, max_length, **sampling, **more)  # the name went over to another just now

    def _digest_of(self, name: str) -> str:
        if name not in self._digests:
            raise AdapterError(unknown_name("adapter", name, [*self._digests]) + " Load it first, with load_adapter.")
        return self._digests[name]

    def _retire(self, digest: str) -> None:
        with self._turn:
            if digest in self._digests.values():
                return
            self._encoders.pop(digest, None)
        self._todo.append(lambda: self._loop.retire(digest))
        if self._begins():
            self._step()

    # ------------------------------------------------------------ steps

    def _answered(self, mine: _Pending, encoder: Encoder) -> Answer:
        """Waits for an answer, and steps where no other thread does."""
        self._todo.append(lambda: self._add(mine))
        try:
            while self._begins(mine):
                self._step()
        except BaseException:
            self._todo.append(lambda: self._cancel(mine))
            raise
        if mine.error is not None:
            raise mine.error
        return answer_of(encoder, mine.ids, mine.ask.sampling.stop)

    def _begins(self, mine: _Pending | None = None) -> bool:
        """Waits until this thread may step; False where its answer was finished by others."""
        with self._turn:
            self._turn.wait_for(lambda: not self._is_stepping or (mine is not None and mine.is_finished))
            if mine is not None and mine.is_finished:
                return False
            self._is_stepping = True
            return True

    def _step(self) -> None:
        try:
            while self._todo:
                self._todo.popleft()()
            for event in self._loop.step():
                pending = self._pending[event.row]
                pending.ids += event.ids
                if event.finish is not None:
                    if event.finish == "failed":
                        pending.error = ModelError(f"answer: {event.reason}.")
                    del self._pending[event.row]
                    pending.is_finished = True
        finally:
            with self._turn:
                self._is_stepping = False
                self._turn.notify_all()

    def _add(self, mine: _Pending) -> None:
        try:
            mine.row = self._loop.add(mine.ask)
        except InlayError as error:
            mine.error, mine.is_finished = error, True
        else:
            self._pending[mine.row] = mine

    def _cancel(self, mine: _Pending) -> None:
        if mine.row is not None:
            self._loop.cancel(mine.row)
            self._pending.pop(mine.row, None)
