"""Training speed and peak memory of inlay beside other tools, on the same rows, model and settings, in turns.

    python benchmarks/train_throughput.py --home FOLDER [--models M1,M2] [--formats bf16,fp32] [--rounds 3] [--steps 8]
                                          [--tools floor,inlay,trainer] [--data rows.jsonl] [--json]

LoRA of rank 16 on all linear layers, AdamW at 2e-4, 16 rows a step as 4 × 4 (inlay chooses its own micro batch), rows up
to 512 tokens, loss on the answer, random weights, the rows in the order of the file; all else is a tool's own default.
Each tool has an environment of its own under FOLDER, made here. The first two steps of a run are not counted. What has
been measured lies in FOLDER/results.jsonl and is not measured again: a benchmark that was stopped goes on with the same
command. What a tool cannot do is a line of the table, and tried again. Before each run it waits until the machine is
idle; --any-load measures at once, and the load is in the results.

`of floor` is the share of the floor: the least time that a step could take, were there nothing but its matmuls, at the
rate that matmuls of the model's shapes reach on this machine in the same round (`floor.py` says how it is counted).
`from imports` is the time from the end of importing torch, transformers and peft to the end of the first step. The
losses of all tools are of the same rows, with adapters that begin with the same numbers: in fp32 they should agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import Any

from floor import Layers, fastest, step_flops
from trainers import DTYPES, LORA, ORDINARY, WITH, read_lines, row_lengths

ROOT = Path(__file__).resolve().parents[1]
HUGGING_FACE = ["torch>=2.9,<2.14", "transformers>=5,<6", "peft>=0.17,<1", "accelerate", "datasets"]
TOOLS: dict[str, list[list[str]]] = {
    "floor": [],
    "inlay": [["-e", f"{ROOT}[fused]"]],
    "trainer": [HUGGING_FACE],
    "trl": [[*HUGGING_FACE, "trl>=1.0,<2"]],
    "llamafactory": [
        ["torch>=2.9,<2.14", "transformers>=5,<=5.6", "peft>=0.18,<=0.18.1", "accelerate<=1.11", "datasets<=4.0",
         "trl<=0.24", "omegaconf", "fire", "tyro<0.9", "einops", "pandas", "scipy", "sentencepiece", "protobuf", "tiktoken",
         "matplotlib", "av<=16", "hf-transfer", "pydantic", "uvicorn", "fastapi", "sse-starlette", "modelscope"],
        ["--no-deps", "llamafactory==0.9.5"],
    ],
    "unsloth": [
        ["torch>=2.9,<2.14", "transformers>=5.2,<=5.17", "peft>=0.18", "accelerate", "datasets>=4.3,<4.4", "trl<=1.15",
         "bitsandbytes", "torchao", "triton", "cut_cross_entropy", "diffusers", "tyro", "typer", "structlog", "json5",
         "nest-asyncio", "hf_transfer", "msgspec", "pillow", "sentencepiece", "protobuf", "einops"],
        ["--no-deps", "unsloth==2026.10.9", "unsloth_zoo==2026.10.9"],
    ],
}  # fmt: skip
"""What pip is told for each tool, call by call. `trainer` is transformers' Trainer, every row padded to 512. Two are
installed without what they ask for, and that by name: their torchvision and xformers do not go with a torch for CPUs.
`floor` is no tool but the floor; it is measured with inlay's torch."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "LlamaConfig",
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 8000},
    ),
    "M1": (
        "LlamaConfig",
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    ),
    "M2": (
        "Qwen2Config",
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    ),
}  # fmt: skip
TOKENIZER_SIZE = 32_000
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LONGEST, ROWS_A_STEP, WARM_UP = 512, 16, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="environments, models and results")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--models", default="M1", help=", ".join(MODELS))
    parser.add_argument("--formats", default="bf16,fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--data", type=Path, help="rows with question and answer; without it built-in rows, made longer"
    )
    parser.add_argument("--any-load", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(WORK[given.work[0]](json.loads(given.work[1]))))
        return
    if given.steps <= WARM_UP:
        parser.error(f"--steps {given.steps}: the first {WARM_UP} are not counted. Give more.")
    home = given.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    tools = given.tools.split(",")
    pythons = {tool: environment(home, tool) for tool in {"inlay", *tools}}
    for model in given.models.split(","):
        for dtype in given.formats.split(","):
            task = prepared(home, pythons["inlay"], model, dtype, given.steps, given.data)
            for turn in range(given.rounds):
                for tool in tools:
                    measured(home, pythons[tool], task | {"tool": tool, "turn": turn}, any_load=given.any_load)
    found = summary(read_lines(home / "results.jsonl"), given.steps)
    print(json.dumps(found, indent=1) if given.json else table(found))


def environment(home: Path, tool: str) -> str:
    """The Python of a virtual environment with the tool in it."""
    tool = "inlay" if tool == "floor" else tool
    folder = home / "environments" / tool
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing {tool}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        for wanted in TOOLS[tool]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.write_text("\n".join(itertools.chain(*TOOLS[tool])))
    return str(python)


def prepared(home: Path, python: str, model: str, dtype: str, steps: int, data: Path | None) -> dict[str, Any]:
    """The task with its model and rows on the disk; the rows as text under inlay's template, the same for all."""
    name = data.stem if data else "builtin"
    task = {"model": model, "dtype": dtype, "steps": steps, "rows": name, "base": str(home / "models" / f"{model}-{dtype}"),
            "data": str(home / f"{name}-{steps}.jsonl"), "source": str(data) if data else ""}  # fmt: skip
    if not Path(task["base"], "tokenizer.json").exists() or not Path(task["data"]).exists():
        subprocess.run([python, __file__, "--home", str(home), "--work", "prepare", json.dumps(task)], check=True)
    return task


def measured(home: Path, python: str, task: dict[str, Any], *, any_load: bool) -> None:
    """One run in a process of its own; its line goes into the results unless it is there. So does what failed."""
    results = home / "results.jsonl"
    known = ("tool", "model", "dtype", "steps", "rows", "turn")
    lines = [line for line in read_lines(results) if "failed" not in line]
    if any(all(line[key] == task[key] for key in known) for line in lines):
        return
    load = idle() if not any_load else os.getloadavg()[0]
    command = [
        python,
        __file__,
        "--home",
        str(home),
        "--work",
        task["tool"],
        json.dumps(ORDINARY | task | {"home": str(home)}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=home)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
    seen = {"failed": said[-1]} if done.returncode else json.loads(said[-1])
    line = {key: task[key] for key in known} | {"load": load, "load_after": os.getloadavg()[0]} | seen
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    how = line["failed"] if "failed" in line else f"{rate(line):.2f} rows/s"
    print(f"{task['tool']} {task['model']} {task['dtype']}: {how}", file=sys.stderr)
    if done.returncode:
        print(done.stderr, file=sys.stderr)


def idle() -> float:
    """The load once it is low. Waits for it for half an hour."""
    for _ in range(180):
        load = os.getloadavg()[0]
        if load < 0.25 * (os.cpu_count() or 1):
            return load
        time.sleep(10)
    sys.exit(f"the load stays at {load:.1f}: a busy machine measures nothing. Try later, or give --any-load.")


def rate(line: dict[str, Any]) -> float:
    """Rows a second, of the median step."""
    return float(ROWS_A_STEP / statistics.median(line["step_s"][WARM_UP:]))


def summary(lines: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Medians over the rounds; inlay's rate over each tool's, and each tool's over the floor's, paired by round."""
    cells: dict[str, Any] = {}
    for line in lines:
        if line["steps"] == steps:
            cells.setdefault(f"{line['model']} {line['dtype']}", {}).setdefault(line["tool"], {})[line["turn"]] = line
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "cells": {cell: {tool: judged(turns, tools) for tool, turns in tools.items()} for cell, tools in cells.items()},
    }


def judged(turns: dict[int, dict[str, Any]], tools: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """The rounds of one tool beside those of inlay and the floor."""
    seen = {turn: line for turn, line in turns.items() if "failed" not in line}
    if not seen:
        return {"failed": next(iter(turns.values()))["failed"]}

    def median(name: str) -> float | None:
        return middle([line[name] for line in seen.values() if name in line])

    def times(other: str) -> float | None:
        """How many times as fast as this one the other was."""
        theirs = tools.get(other, {})
        return middle([rate(theirs[k]) / rate(one) for k, one in seen.items() if "step_s" in theirs.get(k, {})])

    floor = times("floor")
    return {
        "rows_per_s": middle(list(map(rate, seen.values()))), "peak_bytes": median("peak_bytes"),
        "first_step_s": median("first_step_s"), "from_imports_s": median("from_imports_s"),
        "losses": next(iter(seen.values()))["losses"][:3], "rounds": len(seen),
        "load": max(max(line["load"], line["load_after"]) for line in seen.values()),
        "inlay_times": times("inlay"), "floor_share": 1 / floor if floor else None,
    }  # fmt: skip


def middle(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def table(found: dict[str, Any]) -> str:
    lines = [
        found["machine"],
        "",
        "| | tool | rows/s | inlay is | of floor | peak | from imports | first losses | rounds | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, tools in found["cells"].items():
        for tool, one in sorted(tools.items(), key=lambda item: item[1].get("rows_per_s", 0.0)):
            if "failed" in one:
                lines.append(f"| {cell} | {tool} | cannot: {one['failed'][:160]} | | | | | | | |")
                continue
            cells = [
                f"{one['rows_per_s']:.2f}", shown(one["inlay_times"], ".2f", " ×"), shown(one["floor_share"], ".0%"),
                shown(one["peak_bytes"] and one["peak_bytes"] / 1e6, ",.0f", " MB"),
                shown(one["from_imports_s"], ".1f", " s"), " ".join(f"{loss:.4f}" for loss in one["losses"]) or "–",
                str(one["rounds"]), f"{one['load']:.1f}",
            ]  # fmt: skip
            lines.append(f"| {cell} | {tool} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


# --- what runs in a tool's own environment ---------------------------------------------------------------------


def prepare(task: dict[str, Any]) -> dict[str, Any]:
    """Writes the model with random weights, and rows as messages and as prompt and completion under the template."""
    import torch
    import transformers

    family, sizes = MODELS[task["model"]]
    tokenizer = byte_pairs(task["source"], vocabulary=min(TOKENIZER_SIZE, sizes["vocab_size"]))
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, family)(**sizes, **ids)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, DTYPES[task["dtype"]]))
    model.save_pretrained(task["base"])
    tokenizer.save_pretrained(task["base"])
    wanted, lines = ROWS_A_STEP * task["steps"], []
    for row in source_rows(task["source"], wanted):
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        if len(tokenizer(whole)["input_ids"]) <= LONGEST:
            lines.append(json.dumps({"messages": messages, "prompt": prompt, "completion": whole.removeprefix(prompt)}))
    Path(task["data"]).write_text("\n".join(lines[:wanted]) + "\n")
    return {"rows": len(lines[:wanted])}


def byte_pairs(source: str, vocabulary: int) -> Any:
    """A byte-level tokenizer of so many tokens, trained on the rows and on Python's own library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [row[part] for row in source_rows(source, 10_000) for part in ("question", "answer")]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts += [file.read_text(encoding="utf-8", errors="replace") for file in library]
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", eos_token="<|im_end|>", chat_template=TEMPLATE, model_max_length=2048
    )


def source_rows(source: str, count: int) -> list[dict[str, str]]:
    """Rows with question and answer; of the built-in ones several answers are joined, to about a hundred tokens."""
    if source:
        return read_lines(Path(source))
    import inlay

    domain = Path(inlay.__file__).parent / "builtin" / "domains" / "customer_support" / "train.jsonl"
    asked = [[turn["content"] for turn in row["messages"] if turn["role"] != "system"] for row in read_lines(domain)]
    return [
        {"question": f"{k}: {asked[k % len(asked)][0]}",
         "answer": " ".join(asked[(k + j) % len(asked)][1] for j in range(1 + k % 5))}
        for k in range(2 * count)
    ]  # fmt: skip


def floor_of(task: dict[str, Any]) -> dict[str, Any]:
    """The floor of each step, in the place of its time."""
    from transformers import AutoConfig

    rows = row_lengths(task)
    steps = [rows[start : start + ROWS_A_STEP] for start in range(0, len(rows), ROWS_A_STEP)]
    layers = Layers.of(AutoConfig.from_pretrained(task["base"]), LORA["r"])
    tokens = sum(length for length, _ in rows) // len(steps)
    per_s = fastest(layers, (tokens // 4, tokens), DTYPES[task["dtype"]])
    return {"step_s": [step_flops(layers, step) / per_s for step in steps], "flops_per_s": per_s, "losses": []}


WORK = {"prepare": prepare, "floor": floor_of, **WITH}

if __name__ == "__main__":
    main()
