"""How near `inlay plan` comes, cold and calibrated, to the peak memory and the step time of real runs.

    python benchmarks/plan_accuracy.py [--shapes nano,llama-43M] [--methods lora,qlora] [--steps 6] [--cpu] [--json]

Every plan and every run is a process of its own. The bases have random weights; the rows are the built-in ones. --cpu
counts seconds of one core in place of those on the wall, in plans and runs alike: what to measure by where the cores are
shared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import inlay
from inlay.workflows.compare_methods import METHODS

ROWS = Path(inlay.__file__).parent / "builtin" / "domains" / "customer_support" / "train.jsonl"
NANO = Path(inlay.__file__).parent / "builtin" / "nano"
SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "nano": ("", {}, {}),
    "llama-43M": (
        "LlamaConfig",
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True},
        {},
    ),
    "qwen3-66M, micro batches of 4": (
        "Qwen3Config",
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 8,
         "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 64000, "tie_word_embeddings": True},
        {"train.micro_batch_size": "4"},
    ),
    "llama-120M, recomputed": (
        "LlamaConfig",
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
         "num_key_value_heads": 12, "vocab_size": 32000, "tie_word_embeddings": True},
        {"train.gradient_checkpointing": "true", "train.micro_batch_size": "8"},
    ),
    "gpt2-41M, autograd": (
        "GPT2Config", {"n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 32000}, {},
    ),
    "llama-43M, autograd, bfloat16": (
        "LlamaConfig",
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": True},
        {"train.engine": "autograd", "model.dtype": "bfloat16"},
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(name for name in SHAPES if "," not in name), help="or all")
    parser.add_argument("--methods", default="lora", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        if given.cpu:
            time.perf_counter = time.process_time
        print(json.dumps(worked(given.work[0], json.loads(given.work[1]))))
        return
    names = list(SHAPES) if given.shapes == "all" else [n for n in SHAPES if n.split(",")[0] in given.shapes.split(",")]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, method in product(names, given.methods.split(",")):
            found.append(compared(name, method, Path(folder), given.steps, cpu=given.cpu))
            print(said(found[-1]), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1) if given.json else table(found))


def compared(name: str, method: str, folder: Path, steps: int, *, cpu: bool) -> dict[str, Any]:
    """Cold, calibrated and real figures of one shape, trained by one method."""
    family, sizes, settings = SHAPES[name]
    base = str(made(folder / name.replace(",", "").replace(" ", "-"), family, sizes)) if family else "builtin:nano"
    over = {key: str(value).lower() for key, value in METHODS[method].items()}
    short = {"eval.max_rows": "16", "eval.retention_rows": "0", "train.eval_steps": str(steps)}
    wanted = {"model.dtype": "float32", "train.max_steps": str(steps)} | short | settings | over
    task = {
        "base": base,
        "settings": [f"{key}={value}" for key, value in wanted.items()],
        "folder": str(folder),
        "cpu": cpu,
    }
    return {"shape": name, "method": method, "load": os.getloadavg()[0]} | {
        kind: in_process(kind, task) for kind in ("cold", "calibrated", "real")
    }


def in_process(kind: str, task: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", kind, json.dumps(task), *(["--cpu"] if task["cpu"] else [])]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if task["cpu"] else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def worked(kind: str, task: dict[str, Any]) -> dict[str, float]:
    """Peak bytes and seconds of a step: forecast, or seen in a run."""
    from inlay import api

    config = api.config_of(
        str(ROWS), task["settings"], None, {"model.base_model": task["base"], "output.folder": task["folder"]}
    )
    if kind == "real":
        metrics = [line for line in api.train(config).metrics if "loss" in line]
        times = [b["time_s"] - a["time_s"] for a, b in pairwise(metrics)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak_bytes": peak, "steps_bytes": metrics[-1]["memory_bytes"], "step_s": statistics.median(times)}
    forecast = api.plan(config, calibrate=kind == "calibrated").forecast
    return {"peak_bytes": forecast.total_bytes, "step_s": forecast.step_s} | forecast.memory.to_json()


def made(folder: Path, family: str, sizes: dict[str, Any]) -> Path:
    if folder.is_dir():
        return folder
    import shutil

    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(NANO))
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, family)(**sizes, **ids)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / name, folder / name)
    return folder


def said(one: dict[str, Any]) -> str:
    cold, calibrated, real = one["cold"], one["calibrated"], one["real"]
    cells = [
        one["shape"], one["method"], f"{real['peak_bytes'] / 1e6:,.0f} MB",
        *(f"{guess['peak_bytes'] / real['peak_bytes'] - 1:+.0%}" for guess in (cold, calibrated)),
        f"{real['step_s']:.2f} s", *(f"{guess['step_s'] / real['step_s'] - 1:+.0%}" for guess in (cold, calibrated)),
        f"{one['load']:.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(found: list[dict[str, Any]]) -> str:
    head = "| shape | method | peak | cold | calibrated | a step | cold | calibrated | load |\n" + "|---" * 9 + "|"
    return "\n".join([head, *map(said, found)])


if __name__ == "__main__":
    main()
