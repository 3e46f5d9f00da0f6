"""Loss of a batch by transformers' own forward pass, the head only where a token is trained.

Shapes: B rows, L positions, K kept positions, J trained ones of all rows, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from inlay.data.batches import Batch, collate
from inlay.data.encoding.token_arrays import TokenSet
from inlay.engine.lm_head import HeadLoss, head_of, last_hidden, nll_and_hits


class RowLosses(NamedTuple):
    """Loss of each row of a batch, float32."""

    sum_B: Tensor
    """(B,) summed weighted loss, of which the gradient is taken."""
    weight_B: Tensor
    """(B,) summed weight."""
    hits_B: Tensor | None
    """(B,) summed weight of what the model would have chosen itself; None where gradients are recorded."""


Loss = Callable[[Any, Batch], RowLosses]
Collate = Callable[[TokenSet, Sequence[int], int], Batch]


def causal_loss(model: Any, batch: Batch) -> RowLosses:
    """Summed weighted negative log likelihood of each row in nats.

    The gradient of a step is that of the sum over all its rows, divided once by the step's whole weight. Where the
    model's head is known (`head_of`) and frozen, logits exist only at trained positions and a chunk at a time.
    """
    trained, weights_J, nll_J, hits_J = _trained_tokens(model, batch)
    hits_B = None if torch.is_grad_enabled() else _by_row(trained, hits_J * weights_J)
    return RowLosses(_by_row(trained, nll_J * weights_J), _by_row(trained, weights_J), hits_B)


def _trained_tokens(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, L - 1) which positions predict a trained token, and of those J: weight, nll, and whether no token is likelier;
    the last is left False where gradients are wanted."""
    with_gradient = torch.is_grad_enabled()
    head = head_of(model)
    if head is None or (with_gradient and head.is_trained):
        weights_BK, targets_BK, logits_BKV = predictions(model, batch)
        trained = weights_BK > 0
        logits_JV, targets_J = logits_BKV[trained].float(), targets_BK[trained]
        nll_J = F.cross_entropy(logits_JV, targets_J, reduction="none")
        hits_J = trained.new_zeros(len(nll_J)) if with_gradient else logits_JV.argmax(1) == targets_J
        return trained, weights_BK[trained], nll_J, hits_J
    weights_BL, targets_BL = batch.weights[:, 1:], batch.input_ids[:, 1:]
    trained = weights_BL > 0
    hidden_BLH = last_hidden(model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    hidden_JH, targets_J = hidden_BLH[:, :-1][trained].to(head.weight_VH.dtype), targets_BL[trained]
    if with_gradient:
        nll_J = HeadLoss.apply(hidden_JH, head, targets_J)  # type: ignore[no-untyped-call]
        hits_J = trained.new_zeros(len(nll_J))
    else:
        nll_J, hits_J = nll_and_hits(hidden_JH, head, targets_J)
    return trained, weights_BL[trained], nll_J, hits_J


def _by_row(trained: Tensor, values_J: Tensor) -> Tensor:
    spread = torch.zeros(trained.shape, dtype=values_J.dtype, device=values_J.device)
    return spread.masked_scatter(trained, values_J).sum(1)


def predictions(model: Any, batch: Batch, last: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K) weights, (B, K) target ids and (B, K, V) logits of the positions that predict a trained token in any row;
    of the last so many where `last` is given."""
    # position t predicts token t + 1; keep a position when any row trains what it predicts
    keep_K = (batch.weights[:, 1:] > 0).any(0).nonzero()[-last:, 0]
    kept = {"logits_to_keep": keep_K} if takes_logits_to_keep(model) else {}
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **kept)
    logits = output.logits
    if logits.shape[1] != len(keep_K):  # an architecture that takes logits_to_keep and ignores it
        logits = logits[:, keep_K]
    return batch.weights[:, keep_K + 1], batch.input_ids[:, keep_K + 1], logits


def takes_logits_to_keep(model: Any) -> bool:
    """True where the forward pass of the model, or of the base under its adapter, takes `logits_to_keep`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = inspect.signature(base.forward).parameters
    return "logits_to_keep" in kinds or any(p.kind is p.VAR_KEYWORD for p in kinds.values())


def score_rows(
    model: Any,
    tokens: TokenSet,
    shares: Iterable[Sequence[int]],
    pad_id: int,
    device: str,
    dtype: torch.dtype | None,
    collate: Collate = collate,
    loss: Loss = causal_loss,
    *,
    hits: bool = False,
) -> Tensor:
    """(2, N) float64 on the CPU: summed weighted loss (nll in nats) and weight of each sequence that `shares` names,
    0 elsewhere; with `hits` a third row, the weight of the tokens that the model would have chosen itself.

    Draws no random numbers and leaves the model in the mode it was in.
    """
    scores = torch.zeros(3 if hits else 2, len(tokens), dtype=torch.float64)
    with for_inference(model), autocast(device, dtype):
        for rows in shares:
            found = loss(model, collate(tokens, rows, pad_id).to(device))
            for score_N, values_B in zip(scores, found, strict=False):
                assert values_B is not None, "a loss without gradients has hits"
                score_N[rows] = values_B.cpu().double()
    return scores


def counted(shares: Iterable[Sequence[int]], reached: Callable[[int], None]) -> Iterator[Sequence[int]]:
    """The shares; before the next one `reached` is called with the number of rows done."""
    done = 0
    for rows in shares:
        yield rows
        done += len(rows)
        reached(done)


@contextlib.contextmanager
def for_inference(model: Any) -> Iterator[None]:
    """Inside, the model computes bit for bit what it computes when it is loaded for inference.

    That takes more than eval mode: where a weight requires a gradient, torch multiplies by it in another way, even if
    no gradient is recorded.
    """
    was_training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.inference_mode():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(was_training)


@contextlib.contextmanager
def autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, matmuls on the device are in `dtype`; None computes in the dtype of the weights."""
    if dtype is None:
        yield
        return
    with torch.autocast(torch.device(device).type, dtype=dtype):
        yield
