"""Memory and arithmetic of the compiled loops: rows of a call, float32 and bfloat16 values, sums, exp and tanh.

The pointer of a call has the dtype of the tensors, float32 or (as uint16) bfloat16; all arithmetic is in float32.
"""

from __future__ import annotations

import math
from typing import Any, Final

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

config.CPU_NAME, config.CPU_FEATURES = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
if llvm.get_host_cpu_features().get("avx512bf16"):
    config.CPU_FEATURES += ",-prefer-256-bit"  # LLVM holds back as if 512 bits slowed such a processor down

_F32, _I16, _I32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)

INEXACT: Final = {"reassoc", "contract", "nsz"}
"""What sums may do to be computed side by side. A NaN stays one."""

one, two = np.float32(1), np.float32(2)

# ---------------------------------------------------------------- memory


def _pointer_to(kind: Any) -> Any:
    """intrinsic(call, address) -> a pointer to values of a kind, or of the dtype of the call."""

    @intrinsic
    def pointer(_: Any, call: Any, address: Any) -> Any:
        found = call if kind is None else types.CPointer(kind)

        def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[1], context.get_value_type(found))

        return found(call, types.int64), generate

    return pointer


values, floats, integers = _pointer_to(None), _pointer_to(types.float32), _pointer_to(types.int64)


@intrinsic
def fetch(_: Any, values: Any, index: Any) -> Any:
    """Has the processor bring a value near, beside what it does: where the next row begins it cannot guess. May be beyond
    the end."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), byte)
        builder.call(prefetch, [place, _I32(0), _I32(2), _I32(1)])  # to read, into the second cache, data
        return ir.Constant(byte, None)

    return types.none(values, types.int64), generate


@intrinsic
def table(_: Any, call: Any) -> Any:
    """The arguments of a call."""
    found = types.CPointer(types.int64)

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(found))

    return found(call), generate


@intrinsic
def real(_: Any, bits: Any) -> Any:
    """An argument of a call that is no integer."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.fptrunc(builder.bitcast(arguments[0], ir.DoubleType()), _F32)

    return types.float32(types.int64), generate


thread = types.ExternalFunction("omp_get_thread_num", types.int32())
threads = types.ExternalFunction("omp_get_num_threads", types.int32())


@njit
def share(count):
    """The rows of this thread: (first, end)."""
    this, of = np.int64(thread()), np.int64(threads())
    return count * this // of, count * (this + 1) // of


# ---------------------------------------------------------------- numbers


@intrinsic
def wide(_: Any, stored: Any) -> Any:
    """float32 of what a tensor holds."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        if stored == types.float32:
            return arguments[0]
        return builder.bitcast(builder.shl(builder.zext(arguments[0], _I32), _I32(16)), _F32)

    return types.float32(stored), generate


@intrinsic
def stored(_: Any, number: Any, like: Any) -> Any:
    """float32 rounded to the dtype of `like`, half to even."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        if like == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), odd), _I32(16))
        nan = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.trunc(builder.select(nan, _I32(0x7FC0), rounded), _I16)

    return like(types.float32, like), generate


@intrinsic
def plus(_: Any, total: Any, number: Any) -> Any:
    """A sum whose order is free, so that it is computed side by side: numba's own leaves that to LLVM, which declines
    where the loop stores as well."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=tuple(INEXACT))

    return types.float32(types.float32, types.float32), generate


@intrinsic
def ordered(_: Any, number: Any) -> Any:
    """An integer that is larger for the larger number, and beyond all of them for NaN: integers have a quick maximum."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _I32)
        return builder.xor(bits, builder.and_(builder.ashr(bits, _I32(31)), _I32(0x7FFFFFFF)))

    return types.int32(types.float32), generate


@intrinsic
def number(_: Any, order: Any) -> Any:
    """The number that `ordered` made this of."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        bits = builder.xor(arguments[0], builder.and_(builder.ashr(arguments[0], _I32(31)), _I32(0x7FFFFFFF)))
        return builder.bitcast(bits, _F32)

    return types.float32(types.int32), generate


@intrinsic
def larger(_: Any, a: Any, b: Any) -> Any:
    """The larger of two integers."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *arguments), *arguments)

    return types.int32(types.int32, types.int32), generate


@intrinsic
def power_of_two(_: Any, exponent: Any) -> Any:
    """2 to a whole number, as float32."""

    def generate(__: Any, builder: Any, ___: Any, arguments: Any) -> Any:
        ordinary = builder.fcmp_ordered("ord", arguments[0], arguments[0])  # NaN has no integer
        whole = builder.fptosi(builder.select(ordinary, arguments[0], _F32(0)), _I32)
        return builder.bitcast(builder.shl(builder.add(whole, _I32(127)), _I32(23)), _F32)

    return types.float32(types.float32), generate


_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(math.log2(math.e)), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST, _MOST = np.float32(-87), np.float32(88)
# Minimax coefficients of (e^f - 1 - f) / f² over |f| <= ln 2 / 2 from Cephes' expf, S. Moshier: error below 2e-7.
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


@njit(fastmath={"contract"})
def exp(x):
    """e^x = 2^n e^f with an integer n; 0 below -87 and infinite above 88."""
    within = _LEAST if x < _LEAST else x
    within = _MOST if within > _MOST else within
    n = np.floor(within * _LOG2_E + np.float32(0.5))
    f = within - n * _LN2_HIGH - n * _LN2_LOW
    series = ((((_C0 * f + _C1) * f + _C2) * f + _C3) * f + _C4) * f + _C5
    power = (series * f * f + f + one) * power_of_two(n)
    power = np.float32(0) if x < _LEAST else power
    return np.float32(np.inf) if x > _MOST else power


@njit(fastmath={"contract"})
def tanh(x):
    """(e^2x - 1) / (e^2x + 1)."""
    return one - two / (exp(two * x) + one)


@njit
def inverse_root(x):
    """1 / sqrt(x), 0 of infinity: with looser rules LLVM takes an estimate that is NaN there."""
    return one / np.sqrt(x)
