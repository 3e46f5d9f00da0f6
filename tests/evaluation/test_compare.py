"""Base against adapter on the same rows: mirrored when swapped, nothing when equal, and written down whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay import api
from inlay.config import load
from inlay.data.encoding.encoder import Encoder
from inlay.data.reading.read import as_lines
from inlay.data.types import Example, Message, Source
from inlay.errors import ConfigError, DataError, RunError
from inlay.evaluation.compare import Comparison, compare_models
from inlay.evaluation.measured_model import MeasuredModel, ModelFacts, text_metrics
from inlay.evaluation.metrics import LOSS_METRICS, METRICS
from inlay.evaluation.report import as_csv, as_markdown, harmless, write_reports
from inlay.evaluation.score import EvalSet, Score, held_out, read_held_out, score
from inlay.evaluation.task_metrics import primary_metric
from inlay.evaluation.verdict import loss_difference
from inlay.methods.adapter import attach
from inlay.runs.reporter import PlainReporter
from inlay.tasks.task import CAUSAL
from parts import make_base, write_rows
from training_runs import Quiet

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def row(n: int, *messages: Message, tools: tuple[dict[str, Any], ...] = ()) -> Example:
    return Example(messages, Source("held, out.jsonl", n), tools)


def asked(n: int) -> tuple[Message, Message]:
    return Message("user", f'Question "{n}",\n now?'), Message("assistant", f"Answer | {n}.\r\nYes\u2028so.", 1.0)


ROWS = [
    *(row(n, *asked(n)) for n in range(8)),
    row(8, *asked(8), *asked(9)),
    row(9, Message("text", "A plain document about lamps.", 1.0)),
    row(10, Message("user", "Weather?"), Message("assistant", "", 1.0, (CALL,)), tools=(TOOL,)),
]


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(str(tiny_base)))


@pytest.fixture(scope="module")
def rows(encoder: Encoder) -> EvalSet:
    return held_out(ROWS, encoder, 256, "drop", ["Tell me a joke."])


def scored(model: Any, name: str, rows: EvalSet, encoder: Encoder, **over: Any) -> Score:
    settings: dict[str, Any] = {"batch_size": 4, "max_new_tokens": 6, "device": "cpu", "dtype": None}
    return score(model.eval(), name, rows, encoder, CAUSAL, reporter=PlainReporter(), **settings | over)


def base_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def pair(tiny_base: Path, rows: EvalSet, encoder: Encoder) -> tuple[Score, Score]:
    config = load(tree={"model": {"base_model": str(tiny_base)}, "data": {"train": "x"}})
    model = base_model(tiny_base)
    base = scored(model, "base", rows, encoder)
    torch.manual_seed(0)
    adapted = attach(model, config, ["q_proj", "down_proj"])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    with adapted.disable_adapter():
        off = scored(adapted, "base", rows, encoder)
    assert np.array_equal(base.nll, off.nll)  # adapter off is the base, bit for bit
    assert base.answers == off.answers
    return base, scored(adapted, "adapter", rows, encoder)


def measured(rows: EvalSet, result: Score, name: str = "a") -> MeasuredModel:
    return MeasuredModel.of(ModelFacts(name, "run", "base"), rows, result, text_metrics(rows))


def compared(rows: EvalSet, base: Score, adapter: Score, primary: str = "auto", available: int = 20) -> Comparison:
    models = measured(rows, base, "base"), measured(rows, adapter, "adapter")
    return compare_models(*models, primary=primary, resamples=200, seed=0, available=available)


def totals(rows: EvalSet, result: Score) -> dict[str, float]:
    return measured(rows, result).totals()


def test_swapping_base_and_adapter_mirrors_every_metric_exactly(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    there, back = compared(rows, *pair), compared(rows, *reversed(pair))
    assert set(there.metrics) == set(LOSS_METRICS) | set(METRICS)
    for name, one in there.metrics.items():
        other = back.metrics[name]
        assert (one.base, one.other) == (other.other, other.base)
        assert one.difference == -other.difference
        assert (one.low, one.high) == (-other.high, -other.low)
        assert (one.wins, one.losses, one.ties) == (other.losses, other.wins, other.ties)
    assert there.metrics["loss"].difference != 0


def test_a_model_against_itself_differs_by_exactly_nothing(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    for primary in ("auto", *METRICS):
        comparison = compared(rows, pair[1], pair[1], primary)
        assert comparison.verdict == "not distinguishable"
        assert all((d.difference, d.low, d.high) == (0, 0, 0) for d in comparison.metrics.values())
        assert comparison.regressions == []


def test_the_primary_metric_decides_the_verdict(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    base, adapter = pair
    right = tuple(rows.references.get(n) for n in range(len(ROWS)))
    wrong = tuple(None if r is None else "no" for r in right)
    worse = replace(base, nll=base.nll * 2, answers=right, extra_answers=adapter.extra_answers)
    base = replace(base, answers=wrong)
    assert compared(rows, base, worse).verdict == "worse"
    assert compared(rows, base, worse, "perplexity").verdict == "worse"
    assert compared(rows, base, worse, "exact_match").verdict == "better"
    assert len(compared(rows, base, worse).regressions) == len(ROWS)


def test_the_headline_says_both_whether_it_predicts_and_whether_it_answers_better(
    rows: EvalSet, pair: tuple[Score, Score]
) -> None:
    base = pair[0]
    predicts = replace(base, nll=base.nll / 2)
    found = compared(rows, base, predicts)
    assert found.verdict == "better"
    assert found.answer_metric == "token_f1"
    assert found.headline.startswith("held-out loss: better (")
    assert "answers by token_f1: not distinguishable (+0 [+0, +0])" in found.headline
    assert found.headline.endswith(
        "so it predicts the references better, and its answers are no better as far as these rows show"
    )
    right = replace(predicts, answers=tuple(rows.references.get(n) for n in range(len(ROWS))))
    assert compared(rows, base, right).headline.count("better (") == 2
    assert found.headline in as_markdown(found, False)
    assert found.to_json()["headline"] == found.headline
    assert set(found.behaviour) == {"empty", "refusal", "repetition", "stopped"}


def test_bits_per_byte_is_the_loss_over_the_bytes_of_the_text(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    found = totals(rows, pair[0])
    text = sum(len(m.content.encode()) for e in ROWS[:10] for m in e.messages if m.weight)
    assert rows.trained_bytes[:10].sum() == pytest.approx(text, abs=12)  # the text is decoded, and stripped at its ends
    assert found["bits_per_byte"] == pytest.approx(pair[0].nll.sum() / np.log(2) / rows.trained_bytes.sum())


def test_token_accuracy_counts_the_trained_tokens_that_come_first(
    encoder: Encoder, tiny_base: Path, rows: EvalSet, pair: tuple[Score, Score]
) -> None:
    model = base_model(tiny_base).eval()
    hits, weight = 0.0, 0.0
    for i in range(len(rows.tokens)):
        row = rows.tokens.row(i)
        with torch.inference_mode():
            first = model(input_ids=torch.tensor([row.input_ids.tolist()])).logits[0].argmax(-1)
        for t in range(1, len(row.input_ids)):
            hits += float(row.weights[t]) * (int(first[t - 1]) == int(row.input_ids[t]))
            weight += float(row.weights[t])
    assert pair[0].hits.sum() == pytest.approx(hits)
    assert totals(rows, pair[0])["token_accuracy"] == pytest.approx(hits / weight)


def test_length_speed_and_whether_answers_end_are_kept(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    found = compared(rows, *pair)
    speed = found.to_json()["speed"]["adapter"]
    assert pair[1].speed is not None
    assert speed["answers"] == len(rows.prompt_ids) + len(rows.extra_prompts)
    assert speed["tokens_per_s"] * speed["time_per_answer_s"] == pytest.approx(speed["tokens_per_answer"])
    assert 0 < speed["tokens_per_answer"] <= 6
    ended = [pair[1].stopped[n] for n in rows.prompt_ids]
    assert found.behaviour["stopped"].other == pytest.approx(sum(ended) / len(ended))
    report = as_markdown(found, False)
    assert f"| adapter | {speed['tokens_per_answer']:.1f} |" in report


def test_the_verdict_of_training_draws_examples_as_compare_does(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    base, adapter = pair
    wanted = compared(rows, base, adapter).metrics["loss"]
    # each example in three sequences, at positions of a file in which other rows are trained on
    parts = np.array([0.5, 0.25, 0.25])
    sequences = [(np.outer(s.nll, parts).ravel(), np.outer(s.weight, parts).ravel()) for s in pair]
    examples = np.repeat(np.arange(len(ROWS)) * 7 + 3, 3)
    assert loss_difference(*sequences, 200, 0, examples) == wanted
    alone = loss_difference(*sequences, 200, 0)
    assert (alone.n, wanted.n) == (3 * len(ROWS), len(ROWS))
    assert alone.difference == pytest.approx(wanted.difference)
    assert (alone.low, alone.high) != (wanted.low, wanted.high)


def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_scored(
    encoder: Encoder, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "Tell me about the sea.\n" + "and more " * 300
    asked = held_out(ROWS[:1], encoder, 256, "drop", ["Short?", long])
    monkeypatch.setattr("inlay.tasks.task.score_rows", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(DataError) as caught:
        scored(base_model(tiny_base), "base", asked, encoder)
    assert str(caught.value).startswith("prompt 'Tell me about the sea. and more and more")
    assert "…'" in str(caught.value)
    assert len(str(caught.value)) < 160
    assert f"context of {base_model(tiny_base).config.max_position_embeddings}" in str(caught.value)


def test_the_report_says_when_the_rows_were_drawn(rows: EvalSet, pair: tuple[Score, Score]) -> None:
    assert "on 11 of 20 held-out rows (drawn by seed from those within max_length);" in as_markdown(
        compared(rows, *pair), False
    )
    every = compared(rows, *pair, available=len(ROWS))
    assert "on 11 of 11 held-out rows;" in as_markdown(every, False)


def test_plain_documents_have_a_loss_and_no_answer(encoder: Encoder, rows: EvalSet, pair: tuple[Score, Score]) -> None:
    assert 9 not in rows.prompt_ids
    assert pair[0].answers[9] is None
    assert compared(rows, *pair).rows[9].scores == {}
    documents = held_out([ROWS[9]], encoder, 256, "drop", [])
    nll, weight, hits = pair[0].nll[9:10], pair[0].weight[9:10], pair[0].hits[9:10]
    one = Score(nll, weight, hits, (None,), (False,), (), 0.0)
    comparison = compared(documents, one, one)
    assert set(comparison.metrics) == set(LOSS_METRICS) == set(totals(documents, one))
    assert comparison.rows[0].question == "A plain document about lamps."
    with pytest.raises(ConfigError, match="rouge_l compares answers"):
        compared(documents, one, one, "rouge_l")


def test_a_tool_call_is_compared_as_the_template_writes_it(rows: EvalSet) -> None:
    assert json.loads(rows.references[10]) == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert rows.references[8] == "Answer | 9.\r\nYes\u2028so."


def test_a_question_that_max_length_cut_off_is_not_asked(encoder: Encoder, tiny_base: Path) -> None:
    first, second = asked(0), (Message("user", "long " * 300), Message("assistant", "b", 1.0))
    cut = held_out([row(0, *first, *second), row(1, *asked(1))], encoder, 100, "cut", [])
    assert list(cut.prompt_ids) == [1]
    result = scored(base_model(tiny_base), "base", cut, encoder)
    assert result.answers[0] is None
    assert result.weight[0] > 0
    assert set(totals(cut, result)) == set(LOSS_METRICS) | set(METRICS)


@given(st.one_of(st.text(max_size=12), st.text("=+-@\t\r\n'0159.e ＝", max_size=6)))
@example("=cmd|' /C calc'!A1")
@example("-2+3+cmd")
@example("-5")
@example("@SUM(1)")
@example("\t=1")
def test_no_text_of_a_csv_is_a_formula_to_a_spreadsheet_and_a_number_stays_one(text: str) -> None:
    cell = harmless(text)
    assert cell in (text, f"'{text}")
    if cell[:1] in tuple("=+-@\t\r\n＝＋－＠"):
        float(cell.replace(",", "."))  # a number of its own
    if text.isascii() and text.lstrip("+-").isdecimal() and text.count("+") + text.count("-") <= 1:
        assert cell == text


def test_the_csv_reads_back_row_by_row_and_the_report_holds_the_table(
    tmp_path: Path, rows: EvalSet, pair: tuple[Score, Score]
) -> None:
    comparison = compared(rows, *pair)
    write_reports(comparison, tmp_path, {})
    with (tmp_path / "compare.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(ROWS)
    assert [r["source"] for r in read] == [f"held, out.jsonl:{n}" for n in range(len(ROWS))]
    assert read[0]["question"] == 'Question "0",\n now?'
    assert read[0]["reference"] == "Answer | 0.\r\nYes\u2028so."
    assert float(read[3]["loss_base"]) == pytest.approx(pair[0].nll[3] / pair[0].weight[3], rel=1e-5)
    assert read[3]["base"] == pair[0].answers[3]
    assert {f"{m}_{side}" for m in METRICS for side in ("base", "adapter")} <= set(read[0])
    value = json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)
    assert value["verdict"] == comparison.verdict
    report = (tmp_path / "report.md").read_text()
    for name in comparison.metrics:
        assert any(line.startswith(f"| {name} |") and line.count("|") == 10 for line in report.splitlines())
    assert "Tell me a joke." in report
    assert len(list(csv.reader(io.StringIO(as_csv(comparison), newline="")))) == len(ROWS) + 1
    asking = replace(comparison.rows[0], question="=HYPERLINK(1)", adapter_answer="@SUM(1)", source="-a.jsonl:1")
    hostile = replace(comparison, rows=(asking, *comparison.rows[1:]))
    cells = list(csv.reader(io.StringIO(as_csv(hostile), newline="")))[1]
    assert [cells[0], cells[1], cells[4]] == ["'-a.jsonl:1", "'=HYPERLINK(1)", "'@SUM(1)"]
    assert as_markdown(comparison, True).count("curves.png") == 1


json_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["\u2028", "\x85", "\r\n"])
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool", "text"]),
    json_text,
    st.sampled_from([0.0, 0.5, 1.0, 1e-9]),
    st.lists(
        st.dictionaries(json_text, json_text | st.integers() | st.floats(allow_nan=False, allow_infinity=False))
    ).map(tuple),
    st.none() | json_text,
)
examples = st.builds(
    Example,
    st.lists(messages, min_size=1, max_size=3).map(tuple),
    st.builds(Source, json_text, st.integers(1)),
    st.lists(st.dictionaries(json_text, st.none() | st.lists(json_text), max_size=2), max_size=2).map(tuple),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(examples, max_size=3))
def test_held_out_rows_are_kept_and_read_back_exactly(tmp_path_factory: Any, kept: list[Example]) -> None:
    path = tmp_path_factory.getbasetemp() / "heldout.jsonl"
    path.write_bytes(as_lines(kept).encode())
    assert read_held_out(path) == tuple(kept)


@pytest.mark.parametrize("content", [b"{", b"{}\n", b"[]\n", b"\xff", None])
def test_held_out_rows_that_cannot_be_read_are_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "heldout.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match="held-out rows cannot be read"):
        read_held_out(path)


def test_an_unknown_metric_is_refused_before_anything_is_done(
    config_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"eval.metric: unknown metric 'rogue_l'. Did you mean 'rouge_l'\?"):
        api.train(config_tree(eval={"metric": "rogue_l"}, model={"base_model": "/nowhere"}))
    documents = write_rows(tmp_path / "documents.jsonl", [{"text": f"Document {n}."} for n in range(20)])
    with pytest.raises(ConfigError, match="bleu compares answers, and no held-out row has a question"):
        api.train(config_tree(eval={"metric": "bleu"}, data={"train": str(documents)}))
    assert not (tmp_path / "results").exists()
    assert [primary_metric(name) for name in ("auto", "loss", "chrf")] == ["loss", "loss", "chrf"]


def test_the_loss_of_a_score_is_the_held_out_loss_of_training(tmp_path: Path, encoder: Encoder, rows: EvalSet) -> None:
    from inlay.training.loop import TrainingLoop
    from inlay.training.process import StopRequest
    from inlay.training.process_group import ProcessGroup

    model = base_model(make_base(tmp_path / "base", seed=3)).eval()
    job: Any = SimpleNamespace(
        config=None,
        model=model,
        heldout=rows.tokens,
        pad_id=encoder.pad_id,
        device="cpu",
        base=SimpleNamespace(group=ProcessGroup(), autocast_dtype=None, max_memory_bytes=None),
        progress=SimpleNamespace(step=0),
        batch_size_at=lambda phase, step: 4,
    )
    nll, weight = TrainingLoop([job], StopRequest(), Quiet()).heldout_nll(job)
    result = scored(model, "base", rows, encoder, generate=False)
    assert result.nll.sum() / result.weight.sum() == pytest.approx(nll.sum() / weight.sum(), rel=1e-12)
