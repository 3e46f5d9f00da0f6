"""Operations between matmuls, each as one loop on the CPU where torch makes several calls.

Torch reads and writes memory at every call, and takes a slow way where one operand has 16 bits and another 32. numba
(the extra `fused`) compiles `cpu_loops` for the processor, in a process of its own: its object code is kept, and this
process loads that alone, without numba. Torch's own threads run the loops. Where there are none (`takes`), the caller
computes the same with torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import struct
import subprocess
import sys
from importlib import metadata, resources
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from inlay.errors import StorageError
from inlay.storage import cache_folder, write_file

_FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LOOP_SOURCES = ("cpu_loops.py", "cpu_numbers.py")
"""Files of this folder that decide the object code."""
_TRAINING = "cpu_loops"
SOURCES = {_TRAINING: LOOP_SOURCES, "decode_loops": ("decode_loops.py", *LOOP_SOURCES)}
"""The same of each module of loops; those of serving are compiled apart, so that a training does not wait for them."""
_FEWEST = 1 << 15  # values that are worth waking other threads for
_NO_WINDOW = 1 << 40
_GATED = {"silu": "gated_silu", "gelu_pytorch_tanh": "gated_gelu"}


def takes(*tensors: Tensor) -> bool:
    """True where there are loops for these: of one dtype, on the CPU, the values of a row side by side."""
    first = tensors[0]
    return (
        first.is_cpu
        and all(each.dtype == first.dtype and each.stride(-1) == 1 for each in tensors)
        and reason(first.dtype) is None
    )


@functools.cache
def reason(dtype: torch.dtype, module: str = _TRAINING) -> str | None:
    """The reason why there are no loops for a dtype here, None where there are. Waits for their compilation."""
    if (against := _against(dtype)) is not None:
        return against
    try:
        _loaded(dtype, module)
    except (RuntimeError, OSError, ImportError) as error:
        return f"numba could not compile the loops: {error}"
    return None


def prepare(dtype: torch.dtype, module: str = _TRAINING) -> None:
    """Begins to compile the loops for a dtype beside what this process does, unless they are there."""
    if _against(dtype) is None:
        with contextlib.suppress(OSError, ImportError):  # `reason` will say it
            _build(dtype, module)


def _against(dtype: torch.dtype) -> str | None:
    if dtype not in _FORMATS:
        return f"there are none for {str(dtype).removeprefix('torch.')}"
    if sys.platform != "linux" or not hasattr(_process(), "GOMP_parallel"):
        return "torch's threads are not those of GNU's OpenMP"
    if find_spec("numba") is None:
        return "numba is not installed"
    return None


@functools.cache
def _process() -> ctypes.CDLL:
    # Torch loads what its libraries share for the whole process, OpenMP among it: one team of threads serves both.
    return ctypes.CDLL(None)


# ---------------------------------------------------------------- machine code


class _Build:
    """Object code of a module of loops for one dtype: what an earlier process kept, or a compiler process at work."""

    def __init__(self, dtype: torch.dtype, module: str) -> None:
        import llvmlite.binding as llvm

        source = b"".join((resources.files("inlay") / "engine" / name).read_bytes() for name in SOURCES[module])
        versions = [metadata.version(name) for name in ("numba", "llvmlite")]
        processor = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
        about = "\n".join([*versions, *processor, _FORMATS[dtype]]).encode() + source
        self._file = cache_folder("loops") / hashlib.sha256(about).hexdigest()[:32]
        self._code, self._compiler = self._kept(), None
        if self._code is None:
            command = [sys.executable, "-P", "-W", "ignore", "-m", f"inlay.engine.{module}", _FORMATS[dtype]]
            pipe = subprocess.PIPE
            self._compiler = subprocess.Popen(  # Ctrl+C is for the run, and does not reach it
                command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )

    def _kept(self) -> bytes | None:
        with contextlib.suppress(OSError):
            return _whole(self._file.read_bytes())
        return None

    def code(self) -> bytes:
        """Waits for it. Raises: RuntimeError where numba could not make it."""
        if self._code is None and self._compiler is not None:
            made, output = self._compiler.communicate()
            self._code = _whole(made)
            if self._code is None:
                raise RuntimeError(output.decode(errors="replace").strip().rpartition("\n")[2] or "it was cut short")
            with contextlib.suppress(StorageError):  # a cache that cannot be written costs time, nothing else
                write_file(self._file, made)
        assert self._code is not None
        return self._code


def _whole(behind_digest: bytes) -> bytes | None:
    """The code, None where it is not what it was made as: a processor would run whatever stands there."""
    digest, _, code = behind_digest.partition(b"\n")
    return code if digest == hashlib.sha256(code).hexdigest().encode() else None


@functools.cache
def _build(dtype: torch.dtype, module: str = _TRAINING) -> _Build:
    return _Build(dtype, module)


@functools.cache
def _loaded(dtype: torch.dtype, module: str) -> Any:
    """The engine that holds the machine code; it stays for as long as the process does."""
    import llvmlite.binding as llvm

    code = _build(dtype, module).code()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
        llvm.add_symbol(name, _where(name))
    for name in ("numba_gil_ensure", "numba_gil_release"):
        llvm.add_symbol(name, _where("abort"))  # numba's wrapper names them for a loop that raises, which none does
    target = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _where(function: str) -> int:
    return ctypes.cast(getattr(_process(), function), ctypes.c_void_p).value or 0


@functools.cache
def _address(name: str, dtype: torch.dtype, module: str = _TRAINING) -> int:
    return int(_loaded(dtype, module).get_function_address(name))


def _run(name: str, like: Tensor, rows: int, width: int, *arguments: int | float) -> None:
    """Calls the loop with (rows, *arguments) on torch's threads: on all or on one, since the library ends and begins
    threads where one team is smaller than the last."""
    if rows:
        threads = torch.get_num_threads() if rows * width >= _FEWEST else 1
        run_on(threads, _address(name, like.dtype), rows, *arguments)


def run_on(threads: int, address: int, *arguments: int | float) -> None:
    """Calls the loop at an address on so many of torch's threads."""
    kinds = "".join("d" if isinstance(one, float) else "q" for one in arguments)
    call = struct.pack(f"={kinds}", *arguments)
    code = ctypes.c_void_p(address)
    _process().GOMP_parallel(code, ctypes.c_char_p(call), ctypes.c_uint(threads), ctypes.c_uint(0))


def _rows(x: Tensor) -> tuple[int, int, int]:
    """(address, outer step, inner step) of the rows of (T, N, D), or of (T, H) as one of N."""
    return x.data_ptr(), x.stride(0), x.stride(1) if x.ndim == 3 else 0


def _count(x: Tensor) -> tuple[int, int, int]:
    """(rows, N, width)"""
    heads = x.shape[1] if x.ndim == 3 else 1
    return len(x) * heads, heads, x.shape[-1]


# ---------------------------------------------------------------- the loops


def rms_norm(x: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See `inlay.engine.handwritten.norm.RmsNorm.forward`."""
    rows, heads, width = _count(x)
    y, factor = torch.empty(x.shape, dtype=x.dtype), torch.empty(*x.shape[:-1], 1, dtype=torch.float32)
    _run(
        "rms_norm", x, rows, width, heads, width, *_rows(x), *_rows(y), weight_H.data_ptr(), factor.data_ptr(), epsilon
    )
    return y, factor


def rms_scaled(x: Tensor, weight_H: Tensor, factor: Tensor) -> Tensor:
    """The norm's output again, from the factor that its forward pass gave."""
    rows, heads, width = _count(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    _run("rms_scaled", x, rows, width, heads, width, *_rows(x), *_rows(y), weight_H.data_ptr(), factor.data_ptr())
    return y


def rms_norm_backward(dy: Tensor, x: Tensor, weight_H: Tensor, factor: Tensor, more: Tensor | None) -> Tensor:
    """See `inlay.engine.handwritten.norm.RmsNorm.backward`."""
    rows, heads, width = _count(x)
    dx = torch.empty(x.shape, dtype=x.dtype)
    added = _rows(dx if more is None else more)
    _run(
        "rms_norm_backward", x, rows, width, heads, width, *_rows(dy), *_rows(x), *_rows(dx), *added,
        weight_H.data_ptr(), factor.data_ptr(), int(more is not None),
    )  # fmt: skip
    return dx


def gated(act: str, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    """act(gate)·up"""
    h_TI = torch.empty(gate_TI.shape, dtype=gate_TI.dtype)
    _gated(_GATED[act], gate_TI, up_TI, h_TI)
    return h_TI


def gated_backward(act: str, dh_TI: Tensor, gate_TI: Tensor, up_TI: Tensor) -> None:
    """Writes the gradients by gate and up over them."""
    _gated(f"{_GATED[act]}_backward", gate_TI, up_TI, dh_TI)


def _gated(name: str, *tensors: Tensor) -> None:
    rows, width = tensors[0].shape
    _run(name, tensors[0], rows, width, width, *(one for each in tensors for one in (each.data_ptr(), each.stride(0))))


def causal_softmax(scores: Tensor, queries: int, back: int, window: int | None) -> None:
    """Over scores (X, G·n, m) their softmax: query i of n sees the keys up to `back + i`, of them the last `window`."""
    width = scores.shape[-1]
    seen, unrounded = (
        (queries, back, window or _NO_WINDOW),
        torch.empty(torch.get_num_threads(), width, dtype=torch.float32),
    )
    _run(
        "causal_softmax", scores, scores.numel() // width, width, width, scores.data_ptr(), *seen, unrounded.data_ptr()
    )


def causal_softmax_backward(dp: Tensor, p: Tensor, queries: int, back: int, window: int | None) -> None:
    """Over dp the gradient by the scores."""
    width = p.shape[-1]
    seen = (queries, back, window or _NO_WINDOW)
    _run("causal_softmax_backward", p, p.numel() // width, width, width, dp.data_ptr(), *seen, p.data_ptr())


def slopes(z_CV: Tensor, targets_C: Tensor, softcap: float | None, nll_C: Tensor, sum_C: Tensor) -> None:
    """See `inlay.engine.lm_head`."""
    rows, width = z_CV.shape
    addresses = (one.data_ptr() for one in (z_CV, targets_C, nll_C, sum_C))
    _run("slopes", z_CV, rows, width, width, *addresses, float(softcap or 0))


def rope_(x_TND: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> None:
    """See `inlay.engine.handwritten.attention.rope_`."""
    heads, half = x_TND.shape[1], cos_T1E.shape[-1]
    angles = (one for each in (cos_T1E, sin_T1E) for one in (each.data_ptr(), each.stride(0)))
    _run("rope", x_TND, len(x_TND), heads * half, heads, half, *_rows(x_TND), *angles)


def pad(x_TND: Tensor, padded_BNLD: Tensor, starts_B: Tensor, lengths_B: Tensor, scale: float) -> None:
    """Writes scale·x, in which the rows lie one after another, to where each has a place of its own; zero behind."""
    _pad("pad", x_TND, padded_BNLD, starts_B, lengths_B, scale)


def unpad(x_TND: Tensor, padded_BNLD: Tensor, starts_B: Tensor, lengths_B: Tensor, scale: float) -> None:
    """Writes them back, times scale."""
    _pad("unpad", x_TND, padded_BNLD, starts_B, lengths_B, scale)


def _pad(name: str, x_TND: Tensor, padded_BNLD: Tensor, starts_B: Tensor, lengths_B: Tensor, scale: float) -> None:
    rows, heads, length, width = padded_BNLD.shape
    where = (starts_B.data_ptr(), lengths_B.data_ptr(), *_rows(x_TND), padded_BNLD.data_ptr(), scale)
    _run(name, x_TND, rows * heads, length * width, width, heads, length, *where)
