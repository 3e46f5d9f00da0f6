"""A base's own dropout is off in training unless it is asked for, and the adapter's is not touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from inlay.config import load
from inlay.engine.select_engine import refusal
from inlay.errors import ConfigError, ModelError
from inlay.methods.adapter import attach
from inlay.models.dropout import own_dropout, switch_off
from inlay.training.job import AdapterJob
from inlay.training.pre_flight import pre_flight
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from parts import save_base
from training_runs import Quiet

ENDS = {"vocab_size": 4096, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 3}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32, "attention_dropout": 0.1, "layerdrop": 0.3, **WIDE}),
    "llama": ("LlamaConfig", {"intermediate_size": 48, "attention_dropout": 0.2, **WIDE}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4, "hidden_size": 32, "hidden_dropout": 0.2, "attention_dropout": 0.1}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 48, "hidden_dropout": 0.2, "attention_dropout": 0.1, **WIDE}),
    "mixtral, jitter": ("MixtralConfig", {"intermediate_size": 48, "num_local_experts": 2, "num_key_value_heads": 4, "router_jitter_noise": 0.1, **WIDE}),
}  # fmt: skip


def model_of(family: str) -> Any:
    name, own = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**ENDS | own)
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def in_training(model: Any, seed: int) -> Tensor:
    model.train()
    torch.manual_seed(seed)
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.arange(20, 40)[None], use_cache=False).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_switched_off_it_draws_nothing_and_the_adapters_own_stays(family: str) -> None:
    model = model_of(family)
    assert own_dropout(model) > 0
    assert not torch.equal(in_training(model, 0), in_training(model, 1))
    switch_off(model)
    assert own_dropout(model) == 0
    assert torch.equal(in_training(model, 0), in_training(model, 1))
    tree = {"model": {"base_model": "x"}, "data": {"train": "x"}, "adapter": {"dropout": 0.5, "init": "gaussian"}}
    linear = next(n for n, layer in reversed([*model.named_modules()]) if type(layer).__name__ in ("Linear", "Conv1D") and "lm_head" not in n)  # fmt: skip
    adapted = attach(model, load(tree=tree), [linear.rpartition(".")[2]])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    assert own_dropout(adapted) == 0
    assert not torch.equal(in_training(adapted, 0), in_training(adapted, 1))


def test_a_base_that_draws_all_the_same_is_refused_with_the_way_out() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_dropout": 0.2}
    model = transformers.FalconForCausalLM(transformers.FalconConfig(**ENDS | shape, attention_dropout=0.1))
    with pytest.raises(ModelError, match=r"draws random numbers .* train.base_dropout=true"):
        switch_off(model)


def test_a_run_says_what_it_does_with_it_and_takes_the_handwritten_engine_without_it(
    tmp_path: Path, config_tree: Callable[..., dict[str, Any]]
) -> None:
    base = save_base(tmp_path / "base", model_of("llama"))

    def made(wanted: bool) -> AdapterJob:
        tree = config_tree(model={"base_model": str(base)}, train={"base_dropout": wanted})
        return make_single_job(load(tree=tree), Quiet(), ProcessGroup())

    off = made(False)
    assert dict(pre_flight(off).block())["base's dropout"] == "off (the base's config has 0.2)"
    assert off.engine.name == "handwritten"
    on = made(True)
    assert dict(pre_flight(on).block())["base's dropout"] == "on (the base's config has 0.2)"
    assert refusal(on.model, on.base.dtype, "none") == "the base's own dropout is on (train.base_dropout)"


def test_asking_for_the_dropout_of_a_base_that_has_none_is_an_error(
    config_tree: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(ConfigError, match="this base has no dropout"):
        make_single_job(load(tree=config_tree(train={"base_dropout": True})), Quiet(), ProcessGroup())
