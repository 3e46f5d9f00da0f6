"""The engine child of the server: one base in memory, one loop, adapters that come and go beside it."""

from __future__ import annotations

import contextlib
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

import torch

from inlay.adapters.gain import gains_of
from inlay.adapters.goldens import Agreement, Golden, agree, read_goldens
from inlay.adapters.library import held
from inlay.adapters.reference import Reference
from inlay.config.load import validate_section
from inlay.config.sections.serve import ServeConfig
from inlay.errors import AdapterError, InlayError
from inlay.generation.bank import Bank
from inlay.generation.blocks import blocks_for
from inlay.generation.forwards import forward_of
from inlay.generation.loop import Limits, Loop
from inlay.generation.request import Ask, Event, Sampling
from inlay.hardware.facts import memory_facts
from inlay.serving import wire
from inlay.serving.child_process import Front
from inlay.serving.engine import EngineState, Refusal, ServedAdapter
from inlay.serving.memory_needed import MemoryNeeded
from inlay.serving.opening import (
    adapter,
    adapter_digests,
    base_identity,
    opened_base,
    require_same_base,
    wanted_adapters,
)
from inlay.serving.tokenizers import Tokenizers
from inlay.serving.wire import Start
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject, decode, encode

GOLDEN_TOKENS: Final = 8
"""Of one golden answer, which an adapter must give again before it is served."""


@dataclass(slots=True)
class _Read:
    """An adapter that was read into memory and must still prove itself."""

    number: int
    """Of the front's request; 0 at the start."""
    served: ServedAdapter
    held: contextlib.ExitStack
    golden: Golden | None
    answer: list[int]
    why_not: str = ""
    """Why it is not served."""
    is_second: bool = False
    """Whether it had left memory again before it could prove itself, and was read once more."""


class EngineChild:
    """The loop, and what the front asks of it."""

    def __init__(
        self, front: Front, start: Start, base: OpenedBase, loop: Loop, bank: Bank, tokenizers: Tokenizers
    ) -> None:
        self._front, self._start, self._base, self._loop, self._bank = front, start, base, loop, bank
        self._tokenizers = tokenizers
        self._rows: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._trials: dict[int, _Read] = {}
        """Golden prompts that are being answered, by row."""
        self._held: dict[str, contextlib.ExitStack] = {}
        """Locks on library versions in memory, by digest."""
        self._retired: set[str] = set()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._reported = 0.0

    def run(self) -> None:
        """Steps while there are answers to compute, and waits for the front while there are none."""
        while True:
            while self._front.has_message() or not self._loop.live:
                if not self._front.has_message():
                    self._report([])
                self._handle(self._front.next())
            self._step()

    def load_all(self, adapters: dict[str, str]) -> dict[str, ServedAdapter]:
        """Adapters by the names that are given, loaded and tried. Raises: InlayError for the first that cannot be served."""
        found = {}
        for name, ref in adapters.items():
            self._front.send({"progress": f"Loading the adapter {ref}."})
            try:
                read = self._read(0, ref)
            except Refusal as refusal:
                raise AdapterError(str(refusal)) from None
            self._try(read)
            while self._trials:
                self._step()
            if read.why_not:
                raise AdapterError(read.why_not)
            found[name] = read.served
        return found

    # ---------------------------------------------------------------- messages

    def _handle(self, message: JsonObject) -> None:
        if "add" in message:
            self._add(message["add"], wire.ask_from_json(message["ask"]))
        elif "cancel" in message:
            row = self._rows.pop(message["cancel"], None)
            if row is not None:
                del self._numbers[row]
                self._loop.cancel(row)
        elif "load" in message:
            self._reader.submit(self._read_beside, message["load"], message["ref"])
        elif "read" in message:
            self._try(message["read"])
        elif "unread" in message:
            self._refuse(message["unread"], message["why"])
        elif "retire" in message:
            self._retire(message["retire"])

    def _add(self, number: int, ask: Ask) -> None:
        try:
            row = self._loop.add(ask)
        except InlayError as error:
            self._refuse(number, Refusal(400, str(error), code="invalid_prompt"))
            return
        self._rows[number], self._numbers[row] = row, number

    def _refuse(self, number: int, refusal: Refusal) -> None:
        self._front.send({"number": number, "refused": wire.refusal_to_json(refusal)})

    def _step(self) -> None:
        events = self._loop.step()
        sent = []
        for event in events:
            if event.row in self._trials:
                self._on_trial(event)
            elif (number := self._numbers.get(event.row)) is not None:
                sent.append([number, wire.event_to_json(event)])
                if event.finish is not None:
                    del self._numbers[event.row], self._rows[number]
        self._report(sent)
        self._release_unused()

    def _report(self, events: list[Any]) -> None:
        now = time.monotonic()
        if not events and now - self._reported < 0.05 and self._loop.live:
            return
        self._reported = now
        self._front.send({"events": events, "state": encode(self.state())})

    def state(self) -> EngineState:
        """Load of the loop just now."""
        load = self._loop.state()
        return EngineState(
            "ready", "", load.running, load.waiting, load.queued_tokens, load.tokens_per_second, self._base.context_length,
            self._loop.forward.vocabulary,
            {
                "kv_blocks": load.blocks, "kv_blocks_used": load.blocks_used, "step_seconds": load.step_seconds,
                "prompt_tokens": load.prompt_tokens, "prefix_hits_tokens": load.prefix_hits_tokens,
                "answer_tokens": load.answer_tokens, "adapters": len(self._held), "adapters_bytes": self._bank.bytes,
            },
        )  # fmt: skip

    # ---------------------------------------------------------------- adapters

    def _read_beside(self, number: int, ref: str, *, is_second: bool = False) -> None:
        """Reads an adapter in a thread of its own, while the loop steps."""
        try:
            self._front.put({"read": replace(self._read(number, ref), is_second=is_second)})
        except Refusal as refusal:
            self._front.put({"unread": number, "why": refusal})
        except InlayError as error:
            self._front.put({"unread": number, "why": Refusal(400, str(error), code="adapter_refused", param="ref")})
        except MemoryError:
            self._front.put({"unread": number, "why": _no_room(ref)})
        except Exception:  # noqa: BLE001 -- a bug; its traceback goes to the log of this process
            traceback.print_exc()
            why = Refusal(500, f"{ref}: could not be loaded; the server's log says why.", code="internal_error")
            self._front.put({"unread": number, "why": why})

    def _read(self, number: int, ref: str) -> _Read:
        """Raises: Refusal, InlayError."""
        try:
            named = adapter(self._start, ref)
        except AdapterError as error:
            raise Refusal(404, str(error), code="adapter_not_found", param="ref") from None
        with contextlib.ExitStack() as stack:
            if named.entry is not None:
                require_same_base(named.entry, self._base)
                if 3 * named.entry.card.bytes > memory_facts().available_bytes:
                    raise _no_room(ref)
                stack.enter_context(held(named.entry))
            state = named.adapter(self._base.ref)
            assert state is not None, "a model without an adapter is the base"
            weights, whole = adapter_digests(named, state, self._base)
            self._tokenizers.add(weights, named)
            gains = gains_of(state, self._base.model)
            self._bank.load(weights, gains)
            tensors = [
                tensor for gain in gains.values() for tensor in astuple(gain) if isinstance(tensor, torch.Tensor)
            ]
            size = sum(tensor.nbytes for tensor in tensors)
            goldens = read_goldens(named.folder) if named.folder else []
            served = ServedAdapter(weights, whole, named.name, size, self._note(named))
            return _Read(number, served, stack.pop_all(), goldens[0] if goldens else None, [])

    def _note(self, named: Reference) -> str:
        """Why its answers may differ from those that were measured; empty where nothing says so."""
        if named.entry is None:
            return named.caution
        card, own = named.entry.card, self._base.precision
        dtype = str(own.dtype).removeprefix("torch.")
        if (card.dtype, card.quantization) == (dtype, own.quantization):
            return named.caution
        then, now = (
            f"{d}{'' if q == 'none' else ' ' + q}"
            for d, q in ((card.dtype, card.quantization), (dtype, own.quantization))
        )
        return " ".join(
            filter(None, [named.caution, f"It was measured over a base in {then}; here the base is in {now}."])
        )

    def _try(self, read: _Read) -> None:
        """Has the loop answer a golden prompt with it; where there is none, it is served at once."""
        if read.served.digest not in self._bank and read.number and not read.is_second:
            read.held.close()
            self._reader.submit(self._read_beside, read.number, read.served.ref, is_second=True)
            return
        if read.golden is None:
            self._serve(read)
            return
        sampling = Sampling(max_new_tokens=min(GOLDEN_TOKENS, len(read.golden.ids)))
        try:
            row = self._loop.add(Ask(read.golden.prompt_ids, sampling, read.served.digest))
        except InlayError as error:
            self._drop(read, str(error))
        else:
            self._trials[row] = read

    def _on_trial(self, event: Event) -> None:
        read = self._trials[event.row]
        read.answer += event.ids
        if event.finish is None:
            return
        del self._trials[event.row]
        if event.finish == "failed" or self._agreement(read).differing:
            self._drop(read, event.reason or self._disagreement(read))
        else:
            self._serve(read)

    def _agreement(self, read: _Read) -> Agreement:
        """Its answer against the golden one; with near ties, as it may be computed otherwise here."""
        assert read.golden is not None
        ids = read.golden.ids[:GOLDEN_TOKENS]
        if ids and ids[-1] in self._tokenizers.stop_ids(read.served.digest):
            ids = ids[:-1]
        golden = replace(read.golden, ids=ids, margins=read.golden.margins[: len(ids)])
        return agree([golden], [read.answer])

    def _disagreement(self, read: _Read) -> str:
        first = self._agreement(read).first if read.golden is not None else ""
        return (
            f"{read.served.ref}: does not answer as it did when it was stored ({first}). It is not served. "
            f"Look at it with: inlay adapters check {read.served.ref}"
        )

    def _serve(self, read: _Read) -> None:
        digest = read.served.digest
        if digest in self._held:
            read.held.close()
        else:
            self._held[digest] = read.held
        self._retired.discard(digest)
        if read.number:
            self._front.send({"loaded": read.number, "adapter": encode(read.served)})

    def _drop(self, read: _Read, why: str) -> None:
        read.why_not = why
        read.held.close()
        if read.served.digest not in self._held:
            self._bank.retire(read.served.digest)
        if read.number:
            self._refuse(read.number, Refusal(400, why, code="adapter_refused", param="ref"))

    def _retire(self, digest: str) -> None:
        self._loop.retire(digest)
        self._retired.add(digest)
        self._release_unused()

    def _release_unused(self) -> None:
        """Lets go of library versions whose weights have left memory."""
        for digest in [one for one in self._retired if not self._bank.holders(one)]:
            self._retired.discard(digest)
            self._tokenizers.remove(digest)
            if (stack := self._held.pop(digest, None)) is not None:
                stack.close()


def _no_room(ref: str) -> Refusal:
    return Refusal(507, f"{ref}: does not fit into the memory that is left.", code="no_room", param="ref")


def _opened(front: Front, start: Start) -> EngineChild:
    """The engine, ready. Raises: InlayError where that cannot be."""
    settings = validate_section(ServeConfig, start.settings)
    front.send({"progress": "Opening the base."})
    base = opened_base(start)
    wanted = wanted_adapters(start, base, settings)
    sizes = [named.entry.card.bytes for ref in wanted.values() if (named := adapter(start, ref)).entry is not None]
    needed = MemoryNeeded.of(base, sizes)
    tokens = settings.cache_tokens or needed.cache_tokens(settings.max_rows, base.context_length)
    needed.require_room(tokens)
    front.send({"progress": f"Loading the weights of {base.ref.name}."})
    torch.set_grad_enabled(False)
    model, bank = base.model, Bank(getattr(torch, settings.adapter_dtype))
    limits = Limits(settings.max_rows, settings.max_adapters)
    forward = forward_of(model, blocks_for(tokens), bank, autocast_dtype=base.autocast_dtype)
    tokenizers = Tokenizers(base)
    loop = Loop(
        forward,
        base.encoder,
        bank,
        limits,
        texts=tokenizers.text,
        stop_ids=lambda ask: tokenizers.stop_ids(ask.adapter),
        grammars=tokenizers.rule,
    )
    child = EngineChild(front, start, base, loop, bank, tokenizers)
    adapters = child.load_all(wanted)
    by_name = {name: encode(one) for name, one in adapters.items()}
    ready = {"base": base.ref.name, "identity": base_identity(base), "adapters": by_name}
    front.send({"ready": ready, "state": encode(child.state())})
    return child


def main() -> None:
    """Opens what the front names, and then answers it."""
    front = Front()
    try:
        child = _opened(front, decode(Start, front.next()["start"]))
    except InlayError as error:
        front.send({"failed": str(error), "exit_code": error.exit_code})
        return
    child.run()


if __name__ == "__main__":
    main()
