"""How long a list of many adapters takes, and the reading of one with its digest.

Run: python benchmarks/library_list.py [--entries 1000] [--repeats 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from inlay import api
from inlay.adapters.cards import Card
from inlay.adapters.identity import WeightFacts, identity, read_entry
from inlay.adapters.library import Library
from inlay.methods.adapter_state import AdapterState

WIDTH, RANK, LAYERS = 1024, 16, 152  # 152 pairs of 16 × 1024 float32 are 20 MB


def adapter(layers: int, seed: int) -> AdapterState:
    """A LoRA adapter under PEFT's names."""
    torch.manual_seed(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.randn(*shape)
        for layer in range(layers)
        for side, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK)))
    }
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["q_proj"],
    }
    return AdapterState(settings, tensors)


def put(library: Library, name: str, state: AdapterState) -> None:
    """Adds the adapter as a version of the name."""
    facts = WeightFacts.of(state, "b" * 64)
    known = {field: getattr(facts, field) for field in WeightFacts.__slots__}
    card = Card(
        identity=identity(facts.weights_digest, "t", "c"), base_model="base", base_digest="b" * 64, tokenizer_hash="t",
        chat_template_hash="c", task="support", versions=dict.fromkeys(("inlay", "torch", "transformers", "peft"), "1"), **known,
    )  # fmt: skip
    library.put(name, state.write, card)


def times_s(call: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """(seconds on the clock, seconds of this process) of each call, after one that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - began, time.process_time() - used))
    return found


def main() -> None:
    """Prints median and slowest of each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = Library(Path(folder) / "library")
        for n in range(options.entries):
            put(library, f"adapter-{n // 4}", adapter(1, n))
        listed = times_s(lambda: api.list_adapters(library=library.path), options.repeats)
        large = Library(Path(folder) / "large")
        put(large, "large", adapter(LAYERS, 0))
        read = times_s(lambda: read_entry(large.find("large")), options.repeats)
    found = {
        f"list {options.entries} versions": listed,
        f"read {LAYERS * 2 * RANK * WIDTH * 4 / 1e6:.0f} MB with its digest": read,
    }
    if options.json:
        print(json.dumps({"machine": platform.processor(), "seconds": found}))
        return
    for name, taken in found.items():
        clock, used = ([1e3 * one for one in side] for side in zip(*taken, strict=True))
        print(
            f"{name:<32} median {statistics.median(clock):7.1f} ms   slowest {max(clock):7.1f} ms   "
            f"of this process {statistics.median(used):7.1f} ms"
        )


if __name__ == "__main__":
    main()
