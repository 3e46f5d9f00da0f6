"""The next token of each answer: penalties, bans, a grammar, temperature and cuts, in the order of transformers.

B: answers, V: vocabulary, R: answers whose logits are changed or sampled from, C: candidates of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from inlay.generation.request import Sampling, TokenLogprob

NO_TOKEN: Final = -1
"""Stands for a token that could not be chosen: the logits hold NaN, or every token is ruled out."""

_REACHES: Final = (8.0, 14.0, 22.0, 40.0, np.inf)
"""Tokens within e^-reach of the most likely one are sorted first; the rest only where they are needed."""


_COLDEST: Final = 1e-6  # below it only the most likely token has a share, and float32 nears its end


class Constraint(Protocol):
    """A rule that an answer follows from its first token on."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer ends here, as nothing more may follow."""
        raise NotImplementedError

    def allowed(self) -> np.ndarray | None:
        """(up to V,) bool, True for each token that may come next; None allows all. Ids beyond its end are ruled out."""
        raise NotImplementedError

    def advance(self, id: int) -> None:  # noqa: A002
        """Takes in the token that was chosen."""
        raise NotImplementedError


class ChoiceRow:
    """One answer as `choose` sees it: its settings, and the tokens before the next one."""

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        end_ids: frozenset[int] = frozenset(),
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """`end_ids` end a turn. `choice` tells answers to the same prompt with the same seed apart."""
        self.sampling, self.choice, self.constraint = sampling, choice, constraint
        self.ids: list[int] = []
        """Tokens of the answer so far; `append` adds to them."""
        self._prompt_tokens = len(prompt)
        self._ends = np.array(sorted(end_ids), np.int64)
        self._seen = _Counts() if sampling.repetition_penalty != 1 else None
        self._counts = _Counts() if sampling.presence_penalty or sampling.frequency_penalty else None
        size = sampling.no_repeat_ngram_size
        self._ngrams = _Ngrams(size) if size > 0 else None
        for id_ in prompt:
            self._see(id_)

    def append(self, id: int) -> None:  # noqa: A002
        """Takes in the next token of the answer."""
        self.ids.append(id)
        self._see(id)
        if self._counts:
            self._counts.add(id)
        if self.constraint:
            self.constraint.advance(id)

    @property
    def is_plain(self) -> bool:
        """Whether the most likely token of the model's own logits is the one to choose."""
        return self.sampling.temperature <= 0 and not self.alters

    @property
    def alters(self) -> bool:
        """Whether logits are changed before temperature and cuts."""
        return bool(
            self._seen
            or self._ngrams
            or self._counts
            or self.sampling.logit_bias
            or self.constraint
            or len(self.ids) < self.sampling.min_new_tokens
        )

    @property
    def is_complete(self) -> bool:
        """Whether its grammar ends the answer here."""
        return self.constraint is not None and self.constraint.is_complete

    def alter_(self, logits_V: np.ndarray) -> None:
        """Penalties, bans and the grammar, in place."""
        settings = self.sampling
        if self._seen:
            seen, penalty = logits_V[self._seen.ids], np.float32(settings.repetition_penalty)
            logits_V[self._seen.ids] = np.where(seen < 0, seen * penalty, seen / penalty)
        if self._ngrams and (banned := self._ngrams.banned()):
            logits_V[list(banned)] = -np.inf
        for id_, bias in settings.logit_bias:
            logits_V[id_] += np.float32(bias)
        if self._counts:
            taken = self._counts.counts * settings.frequency_penalty + settings.presence_penalty
            logits_V[self._counts.ids] -= taken.astype(np.float32)
        before_V = logits_V[self._ends]
        if is_short := len(self.ids) < settings.min_new_tokens:
            logits_V[self._ends] = -np.inf
        if self.constraint and (allowed := self.constraint.allowed()) is not None:
            allowed = np.pad(allowed[: len(logits_V)], (0, max(0, len(logits_V) - len(allowed))))
            logits_V[~allowed] = -np.inf
            if is_short and not np.isfinite(logits_V.max()):  # the grammar has nothing else
                logits_V[self._ends] = np.where(allowed[self._ends], before_V, -np.inf)

    def number(self) -> float:
        """In [0, 1), fixed by seed, choice and position in the sequence alone: no batch, order or restart changes it."""
        position = self._prompt_tokens + len(self.ids)
        digest = blake2b(f"{self.sampling.seed}/{self.choice}/{position}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53

    def _see(self, id_: int) -> None:
        if self._seen:
            self._seen.add(id_)
        if self._ngrams:
            self._ngrams.add(id_)


class Chosen(NamedTuple):
    """The next token of each answer."""

    ids: list[int]
    """`NO_TOKEN` where none can be chosen."""
    logprobs: list[TokenLogprob | None]
    """By the model's own logits, for the answers that ask for them."""


def choose(logits_BV: Tensor, rows: Sequence[ChoiceRow]) -> Chosen:
    """The next token of each row, whose `append` it is not yet given to. The logits stay as they are.

    What is chosen for a row depends on its own logits and settings alone, not on the other rows.
    """
    ids = np.full(len(rows), NO_TOKEN)
    plain = [n for n, row in enumerate(rows) if row.is_plain]
    other = [n for n, row in enumerate(rows) if not row.is_plain]
    if plain and logits_BV.is_cuda:
        ids[plain] = _most_likely_on_device(logits_BV if not other else logits_BV[plain])
    elif plain:
        ids[plain] = _most_likely(_array(logits_BV) if not other else _array(logits_BV)[plain])
    if other:
        ids[other] = _chosen_otherwise(_array(logits_BV if not logits_BV.is_cuda else logits_BV[other]), rows, other)
    return Chosen(ids.tolist(), _logprobs(logits_BV, rows, ids))


def logprobs_of(logits_BV: Tensor, ids: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """The log-probability of each id, with as many of the most likely tokens beside it as `tops` says."""
    found = []
    for logits_V, id_, top in zip(_array(logits_BV), ids, tops, strict=True):
        highest = logits_V.max()
        total = highest + np.log(np.exp(logits_V - highest).sum())
        count = min(top, len(logits_V))
        places = np.flatnonzero(logits_V >= np.partition(logits_V, -count)[-count]) if count else np.zeros(0, np.int64)
        places = places[np.argsort(-logits_V[places], kind="stable")][:count]
        best = tuple(zip(places.tolist(), (logits_V[places] - total).tolist(), strict=True))
        found.append(TokenLogprob(id_, float(logits_V[id_] - total), best))
    return found


def _array(logits_BV: Tensor) -> np.ndarray:
    found: np.ndarray = logits_BV.detach().float().cpu().numpy()  # its loops are several times as fast on a CPU
    return found


def _logprobs(logits_BV: Tensor, rows: Sequence[ChoiceRow], ids: np.ndarray) -> list[TokenLogprob | None]:
    found: list[TokenLogprob | None] = [None] * len(rows)
    wanted = [n for n, row in enumerate(rows) if row.sampling.logprobs is not None and ids[n] != NO_TOKEN]
    if wanted:
        tops = [rows[n].sampling.logprobs or 0 for n in wanted]
        for n, one in zip(wanted, logprobs_of(logits_BV[wanted], ids[wanted].tolist(), tops), strict=True):
            found[n] = one
    return found


def _most_likely(logits_RV: np.ndarray) -> np.ndarray:
    """The lowest of the most likely ids."""
    best_R = logits_RV.argmax(1)
    is_number = np.isfinite(logits_RV[np.arange(len(best_R)), best_R])  # NaN where any logit is NaN
    return np.where(is_number, best_R, NO_TOKEN)


def _most_likely_on_device(logits_RV: Tensor) -> np.ndarray:
    best_R = logits_RV.argmax(1)
    is_number = torch.isfinite(logits_RV.gather(1, best_R[:, None])[:, 0])
    found: np.ndarray = torch.where(is_number, best_R, NO_TOKEN).cpu().numpy()
    return found


def _chosen_otherwise(logits_RV: np.ndarray, rows: Sequence[ChoiceRow], other: list[int]) -> np.ndarray:
    """The token of each row of `other`, whose logits are changed or that is sampled."""
    logits_RV = logits_RV[other] if len(logits_RV) != len(other) else logits_RV.copy()
    some = [rows[n] for n in other]
    for row, logits_V in zip(some, logits_RV, strict=True):
        row.alter_(logits_V)
    warm = np.array([row.sampling.temperature > 0 for row in some])
    ids = np.full(len(some), NO_TOKEN)
    if not warm.all():
        ids[~warm] = _most_likely(logits_RV[~warm])
    if warm.any():
        ids[warm] = _drawn(
            logits_RV if warm.all() else logits_RV[warm], [row for row in some if row.sampling.temperature > 0]
        )
    return ids


def _drawn(logits_RV: np.ndarray, rows: Sequence[ChoiceRow]) -> np.ndarray:
    """A token for each row by its number: tokens by falling probability, then by id, take their shares of [0, 1).

    Writes over the logits.
    """
    settings = [row.sampling for row in rows]
    temperature_R = np.array([max(s.temperature, _COLDEST) for s in settings], np.float32)
    top_R = logits_RV.max(1)
    ids = np.full(len(rows), NO_TOKEN)
    left = np.flatnonzero(np.isfinite(top_R))
    logits_RV -= np.where(np.isfinite(top_R), top_R, 0)[:, None]
    with np.errstate(over="ignore"):
        logits_RV /= temperature_R[:, None]
    draws = _Draws(
        np.array([row.number() for row in rows]),
        np.array([s.top_k for s in settings]),
        np.array([s.top_p for s in settings]),
        np.array([s.min_p for s in settings]),
        np.exp(logits_RV).sum(1).astype(np.float64),
    )
    for reach in _REACHES:
        if not len(left):
            break
        candidates = _candidates(logits_RV if len(left) == len(rows) else logits_RV[left], reach)
        found, known = draws.of(left)(candidates, reach)
        ids[left[known]] = found[known]
        left = left[~known]
    return ids


class _Candidates(NamedTuple):
    ids_RC: np.ndarray
    logits_RC: np.ndarray
    """Falling, float64; the highest is 0; NaN where a row has fewer."""
    counts_R: np.ndarray


_PADDING: Final = np.iinfo(np.uint64).max


def _candidates(logits_RV: np.ndarray, reach: float) -> _Candidates:
    """The tokens of each row within `reach` of its most likely one, by falling logit, then by id."""
    count, width = logits_RV.shape
    place_N = np.flatnonzero(logits_RV > -reach)
    edges = np.searchsorted(place_N, np.arange(count + 1) * width)
    counts_R = np.diff(edges)
    row_N = np.repeat(np.arange(count), counts_R)
    id_N, column_N = place_N - row_N * width, np.arange(len(place_N)) - edges[row_N]
    # one number for both: the bits of a float that is not negative rise as it does
    gap_N = np.float32(0) - logits_RV.reshape(-1)[place_N]
    key_RC = np.full((count, int(counts_R.max())), _PADDING)
    key_RC[row_N, column_N] = gap_N.view(np.uint32).astype(np.uint64) << np.uint64(32) | id_N.astype(np.uint64)
    key_RC.sort(axis=1)
    gaps_RC = (key_RC >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return _Candidates((key_RC & np.uint64(0xFFFFFFFF)).astype(np.int64), -gaps_RC.astype(np.float64), counts_R)


class _Draws(NamedTuple):
    number_R: np.ndarray
    top_k_R: np.ndarray
    top_p_R: np.ndarray
    min_p_R: np.ndarray
    total_R: np.ndarray
    """Sum of exp(logit) over the whole vocabulary; the highest logit is 0."""

    def of(self, rows: np.ndarray) -> _Draws:
        """The draws of some rows."""
        return _Draws(*(part[rows] for part in self))

    def __call__(self, candidates: _Candidates, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """(the id of each row, whether the candidates were enough to know it)."""
        all_there = reach == np.inf
        ids_RC, logits_RC, counts_R = candidates
        rows = np.arange(len(ids_RC))
        sum_RC = np.cumsum(np.exp(logits_RC), axis=1)
        last_R = sum_RC[rows, counts_R - 1]
        # top_k keeps what equals the k-th, too
        has_k = self.top_k_R > 0
        kth_R = np.where(has_k, logits_RC[rows, np.clip(self.top_k_R, 1, counts_R) - 1], -np.inf)
        kept_R = np.where(has_k, (logits_RC >= kth_R[:, None]).sum(1), counts_R)
        known = all_there | ~has_k | (self.top_k_R <= counts_R)
        total_R = np.where(has_k, sum_RC[rows, kept_R - 1], last_R if all_there else self.total_R)
        # top_p keeps the first tokens that together have its share of the rest
        has_p = self.top_p_R < 1
        before_RC = np.concatenate([np.zeros((len(rows), 1)), sum_RC[:, :-1]], axis=1)
        within_R = np.maximum((before_RC < (self.top_p_R * total_R)[:, None]).sum(1), 1)
        kept_R = np.where(has_p, np.minimum(kept_R, within_R), kept_R)
        cut = has_k | (has_p & (last_R >= self.top_p_R * total_R))
        # min_p keeps what has its share of the most likely one
        has_m = self.min_p_R > 0
        least_R = np.log(np.where(has_m, self.min_p_R, 1.0))
        kept_R = np.where(has_m, np.clip((logits_RC >= least_R[:, None]).sum(1), 1, kept_R), kept_R)
        cut |= has_m & ((least_R > -reach) | all_there)
        target_R = self.number_R * np.where(cut | all_there, sum_RC[rows, kept_R - 1], total_R)
        place_R = np.minimum((sum_RC <= target_R[:, None]).sum(1), kept_R - 1)
        known &= all_there | cut | (~has_p & ~has_m & (last_R > target_R))
        return ids_RC[rows, place_R], known


class _Counts:
    """Each token with the number of times it came, as arrays that grow."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids, self._counts = np.zeros(64, np.int64), np.zeros(64, np.float32)

    def add(self, id_: int) -> None:
        """One more of this token."""
        place = self._places.setdefault(id_, len(self._places))
        if place == len(self._ids):
            self._ids, self._counts = (np.concatenate([a, np.zeros_like(a)]) for a in (self._ids, self._counts))
        self._ids[place] = id_
        self._counts[place] += 1

    @property
    def ids(self) -> np.ndarray:
        """Each token, one time."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        """The number of each of `ids`."""
        return self._counts[: len(self._places)]


class _Ngrams:
    """The tokens that followed each run of `size` - 1 tokens."""

    def __init__(self, size: int) -> None:
        self._before = size - 1
        self._last: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], set[int]] = {}

    def add(self, id_: int) -> None:
        """The next token."""
        if len(self._last) == self._before:
            self._followers.setdefault(self._last, set()).add(id_)
        self._last = (*self._last, id_)[-self._before :] if self._before else ()

    def banned(self) -> set[int]:
        """The tokens that would repeat an n-gram now."""
        return self._followers.get(self._last, set())
