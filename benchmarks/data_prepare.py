"""From a file to ids on the disk, beside what the tokenizer alone takes for the same texts.

    python benchmarks/data_prepare.py [--rows 50000] [--words 100000] [--data FILE] [--repeats 5] [--model builtin:nano]
    python benchmarks/data_prepare.py --sizes 1000 10000 100000 1000000 [--words 100000] [--folder FOLDER]

The first form writes a JSONL of made-up dialogues of about 1 KB a row, then alternates: (raw) the tokenizer's own
`encode_batch` over the rendered texts, which are already in memory, and (inlay) all that `train` does before it loads
the base: reading, checking, rendering, cutting, encoding, weighing, splitting and writing the cache. Prints medians,
their ratio and spread, and the load of the machine. inlay remembers words, and each preparation begins with none; the rows
have 50 words or `--words` made-up ones, drawn by Zipf's law as in natural text; `--data` is a file of rows
to take instead.

The second form prepares files of these sizes, each start in a process of its own: rows and microseconds a token, the
peak of the resident memory (a process that rows are shared out to counts what it has in common with the first too), and
how long a second start takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TEXT = (
    "the of and to in is was for that on with as by at from order ticket refund answer question account number please "
    "because customer water light energy function value model train test data line file error message time year people"
)
WORDS = TEXT.split()


def write_rows(path: Path, count: int, vocabulary: int = 0) -> None:
    """Rows of 170 words: of few, or of so many that are drawn by Zipf's law."""
    draw = random.Random(0)
    words, often = (WORDS, None) if not vocabulary else made_up(vocabulary)
    with path.open("w") as file:
        for n in range(count):
            ask, answer = (" ".join(draw.choices(words, cum_weights=often, k=k)) for k in (60, 110))
            turns = [{"role": "user", "content": f"{n}: {ask}?"}, {"role": "assistant", "content": f"{answer}."}]
            file.write(json.dumps({"messages": turns}) + "\n")


def made_up(count: int) -> tuple[list[str], list[float]]:
    """(words of two to four syllables, the sums of their frequencies)."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "us")]
    words = itertools.chain.from_iterable(itertools.product(syllables, repeat=k) for k in (2, 3, 4))
    return ["".join(one) for one in itertools.islice(words, count)], list(
        itertools.accumulate(1 / (k + 2) for k in range(count))
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU of all threads and processes) seconds."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def beside_the_tokenizer(path: Path, repeats: int, model: str, folder: Path) -> None:
    from inlay.config.sections.data import DataConfig
    from inlay.data.encoding.encoder import Encoder
    from inlay.data.prepare import prepare
    from inlay.data.reading.read import stream_examples
    from inlay.models import base as bases

    tokenizer = bases.load_tokenizer(bases.find_base(model, None), None)
    texts = [tokenizer.decode(t.input_ids) for _, t in Encoder(tokenizer).examples(stream_examples(str(path))[1])]
    rows = len(texts)

    def raw() -> None:
        for start in range(0, len(texts), 2048):
            tokenizer.backend_tokenizer.encode_batch(texts[start : start + 2048], add_special_tokens=False)

    def inlay() -> None:
        assert prepare(DataConfig(train=str(path)), Encoder(tokenizer), 4096, 200, 0).rows == rows

    seconds: dict[str, list[tuple[float, float]]] = {"raw": [], "inlay": []}
    for _ in range(repeats):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for name, work in (("raw", raw), ("inlay", inlay)):
            seconds[name].append(timed(work))
    size = path.stat().st_size
    print(f"{rows} rows, {size / 1e6:.0f} MB, {model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for place, what in enumerate(("wall", "CPU")):
        rates = {name: rows / statistics.median(t[place] for t in found) for name, found in seconds.items()}
        pairs = [a[place] / b[place] for a, b in zip(seconds["raw"], seconds["inlay"], strict=True)]
        print(f"{what}: raw {rates['raw']:.0f} rows/s, inlay {rates['inlay']:.0f} rows/s, "
              f"ratio {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")  # fmt: skip


def start(path: str, model: str) -> None:
    """One start, in this process."""
    from inlay.config.sections.data import DataConfig
    from inlay.data.encoding.encoder import Encoder
    from inlay.data.prepare import prepare
    from inlay.models import base as bases

    encoder = Encoder(bases.load_tokenizer(bases.find_base(model, None), None))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = []
    wall, cpu = timed(lambda: made.append(prepare(DataConfig(train=path), encoder, 4096, 200, 0)))
    data = made[0]
    tokens = data.train.token_count + data.heldout.token_count
    peak, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    found = {"wall": wall, "cpu": cpu, "tokens": tokens, "peak": peak, "child": child, "before": before}
    print(json.dumps(found))


def by_size(sizes: list[int], vocabulary: int, model: str, folder: Path) -> None:
    print(
        "| rows | MB | wall s | CPU s | CPU µs a token | peak RSS MB (before the work) | of a child | second start s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for count in sizes:
        path = folder / f"rows_{count}.jsonl"
        if not path.exists():
            write_rows(path, count, vocabulary)
        command = [sys.executable, __file__, "--start", str(path), "--model", model]
        first, second = (json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2))
        print(
            f"| {count:,} | {path.stat().st_size / 1e6:.0f} | {first['wall']:.1f} | {first['cpu']:.1f} "
            f"| {first['cpu'] / first['tokens'] * 1e6:.2f} | {first['peak'] / 1e3:.0f} ({first['before'] / 1e3:.0f}) "
            f"| {first['child'] / 1e3:.0f} | {second['wall']:.2f} |",
            flush=True,
        )
        path.unlink()
        shutil.rmtree(folder / "cache")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--words", type=int, default=0, help="how many different words the rows have; 0 is 50")
    options.add_argument("--data", type=Path, help="rows in place of made-up ones; each a sequence of its own")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--model", default="builtin:nano")
    options.add_argument("--sizes", type=int, nargs="+", default=[])
    options.add_argument("--folder", type=Path, help="where the files are written; a temporary folder by default")
    options.add_argument("--start", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.start:
        start(chosen.start, chosen.model)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as own:
        folder = chosen.folder or Path(own)
        os.environ["INLAY_CACHE"] = str(folder / "cache")
        if chosen.sizes:
            by_size(chosen.sizes, chosen.words, chosen.model, folder)
            print(f"{chosen.model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        else:
            path = chosen.data or folder / "rows.jsonl"
            if not chosen.data:
                write_rows(path, chosen.rows, chosen.words)
            beside_the_tokenizer(path, chosen.repeats, chosen.model, folder)


if __name__ == "__main__":
    main()
