"""Answers that are like the references: in how they are written (style), and in belonging to their prompt (relevance).

Neither measure is worth anything unless it separates the references from shuffled ones, so that is tried on the rows at
hand each time. Suffixes: N rows, F features, L depths of the base, D its width, B texts of a batch, T tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from inlay.data.batches import micro_batches
from inlay.data.encoding.encoder import Encoder
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import autocast
from inlay.evaluation.metrics import Array, Metric, ratio
from inlay.methods.adapter import adapter_disabled
from inlay.models.base import context_length

LEAST_ROWS: Final = 24
SEPARATES: Final = 0.6
"""Below which lower end of its 95% interval an AUC is not taken to separate."""
_MOST_SHUFFLED = 400

STYLE = Metric(
    name="style", higher_is_better=True, of_answers=True, size=2, value=ratio,
    description="share of the references that are written less like the others than the answer is, by its surface; 0..1",
)  # fmt: skip
RELEVANCE = Metric(
    name="relevance", higher_is_better=True, of_answers=True, size=2, value=ratio,
    description="share of the references that are less close to their question than the answer is to its; 0..1",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StyleRelevance:
    """Style or relevance of each model's answers, and how well the measure separates references from shuffled ones."""

    metric: Metric
    auc: float
    """Probability that a reference scores above a shuffled one; 0.5 is chance."""
    low: float
    """Lower end of its 95% interval."""
    sides: tuple[Array, ...]
    """(N, 2) statistics of each model's answers. The references themselves come to 0.5."""

    @property
    def separates(self) -> bool:
        """True where the AUC is clearly above chance; only then is the measure shown."""
        return self.low >= SEPARATES

    @property
    def means(self) -> tuple[float, ...]:
        """Score of each model; that of the references is 0.5."""
        return tuple(float(side[:, 0].mean()) for side in self.sides)

    def to_json(self) -> dict[str, object]:
        """AUC, its lower end, and whether the measure is shown."""
        return {"auc": self.auc, "auc_low": self.low, "shown": self.separates}


def style(references: Sequence[str], answers: Sequence[Sequence[str]], seed: int) -> StyleRelevance:
    """Nearness of an answer's surface to that of the references; each row by the references of the other half."""
    draw = np.random.default_rng([seed, 0x57E])
    real = np.stack([_surface(text) for text in references])
    mixed = np.stack([_surface(" ".join(draw.permutation(text.split()))) for text in references])
    half = draw.permutation(len(references)) % 2 == 0

    def scored(features_NF: Array) -> Array:
        return np.where(half, _nearness(features_NF, real[~half]), _nearness(features_NF, real[half]))

    own = scored(real)
    sides = tuple(_ranked(scored(np.stack([_surface(text) for text in one])), own, half) for one in answers)
    return StyleRelevance(STYLE, *_with_low(_area(own, scored(mixed)), len(own)), sides)


def relevance(prompts_NLD: Array, references_NLD: Array, answers: Sequence[Array], seed: int) -> StyleRelevance:
    """Nearness of an answer to its prompt, by the base's hidden states.

    The depth is the one that separates best: each half of the rows takes the depth that is best for the other half.
    """
    count = len(prompts_NLD)
    half = np.random.default_rng([seed, 0x3E1]).permutation(count) % 2 == 0
    prompts, real = _unit(prompts_NLD - prompts_NLD.mean(0)), _unit(references_NLD - references_NLD.mean(0))

    def separated(part: npt.NDArray[np.bool_], depth: int) -> float:
        rows = np.flatnonzero(part)[:_MOST_SHUFFLED]
        near = prompts[rows, depth] @ real[rows, depth].T
        return _area(np.diag(near), near[~np.eye(len(rows), dtype=bool)])

    depths, areas = np.empty(count, int), []
    for part in (half, ~half):
        depth = max(range(real.shape[1]), key=lambda one: separated(~part, one))
        depths[part] = depth
        areas.append(separated(part, depth))
    every = np.arange(count)

    def near(answers_NLD: Array) -> Array:
        return np.asarray((prompts * _unit(answers_NLD - references_NLD.mean(0))).sum(2)[every, depths])

    own = near(references_NLD)
    # an empty answer, all zeros, is near to nothing
    scores = [np.where(one.any(axis=(1, 2)), near(one), -np.inf) for one in answers]
    sides = tuple(_ranked(one, own, half) for one in scores)
    return StyleRelevance(RELEVANCE, *_with_low(float(np.mean(areas)), count), sides)


def _ranked(scores_N: Array, own_N: Array, half: npt.NDArray[np.bool_]) -> Array:
    """(N, 2) statistics: the share of the references of the row's own half that score less; an equal one is half."""
    found = np.empty(len(scores_N))
    for part in (half, ~half):
        if part.any():
            mine, theirs = scores_N[part, None], own_N[part]
            found[part] = (mine > theirs).mean(1) + (mine == theirs).mean(1) / 2
    return np.stack([found, np.ones(len(found))], 1)


def _area(real: Array, shuffled: Array) -> float:
    """Share of pairs with the value of `real` above that of `shuffled`; equal ones count half."""
    ordered = np.sort(shuffled)
    below = np.searchsorted(ordered, real, "left") + np.searchsorted(ordered, real, "right")
    return float(below.mean() / 2 / len(shuffled))


def _with_low(area: float, count: int) -> tuple[float, float]:
    """(AUC, lower end of its 95% interval), of so many real rows and as many shuffled ones.

    Source: J. Hanley and B. McNeil, "The meaning and use of the area under a ROC curve", 1982.
    """
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (count - 1) * (one + two - 2 * area**2)) / count**2
    return area, area - 1.96 * math.sqrt(max(variance, 0.0))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def _surface(text: str) -> Array:
    """(F,) features of how a text is written, not of its content: lengths, marks, capitals, digits, lines, repeated words."""
    words, letters = text.split(), max(len(text), 1)
    sentences = [part for part in _SENTENCE.split(text.strip()) if part] or [""]
    lengths = [len(part.split()) for part in sentences]
    bare = [word.strip(".,!?;:").casefold() for word in words]
    count = max(len(words), 1)
    return np.array(
        [
            math.log1p(len(words)), np.mean(lengths), np.std(lengths), sum(map(len, words)) / count,
            sum(map(str.isupper, text)) / letters, sum(map(str.isdigit, text)) / letters,
            *(text.count(mark) / letters for mark in ".,!?;:'\"-()"), text.count("\n") / count,
            np.mean([part[:1].isupper() for part in sentences]), float(text.strip()[-1:] in (".", "!", "?")),
            len(set(bare)) / count, sum(word[:1].isupper() for word in words[1:]) / count,
            float("```" in text),
        ]
    )  # fmt: skip


def _nearness(features_NF: Array, profile_MF: Array) -> Array:
    """(N,) minus the mean distance from the profile, in its standard deviations, each feature's at most 3."""
    mean, spread = profile_MF.mean(0), profile_MF.std(0)
    # without this floor a feature that hardly varies would outweigh all others
    scale = spread + 0.05 * np.abs(mean) + 1e-3
    return np.asarray(-np.minimum(np.abs(features_NF - mean) / scale, 3).mean(1))


_DEPTHS = 5
_MOST_TOKENS = 256


def text_embeddings(
    model: Any, encoder: Encoder, texts: Sequence[str], *, batch_size: int, device: str, dtype: torch.dtype | None
) -> Array:
    """(texts, depths, hidden) hidden states at a few depths, averaged over a text's first 256 tokens.

    They are those of the base alone where `model` carries an adapter. An empty text is all zeros.
    """
    most = min(_MOST_TOKENS, context_length(model.config))
    cut = {"add_special_tokens": False, "truncation": True, "max_length": most}
    ids = [encoder.tokenizer(text, **cut).input_ids for text in texts]
    lengths = np.array([len(one) for one in ids])
    shares = micro_batches([n for n, one in enumerate(ids) if one], lengths, batch_size)
    found: dict[int, Array] = {}
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    with adapter_disabled(model), torch.inference_mode(), autocast(device, dtype):
        for picked in batch_groups(model).apart(shares, lengths):
            width = len(ids[picked[0]])
            padded = [ids[n] + [encoder.pad_id] * (width - len(ids[n])) for n in picked]
            mask_BT = torch.tensor([[1] * len(ids[n]) + [0] * (width - len(ids[n])) for n in picked], device=device)
            every = backbone(
                input_ids=torch.tensor(padded, device=device), attention_mask=mask_BT, output_hidden_states=True,
                use_cache=False,
            ).hidden_states  # fmt: skip
            depths = np.unique(np.linspace(0, len(every) - 1, _DEPTHS).astype(int))
            share_BT1 = (mask_BT / mask_BT.sum(1, keepdim=True))[..., None].float()
            means = torch.stack([(every[d].float() * share_BT1).sum(1) for d in depths], 1)
            found |= dict(zip(picked, means.cpu().numpy().astype(np.float64), strict=True))
    shape = next(iter(found.values())).shape if found else (0, 0)
    return np.stack([found.get(n, np.zeros(shape)) for n in range(len(texts))]) if texts else np.zeros((0, *shape))
