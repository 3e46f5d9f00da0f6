"""Each metric equals the field's reference implementation and survives any text."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu import corpus_bleu, corpus_chrf, sentence_bleu, sentence_chrf
from sacrebleu.metrics import BLEU

from inlay.evaluation.metrics import (
    LOSS_METRICS,
    METRICS,
    TextMetric,
    alphanumeric_tokens,
    common_subsequence_length,
    normalise,
)

MAXIMUM = {
    "exact_match": 1.0,
    "token_f1": 1.0,
    "rouge_1": 1.0,
    "rouge_2": 1.0,
    "rouge_l": 1.0,
    "bleu": 100.0,
    "chrf": 100.0,
}
TEXT = (
    "The the a quick Fox, fox jumped jumps over 3.14 1,000 dogs. (really) don't U.S. well-known naïve Straße "
    '東京 Привет मस्ते &amp; $5 100% state-of-the-art e.g. "quoted" — … yes! no? x=1; {json: [1,2]}'
)
WORDS = TEXT.split()

texts = st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
ROUGE = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
ROUGE_NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def sentence_pairs(count: int, seed: int = 0, longest: int = 25) -> list[tuple[str, str]]:
    """(prediction, reference): everyday and awkward words, edited a little, a lot, cut short or replaced."""
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        reference = generator.choices(WORDS, k=generator.randint(0, longest))
        keep = generator.choice([0.0, 0.5, 0.8, 0.95, 1.0])
        prediction = [w if generator.random() < keep else generator.choice(WORDS) for w in reference]
        if generator.random() < 0.2:
            prediction = prediction[: len(prediction) // 2]
        pairs.append((" ".join(prediction), " ".join(reference)))
    return pairs


def stacked(metric: TextMetric, pairs: list[tuple[str, str]]) -> np.ndarray:
    return np.stack([metric.statistics(*pair) for pair in pairs])


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return sentence_pairs(1000)


@pytest.mark.parametrize(("name", "theirs"), ROUGE_NAMES.items())
def test_rouge_equals_the_rouge_score_package(pairs, name, theirs):
    ours = METRICS[name].scores(stacked(METRICS[name], pairs))
    expected = [ROUGE.score(reference, prediction)[theirs].fmeasure for prediction, reference in pairs]
    assert ours.tolist() == expected
    assert len(set(expected)) > 100


@given(texts, texts)
def test_rouge_equals_the_package_on_any_text(prediction, reference):
    expected = ROUGE.score(reference, prediction)
    for name, theirs in ROUGE_NAMES.items():
        metric = METRICS[name]
        assert metric.scores(metric.statistics(prediction, reference)) == expected[theirs].fmeasure


@given(st.lists(st.sampled_from("abcd"), max_size=150), st.lists(st.sampled_from("abcd"), max_size=150))
@settings(max_examples=50)
def test_the_common_subsequence_equals_the_table_of_the_textbook(left, right):
    lengths = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            best = max(lengths[i, j + 1], lengths[i + 1, j])
            lengths[i + 1, j + 1] = lengths[i, j] + 1 if x == y else best
    assert common_subsequence_length(left, right) == lengths[-1, -1]


def test_rouge_l_of_300_tokens_takes_under_two_milliseconds():
    prediction = " ".join(random.Random(0).choices(WORDS, k=300))
    reference = " ".join(random.Random(1).choices(WORDS, k=300))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        METRICS["rouge_l"].statistics(prediction, reference)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002


@pytest.mark.parametrize("size", [1, 2, 7, 50, 1000])
def test_summed_statistics_give_the_corpus_scores_of_sacrebleu(pairs, size):
    for start in range(0, 1000 if size > 7 else 40, size):
        part = pairs[start : start + size]
        predictions, references = [p for p, _ in part], [r for _, r in part]
        bleu = METRICS["bleu"].value(stacked(METRICS["bleu"], part).sum(axis=0))
        chrf = METRICS["chrf"].value(stacked(METRICS["chrf"], part).sum(axis=0))
        assert bleu == pytest.approx(corpus_bleu(predictions, [references]).score, rel=1e-12, abs=1e-12)
        assert chrf == pytest.approx(corpus_chrf(predictions, [references]).score, rel=1e-12, abs=1e-12)


def test_row_scores_are_the_sentence_scores_of_sacrebleu(pairs):
    bleu = METRICS["bleu"].scores(stacked(METRICS["bleu"], pairs))
    chrf = METRICS["chrf"].scores(stacked(METRICS["chrf"], pairs))
    for row, (prediction, reference) in enumerate(pairs):
        assert bleu[row] == pytest.approx(sentence_bleu(prediction, [reference]).score, rel=1e-12, abs=1e-12)
        assert chrf[row] == pytest.approx(sentence_chrf(prediction, [reference]).score, rel=1e-12, abs=1e-12)


@given(texts, texts)
def test_bleu_and_chrf_equal_sacrebleu_on_any_text(prediction, reference):
    bleu = METRICS["bleu"].scores(METRICS["bleu"].statistics(prediction, reference))
    chrf = METRICS["chrf"].scores(METRICS["chrf"].statistics(prediction, reference))
    assert bleu == pytest.approx(sentence_bleu(prediction, [reference]).score, rel=1e-12, abs=1e-12)
    assert chrf == pytest.approx(sentence_chrf(prediction, [reference]).score, rel=1e-12, abs=1e-12)


@metrics
def test_the_value_of_many_resamples_at_once_is_the_value_of_each(metric, pairs):
    statistics = stacked(metric, pairs)
    counts = np.random.default_rng(0).multinomial(60, np.full(len(pairs), 1 / len(pairs)), size=(4, 5))
    sums = counts @ statistics
    together = metric.value(sums)
    assert together.shape == (4, 5)
    assert together.ravel().tolist() == pytest.approx([float(metric.value(s)) for s in sums.reshape(20, -1)])


@metrics
@given(prediction=texts, reference=texts)
def test_any_text_scores_within_the_range(metric, prediction, reference):
    statistics = metric.statistics(prediction, reference)
    assert statistics.shape == (metric.size,)
    assert statistics.dtype == np.float64
    assert 0 <= metric.scores(statistics) <= MAXIMUM[metric.name] * (1 + 1e-12)
    assert 0 <= metric.value(statistics) <= MAXIMUM[metric.name] * (1 + 1e-12)


def has_tokens(metric: str, text: str) -> bool:
    """Where sacrebleu and rouge_score see no token they score 0 even for identical texts; so do we."""
    if metric.startswith("rouge_"):
        return len(alphanumeric_tokens(text)) >= (2 if metric == "rouge_2" else 1)
    if metric == "bleu":
        return bool(BLEU().tokenizer(text.rstrip()).split())
    return metric in ("exact_match", "token_f1") or bool(text.split())


@metrics
@given(text=texts)
def test_identical_texts_score_the_maximum(metric, text):
    score = metric.scores(metric.statistics(text, text))
    expected = MAXIMUM[metric.name] if has_tokens(metric.name, text) else 0.0
    assert score == pytest.approx(expected, rel=1e-12)


@metrics
@pytest.mark.parametrize(("prediction", "reference"), [("", ""), ("", "word"), ("word", ""), (" \n", "\t")])
def test_empty_texts_have_a_score(metric, prediction, reference):
    both_empty = not prediction.strip() and not reference.strip()
    expected = 1.0 if both_empty and metric.name in ("exact_match", "token_f1") else 0.0
    assert metric.scores(metric.statistics(prediction, reference)) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("Paris", " paris\n", 1.0),
        ("new  york", "New\tYork", 1.0),
        ("STRASSE", "Straße", 1.0),
        ("ﬁne \u2460", "fine 1", 1.0),
        ("ＡＢＣ", "abc", 1.0),
        ("㎒", "mhz", 1.0),
        ("\u2126", "ω", 1.0),
        ("cafe\u0301", "café", 1.0),
        ("cafe", "café", 0.0),
        ("Paris.", "Paris", 0.0),
        ("the cat", "cat", 0.0),
    ],
)
def test_exact_match_forgives_case_space_and_form_only(prediction, reference, score):
    metric = METRICS["exact_match"]
    assert metric.scores(metric.statistics(prediction, reference)) == score


@given(texts)
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


def test_normalised_text_is_composed():
    assert normalise(" Cafe\u0301\u00a0NOIR ") == "caf\u00e9 noir"


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("the cat sat", "The cat sat.", 1.0),
        ("sat cat the", "the cat sat", 1.0),
        ("the cat", "the cat sat down", 2 / 3),
        ("cat cat cat", "cat", 0.5),
        ("dog", "cat", 0.0),
        ("!", "?", 0.0),
        ("1 + 1", "1 1", 0.8),
        ("नमस्ते दुनिया", "नमस्ते", 2 / 3),
    ],
)
def test_token_f1_counts_shared_words(prediction, reference, score):
    metric = METRICS["token_f1"]
    assert metric.scores(metric.statistics(prediction, reference)) == pytest.approx(score)


def test_loss_weighs_tokens_and_not_rows():
    statistics = np.array([[3.0, 3.0], [1.0, 1.0], [40.0, 20.0]])
    assert LOSS_METRICS["loss"].value(statistics.sum(axis=0)) == pytest.approx(44 / 24)
    assert LOSS_METRICS["perplexity"].value(statistics.sum(axis=0)) == pytest.approx(np.exp(44 / 24))
    assert LOSS_METRICS["loss"].scores(statistics).tolist() == [1.0, 1.0, 2.0]
    assert [name for name, metric in LOSS_METRICS.items() if metric.higher_is_better] == ["token_accuracy"]


def test_perplexity_of_a_broken_model_stays_finite():
    assert np.isfinite(LOSS_METRICS["perplexity"].value(np.array([1e6, 1.0])))


def test_a_row_without_weight_has_no_loss():
    assert np.isnan(LOSS_METRICS["loss"].value(np.array([0.0, 0.0])))


@pytest.mark.parametrize("table", [METRICS, LOSS_METRICS])
def test_each_metric_is_filed_under_its_name(table):
    assert [metric.name for metric in table.values()] == list(table)
    assert all(metric.description for metric in table.values())


def test_signatures_say_how_to_compute_the_number_again():
    bleu = METRICS["bleu"].signature()
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:.+", bleu)
    chrf = METRICS["chrf"].signature()
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:yes\|nc:6\|nw:0\|space:no\|version:.+", chrf)
    assert all(metric.signature() for metric in METRICS.values())
