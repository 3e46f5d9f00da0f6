"""The engine child of `--backend vllm`: the messages of the own engine, answered by one or several vLLM servers.

Adapters are written in flat form into a private folder, named and placed by the digest of their weights: vLLM's caches are
keyed by name, and a name never gets other weights here. Prompts go as token ids, so that no second template is applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from inlay.adapters.exports.form import LARGEST_ERROR, ExportSource
from inlay.adapters.exports.vllm import LIMITS, VLLM, served_rank
from inlay.adapters.library import held
from inlay.adapters.lowrank import LowRank, lowrank_of
from inlay.config.load import validate_section
from inlay.config.sections.generation import GenerationConfig
from inlay.config.sections.serve import ServeConfig
from inlay.errors import AdapterError, InlayError, ModelError
from inlay.generation.request import Ask, Event
from inlay.serving import wire
from inlay.serving.backends.vllm_server import KEY, OwnVllm, VllmServer
from inlay.serving.child_process import Front
from inlay.serving.engine import EngineState, Refusal, ServedAdapter
from inlay.serving.load_client import Target
from inlay.serving.opening import (
    adapter,
    adapter_digests,
    base_identity,
    opened_base,
    require_same_base,
    wanted_adapters,
)
from inlay.serving.wire import Start
from inlay.storage import write_folder
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject, decode, encode

LEAST_RANK: Final = 64
"""`--max-lora-rank` of a vLLM that is started here; more where an adapter that is served from the start has more."""
_PATIENCE_S: Final = 600.0
"""For vLLM to start."""
_LOOK_EVERY_S: Final = 1.0
_REPORT_EVERY_S: Final = 0.1
_RATE_OVER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Exported:
    """An adapter as the servers read it."""

    served: ServedAdapter
    folder: Path
    held: contextlib.ExitStack
    """Lock on its version in the library."""


def written(start: Start, base: OpenedBase, ref: str, folder: Path) -> Exported:
    """The adapter in flat form in a folder named by its digest. Raises: Refusal for what vLLM cannot serve; InlayError."""
    try:
        named = adapter(start, ref)
    except AdapterError as error:
        raise Refusal(404, str(error), code="adapter_not_found", param="ref") from None
    with contextlib.ExitStack() as stack:
        if named.entry is not None:
            require_same_base(named.entry, base)
            stack.enter_context(held(named.entry))
        state = named.adapter(base.ref)
        assert state is not None, "a model without an adapter is the base"
        digest, whole = adapter_digests(named, state, base)
        low_rank: LowRank | None = None
        fault = ""
        try:
            low_rank = lowrank_of(state, base.ref.digest())
        except AdapterError as error:
            fault = str(error).removeprefix("adapter: ")
        source = ExportSource(
            digest, state, low_rank, fault, base.ref, base.architecture, base.encoder, GenerationConfig()
        )
        if broken := next((limit for limit in VLLM.limits(source) if limit.passed is False), None):
            raise _refused(f"{ref}: vLLM does not serve it: {broken.name}: {broken.found}")
        place = folder / digest
        if not place.exists():
            write_folder(place, lambda out: VLLM.write(source, out), {"adapter": digest})
        if not VLLM.read_back(source, place).error <= LARGEST_ERROR["float32"]:
            raise _refused(f"{ref}: its files for vLLM do not hold its weights. Report this as a bug.")
        size = sum(file.stat().st_size for file in place.iterdir())
        note = " ".join(
            filter(None, [named.caution, "vLLM computes in its own dtype and was not compared with golden answers."])
        )
        return Exported(ServedAdapter(digest, whole, named.name, size, note), place, stack.pop_all())


def _refused(text: str) -> Refusal:
    return Refusal(400, text, code="adapter_refused", param="ref")


class VllmChild:
    """The servers, the adapters on them, and the answers that run."""

    def __init__(
        self, front: Front, start: Start, base: OpenedBase, servers: Sequence[VllmServer], folder: Path
    ) -> None:
        self._front, self._start, self._base, self._servers, self._folder = front, start, base, servers, folder
        self._adapters: dict[str, Exported] = {}
        self._retired: set[str] = set()
        self._users: Counter[str] = Counter()
        """Answers that run with an adapter, by digest."""
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._left: dict[int, int] = {}
        """Tokens that are still to come at most, by number of the answer."""
        self._tokens: deque[tuple[float, int]] = deque()
        self._pending: list[list[object]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._changing = asyncio.Lock()
        self.context_length = 0

    async def load(self, ref: str) -> ServedAdapter:
        """The adapter on every server that is up. Raises: Refusal."""
        async with self._changing:
            try:
                found = await asyncio.get_running_loop().run_in_executor(
                    self._reader, written, self._start, self._base, ref, self._folder
                )
            except InlayError as error:
                raise _refused(str(error)) from None
            digest = found.served.digest
            self._retired.discard(digest)
            if digest in self._adapters:
                found.held.close()
                return found.served
            up = [server for server in self._servers if server.is_up]
            if not up:
                raise _none_up()
            results = await asyncio.gather(*(one.load(digest, found.folder) for one in up), return_exceptions=True)
            if failed := next((one for one in results if isinstance(one, BaseException)), None):
                await asyncio.gather(*(one.unload(digest) for one in up), return_exceptions=True)
                found.held.close()
                raise failed
            self._adapters[digest] = found
            return found.served

    def server_for(self, ask: Ask) -> VllmServer:
        """The least loaded server that is up; among equals always the same for an adapter. Raises: Refusal."""
        up = [server for server in self._servers if server.is_up]
        if not up:
            raise _none_up()
        own = (ask.adapter or "").encode()
        return min(up, key=lambda one: (one.live, blake2b(own + one.target.url.encode()).digest()))

    def handle(self, message: JsonObject) -> None:
        """Begins what the front asks for."""
        if "add" in message:
            number = message["add"]
            task = asyncio.create_task(self._answer(number, wire.ask_from_json(message["ask"])))
            self._answers[number] = task
            task.add_done_callback(lambda _: self._answers.pop(number, None))
        elif "cancel" in message:
            if (running := self._answers.pop(message["cancel"], None)) is not None:
                running.cancel()
        elif "load" in message:
            self._spawn(self._load(message["load"], message["ref"]))
        elif "retire" in message:
            self._retired.add(message["retire"])
            self._spawn(self._release_unused())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, number: int, ref: str) -> None:
        try:
            served = await self.load(ref)
        except Refusal as refusal:
            self._refuse(number, refusal)
        except Exception:  # noqa: BLE001 -- a bug; its traceback goes to the log of this process
            traceback.print_exc()
            text = f"{ref}: could not be loaded; the server's log says why."
            self._refuse(number, Refusal(500, text, code="internal_error"))
        else:
            self._front.send({"loaded": number, "adapter": encode(served)})

    async def _answer(self, number: int, ask: Ask) -> None:
        has_begun = False
        digest = ask.adapter
        self._left[number] = len(ask.prompt) + ask.sampling.max_new_tokens
        if digest is not None:
            self._users[digest] += 1
        try:
            if digest is not None and digest not in self._adapters:
                raise Refusal(503, "the adapter is not in memory (any more)", code="adapter_gone", retry_after_s=1)
            async for event in self.server_for(ask).answer(ask, self._base.encoder.stop_ids):
                self._left[number] -= len(event.ids) + (0 if has_begun else len(ask.prompt))
                has_begun = True
                self._tokens.append((time.monotonic(), len(event.ids)))
                self._tell(number, event)
        except Refusal as refusal:
            if has_begun:
                self._tell(number, Event(0, finish="failed", reason=str(refusal)))
            else:
                self._refuse(number, refusal)
        except Exception:  # noqa: BLE001 -- as above
            traceback.print_exc()
            self._refuse(number, Refusal(500, "vLLM's answer could not be read.", code="internal_error"))
        finally:
            self._left.pop(number, None)
            if digest is not None:
                self._users[digest] -= 1
                self._spawn(self._release_unused())

    async def _release_unused(self) -> None:
        async with self._changing:
            for digest in [one for one in self._retired if not self._users[one]]:
                self._retired.discard(digest)
                if (gone := self._adapters.pop(digest, None)) is not None:
                    await asyncio.gather(*(one.unload(digest) for one in self._servers if one.is_up))
                    gone.held.close()
                    shutil.rmtree(gone.folder, ignore_errors=True)

    # ---------------------------------------------------------------- to the front

    def _tell(self, number: int, event: Event) -> None:
        self._pending.append([number, wire.event_to_json(event)])
        if len(self._pending) == 1:
            asyncio.get_running_loop().call_soon(self.report)

    def _refuse(self, number: int, refusal: Refusal) -> None:
        self._front.send({"number": number, "refused": wire.refusal_to_json(refusal)})

    def report(self) -> None:
        """Sends the events that wait, and the state."""
        events, self._pending = self._pending, []
        self._front.send({"events": events, "state": encode(self.state())})

    def state(self) -> EngineState:
        """Condition and load now."""
        now = time.monotonic()
        while self._tokens and self._tokens[0][0] < now - _RATE_OVER_S:
            self._tokens.popleft()
        took_s = max(1.0, now - self._tokens[0][0]) if self._tokens else 1.0
        rate = sum(count for _, count in self._tokens) / took_s
        figures = {
            "adapters": len(self._adapters), "adapters_bytes": sum(one.served.bytes for one in self._adapters.values()),
            "backend_servers": len(self._servers), "backend_servers_up": sum(one.is_up for one in self._servers),
        }  # fmt: skip
        vocabulary = int(self._base.architecture.get_text_config().vocab_size)
        return EngineState(
            "ready", "", len(self._left), 0, sum(self._left.values()), rate, self.context_length, vocabulary, figures
        )

    # ---------------------------------------------------------------- the servers

    async def close(self) -> None:
        """Ends every answer and closes the connections."""
        tasks = [*self._answers.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers))
        self._reader.shutdown(wait=False)

    async def look(self) -> None:
        """Whether each server answers; one that is back gets the adapters again before it is asked. Raises: ModelError."""
        lengths = await asyncio.gather(*(self._look_at(server) for server in self._servers))
        self.context_length = min((one for one in lengths if one), default=self.context_length)

    async def _look_at(self, server: VllmServer) -> int | None:
        was_up = server.is_up
        length = await server.context_length()
        if server.is_up and not was_up and self._adapters:
            server.is_up = False
            with contextlib.suppress(Refusal):
                for digest, one in list(self._adapters.items()):
                    await server.load(digest, one.folder)
                server.is_up = True
        return length


def _none_up() -> Refusal:
    return Refusal(503, "No vLLM server answers.", code="backend_failed", retry_after_s=2)


async def serve(front: Front, start: Start) -> None:
    """Answers the front until it is gone. Raises: InlayError where that cannot begin; SystemExit when a vLLM of ours ended."""
    settings = validate_section(ServeConfig, start.settings)
    front.send({"progress": "Opening the base."})
    base = opened_base(start)
    wanted = wanted_adapters(start, base, settings)
    folder = (
        Path(settings.vllm_folder).absolute() if settings.vllm_folder else Path(tempfile.mkdtemp(prefix="inlay-vllm-"))
    )
    folder.mkdir(parents=True, exist_ok=True)
    owned: list[OwnVllm] = []
    try:
        if settings.vllm_servers:
            key = os.environ.get(KEY)
            servers = [VllmServer(Target.of(url, key)) for url in settings.vllm_servers]
        else:
            owned.append(_started(start, base, wanted, settings))
            servers = [owned[0].server]
        child = VllmChild(front, start, base, servers, folder)
        await _until_up(front, child, servers, owned)
        by_name = {}
        for name, ref in wanted.items():
            front.send({"progress": f"Loading the adapter {ref}."})
            try:
                by_name[name] = encode(await child.load(ref))
            except Refusal as refusal:
                raise AdapterError(str(refusal)) from None
        ready = {"base": base.ref.name, "identity": base_identity(base), "adapters": by_name}
        front.send({"ready": ready, "state": encode(child.state())})
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch(child, owned))
            group.create_task(_listen(front, child))
    finally:
        for one in owned:
            one.end()
        if not settings.vllm_folder:
            shutil.rmtree(folder, ignore_errors=True)


async def _listen(front: Front, child: VllmChild) -> None:
    while True:
        child.handle(await asyncio.to_thread(front.next))


async def _watch(child: VllmChild, owned: Sequence[OwnVllm]) -> None:
    looked_s = 0.0
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        child.report()
        if any(one.process.poll() is not None for one in owned):
            sys.exit("the process of vLLM ended")
        if time.monotonic() - looked_s > _LOOK_EVERY_S:
            looked_s = time.monotonic()
            await child.look()


async def _until_up(front: Front, child: VllmChild, servers: Sequence[VllmServer], owned: Sequence[OwnVllm]) -> None:
    """Raises: ModelError where none comes up."""
    front.send({"progress": "Waiting for vLLM."})
    ends_s = time.monotonic() + (_PATIENCE_S if owned else 30.0)
    while time.monotonic() < ends_s:
        await child.look()
        if all(server.is_up for server in servers):
            return
        for one in owned:
            if (code := one.process.poll()) is not None:
                raise ModelError(
                    f"vllm serve ended with exit code {code} before it was ready; the log of the engine says why."
                )
        await asyncio.sleep(0.5)
    down = ", ".join(server.target.url for server in servers if not server.is_up)
    raise ModelError(f"{down}: no vLLM server answers there. Start it, or take it out of serve.vllm_servers.")


def _started(start: Start, base: OpenedBase, wanted: Mapping[str, str], settings: ServeConfig) -> OwnVllm:
    """A vLLM server on this machine. Raises: ModelError without a program."""
    python = settings.vllm_python
    if shutil.which(python) is None:
        raise ModelError(f"serve.vllm_python: {python} is no program that can be run.")
    ranks = [entry.card.rank or 0 for ref in wanted.values() if (entry := adapter(start, ref).entry) is not None]
    known = next(reversed(LIMITS.values())).ranks
    rank = served_rank(max([LEAST_RANK, *ranks]), known) or known[-1]
    arguments = [
        "--max-lora-rank", str(rank), "--max-loras", str(settings.max_adapters), "--max-cpu-loras",
        str(max(64, 2 * settings.max_adapters)), "--max-num-seqs", str(settings.max_rows), *settings.vllm_arguments,
    ]  # fmt: skip
    return OwnVllm(python, str(base.ref.folder), arguments, sys.stdout.fileno())


def main() -> None:
    """Answers the messages of the front until it is gone."""
    front = Front()
    try:
        asyncio.run(serve(front, decode(Start, front.next()["start"])))
    except InlayError as error:
        front.send({"failed": str(error), "exit_code": error.exit_code})


if __name__ == "__main__":
    main()
