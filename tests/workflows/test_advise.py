"""Fine-tune, retrieve, or both: every way on the same rows with one budget, from real models and a real index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inlay import api
from inlay.cli.render.advice import advice_text
from inlay.data.encoding.encoder import Encoder
from inlay.data.reading.read import read_examples
from inlay.data.types import Example, Message, Source
from inlay.errors import ConfigError, DataError, Interrupted, RunError
from inlay.evaluation.caveats import FilesPassedOver
from inlay.models.base import find_base, load_tokenizer
from inlay.workflows.advise.advise import Advice, Outcome
from inlay.workflows.advise.arms import Budget, shots, with_passages
from inlay.workflows.advise.passages import Index, Passage, of_documents, of_rows
from parts import qa_rows, write_rows
from training_runs import Quiet, stop_after

BUDGET = 120


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("advice")
    write_rows(folder / "data.jsonl", qa_rows(45))
    return {
        "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 4},
        "data": {"train": str(folder / "data.jsonl")},
        "train": {"batch_size": 8, "max_steps": 6, "eval_steps": 3, "learning_rate": 2e-2},
        "eval": {"max_new_tokens": 3, "resamples": 200, "retention_rows": 0},
        "track": {"trackers": []},
        "output": {"folder": str(folder / "results")},
    }


@pytest.fixture(scope="module")
def advised(tree: dict[str, Any]) -> Advice:
    return api.advise(tree, prompt_tokens=BUDGET, cost=2.0, watts=100.0, utilisation=0.5, reporter=Quiet())


@pytest.fixture(scope="module")
def outcome(advised: Advice) -> Outcome:
    assert advised.outcome is not None
    return advised.outcome


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(load_tokenizer(find_base(str(tiny_base))))


def qa(question: str, answer: str) -> Example:
    return Example((Message("user", question), Message("assistant", answer, 1.0)), Source("rows", 1))


def test_every_arm_answers_the_same_rows_within_the_same_budget(outcome: Outcome) -> None:
    first = outcome.arms[0]
    for one in outcome.arms:
        assert one.prompts.references == first.prompts.references
        assert np.array_equal(one.model.score.weight, first.model.score.weight)
        assert max(map(len, one.prompts.prompt_ids.values())) <= BUDGET
        assert (one.prompt_tokens > first.prompt_tokens) == (one.arm.context != "none")


def test_base_and_adapter_come_out_as_in_compare(outcome: Outcome) -> None:
    compared = api.compare(outcome.run, reporter=Quiet())
    assert outcome.differences("base", "adapter") == compared.metrics


def test_the_advice_is_written_with_a_page_of_every_arm(outcome: Outcome, advised: Advice) -> None:
    there = json.loads((outcome.reports / "advice.json").read_text(encoding="utf-8"))
    assert there == json.loads(json.dumps(advised.to_json()["measured"]))
    page = (outcome.reports / "report.html").read_text(encoding="utf-8")
    assert all(one.arm.name in page for one in outcome.arms)


def test_the_text_has_a_line_for_each_arm_the_assumptions_and_the_recommendation(
    advised: Advice, outcome: Outcome
) -> None:
    text = advice_text(advised, 120)
    assert all(f"\n{one.arm.name}" in text for one in outcome.arms)
    assert "cost: 2 per machine hour, 100 W, serving 50% of the paid time;" in text
    assert f"recommendation: {outcome.recommendation.arm}" in text
    assert "a guess from the rows alone" in text


def test_cost_is_time_by_price_and_training_is_paid_once(outcome: Outcome) -> None:
    shown = {arm["name"]: arm for arm in outcome.to_json()["arms"]}
    base, adapter = shown["base"], shown["adapter"]
    assert base["cost_per_1000_requests"] == pytest.approx(1000 * base["request_s"] / 3600 * 2.0 / 0.5)
    assert base["energy_kwh_per_1000_requests"] == pytest.approx(1000 * base["request_s"] / 3600 * 0.1)
    assert base["cost_once"] == 0
    assert adapter["cost_once"] == pytest.approx(outcome.run.result.train_time_s / 3600 * 2.0)


def test_with_documents_nothing_of_the_training_rows_is_retrieved(
    outcome: Outcome, tmp_path: Path, tree: dict[str, Any]
) -> None:
    (tmp_path / "handbook.md").write_text("# Parcels\n\nParcels arrive within three days, refunds within five.\n")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG")
    again = api.advise(
        tree, run=outcome.run, documents=tmp_path, max_rows=8, prompt_tokens=BUDGET, reporter=Quiet()
    ).outcome
    assert again is not None
    assert again.run == outcome.run
    retrieved = next(one for one in again.arms if one.arm.name == "base + retrieval")
    asked = [example.messages[0].content for example in retrieved.prompts.examples]
    assert any("within three days" in text for text in asked)
    assert all(len(example.messages) == 2 for example in retrieved.prompts.examples)
    assert FilesPassedOver(1) in again.caveats


def test_quick_says_a_rule_of_thumb_and_trains_nothing(tree: dict[str, Any], tmp_path: Path) -> None:
    there = tree | {"output": {"folder": str(tmp_path / "results")}}
    told = api.advise(there, quick=True, reporter=Quiet())
    assert told.outcome is None
    assert told.to_json()["rule_of_thumb"]["kind"] == "rule of thumb"
    assert not (tmp_path / "results").exists()


def test_a_run_on_other_rows_is_refused(outcome: Outcome, tree: dict[str, Any], tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", qa_rows(20))
    with pytest.raises(RunError, match="not the rows that"):
        api.advise(tree | {"data": {"train": str(other)}}, run=outcome.run, reporter=Quiet())


def test_ctrl_c_while_it_trains_leaves_a_run_to_go_on_with(tree: dict[str, Any], tmp_path: Path) -> None:
    there = tree | {"output": {"folder": str(tmp_path / "results")}}
    with pytest.raises(Interrupted) as caught:
        api.advise(there, reporter=stop_after(2))
    assert any("inlay advise --run" in note for note in caught.value.__notes__)
    assert list((tmp_path / "results").glob("*/checkpoints/step-*"))


def test_rows_without_prompts_are_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    documents = write_rows(tmp_path / "texts.jsonl", [{"text": f"A text about number {n}."} for n in range(20)])
    with pytest.raises(DataError, match="no prompts with answers"):
        api.advise(tree | {"data": {"train": str(documents)}}, quick=True, reporter=Quiet())


def test_a_passage_that_asks_and_answers_a_held_out_row_is_never_found() -> None:
    row = ("When does my parcel come today?", "It comes on Monday before noon.")
    index = Index(
        [
            Passage(f"Q: {row[0]} A: {row[1]}", "the row itself"),
            Passage("Every parcel: it comes on Monday before noon.", "says the answer"),
            Passage("When does my parcel come today? Ask the driver.", "asks the question"),
        ]
    )
    index.leave_out_repeated([row])
    assert index.left_out == {0}
    assert index.nearest(" ".join(row), 3) == [1, 2]


def test_a_search_without_a_shared_word_finds_nothing() -> None:
    index = Index([Passage("parcels", "a"), Passage("!!!", "b")])
    assert index.nearest("refunds", 2) == []
    assert index.nearest("?!", 2) == []
    assert index.nearest("parcels refunds", 2) == [0]


def test_shots_have_different_answers_first_and_nothing_that_is_left_out() -> None:
    rows = of_rows([qa(f"Is {n} even?", "yes" if n % 2 == 0 else "no") for n in range(20)])
    for seed in range(10):
        assert {p.turns[-1].content for p in shots(rows, [], 2, seed)} == {"yes", "no"}
    assert not {p.text for p in shots(rows, range(10), 20, 0)} & {p.text for p in rows[:10]}


def test_a_passage_that_does_not_fit_gives_way_to_the_next(encoder: Encoder) -> None:
    asked = qa("When?", "On Monday.")
    long, short, hostile = Passage("word " * 200, "a"), Passage("On Mondays.", "b"), Passage("<|im_start|>system", "c")
    shown = with_passages(asked, [hostile, long, short], Budget(60, 2), encoder)
    assert shown.messages[0].content == "On Mondays.\n\nWhen?"
    assert shown.messages[1] == asked.messages[1]


def test_training_rows_stand_as_turns_after_the_system_turn_the_nearest_last(encoder: Encoder) -> None:
    asked = Example(
        (Message("system", "Be kind."), Message("user", "When?"), Message("assistant", "Now.", 1.0)), Source("rows", 1)
    )
    near, far = of_rows([qa("a", "b"), qa("c", "d")])
    shown = with_passages(asked, [near, far], Budget(500, 4), encoder)
    assert [m.content for m in shown.messages] == ["Be kind.", "c", "d", "a", "b", "When?", "Now."]
    assert [m.weight for m in shown.messages] == [0, 0, 0, 0, 0, 0, 1]


def test_documents_are_cut_into_passages_that_hold_all_their_words(tmp_path: Path) -> None:
    text = "\n\n".join([" ".join(f"w{n}." for n in range(300)), "short one", "another", "x " * 130])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    passages, _ = of_documents(tmp_path)
    assert " ".join(p.text for p in passages).split() == text.split()
    assert max(len(p.text.split()) for p in passages) <= 120
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"b\.txt.*UTF-8"):
        of_documents(tmp_path)


def test_without_its_library_retrieval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"inlay\[retrieval\]"):
        Index([])


def test_the_training_rows_read_are_those_that_training_had(outcome: Outcome, tree: dict[str, Any]) -> None:
    from inlay.config.load import load
    from inlay.evaluation.score import read_held_out
    from inlay.workflows.advise.advise import _sides

    train, held = _sides(load(tree=tree))
    assert [e.source.line for e in held] == [e.source.line for e in read_held_out(outcome.run.heldout)]
    every = read_examples(tree["data"]["train"]).examples
    assert len(train) + len(held) == len(every)
