"""The logits of two models beside each other: two forms of one adapter on a few general texts, or any two.

Shapes: T tokens of a text, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from inlay.engine.loss import autocast
from inlay.evaluation.score import held_out
from inlay.methods.adapter_state import AdapterState
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import JsonObject
from inlay.workflows.measure import general_rows

_PROBES: Final = 8
_PROBE_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class LogitAgreement:
    """Logits of the merged model beside those of base and adapter, over the tokens of a few texts."""

    tokens: int
    largest: float
    """Largest |difference| of a logit."""
    relative: float
    """Root mean square difference, as a share of that between base and adapter."""
    kl: float
    """Mean KL divergence of the next token, in nats."""
    same_choice: float
    """Share of the tokens for which both rank the same next token first."""

    def to_json(self) -> JsonObject:
        """All figures."""
        return {
            "tokens": self.tokens, "largest": self.largest, "relative": self.relative, "kl": self.kl,
            "same_choice": self.same_choice,
        }  # fmt: skip


def probe_texts(ready: OpenedBase) -> list[list[int]]:
    """The first tokens of a few general texts."""
    rows = held_out(general_rows(), ready.encoder, _PROBE_TOKENS, "cut", ()).tokens
    return [rows.row(i).input_ids.tolist() for i in range(min(len(rows), _PROBES))]


@torch.no_grad()
def logits_of(ready: OpenedBase, state: AdapterState | None, probes: list[list[int]]) -> list[Tensor]:
    """(T, V) fp32 logits of each text."""
    model = ready.with_adapter(state)
    with autocast(ready.device, ready.autocast_dtype):
        return [model(torch.tensor([ids], device=ready.device)).logits[0].float().cpu() for ids in probes]


def summed_kl(first_TV: Tensor, second_TV: Tensor) -> float:
    """KL(first‖second) of the next token in nats, summed over the tokens, of log-probabilities."""
    return float((first_TV.exp() * (first_TV - second_TV)).double().sum())


def same_choices(first_TV: Tensor, second_TV: Tensor) -> int:
    """Number of tokens at which both have the same first choice."""
    return int((first_TV.argmax(-1) == second_TV.argmax(-1)).sum())


def agreement_of(base: list[Tensor], adapter: list[Tensor], merged: list[Tensor]) -> LogitAgreement:
    """The agreement of merged and unmerged logits; the base's are the scale. `largest` is infinite for values that are not finite."""
    wrong2 = effect2 = largest = kl = 0.0
    same = tokens = 0
    for base_TV, adapter_TV, merged_TV in zip(base, adapter, merged, strict=True):
        difference_TV = merged_TV - adapter_TV
        wrong2 += float(difference_TV.double().square().sum())
        effect2 += float((adapter_TV - base_TV).double().square().sum())
        largest = max(largest, float(difference_TV.abs().max()) if torch.isfinite(merged_TV).all() else math.inf)
        one_TV, two_TV = adapter_TV.log_softmax(-1), merged_TV.log_softmax(-1)
        kl += summed_kl(one_TV, two_TV)
        same += same_choices(one_TV, two_TV)
        tokens += len(one_TV)
    relative = math.sqrt(wrong2 / effect2) if effect2 else 0.0 if not wrong2 else math.inf
    return LogitAgreement(tokens, largest, relative, max(kl / tokens, 0.0), same / tokens)
