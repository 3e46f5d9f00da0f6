"""The loops of `inlay.engine.decode_ops`, for tokens that are generated one by one; see `inlay.engine.cpu_loops`.

None of a row's sums depends on the other rows, nor on how many threads there are.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types

from inlay.engine.cpu_loops import write_object_code
from inlay.engine.cpu_numbers import (
    exp,
    fetch,
    floats,
    integers,
    larger,
    number,
    one,
    ordered,
    plus,
    real,
    stored,
    table,
    tanh,
    thread,
    threads,
    values,
    wide,
)

_barrier = types.ExternalFunction("GOMP_barrier", types.void())
_AT_ONCE: Final = 256
"""Outputs of one task: the same ones whatever the number of threads."""
_LINE: Final = 32
"""Values of a cache line, if they have 16 bits; of wider ones every other line is fetched, and the processor finds the rest."""
_ZERO: Final = np.float32(0)


def add_adapters(call):
    """groups, I, O, x and y (address, step; float32), adapters (address, step), bounds, rows, low (address, step; float32):
    y += B A x of each row, by the adapter of its group. An adapter is (address of A (R, I), address of B (R, O), R), with R
    a multiple of 4; group g has the rows `rows[bounds[g]:bounds[g + 1]]`; low (rows, largest R) is room for A x."""
    a = table(call)
    groups, inputs, outputs = a[0], a[1], a[2]
    x, x_step, y, y_step = floats(call, a[3]), a[4], floats(call, a[5]), a[6]
    adapters, step, bounds, rows = integers(call, a[7]), a[8], integers(call, a[9]), integers(call, a[10])
    low, low_step = floats(call, a[11]), a[12]
    this, of = np.int64(thread()), np.int64(threads())
    for g in range(groups):
        down, rank = values(call, adapters[g * step]), adapters[g * step + 2]
        who, quarter = (this + g) % of, rank // 4
        for quad in range(quarter * who // of, quarter * (who + 1) // of):
            r = quad * 4
            for line in range(4 * inputs // _LINE):
                fetch(down, (r + 4) * inputs + line * _LINE)
            for n in range(bounds[g], bounds[g + 1]):
                at, of_0 = rows[n] * x_step, r * inputs
                of_1, of_2, of_3 = of_0 + inputs, of_0 + 2 * inputs, of_0 + 3 * inputs
                low_0, low_1, low_2, low_3 = _ZERO, _ZERO, _ZERO, _ZERO
                for i in range(inputs):
                    low_0 = plus(low_0, wide(down[of_0 + i]) * x[at + i])
                    low_1 = plus(low_1, wide(down[of_1 + i]) * x[at + i])
                    low_2 = plus(low_2, wide(down[of_2 + i]) * x[at + i])
                    low_3 = plus(low_3, wide(down[of_3 + i]) * x[at + i])
                to = n * low_step + r
                low[to], low[to + 1], low[to + 2], low[to + 3] = low_0, low_1, low_2, low_3
    _barrier()
    tasks = (outputs + _AT_ONCE - 1) // _AT_ONCE
    for g in range(groups):
        up, rank = values(call, adapters[g * step + 1]), adapters[g * step + 2]
        who = (this + g) % of
        for task in range(tasks * who // of, tasks * (who + 1) // of):
            first, end = task * _AT_ONCE, min((task + 1) * _AT_ONCE, outputs)
            for quad in range(rank // 4):
                r = quad * 4
                of_0 = r * outputs
                of_1, of_2, of_3 = of_0 + outputs, of_0 + 2 * outputs, of_0 + 3 * outputs
                for next_row in range(4, 8):
                    for value in range((end - first) // _LINE):
                        fetch(up, of_0 + next_row * outputs + first + value * _LINE)
                for n in range(bounds[g], bounds[g + 1]):
                    at, to = n * low_step + r, rows[n] * y_step
                    low_0, low_1, low_2, low_3 = low[at], low[at + 1], low[at + 2], low[at + 3]
                    for o in range(first, end):
                        y[to + o] = (
                            y[to + o]
                            + (low_0 * wide(up[of_0 + o]) + low_1 * wide(up[of_1 + o]))
                            + (low_2 * wide(up[of_2 + o]) + low_3 * wide(up[of_3 + o]))
                        )


def attend(call):
    """rows, H, K, D, S, qkv (address, step), out (address, step), positions, blocks (address, step), keys, values, cos and
    sin (address, step; float32), half, scaling, window, cap (0: none), room (address, step; float32): each row's query heads
    over the keys up to its position, in blocks of S positions (K, S, D); its own key and value are stored first. RoPE turns
    the pairs (i, i + half). A thread's room has H / K · (D + longest row) numbers, and D more for each query head."""
    a = table(call)
    count, heads, key_heads, size, block_size = a[0], a[1], a[2], a[3], a[4]
    qkv, qkv_step, out, out_step = values(call, a[5]), a[6], values(call, a[7]), a[8]
    positions, blocks, blocks_step = integers(call, a[9]), integers(call, a[10]), a[11]
    keys, kept = values(call, a[12]), values(call, a[13])
    cos, sin, rope_step, half = floats(call, a[14]), floats(call, a[15]), a[16], a[17]
    scaling, window, cap = real(a[18]), a[19], real(a[20])
    this, of = np.int64(thread()), np.int64(threads())
    room, group = floats(call, a[21] + this * a[22] * 4), heads // key_heads
    width = group * size
    for task in range(count * key_heads):
        if task % of != this:
            continue
        row, head = task // key_heads, task % key_heads
        position, angle = positions[row], row * rope_step
        of_q = row * qkv_step + head * width
        of_k = row * qkv_step + (heads + head) * size
        of_v = of_k + key_heads * size
        own = (blocks[row * blocks_step + position // block_size] * key_heads + head) * block_size * size
        own += position % block_size * size
        for i in range(size):
            keys[own + i] = qkv[of_k + i]
            kept[own + i] = qkv[of_v + i]
        for i in range(half):
            c, s = cos[angle + i], sin[angle + i]
            first, second = wide(qkv[of_k + i]), wide(qkv[of_k + half + i])
            keys[own + i] = stored(first * c - second * s, qkv[0])
            keys[own + half + i] = stored(second * c + first * s, qkv[0])
        for g in range(group):
            at, to = of_q + g * size, g * size
            for i in range(size):
                room[to + i] = wide(qkv[at + i])
            for i in range(half):
                c, s = cos[angle + i], sin[angle + i]
                first, second = wide(qkv[at + i]), wide(qkv[at + half + i])
                room[to + i] = wide(stored(first * c - second * s, qkv[0]))
                room[to + half + i] = wide(stored(second * c + first * s, qkv[0]))
        low = max(np.int64(0), position + 1 - window)
        seen = position + 1 - low
        for n in range(low // block_size, position // block_size + 1):
            start = n * block_size
            block = (blocks[row * blocks_step + n] * key_heads + head) * block_size * size
            first, end = max(low, start), min(position + 1, start + block_size)
            for quad in range((end - first) // 4):
                j = first + 4 * quad
                of_0 = block + (j - start) * size
                of_1, of_2, of_3 = of_0 + size, of_0 + 2 * size, of_0 + 3 * size
                for g in range(group):
                    s_0, s_1, s_2, s_3 = _ZERO, _ZERO, _ZERO, _ZERO
                    for i in range(size):
                        q = room[g * size + i]
                        s_0 = plus(s_0, q * wide(keys[of_0 + i]))
                        s_1 = plus(s_1, q * wide(keys[of_1 + i]))
                        s_2 = plus(s_2, q * wide(keys[of_2 + i]))
                        s_3 = plus(s_3, q * wide(keys[of_3 + i]))
                    to = 2 * width + g * seen + j - low
                    room[to], room[to + 1], room[to + 2], room[to + 3] = s_0, s_1, s_2, s_3
            for j in range(end - (end - first) % 4, end):
                of_0 = block + (j - start) * size
                for g in range(group):
                    score = _ZERO
                    for i in range(size):
                        score = plus(score, room[g * size + i] * wide(keys[of_0 + i]))
                    room[2 * width + g * seen + j - low] = score
        for i in range(2 * width, 2 * width + group * seen):
            score = room[i] * scaling
            room[i] = cap * tanh(score / cap) if cap > 0 else score
        for g in range(group):
            at = 2 * width + g * seen
            most = ordered(room[at])
            for j in range(at, at + seen):
                most = larger(most, ordered(room[j]))
            largest, total = number(most), _ZERO
            for j in range(at, at + seen):
                e = exp(room[j] - largest)
                total = plus(total, e)
                room[j] = e
            share = one / total
            for j in range(at, at + seen):
                room[j] = room[j] * share
        for i in range(width):
            room[width + i] = _ZERO
        for n in range(low // block_size, position // block_size + 1):
            start = n * block_size
            block = (blocks[row * blocks_step + n] * key_heads + head) * block_size * size
            first, end = max(low, start), min(position + 1, start + block_size)
            for quad in range((end - first) // 4):
                j = first + 4 * quad
                of_0 = block + (j - start) * size
                of_1, of_2, of_3 = of_0 + size, of_0 + 2 * size, of_0 + 3 * size
                for g in range(group):
                    at, to = 2 * width + g * seen + j - low, width + g * size
                    p_0, p_1, p_2, p_3 = room[at], room[at + 1], room[at + 2], room[at + 3]
                    for i in range(size):
                        room[to + i] = (
                            room[to + i]
                            + (p_0 * wide(kept[of_0 + i]) + p_1 * wide(kept[of_1 + i]))
                            + (p_2 * wide(kept[of_2 + i]) + p_3 * wide(kept[of_3 + i]))
                        )
            for j in range(end - (end - first) % 4, end):
                of_0 = block + (j - start) * size
                for g in range(group):
                    p_0, to = room[2 * width + g * seen + j - low], width + g * size
                    for i in range(size):
                        room[to + i] = room[to + i] + p_0 * wide(kept[of_0 + i])
        to = row * out_step + head * width
        for i in range(width):
            out[to + i] = stored(room[width + i], qkv[0])


LOOPS: Final = (add_adapters, attend)


if __name__ == "__main__":
    write_object_code(LOOPS)
