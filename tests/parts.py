"""Makers of small real parts that tests build on: a tiny random base with the real tokenizer, and rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from inlay.runs.record import INPUTS, Result, RunRecord

NANO = Path(str(resources.files("inlay"))) / "builtin" / "nano"
TOPICS = [
    "parcels",
    "returns",
    "gift cards",
    "sizes",
    "opening hours",
    "refunds",
    "teapots",
    "lamps",
    "points",
    "labels",
]


def make_base(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Writes a tiny random Llama with the real tokenizer into the folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(NANO))
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 256,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**shape | overrides))
    return save_base(folder, model)


def save_base(folder: Path, model: Any) -> Path:
    """Writes the model with the real tokenizer into the folder."""
    model.save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / name, folder / name)
    return folder


def qa_rows(count: int) -> list[dict[str, str]]:
    """Questions with answers of very different lengths."""
    return [
        {
            "question": f"What about {TOPICS[n % len(TOPICS)]}, case {n}?",
            "answer": " ".join([f"We take care of {TOPICS[n % len(TOPICS)]} number {n}."] * (1 + n % 4)),
        }
        for n in range(count)
    ]


def quick_tree(base: Path, data: Path, results: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config of four quick steps as a nested mapping; keywords are sections merged over it."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"base_model": str(base), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 4},
        "data": {"train": str(data)},
        "train": {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "eval_steps": 2, "learning_rate": 1e-2},
        "eval": {"max_new_tokens": 8, "resamples": 200, "retention_rows": 0},
        "track": {"trackers": []},
        "output": {"folder": str(results)},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return tree


def run_record(**changes: Any) -> RunRecord:
    """The record of a run that has just begun; keywords are its fields that differ."""
    hashes = {key: hashlib.sha256(key.encode()).hexdigest() for key in INPUTS}
    begun = RunRecord(
        status="running", started_at="2026-01-01T00:00:00+00:00", seed=0, versions={"torch": "2.9"}, device="cpu",
        dtype="float32", quantization="none", heldout_available=8, max_length=64, eval_batch_size=8,
        trainable_parameters=10, total_parameters=100, base_commit=None, error=None, **hashes,
    )  # fmt: skip
    return replace(begun, **changes)


def run_result(**changes: Any) -> Result:
    """The result of a run of twelve steps that changed nothing; keywords are its fields that differ."""
    finished = Result(
        run="results/a", status="finished", steps=12, adapter_step=12, best_step=None, train_loss=1.0, eval_loss=1.0,
        base_eval_loss=1.0, difference=0.0, low=0.0, high=0.0, verdict="no difference", stopped_early=False,
        diagnosis=None, plateau=None, skipped_steps=0, trained_batches=[[1, 12]], rollbacks=0, gradient_spikes=0,
        out_of_memory=0, tokens_seen=0, trained_tokens_seen=0, train_time_s=1.0, time_s=2.0, adapter="results/a/adapter",
    )  # fmt: skip
    return replace(finished, **changes)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class ToldBar:
    """A bar that keeps what it was told: (total, done, unit), each number done, "end"."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, total: int, done: int, unit: str) -> None:
        self.told.append((total, done, unit))

    def progress(self, done: int, values: dict[str, Any]) -> None:
        self.told.append(done)

    def stage(self, text: str) -> None: ...
    def block(self, title: str, rows: list[tuple[str, str]]) -> None: ...
    def note(self, text: str) -> None: ...

    def end(self) -> None:
        self.told.append("end")


def empty_cache(folder: Path) -> str:
    """A cache folder in which nothing lies but the compiled loops, whose compilation takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    if "INLAY_CACHE" in os.environ:
        (folder / "loops").symlink_to((Path(os.environ["INLAY_CACHE"]) / "loops").resolve())
    return str(folder)


def edit_config(folder: Path, **values: Any) -> None:
    """Puts these values into the config.json of a base."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


HARNESS_TASK = """
task: shop
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1}
"""
"""A task of lm-evaluation-harness over the JSON lines in FILE."""
