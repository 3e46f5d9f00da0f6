"""Rows a second from a file to ids, beside what the tokenizer alone takes for the same texts.

    python benchmarks/data_prepare.py [--rows 50000] [--repeats 5] [--model builtin:nano]

Writes a JSONL of made-up dialogues of about 1 KB a row, then alternates: (raw) the tokenizer's own `encode_batch` over
the rendered texts, which are already in memory, and (inlay) reading, checking, rendering, cutting, encoding and weighing
the rows of the file. Prints medians, their ratio, the peak of the resident memory, and the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from inlay.data import stream_examples
from inlay.data.encode import Encoder
from inlay.models import base as bases

TEXT = (
    "the of and to in is was for that on with as by at from order ticket refund answer question account number please "
    "because customer water light energy function value model train test data line file error message time year people"
)
WORDS = TEXT.split()


def write_rows(path: Path, count: int) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for n in range(count):
            ask, answer = (" ".join(draw.choices(WORDS, k=k)) for k in (60, 110))
            turns = [{"role": "user", "content": f"{n}: {ask}?"}, {"role": "assistant", "content": f"{answer}."}]
            file.write(json.dumps({"messages": turns}) + "\n")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU of all threads) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--model", default="builtin:nano")
    chosen = options.parse_args()
    tokenizer = bases.load_tokenizer(bases.find_base(chosen.model, None), None)
    encoder = Encoder(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, chosen.rows)
        texts = [tokenizer.decode(t.input_ids) for _, t in encoder.examples(stream_examples(str(path))[1])]

        def raw() -> None:
            for start in range(0, len(texts), 2048):
                tokenizer.backend_tokenizer.encode_batch(texts[start : start + 2048], add_special_tokens=False)

        def inlay() -> None:
            count = sum(1 for _ in encoder.examples(stream_examples(str(path))[1]))
            assert count == chosen.rows

        seconds: dict[str, list[tuple[float, float]]] = {"raw": [], "inlay": []}
        for _ in range(chosen.repeats):
            for name, work in (("raw", raw), ("inlay", inlay)):
                seconds[name].append(timed(work))
        size = path.stat().st_size
    print(
        f"{chosen.rows} rows, {size / 1e6:.0f} MB, {chosen.model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for place, what in enumerate(("wall", "CPU")):
        rates = {name: chosen.rows / statistics.median(t[place] for t in found) for name, found in seconds.items()}
        pairs = [a[place] / b[place] for a, b in zip(seconds["raw"], seconds["inlay"], strict=True)]
        print(f"{what}: raw {rates['raw']:.0f} rows/s, inlay {rates['inlay']:.0f} rows/s, "
              f"ratio {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")  # fmt: skip
    print(
        f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, texts of raw included"
    )


if __name__ == "__main__":
    main()
