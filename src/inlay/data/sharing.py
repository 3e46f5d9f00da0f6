"""Rows to arrays of ids and other work on rows, shared out to processes where a file is worth them.

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
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection, current_process, get_context, parent_process
from typing import Any, Final, Generic, TypeVar

from inlay.data.encode import BATCH, Encoder
from inlay.data.splits import prompt_key
from inlay.data.tokens import Joined, joined
from inlay.data.types import Example, Message, Source

_WORTH_BYTES: Final = 2_000_000  # half a second of work; forking takes some 30 ms
_PARALLEL: Final = "TOKENIZERS_PARALLELISM"
_MOST: Final = 8  # more than one reader can keep busy

_T = TypeVar("_T")
_Plain = list[tuple[Any, ...]]
"""Examples as tuples, which are pickled several times as fast."""


@dataclass(frozen=True, eq=False)
class Part:
    """What some rows became."""

    rows: int
    asked: bytes
    """The prompt keys of the rows, one behind the other."""
    sequences: Joined
    """Numbered from the first of these rows on."""


def process_count(workers: int, size_bytes: int) -> int:
    """How many processes a file of this size is shared out to; 1 is this one. `workers` is `data.workers`."""
    may_fork = sys.platform.startswith("linux") and not current_process().daemon  # elsewhere system libraries break
    if not may_fork or size_bytes < _WORTH_BYTES:
        return 1
    return min(workers or len(os.sched_getaffinity(0)), _MOST)


class Helpers(Generic[_T]):
    """Processes that do one kind of work on rows. A killed one costs its rows a second time; with one process the work is
    done here, when it is asked for."""

    def __init__(self, work: Callable[[list[Example]], _T], processes: int) -> None:
        self._work, self.processes = work, 1
        self._pool: Executor | None = None
        if processes > 1:
            with contextlib.suppress(OSError, NotImplementedError):  # a system without semaphores
                self._pool = ProcessPoolExecutor(processes, get_context("fork"), _begin, (work,))
                self.processes = processes

    def begin(self, rows: list[Example]) -> Callable[[], _T]:
        """Asks for the work on these rows: call what is returned for what came of it."""
        if self._pool is None:
            return partial(self._work, rows)
        plain = _plain(rows)
        try:
            with _quietly():
                future = self._pool.submit(_in_child, plain)
        except (BrokenProcessPool, OSError):
            return partial(self._work, rows)
        return partial(self._result, plain, future)

    def _result(self, plain: _Plain, future: Future[_T]) -> _T:
        try:
            return future.result()
        except (BrokenProcessPool, OSError):  # a process was killed, perhaps for its memory, or there can be no other
            return self._work(_examples(plain))

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def encoded(encoder: Encoder, examples: Iterable[Example], processes: int) -> Generator[Part]:
    """The rows in order, some at a time. Raises: DataError."""
    helpers = Helpers(partial(_made, encoder), processes)
    return _shared_out(helpers, examples) if helpers.processes > 1 else _here(encoder, examples)


def _here(encoder: Encoder, examples: Iterable[Example]) -> Generator[Part]:
    keys: deque[bytes] = deque()

    def seen() -> Iterator[Example]:
        for example in examples:
            keys.append(prompt_key(example))  # now: the check has just asked for the same
            yield example

    for rows, sequences in encoder.batches(seen()):
        yield Part(rows, b"".join([keys.popleft() for _ in range(rows)]), joined(sequences))


def _shared_out(helpers: Helpers[Part], examples: Iterable[Example]) -> Generator[Part]:
    rows = iter(examples)
    waiting: deque[Callable[[], Part]] = deque()
    with contextlib.closing(helpers):
        while batch := list(islice(rows, BATCH)):
            waiting.append(helpers.begin(batch))
            if len(waiting) > 2 * helpers.processes:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


def _made(encoder: Encoder, examples: list[Example]) -> Part:
    asked = b"".join(map(prompt_key, examples))
    ((rows, sequences),) = encoder.batches(examples, beside=False)
    return Part(rows, asked, joined(sequences))


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


_work: Callable[[list[Example]], Any]
"""In a process that rows are shared out to."""


def _begin(work: Callable[[list[Example]], Any]) -> None:
    """The first that a new process does."""
    global _work
    _work = work
    os.environ[_PARALLEL] = "false"  # the threads for it are not in a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole group; the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # what is there is the parent's, and looking through it would copy it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _in_child(plain: _Plain) -> Any:
    return _work(_examples(plain))


def _plain(examples: Iterable[Example]) -> _Plain:
    return [
        (
            e.source.file,
            e.source.line,
            e.tools,
            [(m.role, m.content, m.weight, m.tool_calls, m.name) for m in e.messages],
        )
        for e in examples
    ]


def _examples(plain: _Plain) -> list[Example]:
    return [
        Example(tuple([Message(*turn) for turn in turns]), Source(file, line), tools)
        for file, line, tools, turns in plain
    ]
