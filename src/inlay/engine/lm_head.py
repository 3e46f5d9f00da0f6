"""Loss of a language-model head, with its gradient computed beside it.

The logits of all positions together are the largest tensor of a small model's step. Here they exist a chunk at a
time: a chunk's loss and the gradient it sends to the hidden values are computed at once, then its logits are gone.

Shapes: J positions that predict a trained token, C of them in a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from inlay.engine import cpu_ops
from inlay.engine.profile import timed

_LOGITS_AT_ONCE = 1 << 22
_FEWEST_ROWS = 256  # fewer, and reading the head's weights would cost more than the matmul
WIDENED_AT_ONCE = 1 << 22  # numbers of a head that is held in another dtype than its matmuls are computed in
_IN_CACHE = 1 << 18  # numbers that stay in a core's cache between one pass over them and the next


class Head(NamedTuple):
    """The matmul that makes logits of the last hidden values. A soft cap makes l = c·tanh(z / c) of its result z.

    Matmuls are computed in the dtype of the hidden values, whatever the weights are held in.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None

    @property
    def is_trained(self) -> bool:
        """True where its weights or its bias need a gradient."""
        return self.weight_VH.requires_grad or (self.bias_V is not None and self.bias_V.requires_grad)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """(C, V), at least fp32."""
        logits_CV = self.matmul(hidden_CH).to(_wide(hidden_CH))
        return logits_CV if self.softcap is None else logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)

    def matmul(self, hidden_CH: Tensor) -> Tensor:
        """(C, V) before a soft cap, in the dtype of the hidden values."""
        if self.weight_VH.dtype == hidden_CH.dtype:
            return F.linear(hidden_CH, self.weight_VH, self.bias_V)
        z_CV = hidden_CH.new_empty(len(hidden_CH), len(self.weight_VH))
        for part, weight_PH in self._widened(hidden_CH.dtype):
            torch.mm(hidden_CH, weight_PH.T, out=z_CV[:, part])
        if self.bias_V is not None:
            z_CV += self.bias_V
        return z_CV

    def backward(self, d_CV: Tensor, out_CH: Tensor) -> None:
        """Writes the gradient by the hidden values, from that by the result of the matmul."""
        if self.weight_VH.dtype == out_CH.dtype:
            torch.mm(d_CV, self.weight_VH, out=out_CH)
            return
        out_CH.zero_()
        for part, weight_PH in self._widened(out_CH.dtype):
            out_CH.addmm_(d_CV[:, part], weight_PH)

    def _widened(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Some words at a time and their weights in that dtype: all of them at once would be the largest tensor."""
        count, hidden = self.weight_VH.shape
        words = max(1, WIDENED_AT_ONCE // hidden)
        for start in range(0, count, words):
            part = slice(start, min(start + words, count))
            yield part, self.weight_VH[part].to(dtype)

    def chunks(self, count: int) -> Iterator[slice]:
        """So many positions, as many at a time as there is room for the logits of."""
        rows = rows_at_once(len(self.weight_VH))
        return (slice(start, start + rows) for start in range(0, count, rows))


def rows_at_once(vocabulary: int) -> int:
    """Positions whose logits exist at the same time."""
    return max(_FEWEST_ROWS, _LOGITS_AT_ONCE // vocabulary)


def nll_and_hits(hidden_JH: Tensor, head: Head, targets_J: Tensor) -> tuple[Tensor, Tensor]:
    """(J,) negative log likelihood of each target in nats, at least fp32, and (J,) whether no other token is likelier."""
    nll_J = torch.empty(len(hidden_JH), dtype=_wide(hidden_JH), device=hidden_JH.device)
    hits_J = torch.empty(len(hidden_JH), dtype=torch.bool, device=hidden_JH.device)
    for chunk in head.chunks(len(hidden_JH)):
        logits_CV = head.logits(hidden_JH[chunk])
        nll_J[chunk] = F.cross_entropy(logits_CV, targets_J[chunk], reduction="none")
        hits_J[chunk] = logits_CV.argmax(1) == targets_J[chunk]
    return nll_J, hits_J


@timed("head")
def nll_and_gradient(hidden_JH: Tensor, head: Head, targets_J: Tensor) -> tuple[Tensor, Tensor]:
    """(J,) negative log likelihood of each target in nats, at least fp32, and its gradient (J, H) by the hidden values.

    With logits l and p = softmax(l): d nll / d l = p - onehot(target). A soft cap's derivative is 1 - (l / c)². The
    sum that p is divided by comes out of the matmul with the weights, where there are fewer numbers to divide.
    """
    nll_J = torch.empty(len(hidden_JH), dtype=_wide(hidden_JH), device=hidden_JH.device)
    gradient_JH = torch.empty_like(hidden_JH)
    for chunk in head.chunks(len(hidden_JH)):
        nll_J[chunk] = _chunk(hidden_JH[chunk], head, targets_J[chunk, None], gradient_JH[chunk])
    return nll_J, gradient_JH


def _chunk(hidden_CH: Tensor, head: Head, targets_C1: Tensor, gradient_CH: Tensor) -> Tensor:
    """(C,) nll. A function of its own, so that a chunk's logits are gone before the next one's are there."""
    z_CV = head.matmul(hidden_CH)
    nll_C1, sum_C1 = (z_CV.new_empty(len(z_CV), 1, dtype=_wide(z_CV)) for _ in range(2))
    if cpu_ops.takes(z_CV):
        cpu_ops.slopes(z_CV, targets_C1, head.softcap, nll_C1, sum_C1)
    else:
        on_cpu = z_CV.device.type == "cpu"
        rows = max(1, _IN_CACHE // z_CV.shape[1]) if on_cpu else len(z_CV)
        for start in range(0, len(z_CV), rows):
            few = slice(start, start + rows)
            _slopes(z_CV[few], targets_C1[few], head.softcap, nll_C1[few], sum_C1[few])
    head.backward(z_CV, gradient_CH)
    gradient_CH /= sum_C1
    return nll_C1[:, 0]


def _slopes(z_RV: Tensor, targets_R1: Tensor, softcap: float | None, nll_R1: Tensor, sum_R1: Tensor) -> None:
    """Writes the nll, the sums s of exp(l - largest), and over the matmul's results z the gradient d nll / dz times s."""
    l_RV, slope_RV = z_RV.to(_wide(z_RV)), None
    if softcap is not None:
        l_RV.div_(softcap).tanh_()
        slope_RV = 1 - l_RV.square()
        l_RV.mul_(softcap)
    l_RV.sub_(l_RV.amax(1, keepdim=True))
    torch.neg(l_RV.gather(1, targets_R1), out=nll_R1)
    torch.sum(l_RV.exp_(), 1, keepdim=True, out=sum_R1)
    nll_R1.add_(sum_R1.log())
    l_RV.scatter_add_(1, targets_R1, -sum_R1)
    if slope_RV is not None:
        l_RV.mul_(slope_RV)
    if l_RV is not z_RV:
        z_RV.copy_(l_RV)


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


class HeadLoss(torch.autograd.Function):
    """(J,) nll of each target; the backward pass only scales what the forward pass has computed."""

    @staticmethod
    def forward(ctx: Any, hidden_JH: Tensor, head: Head, targets_J: Tensor) -> Tensor:
        """(J,) nll in nats; keeps the gradient by the hidden values."""
        nll_J, gradient_JH = nll_and_gradient(hidden_JH, head, targets_J)
        ctx.save_for_backward(gradient_JH)
        return nll_J

    @staticmethod
    def backward(ctx: Any, d_J: Tensor) -> tuple[Tensor, None, None]:
        """(J, H) gradient by the hidden values."""
        (gradient_JH,) = ctx.saved_tensors
        return gradient_JH * d_J[:, None].to(gradient_JH.dtype), None, None


_checked: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def head_of(model: Any) -> Head | None:
    """The head of a causal model, or of the base under its adapter; None where logits are more than that.

    Seen once for each model: its logits of three tokens must be what `Head` makes of its decoder's hidden values.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = causal.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return None
    head = Head(layer.weight, layer.bias, getattr(causal.config, "final_logit_softcapping", None))
    if layer.weight.is_meta:  # no values to see it by
        return head
    if causal not in _checked:
        _checked[causal] = _is_head_of(causal, head)
    return head if _checked[causal] else None


def last_hidden(model: Any, **inputs: Any) -> Tensor:
    """(B, L, H) what enters the head."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden: Tensor = causal.base_model(use_cache=False, **inputs).last_hidden_state
    return hidden


def _is_head_of(causal: Any, head: Head) -> bool:
    if causal.base_model is causal:
        return False
    ids = torch.arange(3, device=head.weight_VH.device)[None] % len(head.weight_VH)
    was_training = causal.training
    causal.eval()  # draws no random numbers
    kind = ids.device.type
    same = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)
    try:
        with torch.no_grad(), same:  # casts that torch 2.10 and older keep from here have no gradient
            own = causal(input_ids=ids, use_cache=False).logits[0].float()
            hidden = last_hidden(causal, input_ids=ids)[0]
            if hidden.shape[-1] != head.weight_VH.shape[1] or own.shape[-1] != len(head.weight_VH):
                return False
            found = head.logits(hidden.to(head.weight_VH.dtype)).float()
    finally:
        causal.train(was_training)
    return bool((found - own).norm() <= _LARGEST_ERROR[head.weight_VH.element_size() < 4] * own.norm())


_LARGEST_ERROR = {False: 1e-5, True: 2e-2}
"""Relative, of logits; in 16 bits a model rounds them, which `Head` does not."""
