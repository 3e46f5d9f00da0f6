"""An end of turn that the base never learned is found before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.models.untrained_ends import untrained_ends, untrained_ends_warning
from parts import make_base

END, EOS, RESERVED = 2, 0, (7, 8, 9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(str(make_base(tmp_path_factory.mktemp("base"))))


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)


def alike(model: Any, ids: tuple[int, ...], noise: float = 1e-4) -> None:
    weight = model.get_output_embeddings().weight.data
    torch.manual_seed(0)
    weight[list(ids)] = weight[list(ids)].mean(0) + noise * torch.randn(len(ids), weight.shape[1])


def test_an_end_whose_row_is_that_of_unused_tokens_is_found_and_told_with_the_way_out(
    model: Any, tokenizer: Any
) -> None:
    assert untrained_ends(model, tokenizer, {END, EOS}) == []
    assert untrained_ends_warning(model, tokenizer, {END, EOS}, EOS, ["q_proj"]) == ""
    alike(model, (END, *RESERVED))
    assert untrained_ends(model, tokenizer, {END, EOS}) == [END]
    told = untrained_ends_warning(model, tokenizer, {END, EOS}, EOS, ["q_proj"])
    assert "never learned '<|im_end|>'" in told
    assert "ends answers with '<|endoftext|>' (model.chat_template)" in told
    assert untrained_ends_warning(model, tokenizer, {END, EOS}, EOS, ["q_proj", "lm_head"]) == ""


def test_rows_of_zeros_and_those_behind_the_tokenizer_count_as_unused(tmp_path: Path, tokenizer: Any) -> None:
    base = make_base(tmp_path / "padded", vocab_size=len(tokenizer) + 8)
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    weight = model.get_output_embeddings().weight.data
    weight[[END, *range(len(tokenizer), len(tokenizer) + 8)]] = 0.0
    assert untrained_ends(model, tokenizer, {END}) == [END]


def test_an_end_that_is_apart_from_unused_tokens_is_trained(model: Any, tokenizer: Any) -> None:
    alike(model, RESERVED)
    assert untrained_ends(model, tokenizer, {END, EOS}) == []
    weight = model.get_output_embeddings().weight.data
    weight[END] = weight[RESERVED[0]] + 0.5 * weight[RESERVED[0]].norm() * torch.nn.functional.normalize(
        weight[50], dim=0
    )
    assert untrained_ends(model, tokenizer, {END, EOS}) == []
