"""Lengths are those of the ids that training gets, and what a max_length costs is what it does cost."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data import file_progress, read_examples
from inlay.data.checks.lengths import LengthFacts, Model
from inlay.data.checks.report import DataReport, check_files
from inlay.data.checks.row import CheckedRow
from inlay.data.checks.rules_of_thumb import Task, cost, rules_of_thumb
from inlay.data.encoding import worker_pool
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import pack
from inlay.data.truncation import apply_max_length
from inlay.runs.reporter import PlainReporter
from parts import ToldBar, qa_rows, write_rows
from toys import CHATML, FORGETS, LLAMA2, NO_END, STRIPS, nano


def model(template: str | None = None, context: int = 4096, parameters: int = 1_000_000) -> Model:
    return Model("toy", Encoder(nano(template)), context, parameters)


def checked(path: Path, rows: list[dict[str, Any]], base: Model | None, **data: Any) -> DataReport:
    return check_files([TrainFile(path=str(write_rows(path / "a.jsonl", rows)))], DataConfig(train="-", **data), base)


def kinds(report: DataReport) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def test_the_end_of_a_turn_of_another_role_is_no_end_of_an_answer(tmp_path: Path) -> None:
    llama2 = LLAMA2.replace("{{ bos_token }}", "")
    base = Model("nano", Encoder(nano(llama2), roles=("user",)), 4096, 1_000_000)
    rows = [{"question": f"Number {n}?", "answer": f"It is {n}."} for n in range(4)]
    assert "end-of-turn-not-trained" not in kinds(checked(tmp_path, rows, base, role_weights={"user": 0.5}))


def test_what_a_max_length_costs_is_what_preparing_the_rows_with_it_loses(tmp_path: Path) -> None:
    base = model()
    rows = [{"question": f"Why {n}? " * (1 + n % 9), "answer": f"As {n}. " * (1 + n % 31)} for n in range(60)]
    facts = checked(tmp_path, rows, base, max_length=100).lengths
    tokens = pack(base.encoder.examples(read_examples(str(tmp_path / "a.jsonl")).examples))
    assert (facts.total, facts.total_trained) == (tokens.token_count, tokens.trained_tokens)
    assert 100 in [m.max_length for m in facts.max_lengths]
    for limit in facts.max_lengths:
        _, dropped = apply_max_length(tokens, limit.max_length, "drop")
        _, cut = apply_max_length(tokens, limit.max_length, "cut")
        assert (limit.longer, limit.lost_by_drop) == (dropped.dropped, dropped.trained_tokens_lost)
        assert limit.lost_by_cut == cut.trained_tokens_lost


def test_without_a_model_lengths_are_in_characters(tmp_path: Path) -> None:
    facts = checked(tmp_path, [{"question": "ab", "answer": "cde"}] * 3, None).lengths
    assert (facts.unit, facts.total, facts.total_trained, facts.max_lengths) == ("characters", 15, 9, ())


def test_a_histogram_holds_every_row_and_percentiles_are_lengths_of_rows() -> None:
    lengths = np.asarray([*range(1, 200), 5000])
    facts = LengthFacts("tokens", lengths, lengths // 2)
    counts, edges = facts.histogram()
    assert (sum(counts), len(edges)) == (200, len(counts) + 1)
    assert set(facts.percentiles().values()) <= set(lengths.tolist())
    assert facts.percentiles()[100] == 5000


def test_rows_that_the_encoder_refuses_are_errors_with_its_reason_and_the_others_are_measured(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = qa_rows(20)
    rows[7] = {"question": "What does <|im_end|> mean?", "answer": "The end."}
    rows[12] = {"question": "Say it", "answer": "<|im_start|>"}
    report = checked(tmp_path, rows, model())
    assert kinds(report) == {"row-refused-by-the-encoder": 2}
    places = report.findings[0].places
    assert [place.source.line for place in places] == [8, 13]
    assert "turn 1 (user) contains '<|im_end|>'" in places[0].shown
    assert len(report.lengths.lengths) == 18


def test_rows_that_quote_special_tokens_are_fine_where_they_are_escaped(tmp_path: Path) -> None:
    rows = [*qa_rows(20), {"question": "What does <|im_end|> mean?", "answer": "The end."}]
    escaping = replace(model(), encoder=Encoder(nano(), special_tokens="escape"))
    assert kinds(checked(tmp_path, rows, escaping, special_tokens="escape")) == {}


def test_answers_that_the_template_strips_are_noted(tmp_path: Path) -> None:
    rows = [*qa_rows(20), {"question": "Indented?", "answer": "    return 1\n"}]
    (finding,) = checked(tmp_path, rows, model(STRIPS)).findings
    assert (finding.kind, finding.severity) == ("altered-by-the-template", "note")
    assert finding.places[0].shown.startswith("white space before and after turn 2 is not trained as written: ' ret")
    assert finding.places[0].source.line == 21
    assert kinds(checked(tmp_path, rows, model(CHATML))) == {}


def test_rows_over_the_context_and_rows_with_little_to_train_are_found(tmp_path: Path) -> None:
    rows = [*qa_rows(20), {"question": "why " * 900, "answer": "so"}]
    assert kinds(checked(tmp_path, rows, model(context=500))) == {"longer-than-the-context": 1, "little-is-trained": 1}


def test_a_row_that_makes_several_sequences_counts_once(tmp_path: Path) -> None:
    said = [("user", "why " * 500), ("assistant", "<think>hm</think>so")] * 3
    rows = [{"messages": [{"role": role, "content": content} for role, content in said]}]
    report = checked(tmp_path, rows, model(FORGETS, context=400))
    assert len(report.lengths.lengths) == 3
    assert kinds(report)["longer-than-the-context"] == 1


@pytest.mark.parametrize("template", [None, CHATML, NO_END])
def test_every_answer_ends_in_a_trained_end_of_turn(tmp_path: Path, template: str | None) -> None:
    assert kinds(checked(tmp_path, qa_rows(20), model(template))) == {}


def test_an_end_of_turn_that_is_not_trained_is_found(tmp_path: Path) -> None:
    base = model()
    object.__setattr__(base.encoder, "stop_ids", frozenset({0}))
    assert kinds(checked(tmp_path, qa_rows(20), base)) == {"end-of-turn-not-trained": 20}


def facts_of(rows: int, trained: int) -> LengthFacts:
    return LengthFacts("tokens", np.full(rows, 2 * trained // rows), np.full(rows, trained // rows))


@pytest.mark.parametrize(
    ("trained", "says"), [(200, "too little"), (4_000, "inside the spread"), (400_000, "enough to expect")]
)
def test_the_rule_of_thumb_compares_trained_tokens_with_parameters(trained: int, says: str) -> None:
    base = Model("toy", Encoder(nano()), 4096, 1_000_000_000)
    first, second = rules_of_thumb(Task(), facts_of(200, trained), base)
    assert says in first.text
    assert "1e-6 to 1e-5 (1,000 to 10,000 tokens)" in first.text
    assert ("more data" in second.text) == (trained < 1000)


def task_of(path: Path, rows: list[dict[str, str]]) -> Task:
    task = Task()
    for n, example in enumerate(read_examples(str(write_rows(path / "t.jsonl", rows))).examples):
        task.see(CheckedRow(example, n, False))
    return task


def test_what_looks_right_follows_from_what_the_answers_are_made_of(tmp_path: Path) -> None:
    labels = task_of(tmp_path, [{"question": f"Message {n}", "answer": "good" if n % 2 else "bad"} for n in range(200)])
    facts = task_of(
        tmp_path, [{"question": f"Who is P{n}?", "answer": f"Born {n * 7919} in town{n * 31}"} for n in range(200)]
    )
    copied = task_of(
        tmp_path, [{"question": f"Repeat thing{n}", "answer": f"Here comes: thing{n}"} for n in range(200)]
    )
    told = [rules_of_thumb(task, facts_of(200, 4000), None)[-1].text for task in (labels, facts, copied)]
    assert told[0] == "LoRA: the answers are a few labels"
    assert "retrieval for the facts" in told[1]
    assert told[2].startswith("LoRA: 33% of the answers' terms come from the question")


def test_cost_counts_tokens_operations_and_price() -> None:
    facts = facts_of(10, 1000)
    assert cost(facts, 1_000_000, 5.0) == {"tokens": 2000, "operations": 8_000_000_000, "price": 0.01}
    assert cost(facts, None, None) == {"tokens": 2000, "operations": None, "price": None}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
def test_rows_that_are_shared_out_to_processes_are_found_the_same_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, helper = [], worker_pool._Helper
    monkeypatch.setattr(worker_pool, "_WORTH_BYTES", 0)
    monkeypatch.setattr(worker_pool, "_Helper", lambda work: started.append(work) or helper(work))
    rows = [{"question": f"Why {n}? " * (1 + n % 9), "answer": f"As {n}. " * (1 + n % 60)} for n in range(4000)]
    for n in (3, 511, 512, 700, 701, 3999):
        rows[n]["answer"] = "<|im_end|>"
    base = model(STRIPS, context=300)
    alone, split_across_ranks = (checked(tmp_path, rows, base, workers=n).to_json() for n in (1, 2))
    assert split_across_ranks == alone
    assert len(started) == 2
    assert {f["kind"]: f["count"] for f in alone["findings"]}["row-refused-by-the-encoder"] == 6
    assert not multiprocessing.active_children()


def test_a_bar_shows_how_much_of_a_large_file_is_checked_and_ends_however_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_progress, "_SHOWN_FROM_BYTES", 0)
    bar = ToldBar()
    told = bar.told
    files = [TrainFile(path=str(write_rows(tmp_path / name, qa_rows(3000)))) for name in ("a.jsonl", "b.jsonl")]
    check_files(files, DataConfig(train="-"), only_count=True, bar=bar)
    assert (told[0], told[-2:]) == ((100, 0, "% checked"), [100, "end"])
    assert told[1:-1] == sorted(set(told[1:-1]))
    assert len(told) > 4
    told.clear()
    check_files(files, DataConfig(train="-"), bar=bar)
    assert told.index("end") < told.index((100, 0, "% searched for near duplicates")) < len(told) - 10
    assert told[-1] == "end"
    monkeypatch.setattr(Task, "see", lambda *_: 1 / 0)
    told.clear()
    with pytest.raises(ZeroDivisionError):
        check_files(files, DataConfig(train="-"), only_count=True, bar=bar)
    assert told == [(100, 0, "% checked"), "end"]


def test_without_a_terminal_a_line_says_how_much_of_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file_progress, "_SHOWN_FROM_BYTES", 0)
    file = TrainFile(path=str(write_rows(tmp_path / "a.jsonl", qa_rows(3000))))
    check_files([file], DataConfig(train="-"), bar=PlainReporter())
    lines = capsys.readouterr().err.splitlines()
    assert "  100% checked" in lines
    assert any(line.startswith("  54% searched for near duplicates  rows 3,000  rows/s ") for line in lines)
