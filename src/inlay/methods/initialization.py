"""Initializations of A and B other than random and zero: PiSSA, OLoRA, EVA.

PiSSA and OLoRA start from a part B₀A₀ of the weight W, and train A = A₀ + a and B = B₀ + b in (W - B₀A₀) + BA. That is
W + bA + B₀a: W stays as it is stored, in 16 or 4 bits too; a and b are trained, and both start at zero. No large numbers
are subtracted from each other, which would lose 16-bit precision. As an ordinary LoRA of twice the rank it is [b, B₀]·[A; a].

Shapes: I inputs and O outputs of a layer, R rank, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import AdapterError


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, Vh) of the `count` largest singular values; by a randomised method where the matrix is much larger."""
    if min(matrix.shape) <= 4 * count + 64:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, v_t = torch.svd_lowrank(matrix, q=count + 16, niter=8)
        v = v_t.T
    return u[:, :count], s[:count], v[:count]


def pissa(weight_OI: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(B, A) with scale·B·A the best rank-R approximation of the weight, split evenly between both.

    Source: PiSSA (arXiv 2404.02948), section 3, and its fast form for large weights.
    """
    u_OR, s_R, v_RI = leading(weight_OI, rank)
    root_R = (s_R / scale).sqrt()
    return u_OR * root_R, root_R[:, None] * v_RI


def olora(weight_OI: Tensor, rank: int, _scale: float) -> tuple[Tensor, Tensor]:
    """(B, A): the first R columns of Q and rows of R of the weight's QR decomposition.

    Source: OLoRA (arXiv 2406.01775), algorithm 1; like PEFT it does not divide by the scale.
    """
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    return q_OK[:, :rank], r_KI[:rank]


FROM_WEIGHTS: dict[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {"pissa": pissa, "olora": olora}


def factors(init: str, layer: Any, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(B, A) in float32 that a PEFT layer starts from. Raises: AdapterError when the layer is smaller than the rank."""
    from peft.utils.integrations import dequantize_module_weight

    base = layer.get_base_layer()
    weight = dequantize_module_weight(base).detach().float()
    weight_OI = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
    if rank > min(weight_OI.shape):
        raise AdapterError(
            f"adapter.init {init}: rank {rank} is more than a layer of {tuple(weight_OI.shape)} has. "
            f"Use adapter.rank={min(weight_OI.shape)} or less."
        )
    up_OR, down_RI = FROM_WEIGHTS[init](weight_OI, rank, scale)
    return up_OR.contiguous(), down_RI.contiguous()


class Shifted(nn.Module):
    """One matrix of an adapter that starts from a base's weights, in the place of PEFT's linear layer."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        """`start` is A₀ or B₀."""
        super().__init__()
        self.register_buffer("start", start)
        self.change = nn.Parameter(torch.zeros_like(start))
        """a or b."""

    @property
    def weight(self) -> Tensor:
        """A or B of an ordinary LoRA of twice the rank."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x·Wᵀ."""
        return nn.functional.linear(x, self.weight)


class ShiftedDown(Shifted):
    """A."""

    @property
    def weight(self) -> Tensor:
        """(2R, I) [A₀ + a; a]"""
        return torch.cat([self.start + self.change, self.change])


class ShiftedUp(Shifted):
    """B."""

    @property
    def weight(self) -> Tensor:
        """(O, 2R) [b, B₀]"""
        return torch.cat([self.change, self.start], 1)


def principal_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]], rank: int
) -> dict[str, Tensor]:
    """For each layer the (R, I) directions in which its inputs on the rows of the batches vary most.

    Rows are computed alone and without padding: some layers see the tokens of a batch one after another, without rows.

    Source: EVA (arXiv 2410.07170), section 3, with an incremental SVD of bounded size and equal ranks everywhere.
    """
    kept = 2 * rank
    sketches: dict[str, Tensor] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows_TI = inputs[0].detach().flatten(0, -2).float()
            if name in sketches:
                rows_TI = torch.cat([sketches[name], rows_TI])
            _, s_K, v_KI = leading(rows_TI, kept)
            sketches[name] = s_K[:, None] * v_KI

        return hook

    handles = [layer.register_forward_pre_hook(see(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                for ids_L, mask_L in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                    model(input_ids=ids_L[mask_L.bool()][None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for name, sketch_KI in sketches.items():
        if len(sketch_KI) < rank:
            raise AdapterError(
                f"adapter.init eva: {name} has only {len(sketch_KI)} directions on the first rows, fewer than rank "
                f"{rank}. Lower adapter.rank."
            )
    return {name: nn.functional.normalize(sketch_KI[:rank], dim=1) for name, sketch_KI in sketches.items()}
