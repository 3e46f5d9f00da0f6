"""Adapters that PEFT wrote: each computes here what it computes there, or is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file

from inlay.errors import AdapterError
from inlay.methods.adapter import detach
from inlay.methods.adapter_state import AdapterState
from methods.test_adapter import decoder, logits

LLAMA: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "rank and alpha by layer": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj": 3},
        "alpha_pattern": {"q_proj": 5, "layers.1.mlp.down_proj": 40},
    },
    "rank by a regular expression": {"rank_pattern": {r".*\.layers\.1\..*": 5, "nothing": 7}},
    "ranks all by themselves": {"rank_pattern": {"q_proj": 3, "v_proj": 5}},
    "alpha by full names": {
        "alpha_pattern": {
            r"^model\.layers\.0\.self_attn\.q_proj": 5,
            "model.layers.1.self_attn.v_proj": 40,
            "v_proj": 6,
        },
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 2},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "a regular expression": {"target_modules": r".*\.layers\.[01]\.self_attn\.(q|k)_proj"},
    "all but some": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.0\..*"},
    "all linear layers": {"target_modules": "all-linear"},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "a start beside the base": {"init_lora_weights": "orthogonal"},
}
GPT2: dict[str, dict[str, Any]] = {
    "biases": {"target_modules": ["c_attn", "c_proj"], "bias": "all"},
    "DoRA": {"target_modules": ["c_attn"], "use_dora": True},
}
PARTS = [*(("llama", name) for name in LLAMA), *(("gpt2", name) for name in GPT2)]


def write(folder: Path, kind: str, **lora: Any) -> torch.Tensor:
    """Has PEFT make and save an adapter with random values; the logits that PEFT gives with it read back."""
    settings = {
        "target_modules": ["q_proj", "v_proj"],
        "r": 4,
        "lora_alpha": 9,
        "fan_in_fan_out": kind == "gpt2",
    } | lora
    torch.manual_seed(1)
    model: Any = get_peft_model(decoder(kind), LoraConfig(task_type=TaskType.CAUSAL_LM, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(str(folder))
    return logits(PeftModel.from_pretrained(decoder(kind), str(folder)).eval())


@pytest.mark.filterwarnings("ignore")  # PEFT names what it does with a head
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_an_adapter_of_peft_computes_what_it_computes_there(kind: str, name: str, tmp_path: Path):
    expected = write(tmp_path, kind, **(LLAMA if kind == "llama" else GPT2)[name])
    original = logits(decoder(kind))
    assert not torch.allclose(expected, original, atol=1e-3)
    loaded = AdapterState.read(tmp_path).attach_to(decoder(kind))
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(detach(loaded)), original)


REFUSED = {
    "PiSSA": ({"init_lora_weights": "pissa"}, "was started with pissa"),
    "PiSSA, quickly": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "OLoRA": ({"init_lora_weights": "olora"}, "was started with olora"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "uses PEFT's modules_to_save"),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [5]}}, "uses PEFT's trainable_token_indices"),
    "biases of B": ({"lora_bias": True}, "uses PEFT's lora_bias"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_whose_meaning_lies_outside_a_b_and_scale_is_refused(name: str, tmp_path: Path):
    lora, said = REFUSED[name]
    write(tmp_path, "llama", **lora)
    with pytest.raises(AdapterError) as caught:
        AdapterState.read(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("init_lora_weights", "corda"), ("init_lora_weights", "loftq"), ("use_new_trick", 1)]
)
def test_a_setting_that_nobody_here_knows_is_refused(key: str, value: Any, tmp_path: Path):
    write(tmp_path, "llama")
    change(tmp_path, **{key: value})
    with pytest.raises(AdapterError, match=r"name the merged model|weight_conversion"):
        AdapterState.read(tmp_path)


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_in_place_of_the_bases_own_is_refused(tmp_path: Path):
    write(tmp_path, "llama", target_modules=["q_proj", "embed_tokens"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "base_layer" in name)
    save_file(tensors | {name: tensors[name] + 1}, file)
    base = decoder("llama")
    with pytest.raises(AdapterError, match=r"brings a .*embed_tokens\.base_layer\.weight of its own"):
        AdapterState.read(tmp_path).attach_to(base)
    assert torch.equal(logits(base), logits(decoder("llama")))
