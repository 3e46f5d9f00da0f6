"""Small real parts that every test may stand on: a tiny random base with the real tokenizer, and rows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and the tokenizer of builtin:nano."""
    return make_base(tmp_path_factory.mktemp("tiny-base"))


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


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """40 question/answer rows."""
    return write_rows(tmp_path / "data.jsonl", qa_rows(40))


@pytest.fixture
def config_tree(tmp_path: Path, tiny_base: Path, data_file: Path) -> Callable[..., dict[str, Any]]:
    """A config of four quick steps on the tiny base as a nested mapping; keywords are sections merged over it."""

    def make(**sections: dict[str, Any]) -> dict[str, Any]:
        tree: dict[str, dict[str, Any]] = {
            "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
            "adapter": {"rank": 4},
            "data": {"train": str(data_file)},
            "train": {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "eval_steps": 2, "learning_rate": 1e-2},
            "eval": {"max_new_tokens": 8, "resamples": 200},
            "track": {"trackers": []},
            "output": {"folder": str(tmp_path / "results")},
        }
        for name, values in sections.items():
            tree[name] = tree.get(name, {}) | values
        return tree

    return make


@pytest.fixture
def inlay(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`inlay(*arguments, **environment)` starts a process."""
    from training_runs import Inlay

    started: list[Inlay] = []

    def start(*arguments: str, **env: str) -> Any:
        env = {"INLAY_CACHE": os.environ["INLAY_CACHE"]} | env
        started.append(Inlay(list(arguments), tmp_path / f"process-{len(started)}", env))
        return started[-1]

    yield start
    for process in started:
        if process._process.is_alive():
            process._process.kill()
            process._process.join()


@pytest.fixture
def config_file(tmp_path: Path, config_tree: Callable[..., dict[str, Any]]) -> Callable[..., str]:
    """Writes a config and returns its path; keywords are sections over `config_tree`."""

    def write(name: str = "a", **sections: dict[str, Any]) -> str:
        path = tmp_path / f"{name}.yaml"
        tree = config_tree(**sections)
        tree["output"] = tree["output"] | {"name": name}
        path.write_text(json.dumps(tree))
        return str(path)

    return write
