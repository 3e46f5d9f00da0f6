"""Rows that are shared out to processes become what one process makes of them, and no process outlives its work."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from inlay.data.encoding.encoder import BATCH, Encoder
from inlay.data.encoding.worker_pool import Part, encoded, process_count
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError

WORDS = ["the", "a,", "Word\n####", "12", "it's", "", "é", "中文", "<|im_end|"]
ROWS = 5 * BATCH + 7
CALL = {"type": "function", "id": "a", "function": {"name": "f", "arguments": {"x": [1, 2.5, "é"]}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")


def row(n: int) -> Example:
    draw = random.Random(n)
    said = [" ".join(draw.choices(WORDS, k=9)) for _ in range(4)]
    source = Source("rows.jsonl" if n % 7 else "others.jsonl", n + 1)
    if n % 5 == 0:
        return Example((Message("text", said[0], 1.0),), source)
    turns = [Message("user", said[0]), Message("assistant", said[1] + "!", 0.5 if n % 3 else 1.0)]
    if n % 4 == 0:
        turns += [Message("user", said[2], name="Ann"), Message("assistant", "", 1.0, (CALL,))]
    switches = (("enable_thinking", False),) if n % 6 == 0 else ()
    return Example(tuple(turns), source, (TOOL,) if n % 4 == 0 else (), switches)


@pytest.fixture
def enc() -> Encoder:
    return Encoder(toys.nano())


def told(part: Part) -> list[Any]:
    return [part.rows, part.prompt_keys, part.sequences.files, part.sequences.ids, *part.sequences.arrays.values()]


def same(a: list[Part], b: list[Part]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) and getattr(x, "dtype", None) == getattr(y, "dtype", None)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(told(one), told(other), strict=True)
    )


def ended(pids: list[int]) -> bool:
    """Whether none of these processes runs, or none does after a while."""
    for _ in range(100):
        if all("\nState:\tZ" in status(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def status(pid: int) -> str:
    """Of a process that is gone, that of a zombie."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_arrays_in_the_same_order(enc: Encoder, processes: int) -> None:
    rows = list(map(row, range(ROWS)))
    assert same(list(encoded(enc, rows, processes)), list(encoded(Encoder(toys.nano()), rows, 1)))
    assert not children()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_row_that_cannot_be_encoded_is_named(enc: Encoder, processes: int) -> None:
    bad = Example((Message("user", "a<|im_end|>"), Message("assistant", "b", 1.0)), Source("rows.jsonl", 700))
    rows = [*map(row, range(699)), bad, *map(row, range(700, ROWS))]
    with pytest.raises(DataError, match=r"rows\.jsonl:700: "):
        list(encoded(enc, rows, processes))
    assert not children()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_process_costs_its_work_and_no_row(how: signal.Signals, enc: Encoder) -> None:
    def rows() -> Iterator[Example]:
        for n in range(ROWS):
            if n == 3 * BATCH:
                os.kill(children()[0], how)
            yield row(n)

    assert same(list(encoded(enc, rows(), 2)), list(encoded(enc, map(row, range(ROWS)), 1)))
    assert not children()


def test_with_every_process_killed_while_more_is_written_to_it_than_a_pipe_holds_the_work_is_done_here(
    enc: Encoder,
) -> None:
    def long(n: int) -> Example:
        return Example((Message("text", "Word " * 500, 1.0),), Source("rows.jsonl", n + 1))

    def rows() -> Iterator[Example]:
        for n in range(ROWS):
            if n == 4 * BATCH:
                for pid in children():
                    os.kill(pid, signal.SIGKILL)
            yield long(n)

    assert same(list(encoded(enc, rows(), 2)), list(encoded(enc, map(long, range(ROWS)), 1)))


def test_work_that_is_left_early_ends_its_processes(enc: Encoder) -> None:
    parts = encoded(enc, map(row, count()), 2)
    next(parts)
    running = children()
    assert len(running) == 2
    parts.close()
    assert ended(running)


def endless(told: Connection) -> None:
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may have it ignored
    for n, _ in enumerate(encoded(Encoder(toys.nano()), map(row, count()), 2)):
        if not n:
            told.send(children())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_it_works_for(how: signal.Signals) -> None:
    fork = multiprocessing.get_context("fork")
    receiver, told = fork.Pipe(duplex=False)
    process = fork.Process(target=endless, args=(told,))
    process.start()
    try:
        running = receiver.recv()
        assert len(running) == 2
        assert process.pid
        for _ in range(3):  # Python drops an interrupt that meets a destructor
            if how == signal.SIGINT and process.is_alive():
                os.killpg(process.pid, how)  # as a terminal sends it, to all of them
            else:
                process.kill()
            process.join(10)
        assert not process.is_alive()
        assert ended(running)
    finally:
        process.kill()


def test_a_file_is_shared_out_where_it_is_worth_it() -> None:
    cores = len(os.sched_getaffinity(0))
    assert process_count(0, 100_000_000) == min(cores, 8)
    assert process_count(3, 100_000_000) == 3
    assert process_count(1, 100_000_000) == 1
    assert process_count(0, 100_000) == 1
