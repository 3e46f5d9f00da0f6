"""What a LoRA step must compute at least, and how fast this machine computes matmuls of those shapes.

A frozen weight takes 2 operations for each token in the forward pass and 2 for the gradient of its input, which the layers
that read the embeddings do not need. A matrix of an adapter takes 2 forward, 2 for its own gradient and 2 for that of its
input. The head is computed where a token is trained, forward and backward. Attention takes two matmuls forward and four
backward, of half of all pairs of positions. No padding, nothing twice, nothing but matmuls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layers:
    """The matmuls of a decoder of the Llama family."""

    count: int
    hidden: int
    queries: int
    """Heads times values of a head."""
    entering: tuple[tuple[int, int], ...]
    """(out, in) of the linear layers of a block that read what enters it: below the first, no gradient is wanted."""
    others: tuple[tuple[int, int], ...]
    vocabulary: int
    rank: int
    """0 trains the layers themselves."""

    @staticmethod
    def of(config: Any, rank: int) -> Layers:
        """Of a transformers config."""
        hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        width = getattr(config, "head_dim", None) or hidden // heads
        queries, keys = heads * width, config.num_key_value_heads * width
        return Layers(
            config.num_hidden_layers, hidden, queries, ((queries, hidden), (keys, hidden), (keys, hidden)),
            ((hidden, queries), (inner, hidden), (inner, hidden), (hidden, inner)), config.vocab_size, rank,
        )  # fmt: skip

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return self.entering + self.others


def step_flops(layers: Layers, rows: Iterable[tuple[int, int]]) -> float:
    """Floating-point operations of a step over rows of (tokens, trained tokens)."""
    rows = list(rows)
    tokens, trained = sum(length for length, _ in rows), sum(answer for _, answer in rows)
    frozen = layers.count * sum(out * into for out, into in layers.shapes)
    adapter = layers.count * layers.rank * sum(out + into for out, into in layers.shapes)
    unneeded = 2 * sum(out * into + layers.rank * into for out, into in layers.entering)
    attention = 2 * 6 * layers.count * layers.queries * sum(length**2 / 2 for length, _ in rows)
    head = 4 * layers.vocabulary * layers.hidden * trained
    return (4 * frozen + 6 * adapter - unneeded) * tokens + head + attention


def fastest(layers: Layers, tokens: Sequence[int], dtype: str, device: str = "cpu") -> float:
    """Operations a second over all matmuls of a model's frozen weights, forward and backward; the best of the numbers of
    tokens at once and, in fp32, of the precisions that torch offers for matmuls and that are as exact as fp32 here."""
    import torch

    from inlay.hardware.probe import matmul_error

    a_DD = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).to(device)
    before, found, exact = torch.get_float32_matmul_precision(), 0.0, 0.0
    for precision in ("highest", "medium") if dtype == "float32" else (before,):
        torch.set_float32_matmul_precision(precision)
        error = matmul_error(a_DD)
        exact = exact or error
        if error > 4 * exact:  # matmuls of rounded numbers, as matrix units make them
            continue
        found = max(found, *(_per_s(layers, count, getattr(torch, dtype), device) for count in tokens))
    torch.set_float32_matmul_precision(before)
    return found


def _per_s(layers: Layers, tokens: int, dtype: Any, device: str) -> float:
    import torch

    seconds = operations = 0.0
    counted = [(shape, layers.count) for shape in layers.shapes] + [((layers.vocabulary, layers.hidden), 1)]
    for (out, into), count in counted:
        weight = torch.randn(out, into, device=device).to(dtype)
        x, dy = (torch.randn(tokens, width, device=device).to(dtype) for width in (into, out))
        y, dx = torch.empty_like(dy), torch.empty_like(x)
        forward_s = _least_s(lambda x=x, weight=weight, y=y: torch.mm(x, weight.T, out=y), device)
        backward_s = _least_s(lambda dy=dy, weight=weight, dx=dx: torch.mm(dy, weight, out=dx), device)
        seconds += count * (forward_s + backward_s)
        operations += count * 4 * out * into * tokens
    return operations / seconds


def _least_s(compute: Callable[[], object], device: str) -> float:
    """The least of some seconds of it. Each is measured over several calls where they are short."""
    import torch

    def timed(calls: int) -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            compute()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / calls

    timed(2)
    calls = max(1, int(0.02 / max(timed(1), 1e-7)))
    return min(timed(calls) for _ in range(5))
