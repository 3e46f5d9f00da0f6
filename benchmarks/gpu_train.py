"""LoRA and QLoRA of Llama shapes on a GPU: tokens a second, peak memory and MFU of inlay beside other tools.

    python benchmarks/gpu_train.py --home FOLDER [--shapes 1B,3B,8B] [--kinds lora,qlora] [--tokens 2048,8192]
                                   [--tools inlay,inlay-handwritten,inlay-autograd,trainer,trl,unsloth] [--recompute] [--steps 8] [--json]
    python benchmarks/gpu_train.py --home FOLDER --device cpu --shapes tiny --tokens 128

The bases have random weights, made on the device and kept under FOLDER; every row is filled with text up to the number of
tokens, nearly all of them trained, one row at once and four a step. LoRA of rank 16 on all linear layers over a bf16 base,
QLoRA over NF4 with double quantization. `trainer` is transformers' Trainer with PEFT; `trl` has Liger's kernels where they
are installed. `inlay` chooses its engine, the other two name it: the hand-written one takes Liger's kernels where they are installed,
and torch's flash attention. All run in the Python that runs this, where they can be imported. inlay and Trainer keep
activations unless --recompute is given; TRL and Unsloth recompute by their own default.

Each cell is a process of its own, so that running out of memory is a line and not an end. What has been measured lies in
FOLDER/gpu.jsonl and is not measured again.

MFU is what the step must multiply (`floor.py`; no padding, nothing computed twice), divided by its time and by the peak
of the device: from the table below for 16-bit matmuls, or where the device is not in it, from matmuls measured here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from floor import Layers, fastest, step_flops
from trainers import DTYPES, LORA, ORDINARY, WITH, read_lines, row_lengths

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 4096},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
KINDS = {"lora": "none", "qlora": "nf4"}
NEEDS = {
    "inlay": "inlay",
    "inlay-handwritten": "inlay",
    "inlay-autograd": "inlay",
    "trainer": "peft",
    "trl": "trl",
    "unsloth": "unsloth",
}
PEAK_FLOPS = {"H200": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
              "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "T4": 65e12}  # fmt: skip
"""Dense 16-bit matmuls with fp32 sums, as the makers state them; the first name that is part of the device's counts."""
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="models and results")
    parser.add_argument("--shapes", default="1B,3B,8B", help=", ".join(SHAPES))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--tokens", default="2048,8192")
    parser.add_argument("--tools", default=",".join(NEEDS))
    parser.add_argument("--recompute", action="store_true", help="activations, in all tools")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(WORK[given.work[0]](json.loads(given.work[1]))))
        return
    home = given.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    cells = [
        ORDINARY | {
            "shape": shape, "kind": kind, "tokens": tokens, "tool": tool, "device": given.device, "steps": given.steps,
            "recompute": True if given.recompute else None, "quantization": KINDS[kind], "longest": tokens, "micro": 1,
            "dtype": "bf16", "home": str(home), "base": str(home / f"llama-{shape}"),
            "data": str(home / f"rows-{tokens}-{given.steps}.jsonl"), "liger": here("liger_kernel"),
        }
        for shape in given.shapes.split(",") for kind in given.kinds.split(",")
        for tokens in map(int, given.tokens.split(",")) for tool in given.tools.split(",")
    ]  # fmt: skip
    for cell in cells:
        measured(cell, home / "gpu.jsonl")
    lines = read_lines(home / "gpu.jsonl")
    print(json.dumps(lines, indent=1) if given.json else table(lines))


def here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def measured(cell: dict[str, Any], results: Path) -> None:
    """One cell; its line goes into the results unless it is there. What failed counts as measured, too."""
    known = ("shape", "kind", "tokens", "tool", "device", "steps", "recompute")
    if any(all(line[key] == cell[key] for key in known) for line in read_lines(results)):
        return
    line: dict[str, Any] = {key: cell[key] for key in known}
    if not here(NEEDS[cell["tool"]]):
        print(f"{cell['tool']}: not installed", file=sys.stderr)
        return
    if not Path(cell["base"], "config.json").exists() or not Path(cell["data"]).exists():
        line |= in_process("prepare", cell)
    if "failed" not in line:
        line |= in_process(cell["tool"], cell)
    if "failed" not in line:
        line |= in_process("judge", cell | {"seen_s": statistics.median(line["step_s"][WARM_UP:])})
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(said(line), file=sys.stderr)


def in_process(work: str, cell: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--home", cell["home"], "--work", work, json.dumps(cell)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cell["home"])
    if not done.returncode:
        return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    short = "out of memory" in done.stderr.lower() or done.returncode == -9
    return {"failed": "out of memory" if short else said[-1][:200], "in": work}


def prepare(cell: dict[str, Any]) -> dict[str, Any]:
    """Writes the base, made on the device, and rows filled with text."""
    import torch
    import transformers

    import inlay

    builtin = Path(inlay.__file__).parent / "builtin"
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(builtin / "nano"))
    if not Path(cell["base"], "config.json").exists():
        torch.manual_seed(0)
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        longest = max(8192, cell["tokens"])
        config = transformers.LlamaConfig(**SHAPES[cell["shape"]], **ids, max_position_embeddings=longest)
        with torch.device(cell["device"]):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        tokenizer.save_pretrained(cell["base"])
        model.save_pretrained(cell["base"])
    said = [turn["content"] for row in read_lines(builtin / "domains" / "customer_support" / "train.jsonl")
            for turn in row["messages"] if turn["role"] == "assistant"]  # fmt: skip
    lines = [json.dumps(filled(tokenizer, said, k, cell["tokens"])) for k in range(cell["steps"] * rows_a_step(cell))]
    Path(cell["data"]).write_text("\n".join(lines) + "\n")
    return {}


def filled(tokenizer: Any, said: list[str], k: int, tokens: int) -> dict[str, Any]:
    """A row of nearly so many tokens, and of no more, under the template."""
    asked = {"role": "user", "content": f"What was said on day {k}?"}
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    room = tokens - len(tokenizer(prompt)["input_ids"]) - 8  # what the template puts behind an answer
    words = " ".join(said[(k + j) % len(said)] for j in range(1 + tokens // 16)).split()
    while len(tokenizer(" ".join(words))["input_ids"]) > room:
        words = words[: -max(1, len(words) // 100)]
    messages = [asked, {"role": "assistant", "content": " ".join(words)}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    return {"messages": messages, "prompt": prompt, "completion": whole.removeprefix(prompt)}


def judge(cell: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second and MFU of a step that took `seen_s`."""
    import torch
    from transformers import AutoConfig

    rows = row_lengths(cell)[: rows_a_step(cell)]
    layers = Layers.of(AutoConfig.from_pretrained(cell["base"]), LORA["r"])
    on_gpu = cell["device"].startswith("cuda")
    name = torch.cuda.get_device_name(cell["device"]) if on_gpu else platform.machine()
    matmuls = fastest(layers, (cell["tokens"],), DTYPES[cell["dtype"]], cell["device"])
    stated = next((peak for known, peak in PEAK_FLOPS.items() if on_gpu and known in name), None)
    per_s = step_flops(layers, rows) / cell["seen_s"]
    return {
        "tokens_per_s": sum(length for length, _ in rows) / cell["seen_s"], "device_name": name,
        "flops_per_s": per_s, "matmul_flops_per_s": matmuls, "stated_per_s": stated, "mfu": per_s / (stated or matmuls),
        "torch": torch.__version__, "cores": os.cpu_count(),
    }  # fmt: skip


def rows_a_step(cell: dict[str, Any]) -> int:
    return int(cell["micro"] * cell["accumulate"])


def said(line: dict[str, Any]) -> str:
    how = " recomputed" if line["recompute"] else ""
    engine = f" ({line['engine']})" if line["tool"] == "inlay" and "engine" in line else ""
    start = f"| {line['shape']} | {line['kind']}{how} | {line['tokens']} | {line['tool']}{engine} |"
    if "failed" in line:
        return f"{start} {line['failed']} ({line['in']}) | | | |"
    of = "stated" if line["stated_per_s"] else "measured"
    return (
        f"{start} {line['tokens_per_s']:,.0f} | {line['peak_bytes'] / 1e9:.2f} GB | {line['mfu']:.0%} ({of}) | "
        f"{' '.join(f'{loss:.3f}' for loss in line['losses'][:3])} |"
    )


def table(lines: list[dict[str, Any]]) -> str:
    head = "| shape | kind | tokens | tool | tokens/s | peak | MFU | first losses |\n|---|---|---|---|---|---|---|---|"
    name = next((line["device_name"] for line in lines if "device_name" in line), "")
    return "\n".join([name, "", head, *map(said, lines)])


WORK = {"prepare": prepare, "judge": judge, **WITH, "inlay-handwritten": WITH["inlay"], "inlay-autograd": WITH["inlay"]}

if __name__ == "__main__":
    main()
