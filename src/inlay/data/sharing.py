"""Rows to arrays of ids, shared out to processes where a file is worth them.

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
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, current_process, get_context, parent_process
from typing import Any, Final

from inlay.data.encode import BATCH, Encoder
from inlay.data.splits import prompt_key
from inlay.data.tokens import Joined, joined
from inlay.data.types import Example, Message, Source

_WORTH_BYTES: Final = 2_000_000  # half a second of work; forking takes some 30 ms
_PARALLEL: Final = "TOKENIZERS_PARALLELISM"
_MOST: Final = 8  # more than one reader can keep busy

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


def encoded(encoder: Encoder, examples: Iterable[Example], processes: int) -> Generator[Part]:
    """The rows in order, some at a time. Raises: DataError."""
    pool = _pool(encoder, processes) if processes > 1 else None
    return _shared_out(pool, encoder, examples, processes) if pool else _here(encoder, examples)


def _pool(encoder: Encoder, processes: int) -> Executor | None:
    try:
        return ProcessPoolExecutor(processes, get_context("fork"), _begin, (encoder,))
    except (OSError, NotImplementedError):  # a system without semaphores
        return None


def _here(encoder: Encoder, examples: Iterable[Example]) -> Generator[Part]:
    keys: deque[bytes] = deque()

    def seen() -> Iterator[Example]:
        for example in examples:
            keys.append(prompt_key(example))  # now: the check has just asked for the same
            yield example

    for rows, sequences in encoder.batches(seen()):
        yield Part(rows, b"".join([keys.popleft() for _ in range(rows)]), joined(sequences))


def _shared_out(pool: Executor, encoder: Encoder, examples: Iterable[Example], processes: int) -> Generator[Part]:
    rows = iter(examples)
    waiting: deque[tuple[_Plain, Future[Part]]] = deque()
    try:
        while batch := _plain(islice(rows, BATCH)):
            waiting.append((batch, _submitted(pool, batch)))
            if len(waiting) > 2 * processes:
                yield _result(*waiting.popleft(), encoder)
        while waiting:
            yield _result(*waiting.popleft(), encoder)
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(pool: Executor, batch: _Plain) -> Future[Part]:
    try:
        with _quietly():
            return pool.submit(_in_child, batch)
    except (BrokenProcessPool, OSError) as error:
        broken: Future[Part] = Future()
        broken.set_exception(error)
        return broken


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


def _result(batch: _Plain, future: Future[Part], encoder: Encoder) -> Part:
    try:
        return future.result()
    except (BrokenProcessPool, OSError):  # a process was killed, perhaps for its memory, or there can be no other
        return _made(encoder, batch)


def _made(encoder: Encoder, batch: _Plain) -> Part:
    examples = _examples(batch)
    asked = b"".join(map(prompt_key, examples))
    ((rows, sequences),) = encoder.batches(examples, beside=False)
    return Part(rows, asked, joined(sequences))


_encoder: Encoder
"""In a process that rows are shared out to."""


def _begin(encoder: Encoder) -> None:
    """The first that a new process does."""
    global _encoder
    _encoder = encoder
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


def _in_child(batch: _Plain) -> Part:
    return _made(_encoder, batch)


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
