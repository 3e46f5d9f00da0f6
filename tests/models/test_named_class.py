"""An adapter for the text part of a larger base has its effect in the class that the base's config.json names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from inlay import api
from inlay.cli.render.run import after_training
from inlay.config.sections.model import ModelConfig
from inlay.models.base import find_base, load_model
from inlay.models.named_class import named_class, pattern_for_both, renamed, reverse
from parts import NANO

TEXT = {
    "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
WHOLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_5": (
        {
            "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
        {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [],
        },
    ),
    "llama4": (
        {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "attention_chunk_size": 64, "interleave_moe_layer_step": 2},
        SEEING | {"projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16},
    ),
}  # fmt: skip
TRAINED = {"qwen3_5": "Qwen3_5ForCausalLM", "llama4": "Llama4ForCausalLM"}


def make_whole(kind: str, folder: Path) -> Path:
    """A tiny base that also sees, as it is published: config.json of the whole, and the text part under a longer name."""
    text, vision = WHOLES[kind]
    config = transformers.AutoConfig.for_model(kind, text_config=TEXT | text, vision_config=vision)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / name, folder / name)
    return folder


IDS = torch.arange(20, 60)[None]


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits.float().clone()


def loaded(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(str(folder), dtype=torch.float32)


@pytest.mark.filterwarnings("ignore")  # of libraries: kernels that are not installed
def test_an_adapter_has_the_same_effect_in_the_class_that_config_json_names(
    tmp_path: Path, config_tree: Callable[..., dict[str, Any]]
) -> None:
    base = make_whole("qwen3_5", tmp_path / "base")
    tree = config_tree(
        model={"base_model": str(base)}, train={"max_steps": 2, "learning_rate": 0.05}, output={"name": "a"}
    )
    run = api.train(tree)
    here, bare = logits(api.load(run).model), logits(api.load(run, adapter=False).model)
    assert float((here - bare).abs().max()) > 1e-3
    whole = PeftModel.from_pretrained(loaded(transformers.Qwen3_5ForConditionalGeneration, base), str(run.adapter))
    assert torch.equal(logits(whole), here)
    adapted = [name for name, _ in whole.named_modules() if name.endswith("lora_A")]
    assert all("language_model" in name for name in adapted)  # and not the part that sees
    part = PeftModel.from_pretrained(
        loaded(transformers.AutoModelForCausalLM, base),
        str(run.adapter),
        key_mapping={r"model\.language_model": "model"},
    )
    assert torch.equal(logits(part), here)
    card = json.loads((run.adapter / "card.json").read_text())
    assert (
        card["class"]
        == "Qwen3_5ForCausalLM, saved under the names of Qwen3_5ForConditionalGeneration, which config.json names"
    )
    assert card["opens_in"] == run.result.opens_in == "Qwen3_5ForConditionalGeneration"
    assert "opens with PEFT on transformers' Qwen3_5ForConditionalGeneration\n" in after_training(run)
    assert api.verify(run)["passed"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WHOLES)
def test_what_is_renamed_is_filled_from_the_same_weights_of_the_file(kind: str, tmp_path: Path) -> None:
    base = find_base(str(make_whole(kind, tmp_path)))
    model = load_model(base, ModelConfig(base_model="x"), torch.float32, "cpu", "none")
    named = named_class(base, model)
    assert named is not None
    assert (named.trained, named.unproven) == (TRAINED[kind], "")
    whole = dict(loaded(getattr(transformers, named.name), tmp_path).named_parameters())
    moved = {named.there(name): weight for name, weight in model.named_parameters()}
    assert {*moved} <= {*whole}
    assert all(torch.equal(weight, whole[name]) for name, weight in moved.items())


@pytest.mark.filterwarnings("ignore")
def test_a_class_that_cannot_be_matched_is_named_with_the_reason(tmp_path: Path) -> None:
    base = find_base(str(make_whole("qwen3_5", tmp_path)))
    model = load_model(base, ModelConfig(base_model="x"), torch.float32, "cpu", "none")
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"architectures": ["GPT2LMHeadModel"]}))
    named = named_class(base, model)
    assert named is not None
    assert not named.prefixes
    assert "config.json names GPT2LMHeadModel, in which the adapter has no effect: " in named.summary()


def test_a_base_of_the_class_that_its_config_names_is_left_alone(tiny_base: Path) -> None:
    base = find_base(str(tiny_base))
    assert named_class(base, load_model(base, ModelConfig(base_model="x"), torch.float32, "cpu", "none")) is None


MODULES = [
    *(f"model.layers.{n}.{part}" for n in range(12) for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.experts.3.w1")),
    "lm_head", "model.norm",
]  # fmt: skip


@settings(max_examples=50)
@given(st.sets(st.sampled_from(MODULES), min_size=1), st.sampled_from([{"": "", "model": "model.text"}, {"": "text"}]))
def test_the_pattern_for_both_finds_just_the_modules_that_are_adapted(
    adapted: set[str], prefixes: dict[str, str]
) -> None:
    tensors = {f"base_model.model.{name}.lora_{side}.weight": 0 for name in adapted for side in "AB"}
    pattern = pattern_for_both(tensors, prefixes)
    there = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in renamed(tensors, prefixes)}
    assert {name for name in MODULES if re.fullmatch(pattern, name)} == adapted
    assert {name for name in (*there, "vision.layers.1.self_attn.q_proj") if re.fullmatch(pattern, name)} == there
    assert renamed(renamed(tensors, prefixes), reverse(prefixes)) == tensors
