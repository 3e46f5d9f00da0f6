"""A model is measured once; comparisons, caveats, costs and seeds are computed from that, without a model or a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest

from inlay.config import load
from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.encoding.token_arrays import pack
from inlay.data.types import Example, Message, Source
from inlay.evaluation.caveats import (
    Caveat,
    ModelCaution,
    NoAnswers,
    SeedsOfOneConfig,
    SelectedCheckpoint,
    SeveralModels,
)
from inlay.evaluation.compare import compare_models
from inlay.evaluation.costs import Costs
from inlay.evaluation.html import comparison_page
from inlay.evaluation.measured_model import MeasuredModel, ModelFacts, text_metrics
from inlay.evaluation.metrics import BEHAVIOUR, LOSS_METRICS
from inlay.evaluation.report import as_markdown, write_document
from inlay.evaluation.score import EvalSet, GenerationSpeed, Score
from inlay.evaluation.seeds import seed_levels
from inlay.evaluation.summary import caveat_text
from inlay.workflows.compare import bill, caveats
from inlay.workflows.measure import EvaluationRequest, EvaluationResult, needs_answers

COUNT = 12


def rows() -> EvalSet:
    examples = tuple(
        Example((Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}.", 1.0)), Source("rows", n + 1))
        for n in range(COUNT)
    )
    ids, weights = np.zeros(5, dtype=np.int32), np.array([0, 0, 0, 1, 1], dtype=np.float32)
    tokens = pack((n, TokenizedSequence(ids, weights, example.source)) for n, example in enumerate(examples))
    texts = {n: example.messages[1].content for n, example in enumerate(examples)}
    return EvalSet(examples, tokens, {n: [0] * 3 for n in texts}, texts, (), np.full(COUNT, 9.0))


ROWS = rows()


def score(loss: float, answers: bool = True) -> Score:
    said = tuple(f"Answer {n % 7}." if answers else None for n in range(COUNT))
    speed = GenerationSpeed(COUNT, 10 * COUNT, 6.0, 4) if answers else None
    nll = loss * np.linspace(1.0, 2.0, COUNT)
    return Score(nll, np.full(COUNT, 2.0), np.ones(COUNT), said, (answers,) * COUNT, (), 1.0, speed)


def model(name: str, loss: float = 1.0, answers: bool = True, **facts: object) -> MeasuredModel:
    about = replace(ModelFacts(name, "run", "base"), **facts)  # type: ignore[arg-type]
    return MeasuredModel.of(about, ROWS, score(loss, answers), text_metrics(ROWS))


def result(*models: MeasuredModel) -> EvaluationResult:
    config = load(tree={"model": {"base_model": "m"}, "data": {"train": "d"}})
    return EvaluationResult(models, config, {}, "d", COUNT, True, {}, None, 0, ())


def test_a_metric_scores_each_answer_once_whatever_is_computed_from_it(tmp_path) -> None:
    calls: Counter[str] = Counter()

    def length(prediction: str, reference: str) -> float:
        calls[prediction] += 1
        return float(len(prediction))

    texts = text_metrics(ROWS, [length])
    scores = [score(loss) for loss in (1.0, 0.9, 0.8)]
    for n, one in enumerate(scores):
        scores[n] = replace(one, answers=tuple(f"{n}: {text}" for text in one.answers))
    models = [
        MeasuredModel.of(ModelFacts(f"m{n}", "run", "base", config_key="c", seed=n), ROWS, one, texts)
        for n, one in enumerate(scores)
    ]
    first, *others = (
        compare_models(models[0], one, primary="auto", resamples=200, seed=0, available=COUNT) for one in models[1:]
    )
    assert seed_levels(models, resamples=200, seed=0, per_token=True)[0].names == ("m1", "m2")
    found = replace(first, also=tuple(others))
    comparison_page(found, {})
    as_markdown(found, curves=False)
    write_document(tmp_path, models, found, {})
    assert calls == Counter(text for one in scores for text in one.answers)


def test_caveats_come_from_the_facts_of_the_models_alone() -> None:
    one, two, three = (
        model("one", config_key="c", seed=1),
        model("two", config_key="c", seed=2, selected_from=11, caution="two: failed its proofs"),
        model("three"),
    )
    assert caveats(result(one, three), three) == ()
    assert caveats(result(one, two, three), two) == (
        ModelCaution("two: failed its proofs"), SeveralModels(2), SeedsOfOneConfig(("one", "two")),
        SelectedCheckpoint(11),
    )  # fmt: skip


def test_every_caveat_has_a_sentence_of_its_own() -> None:
    given = {
        "caution": "x failed its proofs",
        "changes": ("eval.max_rows 3",),
        "count": 3,
        "names": ("a", "b"),
        "checkpoints": 4,
    }
    made = [kind(*(given[one.name] for one in fields(kind))) for kind in get_args(Caveat)]
    texts = [caveat_text(one) for one in made]
    assert len(set(texts)) == len(get_args(Caveat)) >= 14
    assert all(len(text) > 15 for text in texts)


def test_a_bill_is_training_storage_and_the_time_of_the_answers() -> None:
    costs = Costs(price_per_hour=2.0, watts=100.0, utilisation=0.5)
    one = bill(model("one", training_s=1800.0, stored_bytes=7), costs)
    assert (one.once, one.stored_bytes, one.request_s) == (1.0, 7, 0.5)
    alone = bill(model("two", answers=False), costs)
    assert (alone.once, alone.request_s) == (None, None)


def test_a_model_without_answers_is_compared_by_loss_and_every_report_copes() -> None:
    before, after = model("base", 1.0, answers=False), model("tuned", 0.5, answers=False)
    assert set(before.statistics) == set(LOSS_METRICS)
    found = compare_models(before, after, primary="auto", resamples=200, seed=0, available=COUNT)
    assert (found.verdict, found.answer_metric, found.behaviour) == ("better", None, {})
    assert {group.by for group in found.groups} == set()  # all rows are of one length here
    assert caveats(result(before, after), after) == (NoAnswers(),)
    found = replace(found, caveats=(NoAnswers(),))
    for text in (as_markdown(found, curves=False), comparison_page(found, {})):
        assert "No answers were generated" in text
        assert not any(name in text for name in ("Behaviour of the answers", "Length and speed"))
    assert "Answer 3." in comparison_page(found, {})  # the reference stays


def test_answers_carry_the_metrics_of_behaviour_beside_those_of_the_references() -> None:
    assert [*model("one").statistics][-len(BEHAVIOUR) :] == [*BEHAVIOUR]


@pytest.mark.parametrize(
    ("request_", "setting", "compared", "needed"),
    [
        (EvaluationRequest(), "auto", True, True),
        (EvaluationRequest(metrics=["loss"]), "auto", True, False),
        (EvaluationRequest(metrics=["loss", "bits_per_byte"]), "perplexity", False, False),
        (EvaluationRequest(metrics=["loss", "chrf"]), "auto", False, True),
        (EvaluationRequest(metrics=["loss"]), "chrf", True, True),
        (EvaluationRequest(metrics=["loss"], prompts=["Hello?"]), "auto", True, True),
        (EvaluationRequest(metrics=["loss"], python_tests={"q": "assert True"}), "auto", True, True),
        (EvaluationRequest(metrics=["loss"], show_answers=True), "auto", True, True),
        (EvaluationRequest(metrics=[lambda a, b: 1.0]), "auto", False, True),
    ],
)
def test_answers_are_needed_by_any_metric_of_answers_a_prompt_a_judge_or_a_price(
    request_: EvaluationRequest, setting: str, compared: bool, needed: bool
) -> None:
    config = load(tree={"model": {"base_model": "m"}, "data": {"train": "d"}, "eval": {"metric": setting}})
    assert needs_answers(request_, config, compared) is needed
