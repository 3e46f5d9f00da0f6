"""A row is shown as the very batches of a run hold it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from inlay import api
from inlay.cli.render.data_row import row_text
from inlay.data.batches import Batch
from inlay.data.encoding.encoder import Encoder
from inlay.data.show_row import IGNORED, ShownRow, _sequence
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError
from inlay.tasks.task import Task
from parts import qa_rows, write_rows
from training_runs import train


def shown(path: Path, base: Path, row: int | None = None, *settings: str) -> ShownRow:
    return api.show_data(path, model=str(base), row=row, settings=settings)


def test_a_row_is_shown_with_the_ids_weights_and_padding_of_the_micro_batches_that_train_it(
    config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []

    batch_of = Task.batch

    def seen(*given: Any) -> Batch:
        batches.append(batch_of(*given))
        return batches[-1]

    monkeypatch.setattr(Task, "batch", seen)
    tree = config_tree(train={"epochs": 2, "max_steps": None, "micro_batch_size": 3, "batch_size": 8, "eval_steps": 8})
    run = train(tree)
    rows = 1 + max(row for batch in batches for row in batch.rows)
    per_epoch = [min(8, rows - first) for first in range(0, rows, 8)]
    firsts = np.cumsum([0] + [-(-size // 3) for size in per_epoch * 2])
    batches = batches[-firsts[-1] :]  # what stands before them was a measurement
    count = 0
    for line in range(1, 41, 3):
        row = api.show_data(run.path / "config.yaml", row=line)
        (sequence,) = row.sequences
        assert (row.source.line, row.side) == (line, "trained on" if sequence.landings else "held out and scored")
        for one in sequence.landings:
            batch = batches[firsts[one.step - 1] + one.micro_batch - 1]
            length = len(sequence.tokens.input_ids)
            (b,) = np.flatnonzero(
                [ids[:length].tolist() == sequence.tokens.input_ids.tolist() for ids in batch.input_ids]
            )
            assert int(batch.attention_mask[b].sum()) == length
            assert batch.weights[b][:length].tolist() == sequence.tokens.weights.tolist()
            assert tuple(batch.input_ids.shape) == (one.beside, one.padded_to)
            assert (one.step - 1) // len(per_epoch) + 1 == one.epoch
            count += 1
        assert len(sequence.landings) in (0, 2)
    assert count >= 10


def test_labels_are_the_ids_that_are_trained_and_spans_are_the_text(tiny_base: Path, data_file: Path) -> None:
    row = shown(data_file, tiny_base, 2)
    (sequence,) = row.sequences
    assert [text for weight, text in sequence.spans if weight] == [qa_rows(2)[1]["answer"] + "<|im_end|>"]
    trained = sequence.tokens.weights > 0
    assert (sequence.labels[trained] == sequence.tokens.input_ids[trained]).all()
    assert set(sequence.labels[~trained].tolist()) == {IGNORED}
    value = row.to_json()["sequences"][0]
    assert [token["id"] for token in value["tokens"]] == sequence.tokens.input_ids.tolist()
    assert "".join(token["text"] for token in value["tokens"]) == "".join(text for _, text in sequence.spans)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_the_text_of_a_row_in_any_script_reads_as_it_is_written(kind: str) -> None:
    encoder = Encoder(toys.nano() if kind == "bytes" else toys.sentencepiece(toys.LLAMA2))
    asked, answered = "翻译:你好,世界 👩‍👩‍👧", "مرحبا بالعالم é ñ 😀 नमस्ते"
    turns = (Message("user", asked), Message("assistant", answered, 1.0))
    ((_, tokens),) = encoder.examples([Example(turns, Source("a", 1))])
    sequence = _sequence(encoder, tokens, tokens, ())
    (before, _), (_, trained), *_ = sequence.spans
    assert before == 0
    assert asked in sequence.spans[0][1]
    assert answered in trained
    ids, text = tokens.input_ids.tolist(), "".join(text for _, text in sequence.spans)
    assert text == encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_long_row_is_shown_by_the_ends_of_its_stretches(tiny_base: Path, tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(20_000))
    path = write_rows(tmp_path / "a.jsonl", [{"question": "All?", "answer": long}, *qa_rows(9)])
    row = shown(path, tiny_base, 1, "data.check=off")
    text = row_text(row, False)
    (sequence,) = row.sequences
    assert len(sequence.pieces) > 60_000
    assert len(text.splitlines()) < 500
    assert "characters …" in text
    assert f"{int((sequence.tokens.weights > 0).sum()) - 400:,} tokens; all of them: --json" in text
    assert "word0 word1" in text
    assert "word19999<|im_end|>" in text


def test_without_a_terminal_what_is_trained_stands_in_brackets_and_with_one_it_has_a_colour(
    tiny_base: Path, data_file: Path
) -> None:
    row = shown(data_file, tiny_base)
    plain, coloured = row_text(row, False), row_text(row, True)
    assert f"assistant\n⟦{qa_rows(1)[0]['answer']}<|im_end|>⟧\n" in plain
    assert "\033" not in plain
    assert f"\033[1;32m{qa_rows(1)[0]['answer']}<|im_end|>\033[0m" in coloured
    assert "⟦" not in coloured


def test_a_control_character_in_a_row_does_not_reach_the_terminal(tiny_base: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question": "\033[2J?", "answer": "a\033]0;x"}, *qa_rows(9)])
    assert "\033" not in row_text(shown(path, tiny_base, None, "data.check=warn"), False)


def test_a_row_that_is_cut_too_long_or_not_drawn_says_so(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*qa_rows(20), {"question": "Long?", "answer": "word " * 150}]
    path, lost = write_rows(tmp_path / "a.jsonl", rows), "data.max_lost_share=1"
    dropped = shown(path, tiny_base, 21, "data.max_length=100", lost)
    assert "longer than data.max_length 100 (as set)" in dropped.side
    assert (dropped.sequences[0].cut, dropped.sequences[0].landings) == (0, ())
    settings = ("data.max_length=100", "data.overlong=cut", lost, "data.eval_fraction=0.05")
    cut = shown(path, tiny_base, 21, *settings).sequences[0]
    assert (len(cut.tokens.input_ids), cut.cut) == (100, len(dropped.sequences[0].tokens.input_ids) - 100)
    assert cut.landings


def test_a_row_of_a_file_that_cannot_be_trained_on_is_shown_with_the_reason(tiny_base: Path, tmp_path: Path) -> None:
    row = shown(write_rows(tmp_path / "a.jsonl", qa_rows(1)), tiny_base)
    assert row.side.startswith("not trained on: ")
    assert "cannot be split" in row.side
    assert (row.sequences[0].tokens.weights > 0).any()


def test_a_line_without_a_row_is_wrong_input(tiny_base: Path, data_file: Path) -> None:
    with pytest.raises(DataError, match="there is no row at line 41"):
        shown(data_file, tiny_base, 41)


def test_a_conversation_that_the_template_rewrites_is_shown_as_one_sequence_for_each_turn(
    tiny_base: Path, tmp_path: Path
) -> None:
    template = tmp_path / "forgets.jinja"
    template.write_text(toys.FORGETS)
    turns = [("user", "a"), ("assistant", "x</think>b"), ("user", "c"), ("assistant", "y</think>d")]
    conversation = {"messages": [{"role": role, "content": text} for role, text in turns]}
    others = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "e"}]} for n in range(9)
    ]
    path = write_rows(tmp_path / "a.jsonl", [conversation, *others])
    row = shown(path, tiny_base, 1, f"model.chat_template={template}", "data.check=warn")
    trained = ["".join(text for weight, text in s.spans if weight) for s in row.sequences]
    assert trained == ["x</think>b<|im_end|>", "y</think>d<|im_end|>"]
