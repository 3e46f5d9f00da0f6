"""Each statement about a run holds for what it says, and for nothing that differs from it in one place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inlay.proof.proofs import (
    Refuted,
    digests_of,
    every_matrix_moved,
    every_tensor_moved,
    every_value_is_finite,
    same_logits,
    same_losses,
    same_tensors,
)

LAYERS = [f"model.layers.{n}.{part}_proj.lora_{side}.weight" for n in range(2) for part in "qv" for side in "AB"]
ONE = st.sampled_from(LAYERS)


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 3, generator=generator) for name in LAYERS}


@given(ONE, st.integers(0, 5))
def test_one_changed_bit_of_a_saved_tensor_is_found_and_named(name: str, place: int) -> None:
    saved, expected = tensors(0), digests_of(tensors(0))
    assert same_tensors(saved, expected) == f"{len(LAYERS)} tensors bit for bit"
    saved[name].view(-1).view(torch.int32)[place] ^= 1
    with pytest.raises(Refuted, match=f"1 of 8 tensors differ, first {name}"):
        same_tensors(saved, expected)


@given(ONE)
def test_a_tensor_too_few_or_too_many_is_found(name: str) -> None:
    few, all_of_them = tensors(0), tensors(0)
    del few[name]
    for there, expected in ((few, all_of_them), (all_of_them, few)):
        with pytest.raises(Refuted, match=name):
            same_tensors(there, digests_of(expected))


@given(ONE, st.integers(2, 50))
def test_a_matrix_that_stayed_is_found_but_for_an_a_after_one_step(name: str, step: int) -> None:
    start, now = digests_of(tensors(0)), tensors(1)
    assert every_matrix_moved(start, now, None, step).startswith("8 matrices differ")
    now[name] = tensors(0)[name]
    with pytest.raises(Refuted, match="1 of 8 matrices are as they were"):
        every_matrix_moved(start, now, None, step)
    if ".lora_A." in name:
        assert every_matrix_moved(start, now, None, 1)
    else:
        with pytest.raises(Refuted):
            every_matrix_moved(start, now, None, 1)


def test_no_matrix_at_all_is_no_proof_that_they_moved() -> None:
    with pytest.raises(Refuted, match="no matrix A or B"):
        every_matrix_moved({}, {}, None, 3)
    with pytest.raises(Refuted, match="was not there when training began"):
        every_matrix_moved({}, tensors(0), None, 3)


def test_of_all_weights_a_vector_may_stay_and_a_matrix_may_not() -> None:
    start = tensors(0) | {"norm.weight": torch.ones(3)}
    moved = tensors(1) | {"norm.weight": torch.ones(3)}
    assert "1 vectors do not, first norm.weight" in every_tensor_moved(digests_of(start), moved)
    with pytest.raises(Refuted, match="2 of 9"):
        every_tensor_moved(digests_of(start), moved | {LAYERS[0]: start[LAYERS[0]]})
    with pytest.raises(Refuted, match=r"norm\.weight"):
        every_tensor_moved(digests_of(tensors(0)), moved)
    only = {"norm.weight": torch.ones(3)}
    with pytest.raises(Refuted, match="1 of 1"):
        every_tensor_moved(digests_of(only), only)


@given(ONE, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 5))
def test_one_value_that_is_no_number_is_found(name: str, wrong: float, place: int) -> None:
    found = tensors(0)
    assert every_value_is_finite(found).startswith("48 values")
    found[name].view(-1)[place] = wrong
    with pytest.raises(Refuted, match=f"1 of 8 tensors hold NaN or infinity, first {name}"):
        every_value_is_finite(found)


@given(st.floats(-20, 20, width=32), st.floats(1e-3, 0.2))
def test_logits_agree_within_the_tolerance_and_nan_agrees_with_nothing(logit: float, tolerance: float) -> None:
    a = torch.full((1, 2, 3), logit)
    assert same_logits(a, a.clone(), 0.0, "served").endswith("6 logits equal bit for bit")
    near, far = a.clone(), a.clone()
    near[0, 0, 0] += 0.5 * tolerance
    far[0, 0, 0] += 2 * tolerance * (1 + abs(logit))
    assert same_logits(a, near, tolerance, "served")
    far_and_nan = (far, torch.full_like(a, math.nan))
    for other in far_and_nan:
        with pytest.raises(Refuted, match="served: logits differ"):
            same_logits(a, other, tolerance, "served")


@given(st.lists(st.floats(0, 20), min_size=1, max_size=5), st.data())
def test_losses_agree_row_by_row_and_one_that_was_not_finite_agrees_with_nothing(
    losses: list[float], data: st.DataObject
) -> None:
    assert same_losses(losses, losses, 0.0, "stored") == "stored: loss as at the end of training"
    row = data.draw(st.integers(0, len(losses) - 1))
    apart = [*losses[:row], losses[row] + 0.01 * max(1.0, *losses) + 0.01, *losses[row + 1 :]]
    for now, then in ((apart, losses), (losses, [*losses[:row], None, *losses[row + 1 :]])):
        with pytest.raises(Refuted, match="stored: loss"):
            same_losses(now, then, 1e-3, "stored")
