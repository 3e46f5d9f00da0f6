"""Training speed and peak memory of inlay beside other tools, on the same rows, model and settings, in turns.

    python benchmarks/train_throughput.py --home FOLDER [--models M1,M2] [--formats bf16,fp32] [--rounds 3] [--steps 8]
                                          [--tools floor,inlay,trainer] [--data rows.jsonl] [--json]

LoRA of rank 16 on all linear layers, AdamW at 2e-4, 16 rows a step as 4 × 4 (inlay chooses its own micro batch), rows up
to 512 tokens, loss on the answer, random weights, the rows in the order of the file; all else is a tool's own default.
Each tool has an environment of its own under FOLDER, made here. The first two steps of a run are not counted. What has
been measured lies in FOLDER/results.jsonl and is not measured again: a benchmark that was stopped goes on with the same
command. What a tool cannot do is a line of the table, and tried again. Before each run it waits until the machine is
idle; --any-load measures at once, and the load is in the results.

`of floor` is the share of the floor: the least time that a step could take, were there nothing but its products, at the
rate that products of the model's shapes reach on this machine in the same round (`floor.py` says how it is counted).
`from imports` is the time from the end of importing torch, transformers and peft to the end of the first step. The
losses of all tools are of the same rows, so that they should agree as far as number format and step size explain.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import types
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HUGGING_FACE = ["torch>=2.9,<2.14", "transformers>=5,<6", "peft>=0.17,<1", "accelerate", "datasets"]
TOOLS: dict[str, list[list[str]]] = {
    "floor": [],
    "inlay": [["-e", str(ROOT)]],
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
         "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048},
    ),
    "M2": (
        "Qwen2Config",
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    ),
}  # fmt: skip
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
TOKENIZER_SIZE = 32_000
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LONGEST, ROWS_A_STEP, WARM_UP = 512, 16, 2
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


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
    command = [python, __file__, "--home", str(home), "--work", task["tool"], json.dumps(task | {"home": str(home)})]
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
    from floor import Layers, fastest, step_flops
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["base"])
    rows = []
    for row in pairs(task):
        prompt, answer = (
            len(tokenizer(row[k], add_special_tokens=False)["input_ids"]) for k in ("prompt", "completion")
        )
        rows.append((prompt + answer, answer))
    steps = [rows[start : start + ROWS_A_STEP] for start in range(0, len(rows), ROWS_A_STEP)]
    layers = Layers.of(AutoConfig.from_pretrained(task["base"]), LORA["r"])
    tokens = sum(length for length, _ in rows) // len(steps)
    per_s = fastest(layers, (tokens // 4, tokens), DTYPES[task["dtype"]])
    return {"step_s": [step_flops(layers, step) / per_s for step in steps], "flops_per_s": per_s, "losses": []}


def with_inlay(task: dict[str, Any]) -> dict[str, Any]:
    began, imported = imports()
    from inlay import api
    from inlay.events import PlainReporter

    class Clock(PlainReporter):
        ends: list[float] = []  # noqa: RUF012

        def start(self, total: int, done: int, unit: str) -> None:
            self.ends.append(time.perf_counter())

        def progress(self, done: int, values: dict[str, Any]) -> None:
            self.ends.append(time.perf_counter())

    steps, folder = task["steps"], Path(task["home"]) / f"runs-{os.getpid()}"
    folder.mkdir()
    rows, heldout, given = folder / "rows.jsonl", folder / "heldout.jsonl", read_lines(Path(task["data"]))
    rows.write_text(
        "".join(json.dumps({"messages": row["messages"], "place": k}) + "\n" for k, row in enumerate(given))
    )
    asked = {"role": "user", "content": "Is anything held out?"}
    heldout.write_text(json.dumps({"messages": [asked, given[0]["messages"][1]]}) + "\n")
    config = {
        "model": {"base_model": task["base"], "device": "cpu", "dtype": DTYPES[task["dtype"]]},
        "data": {"train": str(rows), "eval": str(heldout), "max_length": LONGEST},
        "adapter": {"rank": 16, "alpha": 32},
        "train": {"batch_size": ROWS_A_STEP, "max_steps": steps, "learning_rate": 2e-4, "schedule": "constant",
                  "order": "column", "order_column": "place", "order_pool": 1e-9, "order_pacing": 1.0, "warmup_ratio": 0.0, "eval_steps": steps, "save_steps": steps},
        "eval": {"max_rows": 2, "retention_rows": 0},
        "track": {"trackers": []},
        "output": {"folder": str(folder)},
    }  # fmt: skip
    clock = Clock()
    run = api.train(config, reporter=clock)
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    memory = max(line["memory_bytes"] for line in run.metrics if "memory_bytes" in line)
    shutil.rmtree(folder)
    seen = ended(began, imported, clock.ends, losses)
    return seen | {"peak_bytes": memory}  # that of the steps; the verdict after them is no part of it


def imports() -> tuple[float, float]:
    """The times before and after importing what every tool needs."""
    began = time.perf_counter()
    for name in ("torch", "transformers", "peft"):
        importlib.import_module(name)
    # transformers loads these when they are asked for; every tool asks
    _ = sys.modules["transformers"].AutoModelForCausalLM, sys.modules["transformers"].Trainer
    return began, time.perf_counter()


def ended(began: float, imported: float, ends: list[float], losses: list[float]) -> dict[str, Any]:
    """`ends` are the start of the first step and the end of each."""
    return {
        "step_s": [b - a for a, b in zip(ends, ends[1:], strict=False)],  # noqa: RUF007
        "first_step_s": ends[1] - began,
        "from_imports_s": ends[1] - imported,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "losses": losses,
    }


def callback(ends: list[float], losses: list[float]) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    return Clock()


def arguments(task: dict[str, Any]) -> dict[str, Any]:
    """What Trainer and SFTTrainer are told, and nothing else: their defaults are what is compared."""
    return {
        "output_dir": str(Path(task["home"]) / "out"), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4, "lr_scheduler_type": "constant", "max_steps": task["steps"], "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip


def with_trainer(task: dict[str, Any]) -> dict[str, Any]:
    """The usual tutorial: every row padded to 512, loss on the answer."""
    began, imported = imports()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(task["base"])
    model = AutoModelForCausalLM.from_pretrained(task["base"], dtype=getattr(torch, DTYPES[task["dtype"]]))
    rows = []
    for row in pairs(task):
        prompt, answer = (tokenizer(row[k], add_special_tokens=False)["input_ids"] for k in ("prompt", "completion"))
        ids = (prompt + answer)[:LONGEST]
        padding = LONGEST - len(ids)
        labels = ([-100] * len(prompt) + answer)[:LONGEST] + [-100] * padding
        mask = [1] * len(ids) + [0] * padding
        rows.append({"input_ids": ids + [tokenizer.pad_token_id] * padding, "attention_mask": mask, "labels": labels})
    ends: list[float] = []
    losses: list[float] = []
    settings = TrainingArguments(**arguments(task), bf16=task["dtype"] == "bf16")
    peft_model = get_peft_model(model, LoraConfig(**LORA))
    Trainer(peft_model, settings, train_dataset=rows, callbacks=[callback(ends, losses)]).train()
    return ended(began, imported, ends, losses)


def with_trl(task: dict[str, Any]) -> dict[str, Any]:
    began, imported = imports()
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(
        **arguments(task), max_length=LONGEST, bf16=task["dtype"] == "bf16",
        model_init_kwargs={"dtype": DTYPES[task["dtype"]]},
    )  # fmt: skip
    ends: list[float] = []
    losses: list[float] = []
    SFTTrainer(
        task["base"], settings, train_dataset=Dataset.from_list(pairs(task)), peft_config=LoraConfig(**LORA),
        callbacks=[callback(ends, losses)],
    ).train()  # fmt: skip
    return ended(began, imported, ends, losses)


def with_llamafactory(task: dict[str, Any]) -> dict[str, Any]:
    """Its SFT stage as its command runs it. Mixed precision for bf16, as its examples have it."""
    began, imported = imports()
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # it imports it; rows of text never reach it
    from llamafactory.train.tuner import run_exp

    folder = Path(task["home"]) / f"llamafactory-{os.getpid()}"
    folder.mkdir()
    rows = [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in pairs(task)]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    told = arguments(task) | {"output_dir": str(folder / "out")}
    del told["train_sampling_strategy"]
    settings = told | {
        "model_name_or_path": task["base"], "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_target": "all", "lora_rank": 16, "lora_alpha": 32, "dataset": "rows", "dataset_dir": str(folder),
        "template": "empty", "cutoff_len": LONGEST, "disable_shuffling": True, "overwrite_cache": True,
        "bf16": task["dtype"] == "bf16",
    }  # fmt: skip
    ends: list[float] = []
    losses: list[float] = []
    run_exp(settings, callbacks=[callback(ends, losses)])
    shutil.rmtree(folder)
    return ended(began, imported, ends, losses)


def with_unsloth(task: dict[str, Any]) -> dict[str, Any]:
    """Loss on answers only. It wants to be imported before transformers, so that its import counts as one of theirs."""
    began = time.perf_counter()
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}  # it reports itself to a hub
    unsloth = importlib.import_module("unsloth")
    _, imported = imports()
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        task["base"], max_seq_length=LONGEST, load_in_4bit=False, dtype=getattr(torch, DTYPES[task["dtype"]])
    )
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": LINEAR}
    model = unsloth.FastLanguageModel.get_peft_model(model, **lora)
    settings = SFTConfig(**arguments(task), max_length=LONGEST, bf16=task["dtype"] == "bf16")
    ends: list[float] = []
    losses: list[float] = []
    SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs(task)), args=settings,
        callbacks=[callback(ends, losses)],
    ).train()  # fmt: skip
    return ended(began, imported, ends, losses)


def pairs(task: dict[str, Any]) -> list[dict[str, str]]:
    """Prompt and completion of every row, up to the end of the answer, which is what inlay trains."""
    rows = read_lines(Path(task["data"]))
    return [{"prompt": row["prompt"], "completion": row["completion"].removesuffix("\n")} for row in rows]


WORK = {
    "prepare": prepare, "floor": floor_of, "inlay": with_inlay, "trainer": with_trainer, "trl": with_trl,
    "llamafactory": with_llamafactory, "unsloth": with_unsloth,
}  # fmt: skip

if __name__ == "__main__":
    main()
