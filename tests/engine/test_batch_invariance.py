"""Rows that share a batch are computed as each alone, whatever the base makes of padding and of long rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from inlay.data.batches import micro_batches
from inlay.data.encoding.encoder import Encoder
from inlay.data.types import Message
from inlay.engine.batch_invariance import BatchGroups, answer_groups, batch_groups, groups_of_config
from inlay.generation.generate import full_answers
from inlay.generation.request import Sampling
from parts import save_base
from training_runs import train

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
         "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 256, "initializer_range": 0.15,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # fmt: skip
SWITCH = 40
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 8.0, 20.0],
            "factor": 4.0, "original_max_position_embeddings": SWITCH}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("Phi3Config", {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH}),
    "rwkv": ("RwkvConfig", {"attention_hidden_size": 32, "context_length": 256}),
    "recurrent gemma": ("RecurrentGemmaConfig", {"lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 16}),
    "llama": ("LlamaConfig", {}),
    "mixture": ("MixtralConfig", {"num_local_experts": 4}),
    "mamba": ("MambaConfig", {"state_size": 4, "intermediate_size": 64}),
}  # fmt: skip


def model_of(family: str) -> Any:
    name, own = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SHAPE | own)
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("family", "on_the_right", "on_the_left"),
    [
        ("longrope", True, True), ("llama", True, True), ("mixture", True, True), ("mamba", True, True),
        ("rwkv", True, False), ("recurrent gemma", True, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_that_leaks_into_a_row_is_found_in_every_dtype(
    family: str, on_the_right: bool, on_the_left: bool, dtype: torch.dtype
) -> None:
    model = model_of(family).to(dtype)
    assert (batch_groups(model).pads, answer_groups(model).pads) == (on_the_right, on_the_left)


def test_a_base_that_computes_nothing_is_not_remembered_as_one_whose_padding_leaks() -> None:
    broken, whole = model_of("llama"), model_of("llama")
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    assert batch_groups(broken).pads
    assert batch_groups(whole).pads
    leaking, still = model_of("rwkv"), model_of("rwkv")
    for parameter in still.parameters():
        torch.nn.init.zeros_(parameter)
    assert answer_groups(still).pads
    assert not answer_groups(leaking).pads


def test_losses_of_a_longrope_base_depend_on_no_batch_size_and_no_engine(
    tmp_path: Path, config_tree: Callable[..., dict[str, Any]]
) -> None:
    base = save_base(tmp_path / "base", model_of("longrope"))

    def losses(engine: str, micro: int, at_once: int) -> list[float]:
        train_ = {"engine": engine, "micro_batch_size": micro, "max_steps": 1}
        run = train(
            config_tree(
                model={"base_model": str(base)}, eval={"batch_size": at_once}, train=train_, output={"name": engine}
            )
        )
        return [line[name] for line in run.metrics for name in ("loss", "eval_loss") if name in line]

    np.testing.assert_allclose(losses("handwritten", 8, 16), losses("autograd", 1, 1), rtol=2e-6)


@pytest.mark.parametrize("family", ["longrope", "rwkv", "recurrent gemma"])
def test_an_answer_in_a_batch_is_the_one_that_its_prompt_gets_alone(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    base = save_base(tmp_path / "base", model)
    encoder = Encoder(transformers.AutoTokenizer.from_pretrained(str(base)))
    asked = ["Hi", "Hi!", "Where is my parcel, and when will it come?", "One two three", "?", "Refunds, " * 15]
    prompts = [encoder.prompt([Message("user", text)]) for text in asked]
    assert min(map(len, prompts)) < SWITCH < max(map(len, prompts))
    sampling = Sampling(max_new_tokens=24)
    assert full_answers(model, encoder, prompts, sampling) == [
        full_answers(model, encoder, [prompt], sampling)[0] for prompt in prompts
    ]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    at_once=st.integers(1, 9),
    together=st.builds(BatchGroups, st.none() | st.integers(1, 60), st.booleans(), st.booleans()),
)
def test_micro_batches_hold_every_row_once_and_none_that_must_be_apart(
    lengths: list[int], at_once: int, together: BatchGroups
) -> None:
    sizes = np.array(lengths)
    found = together.apart(micro_batches(range(len(sizes)), sizes, at_once), sizes)
    assert sorted(row for share in found for row in share) == list(range(len(sizes)))
    for share in found:
        held = sizes[share]
        assert len(share) <= (at_once if together.shares else 1)
        assert together.pads or held.min() == held.max()
        assert together.switch is None or (held > together.switch).all() or (held <= together.switch).all()


def test_virtual_tokens_take_their_part_of_the_length_at_which_the_frequencies_change() -> None:
    config = model_of("longrope").config
    assert groups_of_config(config).switch == SWITCH
    assert groups_of_config(config, virtual=15).switch == SWITCH - 15
    assert groups_of_config(model_of("llama").config).switch is None
