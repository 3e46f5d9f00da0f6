"""Effect of `torch.compile` and of the number of threads on a step of the autograd engine on a CPU.

    python benchmarks/compile_and_threads.py compile [--steps 6] [--layers 4]
    python benchmarks/compile_and_threads.py threads [--rounds 4] [--layers 4]

`compile` takes each step twice in one process, as it is and with the decoder compiled (inductor, dynamic shapes), in turns.
`threads` takes the same steps in processes of one and two threads, left to the system and bound to cores, in turns; what
counts is the least time of a step, since other work on the cores only adds to it. A Llama with random weights, LoRA of
rank 16 on all linear layers, 16 of the built-in rows a step in micro batches of 8, fp32.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, bound": {"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compile", "threads", "steps"], help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    given = parser.parse_args()
    found: Any
    if given.what == "compile":
        found = compared(given.steps, given.layers)
    elif given.what == "threads":
        found = threads(given.rounds, given.layers)
    else:
        found = [seconds(*parts) for parts in steps_of(model_of(given.layers), 3)]
    print(json.dumps(found))


def compared(count: int, layers: int) -> dict[str, Any]:
    as_it_is = model_of(layers)
    compiled = copy.deepcopy(as_it_is)
    compiled.get_base_model().base_model.compile(dynamic=True)
    took: dict[str, list[tuple[float, float]]] = {"as it is": [], "compiled": []}
    losses = []
    for (engine, batches), (other, _) in zip(steps_of(as_it_is, count), steps_of(compiled, count), strict=True):
        took["as it is"].append(seconds(engine, batches))
        took["compiled"].append(seconds(other, batches))
        pair = [float(one.add_gradient(batches[0], 1e-3).sum()) for one in (engine, other)]
        losses.append(abs(pair[1] / pair[0] - 1))
        print(
            f"load {os.getloadavg()[0]:.1f}",
            {way: times[-1] for way, times in took.items()},
            file=sys.stderr,
            flush=True,
        )
    rest = {way: [cpu for _, cpu in times[1:]] for way, times in took.items()}
    ratios = [b / a for a, b in zip(*rest.values(), strict=True)]
    return {
        "first_step_s": {way: times[0] for way, times in took.items()},
        "cpu_s": {way: {"least": min(times), "median": statistics.median(times)} for way, times in rest.items()},
        "compiled_over_eager": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        "loss_differs": max(losses),
    }


def threads(rounds: int, layers: int) -> dict[str, Any]:
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, variables in WAYS.items():
            command = [sys.executable, __file__, "steps", "--layers", str(layers)]
            done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
            steps = [tuple(pair) for pair in json.loads(done.stdout.splitlines()[-1])]
            took[way].append(min(steps[1:]))
            print(f"load {os.getloadavg()[0]:.1f}", way, took[way][-1], file=sys.stderr, flush=True)
    return {
        way: {"wall_s": min(wall for wall, _ in times), "median_wall_s": statistics.median(wall for wall, _ in times),
              "cpu_s": min(cpu for _, cpu in times)}
        for way, times in took.items()
    }  # fmt: skip


def seconds(engine: Any, batches: list[Any]) -> tuple[float, float]:
    """(wall, CPU) of one step's gradients."""
    began = time.perf_counter(), time.process_time()
    for batch in batches:
        engine.add_gradient(batch, 1e-3)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def model_of(layers: int) -> Any:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=4096, tie_word_embeddings=True,
    )  # fmt: skip
    base = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
    return get_peft_model(base, lora).train()


def steps_of(model: Any, count: int) -> list[tuple[Any, list[Any]]]:
    """(the autograd engine over the model, the micro batches of a step), so many times."""
    import inlay
    from inlay.config import validate
    from inlay.data.batches import collate, micro_batches, step_rows
    from inlay.data.encoding.encoder import Encoder
    from inlay.data.prepare import prepare
    from inlay.engine.autograd import AutogradEngine
    from inlay.models import base as bases

    folder = Path(inlay.__file__).parent / "builtin" / "domains" / "customer_support"
    config = validate({"model": {"base_model": "builtin:nano"}, "data": {"train": str(folder / "train.jsonl")}})
    encoder = Encoder.of(bases.load_tokenizer(bases.find_base("builtin:nano")), config.data)
    train = prepare(config.data, encoder, 2048, 0, 0).train
    engine = AutogradEngine(model, "cpu")
    return [
        (engine, [collate(train, share, encoder.pad_id) for share in micro_batches(rows, train.lengths, 8)])
        for rows in (step_rows(step, 0, train.shares, 16) for step in range(1, count + 1))
    ]


if __name__ == "__main__":
    main()
