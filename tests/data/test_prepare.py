"""From a file to ids: the account of every row, the cache, and what is held out."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from inlay import file_digests
from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data import file_progress
from inlay.data.checks import quick
from inlay.data.encoding import encoder, token_cache
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.data.example_tasks import example_tasks, find_example_task
from inlay.data.prepare import PreparedData, prepare
from inlay.data.reading import data_file, strict_json
from inlay.data.truncation import apply_max_length, choose_max_length
from inlay.data.types import Example, Source
from inlay.data.write_split import write_split
from inlay.errors import DataCheckError, DataError
from inlay.storage import cache_folder
from parts import ToldBar, empty_cache, qa_rows, write_rows


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INLAY_CACHE", empty_cache(tmp_path / "own"))
    return cache_folder("tokens")


@pytest.fixture(scope="module")
def enc() -> Encoder:
    return Encoder(toys.nano())


def made(path: Path, enc: Encoder, max_rows: int = 100, context: int = 256, seed: int = 0, **data: Any) -> PreparedData:
    return prepare(DataConfig(train=str(path), **data), enc, context, max_rows, seed)


def same(a: TokenSet, b: TokenSet) -> bool:
    pairs = zip(map(a.row, range(len(a))), map(b.row, range(len(b))), strict=True)
    return np.array_equal(a.examples, b.examples) and all(
        np.array_equal(x.input_ids, y.input_ids) and np.array_equal(x.weights, y.weights) and x.source == y.source
        for x, y in pairs
    )


def long_rows(count: int, long: int) -> list[dict[str, str]]:
    return [{"question": f"Number {n}?", "answer": "word " * (200 if n < long else 3)} for n in range(count)]


def test_rows_go_to_training_or_are_held_out_and_all_are_counted(data_file: Path, enc: Encoder) -> None:
    data = made(data_file, enc)
    assert data.rows == 40
    assert data.train_lengths.total + data.heldout_lengths.total == 40
    assert len(data.heldout_examples) == len(data.heldout) == 8
    assert [e.source for e in data.heldout_examples] == [data.heldout.source(i) for i in range(8)]
    assert data.leaked == 0
    assert 0 < data.trained_share < 1


def test_held_out_rows_are_drawn_by_seed_as_whole_conversations(tmp_path: Path) -> None:
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


@given(
    st.integers(1, 199),
    st.integers(0, 199),
    st.integers(0, 2**32 - 1),
    st.sampled_from([100, 300, 500]),
    st.sampled_from(["drop", "cut", "error"]),
)
def test_no_row_that_fits_the_context_is_lost_in_a_set_under_200_rows(
    train_rows: int, heldout_rows: int, seed: int, context: int, overlong: str
) -> None:
    draw = np.random.default_rng(seed)

    def side(count: int) -> TokenSet:
        ones = (np.ones(length, np.int32) for length in draw.integers(2, 400, count))
        return pack((k, TokenizedSequence(one, one.astype(np.float32), Source("f", k))) for k, one in enumerate(ones))

    train, heldout = side(train_rows), side(heldout_rows)
    limit, _ = choose_max_length(DataConfig(train="f"), train, heldout, context)
    assert limit <= context
    for tokens in (train, heldout):
        fitting = int((tokens.lengths <= context).sum())
        if overlong == "error" and fitting < len(tokens):
            continue
        kept, count = apply_max_length(tokens, limit, overlong)
        assert (kept.lengths <= context).all()
        assert count.kept - count.cut == fitting


@pytest.mark.parametrize("count", [5, 8, 12, 20])
def test_a_small_file_trains_on_every_row_wherever_its_longest_falls(tmp_path: Path, enc: Encoder, count: int) -> None:
    for longest in range(0, count, 4):
        rows = [{"question": f"{n}?", "answer": "word " * (60 if n == longest else 3)} for n in range(count)]
        data = made(write_rows(tmp_path / f"{longest}.jsonl", rows), enc, cache=False, check="off")
        assert len(data.train) + len(data.heldout) == count
        assert data.max_length_reason.startswith("longest of")


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
        TokenizedSequence(np.arange(p + a, dtype=np.int32), np.array([0.0] * p + [1.0] * a, np.float32), Source("f", k))
        for k, (p, a) in enumerate(rows)
    ]
    before = pack(enumerate(sequences))
    after, count = apply_max_length(before, limit, overlong)
    assert count.total == len(before)
    assert count.kept == len(after)
    assert before.trained_tokens - after.trained_tokens == count.trained_tokens_lost
    assert after.lengths.max(initial=0) <= limit
    assert all(after.row_weights > 0)
    long = [p + a > limit for p, a in rows]
    assert count.cut + count.dropped == sum(long)
    assert count.untrainable == (sum(p >= limit for p, _ in rows) if overlong == "cut" else 0)


def test_the_cache_gives_the_same_arrays_and_every_input_has_its_own(
    tmp_path: Path, data_file: Path, own_cache: Path
) -> None:
    folder = own_cache
    first = made(data_file, Encoder(toys.nano()))
    assert len(list(folder.iterdir())) == 1
    again = made(data_file, Encoder(toys.nano()))
    assert same(first.train, again.train)
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


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "manifest", "folder"])
@pytest.mark.parametrize("name", ["input_ids.bin", "rows.safetensors"])
def test_a_damaged_cache_is_made_again(data_file: Path, enc: Encoder, own_cache: Path, damage: str, name: str) -> None:
    first = made(data_file, enc)
    (entry,) = own_cache.iterdir()
    good = bytearray((entry / name).read_bytes())
    if damage in ("gone", "folder"):
        (entry / name).unlink()
        if damage == "folder":
            (entry / name).mkdir()
    elif damage == "manifest":
        (entry / "manifest.json").write_text("{}")
    else:
        bad = good[:-40] if damage == "cut" else b"" if damage == "empty" else good[:-100] + b"\x07" + good[-99:]
        (entry / name).unlink()  # `first` is a map of it
        (entry / name).write_bytes(bad)
    assert same(made(data_file, enc).train, first.train)
    assert [path.name for path in own_cache.iterdir()] == [entry.name]
    assert (entry / name).read_bytes() == good


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
    assert example_tasks()
    for name in example_tasks():
        files = find_example_task(name)
        data = prepare(DataConfig(train=str(files.train), eval=str(files.heldout)), enc, 512, 50, 0)
        assert len(data.train) > 20
        assert data.leaked == 0, name
    with pytest.raises(DataError, match=r"unknown example task .* Did you mean"):
        find_example_task(next(iter(example_tasks()))[:-1])


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


def no_reading(monkeypatch: pytest.MonkeyPatch, *, but: int = 0) -> None:
    """From here on a row of a data file may be parsed `but` times."""
    parsed = 0

    def once(text: str, at: int, where: Any) -> Any:
        nonlocal parsed
        parsed += 1
        assert parsed <= but, "a row was parsed"
        return value_at(text, at, where)

    value_at = strict_json.value_at
    monkeypatch.setattr(strict_json, "value_at", once)


def test_a_second_start_parses_only_the_rows_that_show_the_format(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, held = write_rows(tmp_path / "a.jsonl", qa_rows(300)), write_rows(tmp_path / "b.jsonl", qa_rows(320)[300:])
    first = made(path, enc, eval=str(held))
    no_reading(monkeypatch, but=100 + 20)
    again = made(path, enc, eval=str(held))
    assert same(first.train, again.train)
    assert (first.heldout_examples, first.train_sample) == (again.heldout_examples, again.train_sample)
    assert first.check == again.check
    assert first.data_hash == again.data_hash


def test_a_second_start_of_a_mixture_parses_no_more_whatever_its_weights(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (
        str(write_rows(tmp_path / f"{name}.jsonl", rows))
        for name, rows in (("a", qa_rows(300)), ("b", qa_rows(340)[300:]))
    )

    def mixed(weight: float) -> PreparedData:
        return prepare(DataConfig(train=[a, TrainFile(path=b, weight=weight)]), enc, 256, 100, 0)

    first = mixed(1.0)
    no_reading(monkeypatch, but=2 * (100 + 40))
    assert same(first.train, mixed(1.0).train)
    assert same(first.train, mixed(2.5).train)


def test_the_second_start_maps_the_ids_and_reads_them_not(data_file: Path, enc: Encoder, own_cache: Path) -> None:
    first = made(data_file, enc)
    ids = first.train.parts[0].input_ids
    assert ids.dtype == np.uint16
    assert isinstance(ids.base, np.memmap)
    assert not ids.flags.writeable


def test_a_file_changed_in_place_is_read_again_though_size_and_time_are_the_same(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_QUICK_TO_HASH_BYTES", 0)
    path = write_rows(tmp_path / "a.jsonl", qa_rows(40))
    first, before = made(path, enc), path.stat()
    path.write_text(path.read_text().replace("case", "Case"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = made(path, enc)
    assert second.data_hash != first.data_hash
    assert not same(first.train, second.train)


@pytest.mark.parametrize("small", [True, False])
def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_of_it_kept(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    path = write_rows(tmp_path / "a.jsonl", qa_rows(400))
    monkeypatch.setattr(data_file, "_SMALL_BYTES", 4_000_000 if small else 0)
    examples = data_file.examples_again

    def rewritten(*parts: Any, **more: Any) -> Iterator[Example]:
        found = examples(*parts, **more)
        yield next(found)
        with path.open("a") as file:
            file.write('{"question": "New?", "answer": "Yes."}\n')
        yield from found

    monkeypatch.setattr(data_file, "examples_again", rewritten)
    with pytest.raises(DataError, match=r"a.jsonl: changed while it was read"):
        made(path, enc)
    assert not list(own_cache.glob("*"))


def test_a_stop_while_rows_are_tokenized_leaves_nothing_behind(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl", qa_rows(60))

    def stopped(self: Encoder, examples: Iterable[Example]) -> Iterator[Any]:
        for n, batch in enumerate(real(self, examples)):
            if n == 5:
                raise KeyboardInterrupt
            yield batch

    real = Encoder.batches
    monkeypatch.setattr(encoder, "BATCH", 10)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "batches", stopped)
        with pytest.raises(KeyboardInterrupt):
            made(path, enc)
    assert not list(own_cache.iterdir())
    abandoned = own_cache / ".staging-x-1"  # of a process that was killed, long ago
    abandoned.mkdir()
    os.utime(abandoned, (1, 1))
    made(path, enc)
    assert len(list(own_cache.iterdir())) == 1


def test_a_full_disk_while_tokenizing_costs_the_cache_only(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl", qa_rows(60))
    wanted = made(path, enc, cache=False)

    def full(*parts: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_cache, "save_file", full)
    assert same(made(path, enc).train, wanted.train)
    assert not list(own_cache.iterdir())


def test_two_processes_that_start_together_tokenize_once(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "a.jsonl", qa_rows(60))
    work, counted = token_cache._work, []

    def slow(*parts: Any) -> Any:
        counted.append(1)
        time.sleep(0.2)
        return work(*parts)

    monkeypatch.setattr(token_cache, "_work", slow)
    with ThreadPoolExecutor(2) as pool:  # each opens the lock file itself, as two processes do
        one, two = pool.map(lambda _: made(path, enc), range(2))
    assert same(one.train, two.train)
    assert len(counted) == 1


@pytest.mark.parametrize("batch", [2, 256])
def test_what_is_wrong_with_the_first_rows_is_said_before_the_others_are_read(
    batch: int, tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "MOST_ROWS", 20)
    monkeypatch.setattr(encoder, "BATCH", batch)
    rows = qa_rows(100)
    rows[90]["answer"] = ""
    with pytest.raises(DataError, match=r"a.jsonl:91: field 'answer' is an empty string"):
        made(write_rows(tmp_path / "a.jsonl", rows), enc)
    rows[90]["answer"], rows[1]["answer"] = "a", f"a {enc.tokenizer.eos_token}"
    with pytest.raises(DataError, match=r"a.jsonl:2: .* special token"):
        made(write_rows(tmp_path / "a.jsonl", rows), enc)
    rows[90]["answer"], rows[15]["answer"] = "", "a\0"
    with pytest.raises(DataCheckError, match=r"NUL: 1, first at .*a.jsonl:16"):
        made(write_rows(tmp_path / "a.jsonl", rows), enc)
    rows[17]["answer"] = ""
    with pytest.raises(DataError, match=r"a.jsonl:18: field 'answer' is an empty string"):
        made(write_rows(tmp_path / "a.jsonl", rows), enc)


def test_a_large_file_is_checked_by_an_even_sample_of_all_its_rows(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "MOST_ROWS", 20)
    rows = qa_rows(100)
    rows[64]["answer"] += "\0"  # every eighth is looked at
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataCheckError, match=r"NUL: 1, first at .*a.jsonl:65"):
        made(path, enc)
    assert made(path, enc, check="warn").check.seen == 13
    with pytest.raises(DataCheckError):  # also from what was noted
        made(path, enc)


def test_a_bar_shows_how_far_a_large_file_is_and_ends(
    tmp_path: Path, enc: Encoder, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_progress, "_SHOWN_FROM_BYTES", 0)
    bar = ToldBar()
    told = bar.told
    path = write_rows(tmp_path / "a.jsonl", qa_rows(60))
    prepare(DataConfig(train=str(path)), enc, 256, 10, 0, bar)
    assert told[0] == (100, 0, "% tokenized")
    assert told[-2:] == [100, "end"]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.5]), min_size=1, max_size=9), max_size=12),
    st.none() | st.integers(1, 9),
    st.randoms(),
)
def test_what_is_packed_comes_back_token_by_token(weights: list[list[float]], limit: int | None, draw: Any) -> None:
    sequences = [
        TokenizedSequence(
            np.arange(len(w), dtype=np.int32) + 70_000, np.asarray([0.0, *w[1:]], np.float32), Source("f", k)
        )
        for k, w in enumerate(weights)
    ]
    rows = draw.sample(range(len(sequences)), len(sequences))
    found = pack(enumerate(sequences)).take(rows, limit)
    for i, k in enumerate(rows):
        row, kept = found.row(i), sequences[k].weights[:limit]
        assert row.weights.tolist() == kept.tolist()
        assert row.input_ids.tolist() == sequences[k].input_ids[:limit].tolist()
        assert found.lengths[i] == len(kept)
        assert found.trained_counts[i] == np.count_nonzero(kept)
        assert found.row_weights[i] == kept.sum()
        trained = np.flatnonzero(kept)
        assert found.last_trained_ids()[i] == (70_000 + trained[-1] if len(trained) else -1)
        assert found.rows_of(Source("f", k)) == [i]
    assert found.largest_id == max((int(s.input_ids[-1]) for s in sequences), default=-1)


def test_at_most_so_many_rows_of_a_file_are_used_as_its_entry_in_a_list_would_say(tmp_path: Path, enc: Encoder) -> None:
    path = write_rows(tmp_path / "a.jsonl", qa_rows(60))
    few, more = (prepare(DataConfig(train=str(path), max_rows=n), enc, 256, 100, 0) for n in (25, 26))
    entry = prepare(DataConfig(train=[TrainFile(path=str(path), max_rows=25)], max_rows=40), enc, 256, 100, 0)
    assert few.rows == entry.rows == 25
    assert same(few.train, entry.train)
    assert len({few.data_hash, more.data_hash, made(path, enc).data_hash}) == 3
    parts = write_split(str(path), tmp_path / "to", DataConfig(train=str(path), max_rows=25))
    assert parts["train"]["rows"] == len(few.train)
    assert parts["heldout"]["rows"] == len(few.heldout)
