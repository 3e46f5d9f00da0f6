"""Every family that people fine-tune: it trains, its proofs hold, and plain PEFT computes what inlay measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import FAMILIES, make_family
from inlay import api
from inlay.data.batches import collate
from inlay.engine import select_engine
from inlay.evaluation.score import held_out, read_held_out, score
from inlay.methods.adapter import detach
from inlay.methods.lora import lora_layers
from inlay.methods.target_modules import coverage, expert_targets
from inlay.runs.pre_flight import AdapterFacts
from inlay.tasks.task import CAUSAL
from parts import qa_rows, quick_tree, write_rows
from training_runs import Quiet, train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SHARES = {
    "gemma3n": "99.3%", "cohere": "99.4%", "granitemoe": "12.4%", "granitemoehybrid": "27.2%", "olmoe": "12.4%",
    "deepseek_v2": "57.6%", "deepseek_v3": "57.6%", "glm4_moe": "50.7%", "ernie4_5_moe": "50.7%", "mixtral":
    "12.4%", "qwen2_moe": "36.7%", "qwen3_moe": "24.7%", "qwen3_next": "41%", "qwen3_5": "98.3%", "llama4": "28.1%",
    "gpt_oss": "12.2%", "mamba": "64.1%", "mamba2": "68.3%", "falcon_h1": "84.9%", "jamba": "54.8%", "zamba2":
    "77.7%", "nemotron_h": "53.1%", "lfm2": "99.3%", "recurrent_gemma": "92.5%", "rwkv": "66.4%",
    "modernbert-decoder": "96.5%", "phimoe": "12.4%",
}  # fmt: skip
"""Of the decoder's weights that get an adapter, where it is not all of them. What is left are experts, convolutions, and
layers that no adapter can be put on."""
MIXTURES = ("deepseek_v3", "mixtral")


def of_the_family(name: str, tmp_path: Path, **adapter: Any) -> str:
    """The share of the decoder that a run of the family has adapted, after everything about the run was looked at."""
    base = make_family(tmp_path / "base", name)
    data = write_rows(tmp_path / "data.jsonl", qa_rows(24))
    short = {"max_steps": 2, "eval_steps": 2, "export": "last", "warmup_steps": 0}
    tree = quick_tree(base, data, tmp_path / "results", data={"train": str(data), "check": "off"}, adapter=adapter)
    tree["train"] |= short
    tree["model"] |= {"matmul_precision": "highest"}
    reporter = Quiet()
    run = train(tree, reporter=reporter)
    proofs = json.loads((run.path / "proofs.json").read_text())["proofs"]
    assert [proof["name"] for proof in proofs if proof["passed"] is not True] == []
    assert run.config.train.engine == ("handwritten" if FAMILIES[name][0] in select_engine.FAMILIES else "autograd")

    loaded = api.load(run)
    targets = run.config.adapter.target_modules
    assert not isinstance(targets, str)
    shown = AdapterFacts(summary="LoRA", trainable=1, targets=targets, coverage="all").words()
    named = shown.partition(" on ")[2].partition(": ")[0].rpartition(" layers named ")[2]
    layers = {
        layer.rpartition(".")[2] for layer, held in lora_layers(loaded.model) if not hasattr(held, "parameter_name")
    }
    assert set(named.split(", ")) == layers
    rows = held_out(read_held_out(run.heldout), loaded.encoder, int(run.config.data.max_length), "drop", ())
    alike = {
        "batch_size": 4,
        "max_new_tokens": 1,
        "device": "cpu",
        "dtype": None,
        "reporter": reporter,
        "generate": False,
    }
    together = score(loaded.model, "adapter", rows, loaded.encoder, CAUSAL, **alike).nll
    bare = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32).eval()
    opened = PeftModel.from_pretrained(bare, str(run.adapter)).eval()
    ids = collate(rows.tokens, [int(np.argmax(rows.tokens.lengths))], loaded.encoder.pad_id).input_ids
    with torch.no_grad():
        difference = float((opened(input_ids=ids).logits - loaded.model(input_ids=ids).logits).abs().max())
    rewritten = any("." in weight for weight in opened.peft_config["default"].target_parameters or ())
    assert difference <= (1e-4 if rewritten else 0)
    np.testing.assert_allclose(together, alone(opened, rows.tokens, loaded.encoder.pad_id), rtol=2e-6)
    with opened.disable_adapter(), torch.no_grad():
        off = opened(input_ids=ids).logits
        assert float((off - opened.base_model.model(input_ids=ids).logits).abs().max()) == 0

    plain = detach(loaded.model)
    return coverage(plain, targets, expert_targets(plain) if adapter.get("experts") else ()).split(" ")[0]


def alone(model: Any, tokens: Any, pad_id: int) -> list[float]:
    """The weighted loss of each row, computed by transformers without any other row."""
    found = []
    for row in range(len(tokens)):
        batch = collate(tokens, [row], pad_id)
        with torch.no_grad():
            likely = model(input_ids=batch.input_ids).logits[0].log_softmax(-1)
        nll = -likely[:-1].gather(1, batch.input_ids[0, 1:, None])[:, 0] * batch.weights[0, 1:]
        found.append(float(nll.double().sum()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_plain_peft_computes_row_by_row_what_was_measured(name: str, tmp_path: Path) -> None:
    assert of_the_family(name, tmp_path) == SHARES.get(name, "100%")


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_trains_with_its_experts_and_plain_peft_computes_the_same(name: str, tmp_path: Path) -> None:
    assert float(of_the_family(name, tmp_path, experts=True).strip("%")) > 95
