"""How long the search for near duplicates takes on one core, and how many planted ones it finds.

Run: OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/near_duplicates.py [rows] [words a row]
"""

from __future__ import annotations

import random
import resource
import sys
import time

from inlay.data.checks.minhash import SHINGLE
from inlay.data.checks.near import NearDuplicates
from inlay.data.checks.row import CheckedRow
from inlay.data.types import Example, Message, Source

PLANTED = 0.05  # share of rows that are an earlier row with some words replaced


def main(rows: int = 100_000, words: int = 100) -> None:
    random.seed(0)
    vocabulary = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 10))) for _ in range(20_000)]
    texts: list[str] = []
    planted: dict[int, float] = {}
    for n in range(rows):
        if n > 1000 and random.random() < PLANTED:
            earlier = random.choice(texts)
            parts = earlier.split()
            for at in random.sample(range(words), max(1, words // random.choice((10, 20, 50)))):
                parts[at] = random.choice(vocabulary)
            texts.append(" ".join(parts))
            planted[n] = similarity(earlier, texts[-1])
        else:
            texts.append(" ".join(random.choices(vocabulary, k=words)))
    check = NearDuplicates()
    began, core = time.perf_counter(), time.process_time()
    for n, text in enumerate(texts):
        half = len(text) // 2
        messages = (Message("user", text[:half]), Message("assistant", text[half:], 1.0))
        check.see(CheckedRow(Example(messages, Source("made", n + 1)), n, False))
    signed = time.perf_counter() - began
    found = sum(finding.count for finding in check.findings())
    whole, core = time.perf_counter() - began, time.process_time() - core
    characters = sum(map(len, texts))
    sure = sum(s >= 0.8 for s in planted.values())
    print(f"{rows:,} rows, {characters / 1e6:.0f} M characters: {whole:.1f} s ({core:.1f} s of one core)")
    print(f"  signatures {signed:.1f} s, search {whole - signed:.1f} s, {characters / core / 1e6:.2f} M characters/s")
    print(f"  found {found:,}; planted {sure:,} of true similarity 0.8 or more, and {len(planted) - sure:,} below")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB with the rows")


def similarity(a: str, b: str) -> float:
    one, other = ({t[i : i + SHINGLE] for i in range(len(t) - SHINGLE + 1)} for t in (a, b))
    return len(one & other) / len(one | other)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
