"""The fused loops compute what torch computes in float64, but for one rounding of each result."""

from __future__ import annotations

import ast
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inlay.engine import cpu_ops

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they run on threads of GNU's OpenMP")

FORMATS = st.sampled_from([torch.float32, torch.bfloat16])
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""Of a result, relative to the largest of its row: for sums in float32, and one rounding to 16 bits."""
ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.fixture(autouse=True)
def compiled() -> Path:
    """Before the clock of an example runs; what is kept for float32."""
    assert cpu_ops.reason(torch.float32) is None
    assert cpu_ops.reason(torch.bfloat16) is None
    return Path(os.environ["INLAY_CACHE"]).resolve() / "loops" / cpu_ops._build(torch.float32)._file.name


def numbers(seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(scale).to(dtype)


def assert_rounded(got: Tensor, wanted: Tensor, least: float = 1e-30) -> None:
    """Each row of what was found is what was wanted."""
    assert got.shape == wanted.shape
    size = wanted.abs().amax(-1, keepdim=True).clamp_min(least)
    assert float(((got.double() - wanted) / size).abs().max()) <= ROUNDING[got.dtype]


def test_on_linux_with_numba_there_are_loops_for_both_formats_and_for_no_other() -> None:
    assert cpu_ops.takes(torch.zeros(2, 3))
    assert cpu_ops.takes(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert cpu_ops.reason(torch.float64) == "there are none for float64"
    assert not cpu_ops.takes(torch.zeros(2, 3, dtype=torch.float64))
    assert not cpu_ops.takes(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16))
    assert not cpu_ops.takes(torch.zeros(3, 2).T)


@settings(deadline=None)  # the first backward of a process takes 0.3 s
@given(FORMATS, st.integers(1, 9), st.integers(1, 3), st.integers(1, 70), st.floats(1e-3, 30), st.integers(0, 99))
def test_rms_norm(dtype: torch.dtype, tokens: int, heads: int, width: int, scale: float, seed: int) -> None:
    beside = numbers(seed, tokens, heads + 2, width, dtype=dtype, scale=scale)
    x = beside[:, 1:-1]  # heads that lie beside others
    dy, more = (numbers(seed + k, tokens, heads, width, dtype=dtype) for k in (1, 2))
    weight = numbers(seed + 3, width, dtype=torch.float32)
    exact = x.double().requires_grad_()
    wanted = weight * exact * (exact.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    wanted.backward(dy.double())
    y, factor = cpu_ops.rms_norm(x, weight, 1e-6)
    assert_rounded(y, wanted.detach())
    assert torch.equal(cpu_ops.rms_scaled(x, weight, factor), y)
    assert exact.grad is not None
    least = float((weight * dy.double() * factor).abs().max())  # what it is the difference of
    assert_rounded(cpu_ops.rms_norm_backward(dy, x, weight, factor, None), exact.grad, least)
    assert_rounded(cpu_ops.rms_norm_backward(dy, x, weight, factor, more), exact.grad + more.double(), least)


@settings(deadline=None)
@given(FORMATS, st.sampled_from(sorted(ACTIVATIONS)), st.integers(1, 9), st.integers(1, 70), st.floats(1e-2, 200))
def test_gated_activation(dtype: torch.dtype, act: str, tokens: int, width: int, scale: float) -> None:
    gate, up = numbers(0, tokens, 2 * width, dtype=dtype, scale=scale).chunk(2, 1)
    dh = numbers(1, tokens, width, dtype=dtype)
    exact_gate, exact_up = (x.double().requires_grad_() for x in (gate, up))
    wanted = ACTIVATIONS[act](exact_gate) * exact_up
    wanted.backward(dh.double())
    tail = (
        float((exact_gate * exact_up).detach().abs().max()) * 1e-3
    )  # of the exponential: 1e-5 of what is next to nothing
    assert_rounded(cpu_ops.gated(act, gate, up), wanted.detach(), least=tail)
    cpu_ops.gated_backward(act, dh, gate, up)
    assert exact_gate.grad is not None
    assert exact_up.grad is not None
    assert_rounded(gate, exact_gate.grad, least=float(exact_up.detach().abs().max()) * 1e-2)
    assert_rounded(up, exact_up.grad, least=float(exact_gate.detach().abs().max()) * 1e-2)


@given(
    FORMATS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 40),
    st.none() | st.integers(1, 30),
)
def test_causal_softmax(
    dtype: torch.dtype, heads: int, groups: int, queries: int, back: int, window: int | None
) -> None:
    scores = numbers(0, heads, groups * queries, back + queries, dtype=dtype, scale=5.0)
    dp = numbers(1, *scores.shape, dtype=dtype)
    past = back + torch.arange(queries)[:, None] - torch.arange(back + queries)
    unseen = (past < 0) | (past >= (window or 1000))
    exact = scores.double().requires_grad_()
    wanted = exact.unflatten(1, (groups, queries)).masked_fill(unseen, -torch.inf).softmax(-1).flatten(1, 2)
    cpu_ops.causal_softmax(scores, queries, back, window)
    assert_rounded(scores, wanted.detach())
    assert bool((scores.unflatten(1, (groups, queries)).masked_select(unseen) == 0).all())
    p = wanted.detach().to(dtype)
    slopes = p.double() * (dp.double() - (p.double() * dp.double()).sum(-1, keepdim=True))
    cpu_ops.causal_softmax_backward(dp, p, queries, back, window)
    assert_rounded(dp, slopes, least=1.0)


@pytest.mark.parametrize("width", [9, 17, 40])
def test_a_softmax_is_bit_equal_wherever_its_scratch_row_lies(width: int) -> None:
    """Scratch that the allocator puts right behind the scores changed the order of the last rows' sums."""
    rows, found = 18, []
    for gap in (0, 4, 16, 48, 4096):
        memory = torch.zeros(rows * width + gap + 2 * width)
        memory[: rows * width] = torch.randn(rows * width, generator=torch.Generator().manual_seed(0))
        scores, scratch = memory[: rows * width].view(rows, width), memory[rows * width + gap :]
        addresses = (scores.data_ptr(), rows, width - 1, width, scratch.data_ptr())
        cpu_ops._run("causal_softmax", scores, rows, width, width, *addresses)
        found.append(scores.clone())
    assert all(torch.equal(one, found[-1]) for one in found)
    assert torch.allclose(found[0].sum(1), torch.ones(rows))


@settings(deadline=None)
@given(FORMATS, st.integers(1, 9), st.integers(2, 300), st.none() | st.floats(0.5, 30), st.floats(0.1, 60))
def test_slopes_of_logits(
    dtype: torch.dtype, positions: int, vocabulary: int, softcap: float | None, scale: float
) -> None:
    z = numbers(0, positions, vocabulary, dtype=dtype, scale=scale)
    targets = torch.randint(vocabulary, (positions, 1), generator=torch.Generator().manual_seed(1))
    exact = z.double().requires_grad_()
    logits = exact if softcap is None else softcap * (exact / softcap).tanh()
    wanted = F.cross_entropy(logits, targets[:, 0], reduction="none")
    wanted.sum().backward()
    nll, total = torch.empty(positions, 1), torch.empty(positions, 1)
    cpu_ops.slopes(z, targets, softcap, nll, total)
    assert exact.grad is not None
    torch.testing.assert_close(nll[:, 0].double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    assert_rounded(z, exact.grad * total, least=float(total.max()))


@settings(deadline=None)
@given(FORMATS, st.integers(1, 9), st.integers(1, 3), st.integers(1, 20), st.integers(0, 3))
def test_rope(dtype: torch.dtype, tokens: int, heads: int, half: int, rest: int) -> None:
    x = numbers(0, tokens, heads + 1, 2 * half + rest, dtype=dtype)[:, 1:]
    angles = numbers(1, tokens, 1, 2 * half, dtype=torch.float32)[..., :half]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second, kept = x.double().split([half, half, rest], -1)
    c, s = cos.double(), sin.double()
    wanted = torch.cat([first * c - second * s, second * c + first * s, kept], -1)
    cpu_ops.rope_(x, cos, sin)
    assert_rounded(x, wanted)


@given(
    FORMATS,
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(0, 3),
)
def test_rows_are_padded_and_brought_back(
    dtype: torch.dtype, lengths: list[int], heads: int, width: int, start: int
) -> None:
    x = numbers(0, start + sum(lengths) + 2, heads + 1, width, dtype=dtype)[:, 1:]
    lengths_B = torch.tensor(lengths)
    starts_B = start + lengths_B.cumsum(0) - lengths_B
    padded = torch.full((len(lengths), heads, max(lengths) + 1, width), torch.nan, dtype=dtype)
    cpu_ops.pad(x, padded, starts_B, lengths_B, 0.5)
    for row, (begin, length) in enumerate(zip(starts_B.tolist(), lengths, strict=True)):
        assert torch.equal(padded[row, :, :length], x[begin : begin + length].transpose(0, 1) * 0.5)
        assert not padded[row, :, length:].any()
    back = torch.full_like(x, 7.0)
    cpu_ops.unpad(back, padded, starts_B, lengths_B, 2.0)
    within = slice(start, start + sum(lengths))
    assert torch.equal(back[within], x[within])
    assert bool((back[:start] == 7).all())
    assert bool((back[within.stop :] == 7).all())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    x, weight = numbers(0, 301, 512, dtype=dtype), numbers(1, 512, dtype=torch.float32)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        scores = numbers(2, 8, 301, 301, dtype=dtype)
        cpu_ops.causal_softmax(scores, 301, 0, None)
        normed, factor = cpu_ops.rms_norm(x, weight, 1e-6)
        nll, total, z = torch.empty(301, 1), torch.empty(301, 1), x.clone()
        cpu_ops.slopes(z, torch.arange(301)[:, None], None, nll, total)
        gate, up, dp = x.clone(), x.clone(), scores.flip(0)
        cpu_ops.gated_backward("silu", x, gate, up)
        cpu_ops.causal_softmax_backward(dp, scores, 301, 0, None)
        found.append((
            normed, factor, cpu_ops.rms_norm_backward(x, normed, weight, factor, x), cpu_ops.gated("silu", x, x), scores, z,
            nll, total, gate, up, dp,
        ))  # fmt: skip
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [torch.nan, -torch.nan, torch.inf])
def test_what_is_no_number_is_seen_in_its_own_row_and_in_no_other(dtype: torch.dtype, wrong: float) -> None:
    x, weight = numbers(0, 3, 40, dtype=dtype), torch.ones(40)
    x[1, 7] = wrong
    z, nll, total = x.clone(), torch.empty(3, 1), torch.empty(3, 1)
    cpu_ops.slopes(z, torch.zeros(3, 1, dtype=torch.long), None, nll, total)
    scores = x.clone()
    cpu_ops.causal_softmax(scores, 1, 39, None)
    for found in (cpu_ops.rms_norm(x, weight, 1e-6)[0], cpu_ops.gated("silu", x, torch.ones_like(x)), nll, scores):
        assert torch.isfinite(found).all(1).tolist() == [True, False, True]
    weight[3] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # it would round to -0
    assert cpu_ops.rms_norm(x, weight, 1e-6)[0][:, 3].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_beyond_all_measure_are_what_they_are_to_torch(dtype: torch.dtype) -> None:
    x, weight = numbers(0, 3, 40, dtype=dtype, scale=1e20), torch.ones(40)
    normed, factor = cpu_ops.rms_norm(x, weight, 1e-6)
    assert not factor.any()  # their squares are infinite
    assert not normed.any()
    for name, act in ACTIVATIONS.items():
        assert_rounded(cpu_ops.gated(name, x, x.sign()), act(x.double()) * x.sign())
    scores = x.clone()
    cpu_ops.causal_softmax(scores, 1, 39, None)
    assert_rounded(scores, x.double().softmax(-1))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, of which this process knows nothing."""
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path))
    forget()
    yield tmp_path / "loops"
    forget()


def forget() -> None:
    for each in (cpu_ops.reason, cpu_ops._build, cpu_ops._loaded, cpu_ops._address):
        each.cache_clear()


def test_the_loops_are_compiled_again_where_what_was_kept_is_damaged_and_then_no_more(
    compiled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = compiled.read_bytes()[:-1]
    cache.mkdir()
    (cache / compiled.name).write_bytes(damaged)
    assert cpu_ops.reason(torch.float32) is None
    assert (cache / compiled.name).read_bytes() != damaged
    forget()
    monkeypatch.setattr(cpu_ops.sys, "executable", "/nowhere/python")
    x = numbers(0, 4, 8, dtype=torch.float32)
    assert_rounded(cpu_ops.gated("silu", x, x), F.silu(x.double()) * x.double())


def compiler(path: Path, script: str) -> str:
    """A program in place of Python, which compiles."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_fails_leaves_torch_at_work_and_says_why(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = compiler(tmp_path / "python", "echo 'first line' >&2; echo 'it broke' >&2; exit 3")
    monkeypatch.setattr(cpu_ops.sys, "executable", broken)
    assert cpu_ops.reason(torch.float32) == "numba could not compile the loops: it broke"
    assert not cpu_ops.takes(torch.zeros(2, 3))
    forget()
    monkeypatch.setattr(cpu_ops.sys, "executable", "/nowhere/python")
    cpu_ops.prepare(torch.float32)  # says nothing: `reason` does
    assert "No such file" in str(cpu_ops.reason(torch.float32))
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    compiled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cpu_ops.sys, "executable", compiler(tmp_path / "python", f"cat '{compiled}'"))
    assert cpu_ops.reason(torch.float32) is None
    assert cpu_ops._address("gated_silu", torch.float32)
    assert not cache.exists()


def test_without_numba_torch_computes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "find_spec", lambda _: None)
    assert cpu_ops.reason(torch.float32) == "numba is not installed"
    assert not cpu_ops.takes(torch.zeros(2, 3))
    cpu_ops.prepare(torch.float32)
    assert not cache.exists()


def test_the_kept_object_code_depends_on_every_file_of_ours_that_the_loops_import() -> None:
    folder = Path(cpu_ops.__file__).parent
    imported, open_files = {"cpu_loops.py"}, ["cpu_loops.py"]
    while open_files:
        tree = ast.parse((folder / open_files.pop()).read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found = {f"{name.rpartition('.')[2]}.py" for name in modules if name.startswith("inlay.")} - imported
        imported |= found
        open_files += found
    assert imported == set(cpu_ops.LOOP_SOURCES)
