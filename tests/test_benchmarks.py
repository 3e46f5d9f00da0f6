"""The benchmarks count what they say, and the one for GPUs runs where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_floor_of_a_step_counts_the_matmuls_that_autograd_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from floor import Layers, step_flops

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, attn_implementation="eager",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        model = get_peft_model(transformers.AutoModelForCausalLM.from_config(config), lora)
    ids, kept = torch.arange(40)[None], torch.arange(10, 39)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits.sum().backward()
    layers = Layers.of(config, rank=4)
    above_the_diagonal = 2 * 6 * layers.count * layers.queries * 40**2 / 2  # eager attention computes these pairs, too
    assert counter.get_total_flops() == step_flops(layers, [(40, len(kept))]) + above_the_diagonal


@pytest.mark.slow
def test_the_gpu_benchmark_measures_each_cell_once_and_a_cell_that_fails_is_a_line(tmp_path: Path) -> None:
    def run(*options: str) -> list[dict[str, object]]:
        command = [sys.executable, str(BENCHMARKS / "gpu_train.py"), "--home", str(tmp_path), "--shapes", "tiny",
                   "--tokens", "64", "--steps", "3", "--kinds", "lora", "--json", *options]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(found.stdout)  # type: ignore[no-any-return]

    lines = run("--device", "cpu", "--tools", "inlay,trainer,inlay-autograd")
    assert [(line["tool"], line.get("engine")) for line in lines] == [
        ("inlay", "handwritten"), ("trainer", None), ("inlay-autograd", "autograd"),
    ]  # fmt: skip
    ours, theirs, plain = (line["losses"] for line in lines)
    assert ours == pytest.approx(theirs, abs=5e-3)
    assert plain == pytest.approx(theirs, abs=5e-3)
    assert all(line["tokens_per_s"] > 0 and 0 < line["mfu"] < 1 and line["peak_bytes"] > 0 for line in lines)  # type: ignore[operator]
    assert run("--device", "cpu", "--tools", "inlay") == lines
    (failed,) = run("--device", "nowhere", "--tools", "inlay")[3:]
    assert "nowhere" in str(failed["failed"])
