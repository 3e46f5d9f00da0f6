"""From a file to ids: the account of every row, the cache, and what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from inlay.config.settings import DataConfig
from inlay.data.domain import domains, find_domain
from inlay.data.encode import Encoder, Tokens
from inlay.data.prepare import PreparedData, apply_max_length, prepare
from inlay.data.tokens import TokenSet, cache_folder, pack
from inlay.data.types import Source
from inlay.errors import DataCheckError, DataError
from parts import qa_rows, write_rows


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "own"))
    return cache_folder("tokens")


@pytest.fixture(scope="module")
def enc() -> Encoder:
    return Encoder(toys.nano())


def made(path: Path, enc: Encoder, max_rows: int = 100, context: int = 256, seed: int = 0, **data: Any) -> PreparedData:
    return prepare(DataConfig(train=str(path), **data), enc, context, max_rows, seed)


def same(a: TokenSet, b: TokenSet) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("input_ids", "weights", "offsets", "examples"))


def long_rows(count: int, long: int) -> list[dict[str, str]]:
    return [{"question": f"Number {n}?", "answer": "word " * (200 if n < long else 3)} for n in range(count)]


def test_rows_go_to_training_or_are_held_out_and_all_are_counted(data_file: Path, enc: Encoder) -> None:
    data = made(data_file, enc)
    assert data.rows == 40
    assert data.train_lengths.total + data.heldout_lengths.total == 40
    assert len(data.heldout_examples) == len(data.heldout) == 8
    assert [e.source for e in data.heldout_examples] == list(data.heldout.sources)
    assert data.leaked == 0
    assert 0 < data.trained_share < 1


def test_held_out_rows_are_drawn_by_seed_as_whole_dialogues(tmp_path: Path) -> None:
    turns = [("user", "ask {n}"), ("assistant", "because</think>one"), ("user", "on"), ("assistant", "so</think>two")]
    rows = [{"messages": [{"role": r, "content": c.format(n=n)} for r, c in turns]} for n in range(50)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = made(path, Encoder(toys.nano(toys.FORGETS)), max_rows=4, eval_fraction=0.2)
    assert len(data.heldout_examples) == 4
    assert len(data.heldout) == 8  # the template gives each trained turn its own sequence
    assert data.heldout_available == 10
    other = made(path, Encoder(toys.nano(toys.FORGETS)), max_rows=4, eval_fraction=0.2, seed=1)
    assert other.heldout_examples != data.heldout_examples


def test_an_eval_file_may_be_in_another_format_and_its_leaks_are_counted(
    tmp_path: Path, data_file: Path, enc: Encoder
) -> None:
    asked = [qa_rows(3)[2]["question"].upper(), "Something new?", "Something else?"]
    rows = [{"prompt": q, "completion": "An answer."} for q in asked]
    data = made(data_file, enc, eval=str(write_rows(tmp_path / "eval.jsonl", rows)))
    assert len(data.train) == 40
    assert [e.source.file.endswith("eval.jsonl") for e in data.heldout_examples] == [True] * 3
    assert data.leaked == 1


def test_max_length_auto_is_the_99th_percentile_within_the_context(tmp_path: Path, enc: Encoder) -> None:
    path = write_rows(tmp_path / "a.jsonl", long_rows(400, 2))
    data = made(path, enc)
    assert data.max_length < 60
    assert data.train_lengths.dropped + data.heldout_lengths.dropped == 2
    assert "99th percentile" in data.max_length_reason
    wide = made(write_rows(tmp_path / "b.jsonl", long_rows(40, 8)), enc, context=100, max_lost_share=1.0)
    assert wide.max_length == 100
    assert "context" in wide.max_length_reason
    with pytest.raises(DataError, match=r"data.max_length: 300 is longer than the base's context of 256"):
        made(path, enc, max_length=300)


def test_losing_more_rows_than_allowed_is_a_data_check_that_ends_with_3(tmp_path: Path, enc: Encoder) -> None:
    path = write_rows(tmp_path / "a.jsonl", long_rows(40, 20))
    with pytest.raises(DataCheckError, match=r"training rows are longer than 64 tokens .*max_lost_share=0\.") as error:
        made(path, enc, max_length=64)
    assert error.value.exit_code == 3
    with pytest.raises(DataCheckError):
        made(path, enc, max_length=64, overlong="cut")
    kept = made(path, enc, max_length=64, overlong="cut", max_lost_share=0.9)
    assert kept.train_lengths.cut > 0
    assert kept.train.lengths.max() == 64
    with pytest.raises(DataError, match=r"a.jsonl:\d+: \d+ tokens, longer than data.max_length 64"):
        made(path, enc, max_length=64, overlong="error")
    everything = write_rows(tmp_path / "b.jsonl", long_rows(10, 10))
    with pytest.raises(DataCheckError, match=r"no training rows are left at data.max_length 8"):
        made(everything, enc, max_length=8, max_lost_share=1.0)


def test_held_out_rows_that_are_too_long_are_counted_and_guarded_too(
    tmp_path: Path, data_file: Path, enc: Encoder
) -> None:
    few, many = (str(write_rows(tmp_path / f"{n}.jsonl", long_rows(10, n))) for n in (2, 3))
    data = made(data_file, enc, eval=few, max_length=128, max_rows=100)
    assert (data.heldout_available, data.heldout_fitting, len(data.heldout_examples)) == (10, 8, 8)
    assert data.heldout_lengths.dropped == 2
    with pytest.raises(DataCheckError) as error:
        made(data_file, enc, eval=many, max_length=128)
    assert str(error.value).startswith(f"{many}: 3 of 10 held-out rows are longer than 128 tokens (as set);")
    assert "data.max_lost_share=0.31" in str(error.value)
    with pytest.raises(DataCheckError, match="held-out"):
        made(data_file, enc, eval=many, max_length=128, overlong="cut")
    cut = made(data_file, enc, eval=many, max_length=128, overlong="cut", max_lost_share=0.31, max_rows=4)
    assert (cut.heldout_available, cut.heldout_fitting, len(cut.heldout_examples)) == (10, 10, 4)
    assert cut.heldout_lengths.cut == 3


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=20),
    st.integers(8, 20),
    st.sampled_from(["drop", "cut"]),
)
def test_the_account_of_max_length_adds_up(rows: list[tuple[int, int]], limit: int, overlong: str) -> None:
    sequences = [
        Tokens(np.arange(p + a, dtype=np.int32), np.array([0.0] * p + [1.0] * a, np.float32), Source("f", k))
        for k, (p, a) in enumerate(rows)
    ]
    before = pack(enumerate(sequences))
    after, count = apply_max_length(before, limit, overlong)
    assert count.total == len(before)
    assert count.kept == len(after)
    assert before.trained_tokens() - after.trained_tokens() == count.trained_tokens_lost
    assert after.lengths.max(initial=0) <= limit
    assert all(after.row_weights() > 0)
    long = [p + a > limit for p, a in rows]
    assert count.cut + count.dropped == sum(long)
    assert count.untrainable == (sum(p >= limit for p, _ in rows) if overlong == "cut" else 0)


def test_the_cache_gives_the_same_arrays_and_every_input_has_its_own(
    tmp_path: Path, data_file: Path, own_cache: Path
) -> None:
    folder = own_cache
    first = made(data_file, Encoder(toys.nano()))
    assert len(list(folder.glob("*.safetensors"))) == 1
    again = made(data_file, Encoder(toys.nano()))
    assert same(first.train, again.train)
    assert first.train.sources == again.train.sources
    assert len(list(folder.iterdir())) == 1
    other = [{"answer": r["question"], "question": r["answer"]} for r in qa_rows(40)]
    endings = toys.nano()
    endings.eos_token = "<|endoftext|>"
    made(write_rows(tmp_path / "other.jsonl", qa_rows(41)), Encoder(toys.nano()))
    made(data_file, Encoder(toys.nano()), columns={"prompt": "answer", "completion": "question"})
    made(write_rows(tmp_path / "back.jsonl", list(reversed(other))), Encoder(toys.nano()))
    made(data_file, Encoder(toys.nano(toys.STRIPS)))
    made(data_file, Encoder(endings))
    made(data_file, Encoder(toys.sentencepiece()))
    assert len(list(folder.iterdir())) == 7


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "folder"])
def test_a_damaged_cache_is_made_again(data_file: Path, enc: Encoder, own_cache: Path, damage: str) -> None:
    first = made(data_file, enc)
    (path,) = own_cache.iterdir()
    good = bytearray(path.read_bytes())
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        bad = good[:-40] if damage == "cut" else b"" if damage == "empty" else good[:-100] + b"\x07" + good[-99:]
        path.write_bytes(bad)
    assert same(made(data_file, enc).train, first.train)
    if damage == "folder":
        path.rmdir()
    else:
        assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, data_file: Path, enc: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "file"))
    assert same(made(data_file, enc).train, made(data_file, enc, cache=False).train)


def test_one_prompt_cannot_be_split(tmp_path: Path, enc: Encoder) -> None:
    rows = [{"question": "Same?", "answer": f"Yes {n}."} for n in range(5)]
    with pytest.raises(DataError, match="5 rows cannot be split into training and held-out rows"):
        made(write_rows(tmp_path / "a.jsonl", rows), enc)


def test_every_example_task_trains_with_a_held_out_file_that_asks_other_things(enc: Encoder) -> None:
    assert domains()
    for name in domains():
        files = find_domain(name)
        data = prepare(DataConfig(train=str(files.train), eval=str(files.heldout)), enc, 512, 50, 0)
        assert len(data.train) > 20
        assert data.leaked == 0, name
    with pytest.raises(DataError, match=r"unknown example task .* Did you mean"):
        find_domain(next(iter(domains()))[:-1])


def test_rows_of_json_lines_keep_what_they_say(tmp_path: Path, enc: Encoder) -> None:
    row = {"messages": [{"role": "user", "content": "a\u2028b\x85"}, {"role": "assistant", "content": "c\r\nd"}]}
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps(row) + "\n" + json.dumps({"messages": [{"role": "user", "content": "z"}, row["messages"][1]]})
    )
    data = made(path, enc, eval_fraction=0.5)
    texts = [enc.tokenizer.decode(t.row(0).input_ids) for t in (data.train, data.heldout)]
    assert any("a\u2028b\x85<" in t for t in texts)
    assert all("\nc\r\nd<" in t for t in texts)
