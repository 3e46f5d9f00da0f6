"""Loss of a language-model head, with its gradient computed beside it.

The logits of all positions together are the largest tensor of a small model's step. Here they exist a chunk at a
time: a chunk's loss and the gradient it sends to the hidden values are computed at once, then its logits are gone.

Shapes: J positions that predict a trained token, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 22
_FEWEST_ROWS = 256  # fewer, and reading the head's weights would cost more than the product


def nll_and_gradient(
    hidden_JH: Tensor, head_VH: Tensor, targets_J: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """(J,) negative log likelihood of each target in nats, at least fp32, and its gradient (J, H) by the hidden values.

    With logits l and p = softmax(l): d nll / d l = p - onehot(target). A soft cap makes l = c·tanh(z / c) of the raw
    logits z, whose derivative is 1 - (l / c)².
    """
    wide = torch.promote_types(hidden_JH.dtype, torch.float32)
    nll_J = torch.empty(len(hidden_JH), dtype=wide, device=hidden_JH.device)
    gradient_JH = torch.empty_like(hidden_JH)
    rows = max(_FEWEST_ROWS, _LOGITS_AT_ONCE // len(head_VH))
    for start in range(0, len(hidden_JH), rows):
        chunk = slice(start, start + rows)
        logits_CV, targets_C1 = (hidden_JH[chunk] @ head_VH.T).to(wide), targets_J[chunk, None]
        if softcap is not None:
            logits_CV = logits_CV.div_(softcap).tanh_().mul_(softcap)
        slope_CV = 1 - (logits_CV / softcap).square_() if softcap is not None else None
        logsumexp_C1 = logits_CV.logsumexp(1, keepdim=True)
        nll_J[chunk] = (logsumexp_C1 - logits_CV.gather(1, targets_C1))[:, 0]
        p_CV = logits_CV.sub_(logsumexp_C1).exp_()
        p_CV.scatter_add_(1, targets_C1, torch.full_like(targets_C1, -1, dtype=wide))
        if slope_CV is not None:
            p_CV.mul_(slope_CV)
        torch.mm(p_CV.to(head_VH.dtype), head_VH, out=gradient_JH[chunk])
    return nll_J, gradient_JH


class HeadLoss(torch.autograd.Function):
    """(J,) nll of each target; the backward pass only scales what the forward pass has computed."""

    @staticmethod
    def forward(ctx: Any, hidden_JH: Tensor, head_VH: Tensor, targets_J: Tensor) -> Tensor:
        nll_J, gradient_JH = nll_and_gradient(hidden_JH, head_VH, targets_J)
        ctx.save_for_backward(gradient_JH)
        return nll_J

    @staticmethod
    def backward(ctx: Any, d_J: Tensor) -> tuple[Tensor, None, None]:
        (gradient_JH,) = ctx.saved_tensors
        return gradient_JH * d_J[:, None].to(gradient_JH.dtype), None, None
