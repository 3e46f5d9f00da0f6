"""Loops for generated tokens: torch's results in float64, and each row the same bits alone, among others and on more threads."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inlay.engine import cpu_ops, decode_ops
from inlay.engine.decode_ops import Groups, Rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they run on threads of GNU's OpenMP")
FORMATS = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Before the clock of an example runs."""
    assert decode_ops.reason(torch.float32) is None
    assert decode_ops.reason(torch.bfloat16) is None


def added(adapters: list[tuple[Tensor, Tensor]], of_rows: list[int], x_TI: Tensor, y_TO: Tensor) -> Tensor:
    """y + B A x, where row n has adapter `of_rows[n]`, or none at -1."""
    groups = sorted(set(of_rows) - {-1})
    rows = [[n for n, one in enumerate(of_rows) if one == group] for group in groups]
    bounds = torch.tensor([0, *(len(each) for each in rows)]).cumsum(0)
    table = [[each.data_ptr() for each in adapters[group]] + [len(adapters[group][0])] for group in groups]
    found, low = y_TO.clone(), torch.empty(len(of_rows), 12)
    which = Groups(len(groups), torch.tensor([n for each in rows for n in each]), bounds)
    decode_ops.add_adapters(found, x_TI, which, torch.tensor(table).view(-1, 3), low, adapters[0][0].dtype)
    return found


@settings(deadline=None, max_examples=40)
@given(
    FORMATS,
    st.lists(st.integers(-1, 3), min_size=1, max_size=9),
    st.integers(1, 300),
    st.integers(1, 600),
    st.integers(0, 99),
)
def test_each_row_gets_its_own_adapter(dtype: torch.dtype, of_rows: list[int], I: int, O: int, seed: int) -> None:  # noqa: E741
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    adapters = [(random(rank, I).to(dtype), random(rank, O).to(dtype)) for rank in (4, 8, 4, 12)]
    x_TI, y_TO = random(len(of_rows), I + 3)[:, :I], random(len(of_rows), O + 5)[:, 5:]
    got = added(adapters, of_rows, x_TI, y_TO)
    for n, one in enumerate(of_rows):
        if one < 0:
            assert torch.equal(got[n], y_TO[n])
            continue
        a_RI, b_RO = adapters[one]
        expected = y_TO[n].double() + x_TI[n].double() @ a_RI.double().T @ b_RO.double()
        assert (got[n] - expected).norm() <= 1e-5 * max(1.0, float(expected.norm()))
        assert torch.equal(added(adapters, [one], x_TI[n : n + 1], y_TO[n : n + 1])[0], got[n])
    with on_threads(2):
        assert torch.equal(added(adapters, of_rows, x_TI, y_TO), got)


class on_threads:  # noqa: N801
    """Inside, torch has so many."""

    def __init__(self, count: int) -> None:
        self.count, self.before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


KEY_HEADS, SIZE, BLOCK = 2, 8, 16


def attended(
    qkv_RO: Tensor, positions: list[int], pool: tuple[Tensor, Tensor], blocks: list[list[int]], rope: tuple[Tensor, Tensor],
    window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(out, keys, values) with copies of the pool."""
    keys, values = pool[0].clone(), pool[1].clone()
    heads = qkv_RO.shape[1] // SIZE - 2 * KEY_HEADS
    out_RO = qkv_RO.new_empty(len(qkv_RO), heads * SIZE)
    rows = Rows(torch.tensor(positions), torch.tensor(blocks), max(positions) + 1)
    decode_ops.attend(qkv_RO, out_RO, rows, keys, values, rope, heads, 0.3, window, softcap)
    return out_RO, keys, values


def turned(x_ND: Tensor, cos_E: Tensor, sin_E: Tensor) -> Tensor:
    half = len(cos_E)
    first, second = x_ND[:, :half].float(), x_ND[:, half : 2 * half].float()
    both = torch.cat([first * cos_E - second * sin_E, second * cos_E + first * sin_E], 1)
    return torch.cat([both.to(x_ND.dtype), x_ND[:, 2 * half :]], 1)


@settings(deadline=None, max_examples=40)
@given(
    FORMATS, st.lists(st.integers(0, 3 * BLOCK - 1), min_size=1, max_size=5), st.integers(1, 3), st.sampled_from([None, 1, 5, 20]),
    st.sampled_from([None, 2.0]), st.sampled_from([2, 4]), st.integers(0, 99),
)  # fmt: skip
def test_attention_of_each_row_over_its_own_blocks(
    dtype: torch.dtype,
    positions: list[int],
    group: int,
    window: int | None,
    softcap: float | None,
    half: int,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    count = len(positions)
    qkv_RO = torch.randn(count, (KEY_HEADS * group + 2 * KEY_HEADS) * SIZE, generator=draw).to(dtype)
    pool = tuple(torch.randn(3 * count, KEY_HEADS, BLOCK, SIZE, generator=draw).to(dtype) for _ in range(2))
    blocks = torch.randperm(3 * count, generator=draw).view(count, 3).tolist()
    angles = torch.rand(count, half, generator=draw)
    rope = angles.cos(), angles.sin()
    args = (pool[0], pool[1])
    got, keys, values = attended(qkv_RO, positions, args, blocks, rope, window, softcap)
    for n, position in enumerate(positions):
        q_HD, k_KD, v_KD = (
            part.view(-1, SIZE)
            for part in qkv_RO[n].split([KEY_HEADS * group * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE])
        )
        own = blocks[n][position // BLOCK], slice(None), position % BLOCK
        assert torch.equal(values[own], v_KD)
        assert torch.allclose(
            keys[own].float(),
            turned(k_KD, rope[0][n], rope[1][n]).float(),
            atol=1e-2 if dtype == torch.bfloat16 else 1e-6,
        )
        k_KSD, v_KSD = (
            part[blocks[n]].transpose(0, 1).flatten(1, 2)[:, : position + 1].double() for part in (keys, values)
        )
        q_KGD = turned(q_HD, rope[0][n], rope[1][n]).double().view(KEY_HEADS, group, SIZE)
        scores = q_KGD @ k_KSD.transpose(1, 2) * 0.3
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        if window is not None:
            scores[..., : max(0, position + 1 - window)] = -torch.inf
        expected = (scores.softmax(-1) @ v_KSD).flatten()
        assert (got[n] - expected).norm() <= (2e-2 if dtype == torch.bfloat16 else 1e-5) * float(expected.norm())
        alone = attended(
            qkv_RO[n : n + 1], [position], args, [blocks[n]], (rope[0][n : n + 1], rope[1][n : n + 1]), window, softcap
        )
        assert torch.equal(alone[0][0], got[n])
    with on_threads(2):
        assert torch.equal(attended(qkv_RO, positions, args, blocks, rope, window, softcap)[0], got)


def test_a_training_start_does_not_compile_them() -> None:
    assert "decode_loops.py" not in cpu_ops.LOOP_SOURCES
