"""Devices and dtypes that work on this machine, found by trying them.

Names and feature flags promise more than they keep: a CPU "supports" bfloat16 at a quarter of float32's
speed, a GPU newer than the torch build is "available" and fails at the first kernel. So every answer here
comes from a small real forward and backward pass. Quantised layers have their own: `quantization.py`.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inlay.errors import ModelError, unknown_name

for _name, _most in (("LRU_CACHE_CAPACITY", 16), ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", 128)):
    # oneDNN keeps a kernel with its scratch memory for each of the last 1,024 shapes: steps of ever new numbers of tokens
    # held a gigabyte so. It and torch's use of it read these at their first matmul.
    os.environ.setdefault(_name, str(_most))

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """Its key in `DTYPES`, or what torch calls another one."""
    return str(dtype).removeprefix("torch.")


DTYPE_TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1, "float16": 1e-1}
"""Largest relative distance of a gradient from float32 on the CPU; float32 itself leaves room for TF32."""

AUTO_DTYPES: dict[str, tuple[float, tuple[str, ...]]] = {
    "cuda": (0.9, ("bfloat16", "float16")),
    "mps": (0.9, ("bfloat16",)),
    "cpu": (1.1, ("bfloat16",)),
}
"""Device type -> (speed needed relative to float32, formats to try before float32). A GPU takes half the
memory at about equal speed; a CPU has memory to spare and must win time, by more than the noise of the
measurement."""

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ImportError, OSError)
"""What torch and bitsandbytes raise when a device or a kernel is not really there."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether something was seen to work here, and what was seen."""

    works: bool
    reason: str
    speed_gflops: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device name that torch takes, with an index for CUDA ("cuda:0"), and why it was chosen."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """A key of `DTYPES` and why it was chosen."""

    dtype: str
    reason: str


# ---------------------------------------------------------------- devices


def devices_here() -> tuple[list[str], dict[str, str]]:
    """The devices that multiply two matrices right now, best first, and why each other one does not."""
    found: list[str] = []
    missing: dict[str, str] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        cpu_build = torch.version.cuda is None and torch.version.hip is None
        why = f"torch {torch.__version__} is a CPU build" if cpu_build else "no GPU that this torch can reach"
        missing["cuda"] = "; ".join([why, *(str(w.message).splitlines()[0] for w in caught)])
    names = [f"cuda:{index}" for index in range(count)]
    if torch.backends.mps.is_available():
        names.append("mps")
    else:
        missing["mps"] = "no Apple GPU"
    for name in names:
        failure = _device_failure(name)
        if failure is None:
            found.append(name)
        else:
            missing[name] = failure
    return [*found, "cpu"], missing


def pick_device(wanted: str) -> DeviceChoice:
    """The wanted device, or for "auto" the first that works of CUDA, MPS, CPU.

    Raises:
        ModelError: the name is not auto, cpu, cuda, cuda:<index> or mps, or that device does not work here.
    """
    kind, _, index = wanted.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not (kind == "cuda" and index.isdecimal())):
        allowed = ["auto", "cpu", "cuda", "cuda:<index>", "mps"]
        raise ModelError(f"device: {unknown_name('device', wanted, allowed)}")
    if wanted == "cpu":
        return DeviceChoice("cpu", "as asked")
    if index and torch.cuda.is_available() and int(index) < torch.cuda.device_count() and not _device_failure(wanted):
        return DeviceChoice(wanted, "as asked, and it ran a matmul")  # without touching the others
    here, missing = devices_here()
    if wanted == "auto":
        if here[0] == "cpu":
            return DeviceChoice("cpu", "; ".join(f"{name}: {why}" for name, why in missing.items()))
        return DeviceChoice(here[0], f"the first GPU that ran a matmul{untested(here[0])}")
    name = next((name for name in here if name.partition(":")[0] == wanted or name == wanted), wanted)
    if name in here:
        return DeviceChoice(name, f"as asked, and it ran a matmul{untested(name)}")
    why = missing.get(name) or missing.get(f"{name}:0") or missing.get(kind) or "no GPU with this index"
    raise ModelError(f"device: {wanted!r} does not work here ({why}). Here: {', '.join(here)}. Choose one of these.")


def untested(device: str) -> str:
    """A remark for a kind of device that the authors could not run, empty for the others."""
    return " (MPS: by source, untested by us)" if torch.device(device).type == "mps" else ""


def _device_failure(name: str) -> str | None:
    """The reason why a small matmul fails on this device, None where it is right."""
    try:
        ones = torch.ones(16, 16, device=name)
        total = float((ones @ ones).sum())
    except FAILURES as error:
        return first_line(error)
    return None if total == 16**3 else f"16x16 ones multiplied sum to {total} instead of {16**3}"


# ---------------------------------------------------------------- dtypes


def probe_dtype(device: str, dtype: str) -> Probe:
    """Whether a small attention block trains in this format on this device, and how fast matrices multiply.

    Gradients must be finite, near those of float32 on the CPU, and the same again after an evaluation pass.
    The answer is kept for the life of the process.

    Raises:
        ModelError: `dtype` is not in `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype: {unknown_name('dtype', dtype, DTYPES)}")
    return _probe_dtype(device, dtype)


@functools.cache
def _probe_dtype(device: str, dtype: str) -> Probe:
    reference = _gradient_of_block("cpu", "float32")
    try:
        block, ids_BT = _block(device, dtype)
        before = _block_gradient(block, ids_BT)
        block.eval()
        with torch.no_grad():
            block(ids_BT)
        block.train()
        after = _block_gradient(block, ids_BT)
    except FAILURES as error:
        return Probe(False, f"{dtype} on {device}: {first_line(error)}")
    for name, gradient in (("the first backward", before), ("a backward after evaluation", after)):
        distance = relative_error(gradient, reference)
        if not distance < DTYPE_TOLERANCE[dtype]:  # also true for NaN
            return Probe(False, f"{dtype} on {device}: {name} is {distance:.1%} away from float32 on the CPU")
    return Probe(True, f"{dtype} trains and evaluates on {device}", matmul_gflops(device, dtype))


def pick_dtype(device: str, wanted: str, probe: Callable[[str, str], Probe] = probe_dtype) -> DtypeChoice:
    """The wanted dtype, or for "auto" the first of `AUTO_DTYPES` that works and is fast, else
    float32.

    Raises:
        ModelError: the name is unknown, or the wanted format does not work on this device.
    """
    if wanted != "auto" and wanted not in DTYPES:
        raise ModelError(f"dtype: {unknown_name('dtype', wanted, ['auto', *DTYPES])}")
    full = probe(device, "float32")
    if wanted != "auto":
        seen = full if wanted == "float32" else probe(device, wanted)
        if not seen.works:
            raise ModelError(f"dtype: {wanted!r} does not work here ({seen.reason}). Use 'auto'.")
        return DtypeChoice(wanted, f"as asked; {_against(wanted, seen, full)}")
    needed, candidates = AUTO_DTYPES[torch.device(device).type]
    refused: list[str] = []
    for name in candidates:
        seen = probe(device, name)
        if not seen.works:
            refused.append(seen.reason)
        elif _ratio(seen, full) >= needed:
            return DtypeChoice(name, "; ".join([*refused, _against(name, seen, full)]))
        else:
            refused.append(f"{_against(name, seen, full)}, too slow to be chosen")
    return DtypeChoice("float32", "; ".join(refused))


def matmul_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that matmuls of weights held in `dtype` are computed in: float32 where a CPU multiplies it faster.

    CPUs have 16-bit units that double the speed, or none and a quarter of it: noise does not turn this.
    """
    name = dtype_name(dtype)
    if torch.device(device).type != "cpu" or name not in DTYPES:
        return dtype
    return dtype if _ratio(probe_dtype(device, name), probe_dtype(device, "float32")) >= 1 else torch.float32


def _ratio(seen: Probe, full: Probe) -> float:
    """Speed relative to float32; infinite where float32 does not work."""
    if not full.works or not full.speed_gflops:
        return float("inf")
    return (seen.speed_gflops or 0.0) / full.speed_gflops


def _against(name: str, seen: Probe, full: Probe) -> str:
    speed, base = seen.speed_gflops or 0.0, full.speed_gflops or 0.0
    if name == "float32":
        return f"float32 multiplies at {speed:.3g} GFLOP/s"
    return f"{name} multiplies at {speed:.3g} GFLOP/s against {base:.3g} for float32"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def matmul_gflops(device: str, dtype: str, budget_s: float = 0.05) -> float:
    """Billion floating-point operations per second of a square matmul; on a CPU those of ONE core.

    A CPU is measured on one thread by the processor time of that thread: under other load, threads that wait
    for each other took 100 times as long here and would choose the wrong format. The size doubles until a
    matmul takes 2 ms, and the best of what fits in the budget counts, because other work only ever makes a
    matmul slower.
    """
    with _one_thread() if device == "cpu" else contextlib.nullcontext():
        size = 128
        while True:
            a_DD = torch.ones(size, size, device=device, dtype=DTYPES[dtype])
            _matmul_s(a_DD)  # the first matmul of a size pays for choosing its kernel
            best_s = min(_matmul_s(a_DD) for _ in range(3))
            if best_s >= 2e-3 or size >= 4096:
                break
            size *= 2
        until = time.perf_counter() + budget_s
        while time.perf_counter() + best_s < until:
            best_s = min(best_s, _matmul_s(a_DD))
    return 2 * size**3 / best_s / 1e9


def pick_matmul_precision(device: str, wanted: str) -> tuple[str, str]:
    """(the `torch.set_float32_matmul_precision` for this device, why)"""
    if wanted != "auto":
        return wanted, "as set"
    return quickest_fp32() if device == "cpu" else ("highest", "nothing is rounded")


@functools.cache
def quickest_fp32(
    seconds: Callable[[Tensor], float] | None = None, error: Callable[[Tensor], float] | None = None
) -> tuple[str, str]:
    """(the `torch.set_float32_matmul_precision` whose float32 matmuls to take on this CPU, why)

    `medium` hands them to oneDNN, which on some CPUs (AMD's among them) is twice as fast as MKL and as exact, on others a
    little slower, and on those with 16-bit matrix units rounds. So it must be seen to be exact and much faster. They are
    timed in turns, since other work can slow a machine down by half from one moment to the next. Leaves the setting as
    it was; the answer is kept for the life of the process.
    """
    seconds, error = seconds or _matmul_s, error or matmul_error
    before = torch.get_float32_matmul_precision()
    a_DD = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    best_s, errors = dict.fromkeys(("highest", "medium"), math.inf), {}
    try:
        with _one_thread():  # as in `matmul_gflops`
            for turn in range(_TURNS):
                for precision in best_s:
                    torch.set_float32_matmul_precision(precision)
                    if turn == 0:  # it also pays for choosing a kernel
                        errors[precision] = error(a_DD)
                    best_s[precision] = min(best_s[precision], seconds(a_DD))
    finally:
        torch.set_float32_matmul_precision(before)
    own, onednn = (2 * len(a_DD) ** 3 / best_s[precision] / 1e9 for precision in best_s)
    speeds = f"oneDNN multiplies at {onednn:.3g} GFLOP/s, off by {errors['medium']:.0e}, against {own:.3g}, {errors['highest']:.0e}"
    takes = onednn >= _MUCH_FASTER * own and errors["medium"] <= 4 * errors["highest"]
    return "medium" if takes else "highest", speeds


_TURNS = 12
_MUCH_FASTER = 1.4  # in matmuls alone; inside a step 1.1 of it is lost, and noise must not turn the choice


def _matmul_s(a_DD: Tensor) -> float:
    on_cpu = a_DD.device.type == "cpu" and time.get_clock_info("thread_time").resolution < 1e-5
    clock = time.thread_time if on_cpu else time.perf_counter
    synchronize(a_DD.device)
    start = clock()
    torch.mm(a_DD, a_DD)
    synchronize(a_DD.device)
    return max(clock() - start, 1e-9)


def matmul_error(a_DD: Tensor) -> float:
    """Error of the matrix times itself, relative to the matmul in float64."""
    exact_DD = a_DD.double() @ a_DD.double()
    return float(((a_DD @ a_DD).double() - exact_DD).norm() / exact_DD.norm())


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Block(nn.Module):
    """Embedding, norm, causal attention, feed-forward, head: each kind of kernel that training calls."""

    def __init__(self, vocabulary: int = 64, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.feed = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD = self.embedding(ids_BT)
        q, k, v = (part.unsqueeze(1) for part in self.qkv(self.norm(hidden_BTD)).chunk(3, dim=-1))
        mixed_BTD = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        hidden_BTD = hidden_BTD + mixed_BTD
        logits_BTV: Tensor = self.head(hidden_BTD + nn.functional.silu(self.feed(hidden_BTD)))
        return logits_BTV


def _block(device: str, dtype: str) -> tuple[_Block, Tensor]:
    """The same block and ids everywhere; the global random state is left as it was."""
    chance = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        block = _Block()
    for parameter in block.parameters():
        parameter.data.normal_(0.0, 0.2, generator=chance)
    ids_BT = torch.randint(0, 64, (2, 16), generator=chance)
    return block.to(device=device, dtype=DTYPES[dtype]), ids_BT.to(device)


def _block_gradient(block: _Block, ids_BT: Tensor) -> Tensor:
    block.zero_grad()
    logits_BTV = block(ids_BT)
    loss = nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten().float().cpu() for p in block.parameters() if p.grad is not None])


@functools.cache
def _gradient_of_block(device: str, dtype: str) -> Tensor:
    return _block_gradient(*_block(device, dtype))


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of `expected`, in float32; NaN where a value is not finite."""
    got, expected = got.detach().float().cpu(), expected.detach().float().cpu()
    if not bool(torch.isfinite(got).all()):
        return float("nan")
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def first_line(error: BaseException) -> str:
    """The first line of what it says, or its type when it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
