"""The loops of `inlay.engine.cpu_ops`, which numba compiles; `python -m inlay.engine.cpu_loops FORMAT` writes object code
behind its digest.

Each is a C function of one pointer, to the numbers that `cpu_ops._run` lays out: how many rows there are, then what the
loop's docstring lists. Every thread of a team enters it and takes its share of the rows. A row of a tensor begins at
`address + (r // n)·outer + (r % n)·inner` in elements, and its values lie side by side.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from numba import cfunc, config, njit, types

from inlay.engine.cpu_numbers import (
    INEXACT,
    exp,
    floats,
    integers,
    inverse_root,
    larger,
    number,
    one,
    ordered,
    plus,
    real,
    share,
    stored,
    table,
    tanh,
    thread,
    values,
    wide,
)

_FORMATS: Final = {"float32": types.float32, "bfloat16": types.uint16}


def rms_norm(call):
    """n, width, x and y (address, outer, inner), weight, factor, epsilon: y = w·x·f with f = 1 / sqrt(mean(x²) + ε)."""
    a = table(call)
    first, end = share(a[0])
    n, width, x, y, w, factor = (
        a[1],
        a[2],
        values(call, a[3]),
        values(call, a[6]),
        floats(call, a[9]),
        floats(call, a[10]),
    )
    epsilon = real(a[11])
    for r in range(first, end):
        at, to = r // n * a[4] + r % n * a[5], r // n * a[7] + r % n * a[8]
        squares = np.float32(0)
        for i in range(width):
            squares = plus(squares, wide(x[at + i]) * wide(x[at + i]))
        f = inverse_root(squares / np.float32(width) + epsilon)
        factor[r] = f
        for i in range(width):
            y[to + i] = stored(wide(x[at + i]) * f * w[i], x[at])


def rms_scaled(call):
    """n, width, x and y (address, outer, inner), weight, factor: y = w·x·f."""
    a = table(call)
    first, end = share(a[0])
    n, width, x, y, w, factor = (
        a[1],
        a[2],
        values(call, a[3]),
        values(call, a[6]),
        floats(call, a[9]),
        floats(call, a[10]),
    )
    for r in range(first, end):
        at, to, f = r // n * a[4] + r % n * a[5], r // n * a[7] + r % n * a[8], factor[r]
        for i in range(width):
            y[to + i] = stored(wide(x[at + i]) * f * w[i], x[at])


def rms_norm_backward(call):
    """n, width, dy, x, dx, more (address, outer, inner), weight, factor, whether there is more:
    dx = f·(w·dy) - x·f³·mean((w·dy)·x) + more."""
    a = table(call)
    first, end = share(a[0])
    n, width, w, factor, adds = a[1], a[2], floats(call, a[15]), floats(call, a[16]), a[17]
    dy, x, dx, more = values(call, a[3]), values(call, a[6]), values(call, a[9]), values(call, a[12])
    for r in range(first, end):
        t, h = r // n, r % n
        of_dy, of_x = t * a[4] + h * a[5], t * a[7] + h * a[8]
        of_dx, of_more = t * a[10] + h * a[11], t * a[13] + h * a[14]
        inner = np.float32(0)
        for i in range(width):
            inner = plus(inner, wide(dy[of_dy + i]) * w[i] * wide(x[of_x + i]))
        f = factor[r]
        pull = inner * f * f * f / np.float32(width)
        if adds:
            for i in range(width):
                slope = wide(dy[of_dy + i]) * w[i] * f - wide(x[of_x + i]) * pull + wide(more[of_more + i])
                dx[of_dx + i] = stored(slope, x[of_x])
        else:
            for i in range(width):
                dx[of_dx + i] = stored(wide(dy[of_dy + i]) * w[i] * f - wide(x[of_x + i]) * pull, x[of_x])


@njit
def silu_inside(g):
    """silu(g) = g·sigmoid(g): what the sigmoid is of, and its slope."""
    return g, one


_ROOT, _CUBE = np.float32(2 * math.sqrt(2 / math.pi)), np.float32(0.044715)


@njit
def gelu_inside(g):
    """gelu by its tanh, as g·sigmoid(2·sqrt(2 / π)·(g + 0.044715·g³)): 1 + tanh(y) = 2 sigmoid(2 y)."""
    return _ROOT * (g + _CUBE * g * g * g), _ROOT * (one + np.float32(3) * _CUBE * g * g)


def _gated(act: str, inside: Any) -> tuple[Any, Any]:
    """The loops `gated_…` and `gated_…_backward` of an activation g·sigmoid(inside(g))."""

    def forward(call):
        """width, gate, up and h (address, step): h = act(gate)·up."""
        a = table(call)
        first, end = share(a[0])
        width, gate, up, h = a[1], values(call, a[2]), values(call, a[4]), values(call, a[6])
        for r in range(first, end):
            of_gate, of_up, of_h = r * a[3], r * a[5], r * a[7]
            for i in range(width):
                g = wide(gate[of_gate + i])
                y, _ = inside(g)
                h[of_h + i] = stored(g / (one + exp(-y)) * wide(up[of_up + i]), gate[0])

    def backward(call):
        """width, gate, up and dh (address, step). The gradients by gate and up are written over them."""
        a = table(call)
        first, end = share(a[0])
        width, gate, up, dh = a[1], values(call, a[2]), values(call, a[4]), values(call, a[6])
        for r in range(first, end):
            of_gate, of_up, of_dh = r * a[3], r * a[5], r * a[7]
            for i in range(width):
                g, d = wide(gate[of_gate + i]), wide(dh[of_dh + i])
                y, dy = inside(g)
                sigmoid = one / (one + exp(-y))
                slope = sigmoid * (one + g * (one - sigmoid) * dy)
                gate[of_gate + i] = stored(d * wide(up[of_up + i]) * slope, gate[0])
                up[of_up + i] = stored(d * g * sigmoid, gate[0])

    forward.__name__, backward.__name__ = f"gated_{act}", f"gated_{act}_backward"
    return forward, backward


def causal_softmax(call):
    """width, scores (address), n, back, window, a row of float32 for each thread: over each row of scores its softmax;
    row r is that of query r % n, which sees the keys up to `back + r % n`, and of them the last `window`."""
    a = table(call)
    first, end = share(a[0])
    width, p, n, back, window = a[1], values(call, a[2]), a[3], a[4], a[5]
    unrounded = floats(call, a[6] + np.int64(thread()) * width * 4)
    for r in range(first, end):
        at = r * width
        high = min(back + r % n + 1, width)
        low = max(high - window, 0)
        most = ordered(wide(p[at + low]))
        for i in range(at + low, at + high):
            most = larger(most, ordered(wide(p[i])))
        largest, total = number(most), np.float32(0)
        for i in range(low, high):
            unrounded[i] = exp(wide(p[at + i]) - largest)
        # A sum beside a store is only vectorised where the two arrays lie far apart: its order would hang on addresses.
        for i in range(low, high):
            total = plus(total, unrounded[i])
        for i in range(low, high):
            p[at + i] = stored(unrounded[i] / total, p[0])
        for i in range(at, at + low):
            p[i] = stored(np.float32(0), p[0])
        for i in range(at + high, at + width):
            p[i] = stored(np.float32(0), p[0])


def causal_softmax_backward(call):
    """width, dp (address), n, back, window, p (address): over dp the gradient p·(dp - sum(p·dp)) by the scores."""
    a = table(call)
    first, end = share(a[0])
    width, dp, n, back, window, p = a[1], values(call, a[2]), a[3], a[4], a[5], values(call, a[6])
    for r in range(first, end):
        at = r * width
        high = min(back + r % n + 1, width)
        low = max(high - window, 0)
        inner = np.float32(0)
        for i in range(at + low, at + high):
            inner = plus(inner, wide(p[i]) * wide(dp[i]))
        for i in range(at + low, at + high):
            dp[i] = stored(wide(p[i]) * (wide(dp[i]) - inner), p[0])
        for i in range(at, at + low):
            dp[i] = stored(np.float32(0), p[0])
        for i in range(at + high, at + width):
            dp[i] = stored(np.float32(0), p[0])


def slopes(call):
    """width, z (address), targets, nll, sums, cap (0: none): with l = cap·tanh(z / cap), or z, and e = exp(l - largest),
    the nll of each row's target, the sum s of e, and over z the gradient d nll / dz times s."""
    a = table(call)
    first, end = share(a[0])
    width, z, targets, nll, sums = (
        a[1],
        values(call, a[2]),
        integers(call, a[3]),
        floats(call, a[4]),
        floats(call, a[5]),
    )
    cap = real(a[6])
    for r in range(first, end):
        at = r * width
        most = ordered(wide(z[at]))
        for i in range(at, at + width):
            most = larger(most, ordered(wide(z[i])))
        largest, target, total = number(most), wide(z[at + targets[r]]), np.float32(0)
        if cap > 0:
            largest, bent = cap * tanh(largest / cap), tanh(target / cap)
            own, steep = cap * bent - largest, one - bent * bent
            for i in range(at, at + width):
                curve = tanh(wide(z[i]) / cap)
                e = exp(cap * curve - largest)
                total = plus(total, e)
                z[i] = stored(e * (one - curve * curve), z[0])
        else:
            own, steep = target - largest, one
            for i in range(at, at + width):
                e = exp(wide(z[i]) - largest)
                total = plus(total, e)
                z[i] = stored(e, z[0])
        z[at + targets[r]] = stored((exp(own) - total) * steep, z[0])
        nll[r], sums[r] = np.log(total) - own, total


def rope(call):
    """n, half, x (address, outer, inner), cos and sin (address, step): RoPE of the pairs (i, i + half) of each of the n
    heads of token r."""
    a = table(call)
    first, end = share(a[0])
    n, E, x, cos, sin = a[1], a[2], values(call, a[3]), values(call, a[6]), values(call, a[8])
    for r in range(first, end):
        of_cos, of_sin = r * a[7], r * a[9]
        for head in range(n):
            at = r * a[4] + head * a[5]
            for i in range(E):
                c, s = wide(cos[of_cos + i]), wide(sin[of_sin + i])
                low, high = wide(x[at + i]), wide(x[at + E + i])
                x[at + i] = stored(low * c - high * s, x[0])
                x[at + E + i] = stored(high * c + low * s, x[0])


def pad(call):
    """width, heads, L, starts, lengths, x (address, outer, inner), padded (address), scale: row r is head r % heads of
    batch row r // heads, whose tokens begin in x at its start: padded = scale·x, zero from the row's length to L."""
    a = table(call)
    first, end = share(a[0])
    width, heads, length, starts, lengths = a[1], a[2], a[3], integers(call, a[4]), integers(call, a[5])
    x, padded, scale = values(call, a[6]), values(call, a[9]), real(a[10])
    for r in range(first, end):
        row, to = r // heads, r * length * width
        at = starts[row] * a[7] + r % heads * a[8]
        for _ in range(lengths[row]):
            for i in range(width):
                padded[to + i] = stored(wide(x[at + i]) * scale, x[0])
            at, to = at + a[7], to + width
        for i in range(to, (r + 1) * length * width):
            padded[i] = stored(np.float32(0), x[0])


def unpad(call):
    """As `pad`, the other way: x = scale·padded where there is a token."""
    a = table(call)
    first, end = share(a[0])
    width, heads, length, starts, lengths = a[1], a[2], a[3], integers(call, a[4]), integers(call, a[5])
    x, padded, scale = values(call, a[6]), values(call, a[9]), real(a[10])
    for r in range(first, end):
        row, of = r // heads, r * length * width
        at = starts[row] * a[7] + r % heads * a[8]
        for _ in range(lengths[row]):
            for i in range(width):
                x[at + i] = stored(wide(padded[of + i]) * scale, x[0])
            at, of = at + a[7], of + width


LOOPS: Final = (
    rms_norm, rms_scaled, rms_norm_backward, *_gated("silu", silu_inside), *_gated("gelu", gelu_inside),
    causal_softmax, causal_softmax_backward, slopes, rope, pad, unpad,
)  # fmt: skip


_KNOWN: Final = (
    "llvm.",
    "Py",
    "_Py",
    "numba_gil_",
    "omp_get_",
    "GOMP_barrier",
    "logf",
    "floorf",
    "sqrtf",
    "memset",
    "memcpy",
)
"""Beginnings of the names of functions that the process of a run has."""


def object_code(dtype: str, loops: Sequence[Callable[..., None]] = LOOPS) -> bytes:
    """An object file of this processor in which each loop, for tensors of this format, is a function of its name."""
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
        llvm.add_symbol(name, 1)  # numba finishes what it compiles, and asks where they are; here nobody calls them
    whole = llvm.parse_assembly("")
    for loop in loops:
        signature = types.void(types.CPointer(_FORMATS[dtype]))
        built = cfunc(signature, fastmath=INEXACT, error_model="numpy", boundscheck=False)(loop)
        module = llvm.parse_assembly(built.inspect_llvm())
        module.get_function(built.native_name).name = loop.__name__
        whole.link_in(module)
    if unknown := [f.name for f in whole.functions if f.is_declaration and not f.name.startswith(_KNOWN)]:
        raise RuntimeError(f"numba's code asks for {', '.join(unknown)}")  # which the run, without numba, does not have
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=config.CPU_NAME, features=config.CPU_FEATURES, opt=3, reloc="pic", codemodel="jitdefault",
    )  # fmt: skip
    return bytes(machine.emit_object(whole))


def write_object_code(loops: Sequence[Callable[..., None]]) -> None:
    """Writes digest and object code to standard output, for the format that the command line names."""
    code = object_code(sys.argv[1], loops)
    sys.stdout.buffer.write(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)


if __name__ == "__main__":
    write_object_code(LOOPS)
