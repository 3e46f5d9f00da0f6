"""The next token of an answer: as transformers' processors choose it, whatever else is in the batch, and after a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats
from transformers import generation

from inlay.generation.choice import NO_TOKEN, ChoiceRow, choose
from inlay.generation.request import Sampling

END = frozenset({2, 5})
GREEDY = Sampling()
SAMPLED = Sampling(temperature=1.0)
settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    top_k=st.sampled_from([0, 1, 7, 40, 10_000]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2, 3]),
    min_new_tokens=st.sampled_from([0, 12, 13]),
    seed=st.integers(0, 2**63),
)
with_penalties = st.builds(
    replace,
    settings,
    presence_penalty=st.sampled_from([0.0, 0.7, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.sampled_from([(), ((3, 2.5), (9, -100.0))]),
    logprobs=st.sampled_from([None, 0, 4]),
)


def rows_of(count: int, sampling: Sampling, width: int, rng: np.random.Generator, new: int = 12) -> list[ChoiceRow]:
    """Rows with prompts of 8 tokens and `new` tokens of an answer, in which tokens come again."""
    rows = []
    for n in range(count):
        rows.append(ChoiceRow(rng.integers(0, width, 8).tolist(), sampling, END, n))
        for id_ in rng.integers(0, min(width, 16), new).tolist():
            rows[-1].append(id_)
    return rows


def logits_of(count: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    spread = rng.choice([0.3, 1.0, 4.0], (count, 1))
    logits = rng.standard_normal((count, width)) * spread
    for id_, height in ((2, 3.0), (7, 9.0)):  # an end that is likely; one token far above many others
        logits[:, id_] += rng.choice([0, height], count)
    return torch.from_numpy(logits.astype(np.float32))


def processed(logits: torch.Tensor, ids: torch.Tensor, sampling: Sampling, prompt_length: int) -> torch.Tensor:
    """The scores that transformers samples from."""
    made = generation.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        made.append(generation.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        made.append(generation.NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if sampling.min_new_tokens:
        made.append(
            generation.MinNewTokensLengthLogitsProcessor(prompt_length, sampling.min_new_tokens, sorted(END), "cpu")
        )
    if sampling.temperature > 0:
        made.append(generation.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            made.append(generation.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            made.append(generation.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            made.append(generation.MinPLogitsWarper(sampling.min_p))
    return made(ids, logits.clone())


def near_an_edge(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Rows where rounding decides whether a token is within top_p or min_p."""
    shares = scores.softmax(1)
    rising = shares.sort().values.cumsum(1)
    near = ((rising - (1 - sampling.top_p)).abs() < 1e-5).any(1) & (sampling.top_p < 1)
    return near | ((shares / shares.amax(1, keepdim=True) - sampling.min_p).abs() < 1e-5).any(1) & (sampling.min_p > 0)


@hypothesis_settings(max_examples=30)
@given(settings, st.sampled_from([40, 400]), st.integers(0, 2**32 - 1))
def test_the_choice_is_that_of_the_processors_of_transformers(sampling: Sampling, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, logits = rows_of(64, sampling, width, rng), logits_of(64, width, rng)
    again = np.random.default_rng(seed)
    ids = torch.tensor([[*again.integers(0, width, 8), *again.integers(0, min(width, 16), 12)] for _ in rows])
    scores = processed(logits.double(), ids, sampling, 8)
    chosen = torch.tensor(choose(logits, rows).ids)
    if sampling.temperature == 0:
        assert torch.equal(chosen, scores.argmax(1))
        return
    shares, order = scores.softmax(1).sort(descending=True, stable=True)
    is_chosen = order == chosen[:, None]
    until = shares.cumsum(1)[is_chosen]
    numbers = torch.tensor([row.number() for row in rows])
    fits = (until - shares[is_chosen] - 1e-5 <= numbers) & (numbers <= until + 1e-5) & (shares[is_chosen] > 0)
    uncut = processed(logits.double(), ids, replace(sampling, top_p=1.0, min_p=0.0), 8)
    assert (fits | near_an_edge(uncut, sampling)).all()


def mixed_rows(draws: list[Sampling], width: int, seed: int) -> list[ChoiceRow]:
    return [rows_of(1, one, width, np.random.default_rng(seed + n))[0] for n, one in enumerate(draws)]


@given(st.lists(with_penalties, min_size=2, max_size=12), st.sampled_from([33, 3000]), st.integers(0, 2**30))
def test_a_choice_among_others_is_the_choice_alone(draws: list[Sampling], width: int, seed: int) -> None:
    rows, logits = mixed_rows(draws, width, seed), logits_of(len(draws), width, np.random.default_rng(seed))
    before = logits.clone()
    together = choose(logits, rows)
    assert torch.equal(logits, before)
    for n, row in enumerate(rows):
        alone = choose(logits[n : n + 1], [row])
        assert (alone.ids, alone.logprobs) == ([together.ids[n]], [together.logprobs[n]])
    backwards = choose(logits.flip(0), rows[::-1])
    assert backwards.ids == together.ids[::-1]


def test_a_seeded_answer_is_the_same_after_a_restart() -> None:
    logits = torch.arange(500)[None] * 37 % 101 / 20  # many are equal
    row = ChoiceRow([1, 2, 3], replace(SAMPLED, seed=7, top_p=0.9), choice=1)
    for _ in range(12):
        row.append(choose(logits, [row]).ids[0])
    assert row.ids == EXPECTED
    going_on = ChoiceRow([1, 2, 3, *row.ids[:5]], row.sampling, choice=1)
    assert choose(logits, [going_on]).ids == [row.ids[5]]


EXPECTED = [234, 87, 349, 455, 212, 79, 46, 294, 30, 179, 215, 193]


@pytest.mark.parametrize(
    "sampling", [SAMPLED, replace(SAMPLED, top_p=0.8), replace(SAMPLED, top_k=4), replace(SAMPLED, min_p=0.3)]
)
def test_tokens_are_drawn_by_their_probabilities(sampling: Sampling) -> None:
    logits = torch.tensor([[0.1, 1.2, -0.5, 0.9, 0.0, -2.0, 1.1, 0.1]])
    count = 8000
    rows = [ChoiceRow([1], replace(sampling, seed=n % 100), choice=n // 100) for n in range(count)]
    drawn = np.bincount(choose(logits.expand(count, -1), rows).ids, minlength=8)
    expected = processed(logits, torch.tensor([[1]]), sampling, 1).softmax(1)[0].double().numpy() * count
    assert (drawn[expected == 0] == 0).all()
    kept = expected > 0
    assert stats.chisquare(drawn[kept], expected[kept] * (count / expected[kept].sum())).pvalue > 1e-3


def test_many_tokens_far_below_the_most_likely_one_have_their_share() -> None:
    logits = torch.zeros(1, 3001)
    logits[0, 8] = 9
    rows = [ChoiceRow([1], replace(SAMPLED, seed=n)) for n in range(400)]
    tops = choose(logits.expand(400, -1), rows).ids.count(8)
    assert stats.binomtest(tops, 400, float(logits.softmax(1)[0, 8])).pvalue > 1e-3


def test_equal_logits_give_the_lowest_id() -> None:
    logits = torch.zeros(3, 1000)
    logits[0, [400, 17, 900]] = 1
    logits[2, :] = -torch.inf
    plain = [ChoiceRow([1], GREEDY)] * 3
    assert choose(logits, plain).ids == [17, 0, NO_TOKEN]
    changed = [ChoiceRow([1], replace(GREEDY, logit_bias=((999, 0.5),)))] * 3
    assert choose(logits, changed).ids == [17, 999, NO_TOKEN]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(GREEDY, repetition_penalty=1.2)])
def test_logits_without_a_number_choose_nothing_and_leave_other_rows_alone(sampling: Sampling) -> None:
    logits = logits_of(3, 50, np.random.default_rng(0))
    rows = [ChoiceRow([1], sampling) for _ in range(3)]
    before = choose(logits, rows).ids
    logits[1, 30] = torch.nan
    assert choose(logits, rows).ids == [before[0], NO_TOKEN, before[2]]


def test_penalties_of_the_answer_do_not_count_the_prompt() -> None:
    logits = torch.tensor([[3.0, 2.9, 2.5, 0.0]])
    row = ChoiceRow([0, 0, 0], replace(GREEDY, presence_penalty=0.2, frequency_penalty=0.2))
    assert choose(logits, [row]).ids == [0]
    row.append(0)  # 3.0 - 0.2 - 0.2
    assert choose(logits, [row]).ids == [1]
    row.append(1)  # 2.9 - 0.4 is where 2.5 is, and 1 comes first
    assert choose(logits, [row]).ids == [0]
    row.append(0)
    assert choose(logits, [row]).ids == [1]
    row.append(1)
    assert choose(logits, [row]).ids == [2]


class Only:
    """Allows two tokens, and counts what it takes in."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.is_complete = False

    def allowed(self) -> Any:
        mask = np.zeros(20, bool)
        mask[[4, 11]] = True
        return mask

    def advance(self, id: int) -> None:  # noqa: A002
        self.taken.append(id)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_a_grammar_rules_out_what_it_does_not_allow_and_ids_that_it_does_not_know(temperature: float) -> None:
    logits = logits_of(1, 30, np.random.default_rng(1))
    logits[0, 25] = 100
    row = ChoiceRow([1], Sampling(temperature=temperature, logit_bias=((7, 50.0),)), constraint=Only())
    for _ in range(5):
        row.append(choose(logits, [row]).ids[0])
    assert set(row.ids) <= {4, 11}
    assert row.constraint is not None
    assert row.constraint.taken == row.ids  # type: ignore[attr-defined]


def test_log_probabilities_are_the_models_own_whatever_is_chosen() -> None:
    logits = logits_of(1, 200, np.random.default_rng(2))
    logits[0, [3, 90, 8]] = logits.max() + 1
    row = ChoiceRow([1], Sampling(temperature=2.0, top_k=3, logit_bias=((8, -100.0),), logprobs=3, seed=3))
    chosen = choose(logits, [row])
    (found,) = chosen.logprobs
    assert found is not None
    expected = logits[0].double().log_softmax(0)
    assert found.id == chosen.ids[0] != 8
    assert found.logprob == pytest.approx(float(expected[found.id]), abs=1e-5)
    assert [id_ for id_, _ in found.top] == [3, 8, 90]
    assert [p for _, p in found.top] == pytest.approx([float(expected[3])] * 3, abs=1e-5)
