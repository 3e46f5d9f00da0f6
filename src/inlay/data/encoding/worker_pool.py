"""Work on rows, such as encoding them, shared among several processes for large files.

Python reads, renders and looks up one row at a time, whatever number of cores there is. The processes are forked, so
that they have the tokenizer and the template without loading them; where that is not safe, one process does it all.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection, current_process, get_context, parent_process
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from inlay.data.encoding.encoder import BATCH, Encoder
from inlay.data.encoding.token_arrays import Joined, joined
from inlay.data.splits import prompt_key
from inlay.data.types import Example, Message, Source
from inlay.errors import InlayError

_WORTH_BYTES: Final = 2_000_000  # half a second of work; forking takes some 30 ms
_PARALLEL: Final = "TOKENIZERS_PARALLELISM"
_MOST: Final = 8  # more than one reader can keep busy

_T = TypeVar("_T")
_Plain = list[tuple[Any, ...]]
"""Examples as tuples, which are pickled several times as fast."""


@dataclass(frozen=True, eq=False)
class Part:
    """The sequences of some rows."""

    rows: int
    prompt_keys: bytes
    """Digests of the rows' prompts, one behind the other."""
    sequences: Joined
    """Numbered from the first of these rows on."""


def process_count(workers: int, size_bytes: int) -> int:
    """Number of processes for a file of this size; 1 is this one. `workers` is `data.workers`."""
    if not hasattr(os, "fork") or not hasattr(os, "sched_getaffinity"):
        return 1
    may_fork = sys.platform.startswith("linux") and not current_process().daemon  # elsewhere system libraries break
    if not may_fork or size_bytes < _WORTH_BYTES:
        return 1
    return min(workers or len(os.sched_getaffinity(0)), _MOST)


class Helpers(Generic[_T]):
    """Processes that do one kind of work on rows. The rows of a killed one are done again here; with one process all work is
    done here, when its result is taken.

    Each has a pipe and a thread of its own here: of the executors of Python 3.11, those before 3.11.7 wait for ever when a
    process is killed while work is written to it.
    """

    def __init__(self, work: Callable[[list[Example]], _T], processes: int) -> None:
        self._work, self.processes = work, processes
        self._threads: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[_Helper | None] = SimpleQueue()
        self._started: list[_Helper] = []

    @property
    def ahead(self) -> int:
        """Pieces of work that keep all of them busy while one result is taken."""
        return 2 * self.processes if self.processes > 1 else 0

    def begin(self, rows: list[Example]) -> Callable[[], _T]:
        """Begins the work on these rows; the returned function gives its result."""
        if self.processes == 1:
            return partial(self._work, rows)
        if self._threads is None:
            self._start()
        assert self._threads is not None
        plain = _plain(rows)
        return partial(self._result, plain, self._threads.submit(self._ask, plain))

    def _start(self) -> None:
        with contextlib.suppress(OSError), _quietly():  # as many as there can be
            for _ in range(self.processes):
                self._started.append(_Helper(self._work))
        for helper in self._started:
            self._idle.put(helper)
        if not self._started:
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(self.processes)  # behind the forks

    def _ask(self, plain: _Plain) -> Any:
        """(whether it went well, the result or the error). Raises: OSError or EOFError where no process did it."""
        helper = self._idle.get()
        try:
            if helper is None:
                raise EOFError
            return helper.work_on(plain)
        except (OSError, EOFError):
            helper = None  # gone
            raise
        finally:
            self._idle.put(helper)

    def _result(self, plain: _Plain, future: Future[Any]) -> _T:
        try:
            went_well, made = future.result()
        except (OSError, EOFError):  # the process was killed, perhaps for its memory
            return self._work(_examples(plain))
        if went_well:
            return made  # type: ignore[no-any-return]
        raise made

    def close(self) -> None:
        """Ends the processes at once."""
        for helper in self._started:
            helper.end()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)


class _Helper:
    """One process, and this end of the pipe to it."""

    def __init__(self, work: Callable[[list[Example]], Any]) -> None:
        context = get_context("fork")
        self._pipe, its_end = context.Pipe()
        self._process = context.Process(target=_help, args=(its_end, work), daemon=True)
        self._process.start()
        its_end.close()  # so that a write fails when the process is gone

    def work_on(self, plain: _Plain) -> Any:
        """(whether it went well, the result or the error)."""
        self._pipe.send(plain)
        return self._pipe.recv()

    def end(self) -> None:
        """Ends the process at once."""
        self._process.kill()  # what else it would do with a signal is this process's own, for a moment
        self._process.join()


def _help(pipe: Connection, work: Callable[[list[Example]], Any]) -> None:
    """The loop of a helper process, until it is ended."""
    os.environ[_PARALLEL] = "false"  # the threads for it are not in a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole group; the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what is there is the parent's, and looking through it would copy it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        plain = pipe.recv()
        try:
            answer = True, work(_examples(plain))
        except Exception as error:  # noqa: BLE001 -- the parent raises it
            if not isinstance(error, InlayError):
                error.add_note(traceback.format_exc())
            answer = False, error
        pipe.send(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def encoded(encoder: Encoder, examples: Iterable[Example], processes: int) -> Generator[Part]:
    """The rows in order, some at a time. Raises: DataError."""
    helpers = Helpers(partial(_made, encoder), processes)
    return _shared_out(helpers, examples) if helpers.processes > 1 else _here(encoder, examples)


def _here(encoder: Encoder, examples: Iterable[Example]) -> Generator[Part]:
    keys: deque[bytes] = deque()

    def seen() -> Iterator[Example]:
        for example in examples:
            keys.append(prompt_key(example))  # now: the check has just normalised the same text
            yield example

    for rows, sequences in encoder.batches(seen()):
        yield Part(rows, b"".join([keys.popleft() for _ in range(rows)]), joined(sequences))


def _shared_out(helpers: Helpers[Part], examples: Iterable[Example]) -> Generator[Part]:
    rows = iter(examples)
    waiting: deque[Callable[[], Part]] = deque()
    with contextlib.closing(helpers):
        while batch := list(islice(rows, BATCH)):
            waiting.append(helpers.begin(batch))
            if len(waiting) > helpers.ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


def _made(encoder: Encoder, examples: list[Example]) -> Part:
    prompt_keys = b"".join(map(prompt_key, examples))
    ((rows, sequences),) = encoder.batches(examples, beside=False)
    return Part(rows, prompt_keys, joined(sequences))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Inside, forking is not warned of: neither Python's threads nor the tokenizer's hold anything that a child needs."""
    unsaid = _PARALLEL not in os.environ
    os.environ.setdefault(_PARALLEL, "true")  # as it is anyway
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if unsaid:
            del os.environ[_PARALLEL]


def _plain(examples: Iterable[Example]) -> _Plain:
    return [
        (
            e.source.file,
            e.source.line,
            e.tools,
            [_turn(m) for m in e.messages],
            e.switches,
        )
        for e in examples
    ]


def _turn(m: Message) -> tuple[Any, ...]:
    usual = m.role, m.content, m.weight, m.tool_calls, m.name
    has_more = m.thought or m.tool_call_id or m.written
    return (*usual, m.thought, m.thought_field, m.tool_call_id, m.written) if has_more else usual


def _examples(plain: _Plain) -> list[Example]:
    return [
        Example(tuple([Message(*turn) for turn in turns]), Source(file, line), tools, switches)
        for file, line, tools, turns, switches in plain
    ]
