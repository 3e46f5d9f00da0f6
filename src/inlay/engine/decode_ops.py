"""Operations on generated tokens, each as one loop on the CPU: the adapters of many rows, and attention over a pool of blocks.

They are compiled as those of `inlay.engine.cpu_ops` are, but apart. A row's result depends on that row alone, bit for bit.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from inlay.engine import cpu_ops

_MODULE = "decode_loops"
_NO_WINDOW = 1 << 40
_FEWEST_ROWS = 2


def reason(dtype: torch.dtype) -> str | None:
    """The reason why there are no loops for a dtype here, None where there are. Waits for their compilation."""
    return cpu_ops.reason(dtype, _MODULE)


def prepare(dtype: torch.dtype) -> None:
    """Begins to compile the loops for a dtype beside what this process does, unless they are there."""
    cpu_ops.prepare(dtype, _MODULE)


@functools.cache
def _address(name: str, dtype: torch.dtype) -> int:
    return cpu_ops._address(name, dtype, _MODULE)


class Groups(NamedTuple):
    """Rows by their adapter."""

    adapters: int
    rows_N: Tensor
    """int64: the rows of the first group, then those of the second, and so on."""
    bounds: Tensor
    """int64 (adapters + 1): the places in `rows_N` where a group begins, and the end of the last."""


def add_adapters(
    y_TO: Tensor, x_TI: Tensor, groups: Groups, adapters_G3: Tensor, low_NR: Tensor, dtype: torch.dtype
) -> None:
    """y += B A x of the rows in groups; x and y in float32.

    A row of `adapters_G3` (int64) is (address of A (R, I), address of B (R, O), R) of a group, in memory of `dtype`; R is a
    multiple of 4, or 0 for a group that has none here. `low_NR` is room for A x, in float32.
    """
    cpu_ops.run_on(
        torch.get_num_threads(), _address("add_adapters", dtype), groups.adapters, x_TI.shape[1], y_TO.shape[1], x_TI.data_ptr(),
        x_TI.stride(0), y_TO.data_ptr(), y_TO.stride(0), adapters_G3.data_ptr(), adapters_G3.stride(0),
        groups.bounds.data_ptr(), groups.rows_N.data_ptr(), low_NR.data_ptr(), low_NR.stride(0),
    )  # fmt: skip


class Rows(NamedTuple):
    """Generated tokens of one step."""

    positions_R: Tensor
    """int64"""
    blocks_RN: Tensor
    """int64: the blocks of each row's sequence in the pool, in order."""
    longest: int
    """The largest number of keys that a row sees."""


def attend(
    qkv_RO: Tensor, out_RO: Tensor, rows: Rows, keys: Tensor, values: Tensor, rope: tuple[Tensor, Tensor], heads: int,
    scaling: float, window: int | None, softcap: float | None,
) -> None:  # fmt: skip
    """Mixtures of the values that each row's query heads see, after its own key and value were stored in the pool.

    `qkv_RO` has the query heads, then the key heads, then the values of each row, before RoPE; the pool is (blocks, key
    heads, positions, size). `rope` are cos and sin (R, E) in float32.
    """
    _, key_heads, block_size, size = keys.shape
    cos_RE, sin_RE = rope
    threads = torch.get_num_threads() if len(qkv_RO) >= _FEWEST_ROWS else 1
    room = torch.empty(threads, heads // key_heads * (2 * size + rows.longest) + 16, dtype=torch.float32)
    cpu_ops.run_on(
        threads, _address("attend", qkv_RO.dtype), len(qkv_RO), heads, key_heads, size, block_size, qkv_RO.data_ptr(),
        qkv_RO.stride(0), out_RO.data_ptr(), out_RO.stride(0), rows.positions_R.data_ptr(), rows.blocks_RN.data_ptr(),
        rows.blocks_RN.stride(0), keys.data_ptr(), values.data_ptr(), cos_RE.data_ptr(), sin_RE.data_ptr(), cos_RE.stride(0),
        cos_RE.shape[1], float(scaling), window or _NO_WINDOW, float(softcap or 0), room.data_ptr(), room.stride(0),
    )  # fmt: skip
