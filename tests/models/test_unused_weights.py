"""A base whose files hold more than its config.json describes is another model, and is refused; what is harmless is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from inlay.config.sections.model import ModelConfig
from inlay.errors import ModelError
from inlay.models.base import find_base, load_model
from inlay.models.unused_weights import refuse_unused
from parts import edit_config, make_base


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base folder that a test may change."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def add(folder: Path, **tensors: Tensor) -> None:
    kept = load_file(folder / "model.safetensors")
    save_file(
        kept | {name.replace("__", "."): t for name, t in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def load(folder: Path) -> list[str]:
    """What is told when the base is loaded."""
    told: list[str] = []
    load_model(find_base(str(folder)), ModelConfig(base_model="x"), torch.float32, "cpu", "none", told.append)
    return told


OTHER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "fewer layers": (
        lambda f: edit_config(f, num_hidden_layers=1),
        "its files hold 2 layers, its config.json names 1: model.layers.1.",
    ),
    "a bias": (
        lambda f: add(f, model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
        "model.layers.0.self_attn.q_proj.bias of its files has no place",
    ),
    "a norm of the queries": (
        lambda f: add(f, model__layers__0__self_attn__q_norm__weight=torch.ones(8)), "q_norm.weight of its files",
    ),
    "a bias of the head": (lambda f: add(f, lm_head__bias=torch.ones(4)), "lm_head.bias of its files has no place"),
}  # fmt: skip


@pytest.mark.parametrize("change", OTHER)
def test_a_base_with_weights_that_its_config_has_no_place_for_is_refused(change: str, base: Path) -> None:
    act, said = OTHER[change]
    act(base)
    with pytest.raises(ModelError) as caught:
        load(base)
    assert said in str(caught.value)
    assert "Put back the config.json" in str(caught.value)


def test_what_is_computed_anyway_is_no_weight_and_what_is_beside_the_model_is_told(base: Path) -> None:
    add(
        base,
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
        model__layers__1__attn__masked_bias=torch.ones(1),
    )
    assert load(base) == []
    add(base, v_head__summary__weight=torch.ones(4), v_head__summary__bias=torch.ones(1))
    (told,) = load(base)
    assert "2 weights of its files are not used, first v_head.summary.bias" in told


def test_a_head_beside_a_config_that_ties_it_is_used_and_told(base: Path) -> None:
    edit_config(base, tie_word_embeddings=True)
    (told,) = load(base)
    assert "The head of the files is used" in told
    make_base(base, tie_word_embeddings=True)
    assert load(base) == []


def decoder(**shape: Any) -> Any:
    small = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small | shape))


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    further = [f"model.layers.2.{name}" for name in ("eh_proj.weight", "mlp.up_proj.weight")]
    assert refuse_unused("x", decoder(num_nextn_predict_layers=1), further) == []
    with pytest.raises(ModelError, match=r"hold 3 layers, its config\.json names 2"):
        refuse_unused("x", decoder(), further)
    with pytest.raises(ModelError, match=r"hold 3 layers, its config\.json names 2"):
        refuse_unused("x", decoder(num_nextn_predict_layers=1), further[1:])


def test_the_parts_that_see_are_no_part_of_the_text_part() -> None:
    seeing = [
        "vision_model.model.layers.7.mlp.fc1.weight",
        "model.visual.blocks.0.norm.weight",
        "multi_modal_projector.weight",
    ]
    assert refuse_unused("x", decoder(), seeing, part=True) == []
    assert len(refuse_unused("x", decoder(), seeing)) == 1
    with pytest.raises(ModelError):
        refuse_unused("x", decoder(), [*seeing, "layers.2.mlp.up_proj.weight"], part=True)
