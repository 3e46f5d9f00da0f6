"""One LoRA run in each tool, each timed by the same clock. A function here runs in the environment of its own tool.

A task says what all of them are told: `base` and `data` (a model folder; rows with messages, prompt and completion),
`home`, `steps`, `dtype`, `device`, `longest` (tokens of a row), `micro` and `accumulate` (rows at once, times a step),
`quantization` (`none` or `nf4`), `recompute` (activations; None: as the tool does by default) and `liger` (TRL only).
All else is a tool's own default. Rows are taken in the order of the file and every adapter begins with the same numbers,
so that losses can be compared.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import resource
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

ORDINARY = {"device": "cpu", "longest": 512, "micro": 4, "accumulate": 4, "quantization": "none", "recompute": None, "liger": False}  # fmt: skip
SEED = 42  # that of Trainer
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
PEFT = LORA | {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pairs(task: dict[str, Any]) -> list[dict[str, str]]:
    """Prompt and completion of every row, up to the end of the answer, which is what inlay trains."""
    rows = read_lines(Path(task["data"]))
    return [{"prompt": row["prompt"], "completion": row["completion"].removesuffix("\n")} for row in rows]


def row_lengths(task: dict[str, Any]) -> list[tuple[int, int]]:
    """(tokens, trained tokens) of every row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["base"])
    counts = [
        [len(tokenizer(row[part], add_special_tokens=False)["input_ids"]) for part in ("prompt", "completion")]
        for row in pairs(task)
    ]
    return [(prompt + answer, answer) for prompt, answer in counts]


class Watch:
    """When the first step began and each step ended, the losses, and the most memory."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.imported = self.began
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.device_bytes = 0

    def imports(self) -> None:
        """What every tool needs. From here on the time to the first step counts."""
        for name in ("torch", "transformers", "peft"):
            importlib.import_module(name)
        # transformers loads these when they are asked for; every tool asks
        _ = sys.modules["transformers"].AutoModelForCausalLM, sys.modules["transformers"].Trainer
        self.imported = time.perf_counter()

    def mark(self) -> None:
        cuda = sys.modules["torch"].cuda
        if cuda.is_initialized():
            cuda.synchronize()
            if not self.ends:  # what came before training is no part of its peak
                cuda.empty_cache()
                cuda.reset_peak_memory_stats()
            self.device_bytes = max(self.device_bytes, cuda.max_memory_reserved())
        self.ends.append(time.perf_counter())

    def callback(self) -> Any:
        """For a Trainer."""
        from transformers import TrainerCallback

        watch = self

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                watch.mark()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch.mark()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    watch.losses.append(float(logs["loss"]))

        return Clock()

    def seen(self) -> dict[str, Any]:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "step_s": [b - a for a, b in itertools.pairwise(self.ends)],
            "first_step_s": self.ends[1] - self.began,
            "from_imports_s": self.ends[1] - self.imported,
            "peak_bytes": self.device_bytes or resident,
            "losses": self.losses,
        }


def with_inlay(task: dict[str, Any]) -> dict[str, Any]:
    watch = Watch()
    watch.imports()
    from inlay import api
    from inlay.runs.reporter import PlainReporter

    class Clock(PlainReporter):
        def start(self, total: int, done: int, unit: str) -> None:
            watch.mark()

        def progress(self, done: int, values: dict[str, Any]) -> None:
            watch.mark()

    folder = scratch(task, "inlay")
    rows, heldout, given = folder / "rows.jsonl", folder / "heldout.jsonl", read_lines(Path(task["data"]))
    numbered = [{"messages": row["messages"], "place": k} for k, row in enumerate(given)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in numbered))
    asked = {"role": "user", "content": "Is anything held out?"}
    heldout.write_text(json.dumps({"messages": [asked, given[0]["messages"][1]]}) + "\n")
    in_order = {"order": "column", "order_column": "place", "order_pool": 1e-9, "order_pacing": 1.0}
    steps = task["steps"]
    config = {
        "model": {"base_model": task["base"], "device": task["device"], "dtype": DTYPES[task["dtype"]],
                  "quantization": task["quantization"]},
        "data": {"train": str(rows), "eval": str(heldout), "max_length": task["longest"]},
        "adapter": {"rank": LORA["r"], "alpha": LORA["lora_alpha"]},
        "train": {"batch_size": task["micro"] * task["accumulate"], "max_steps": steps, "learning_rate": 2e-4, "seed": SEED,
                  "schedule": "constant", "warmup_ratio": 0.0, "eval_steps": steps, "save_steps": steps,
                  "gradient_checkpointing": bool(task["recompute"]),
                  "micro_batch_size": "auto" if task["device"] == "cpu" else task["micro"],
                  "engine": task.get("tool", "").partition("-")[2] or "auto"} | in_order,
        "eval": {"max_rows": 2, "retention_rows": 0},
        "track": {"trackers": []},
        "output": {"folder": str(folder)},
    }  # fmt: skip
    run = api.train(config, reporter=Clock())
    watch.losses = [line["loss"] for line in run.metrics if "loss" in line]
    found = watch.seen()
    if not watch.device_bytes:  # resident memory of the steps; the verdict after them is no part of it
        found["peak_bytes"] = max(line["memory_bytes"] for line in run.metrics if "memory_bytes" in line)
    found["engine"] = run.config.train.engine
    shutil.rmtree(folder)
    return found


def arguments(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What Trainer and SFTTrainer are told, and nothing else: their defaults are what is compared."""
    recompute = {} if task["recompute"] is None else {"gradient_checkpointing": task["recompute"]}
    return recompute | {
        "output_dir": str(folder), "per_device_train_batch_size": task["micro"],
        "gradient_accumulation_steps": task["accumulate"], "learning_rate": 2e-4, "lr_scheduler_type": "constant",
        "max_steps": task["steps"], "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "use_cpu": task["device"] == "cpu", "disable_tqdm": True, "bf16": task["dtype"] == "bf16",
    }  # fmt: skip


IN_ORDER = {"train_sampling_strategy": "sequential"}


def with_trainer(task: dict[str, Any]) -> dict[str, Any]:
    """The usual tutorial: transformers' Trainer and PEFT, every row padded to the longest, loss on the answer."""
    watch = Watch()
    watch.imports()
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

    tokenizer = AutoTokenizer.from_pretrained(task["base"])
    model = AutoModelForCausalLM.from_pretrained(task["base"], **loading(task))
    if task["quantization"] != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(task["recompute"]))
    longest, rows = task["longest"], []
    for row in pairs(task):
        prompt, answer = (tokenizer(row[k], add_special_tokens=False)["input_ids"] for k in ("prompt", "completion"))
        ids = (prompt + answer)[:longest]
        padding = longest - len(ids)
        labels = ([-100] * len(prompt) + answer)[:longest] + [-100] * padding
        mask = [1] * len(ids) + [0] * padding
        rows.append({"input_ids": ids + [tokenizer.pad_token_id] * padding, "attention_mask": mask, "labels": labels})
    folder = scratch(task, "trainer")
    settings = TrainingArguments(**arguments(task, folder), **IN_ORDER)
    set_seed(SEED)
    peft_model = get_peft_model(model, LoraConfig(**PEFT))
    if task["recompute"]:
        peft_model.enable_input_require_grads()
    Trainer(peft_model, settings, train_dataset=rows, callbacks=[watch.callback()]).train()
    shutil.rmtree(folder)
    return watch.seen()


def with_trl(task: dict[str, Any]) -> dict[str, Any]:
    watch = Watch()
    watch.imports()
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    folder = scratch(task, "trl")
    settings = SFTConfig(
        **arguments(task, folder), **IN_ORDER, max_length=task["longest"], model_init_kwargs=loading(task),
        use_liger_kernel=task["liger"],
    )  # fmt: skip
    SFTTrainer(
        task["base"], settings, train_dataset=Dataset.from_list(pairs(task)), peft_config=LoraConfig(**PEFT),
        callbacks=[watch.callback()],
    ).train()  # fmt: skip
    shutil.rmtree(folder)
    return watch.seen()


def with_llamafactory(task: dict[str, Any]) -> dict[str, Any]:
    """Its SFT stage as its command runs it."""
    watch = Watch()
    watch.imports()
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # it imports it; rows of text never reach it
    from llamafactory.train.tuner import run_exp

    folder = scratch(task, "llamafactory")
    rows = [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in pairs(task)]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    settings = arguments(task, folder / "out") | {
        "model_name_or_path": task["base"], "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_target": "all", "lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "dataset": "rows",
        "dataset_dir": str(folder), "template": "empty", "cutoff_len": task["longest"], "disable_shuffling": True,
        "overwrite_cache": True,
    }  # fmt: skip
    run_exp(settings, callbacks=[watch.callback()])
    shutil.rmtree(folder)
    return watch.seen()


def with_unsloth(task: dict[str, Any]) -> dict[str, Any]:
    """Loss on answers only. It wants to be imported before transformers, so that its import counts as one of theirs."""
    watch = Watch()
    os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}  # it reports itself to a hub
    unsloth = importlib.import_module("unsloth")
    watch.imports()
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        task["base"], max_seq_length=task["longest"], load_in_4bit=task["quantization"] == "nf4",
        dtype=getattr(torch, DTYPES[task["dtype"]]),
    )  # fmt: skip
    model = unsloth.FastLanguageModel.get_peft_model(model, **LORA, target_modules=LINEAR, random_state=SEED)
    folder = scratch(task, "unsloth")
    settings = SFTConfig(**arguments(task, folder), **IN_ORDER, max_length=task["longest"])
    SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs(task)), args=settings,
        callbacks=[watch.callback()],
    ).train()  # fmt: skip
    shutil.rmtree(folder)
    return watch.seen()


def scratch(task: dict[str, Any], tool: str) -> Path:
    """A new folder of this process."""
    folder = Path(task["home"]) / f"{tool}-{os.getpid()}"
    folder.mkdir()
    return folder


def loading(task: dict[str, Any]) -> dict[str, Any]:
    """How transformers is told to load the base."""
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, DTYPES[task["dtype"]])
    if task["quantization"] == "none":
        return {"dtype": dtype} | ({} if task["device"] == "cpu" else {"device_map": {"": task["device"]}})
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"dtype": dtype, "quantization_config": nf4, "device_map": {"": task["device"]}}


WITH = {
    "inlay": with_inlay, "trainer": with_trainer, "trl": with_trl, "llamafactory": with_llamafactory,
    "unsloth": with_unsloth,
}  # fmt: skip
