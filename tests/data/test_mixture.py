"""Several files as one training set: how often each is drawn, what is capped, and that a run knows its mixture."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from inlay import api
from inlay import config as configs
from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data.batches import order, step_rows, steps_per_epoch
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import drawn
from inlay.data.prepare import MIXED, PreparedData, data_hash, prepare, sides
from inlay.data.show_row import ShownRow
from inlay.data.types import Source
from inlay.errors import ConfigError, DataCheckError, DataError, Interrupted, RunError
from parts import empty_cache, qa_rows, write_rows
from training_runs import outcome, stop_after, train

Tree = Callable[..., dict[str, Any]]
parts_of = st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.1, 0.5, 0.75, 1.0, 1.5, 2.0, 3.25])), min_size=1)


@pytest.fixture(scope="module")
def enc() -> Encoder:
    return Encoder(toys.nano())


def asked(count: int, word: str) -> list[dict[str, str]]:
    return [{"prompt": f"{word} {n}?", "completion": f"It is {n}."} for n in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_rows(tmp_path / "a.jsonl", qa_rows(40)), write_rows(tmp_path / "b.jsonl", asked(30, "What about"))


def made(enc: Encoder, *train: Any, **data: Any) -> PreparedData:
    entries = [TrainFile(**one) if isinstance(one, dict) else str(one) for one in train]
    return prepare(DataConfig(train=entries, **data), enc, 256, 100, 0)


def names(data: PreparedData) -> Counter[str]:
    """Rows of an epoch by file."""
    rows = order(0, 0, data.train.shares)
    return Counter(Path(data.train.source(int(i)).file).name for i in rows)


@given(parts_of, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_draws_each_row_as_often_as_its_weight_says(
    shares: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    seen = Counter(order(seed, epoch, tuple(shares)).tolist())
    first = 0
    for count, weight in shares:
        times = [seen[row] for row in range(first, first + count)]
        assert sum(times) == (max(1, round(count * weight)) if count else 0)
        assert all(int(weight) <= n <= int(weight) + 1 for n in times)
        first += count
    assert sum(seen.values()) == drawn(tuple(shares))


@given(st.integers(2, 40), st.sampled_from([0.5, 0.25, 2.5]), st.integers(0, 5))
def test_where_a_weight_is_no_whole_number_the_rows_take_turns(count: int, weight: float, seed: int) -> None:
    epochs = [order(seed, epoch, ((count, weight),)).tolist() for epoch in range(8)]
    seen = Counter(row for rows in epochs for row in rows)
    assert max(seen[row] for row in range(count)) - min(seen[row] for row in range(count)) <= 1
    steps = steps_per_epoch(len(epochs[0]), 4)
    again = [row for step in range(steps + 1, 2 * steps + 1) for row in step_rows(step, seed, ((count, weight),), 4)]
    assert again == epochs[1]


def test_files_of_different_formats_are_mixed_by_weight(enc: Encoder, files: tuple[Path, Path]) -> None:
    data = made(enc, files[0], {"path": str(files[1]), "weight": 2.0})
    assert (data.rows, data.format) == (70, MIXED)
    kept = Counter(Path(data.train.source(i).file).name for i in range(len(data.train)))
    assert sum(kept.values()) == 56
    assert names(data) == {"a.jsonl": kept["a.jsonl"], "b.jsonl": 2 * kept["b.jsonl"]}
    assert data.mixture == (
        f"an epoch draws {data.train.drawn}: {kept['a.jsonl']} of a.jsonl ({kept['a.jsonl']} × 1), "
        f"{2 * kept['b.jsonl']} of b.jsonl ({kept['b.jsonl']} × 2)"
    )
    held = {Path(e.source.file).name for e in data.heldout_examples}
    assert held == {"a.jsonl", "b.jsonl"}
    for i, example in zip(range(len(data.heldout)), data.heldout_examples, strict=True):
        assert data.heldout.source(i) == example.source
        assert example.messages[-1].content in enc.tokenizer.decode(data.heldout.row(i).input_ids)


@pytest.mark.parametrize("settings", [{}, {"eval_fraction": 0.4}, {"fold": "2/3"}])
def test_the_rows_themselves_are_divided_as_their_ids_are(
    enc: Encoder, files: tuple[Path, Path], settings: dict[str, Any]
) -> None:
    capped = {"path": str(files[1]), "max_rows": 20}
    data = made(enc, files[0], capped, max_lost_share=1.0, **settings)
    config = DataConfig(train=[str(files[0]), TrainFile(**capped)], **settings)
    train, heldout = sides(config)
    assert {e.source for e in heldout} == {data.heldout.source(i) for i in range(len(data.heldout))}
    assert {e.source for e in train} >= {data.train.source(i) for i in range(len(data.train))}
    assert len(train) + len(heldout) == data.rows
    assert data_hash(config) == data.data_hash


def test_the_rows_of_data_eval_have_the_weights_of_roles_that_the_others_have(tmp_path: Path) -> None:
    train, held = write_rows(tmp_path / "train.jsonl", qa_rows(20)), write_rows(tmp_path / "held.jsonl", qa_rows(9))
    for side in sides(DataConfig(train=str(train), eval=str(held), role_weights={"user": 0.5})):
        assert {m.weight for example in side for m in example.messages if m.role == "user"} == {0.5}


def test_a_file_may_name_its_own_format_and_columns(tmp_path: Path, enc: Encoder, files: tuple[Path, Path]) -> None:
    odd = write_rows(tmp_path / "odd.jsonl", [{"q": f"Odd {n}?", "a": "Yes."} for n in range(20)])
    entry = {"path": str(odd), "format": "question_answer", "columns": {"question": "q", "answer": "a"}}
    data = made(enc, {"path": str(files[0])}, entry)
    assert (data.rows, data.format) == (60, "question_answer")
    with pytest.raises(DataError, match=r"odd.jsonl"):
        made(enc, files[0], odd)


def test_only_the_rows_that_a_cap_leaves_are_tokenized(
    tmp_path: Path, enc: Encoder, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INLAY_CACHE", empty_cache(tmp_path / "cache"))
    capped = {"path": str(files[1]), "max_rows": 10}
    few = made(enc, files[0], capped)
    assert [len(part) for part in few.train.parts] == [40, 10]
    assert [len(part) for part in made(enc, files[0], capped).train.parts] == [40, 10]  # from the cache
    made(enc, *files)
    many = made(enc, files[0], capped)  # from what is there of all rows
    assert [len(part) for part in many.train.parts] == [40, 30]
    for one, other in ((few.train, many.train), (few.heldout, many.heldout)):
        assert [one.source(i) for i in range(len(one))] == [other.source(i) for i in range(len(other))]
        assert all((one.row(i).input_ids == other.row(i).input_ids).all() for i in range(len(one)))
        assert one.shares == other.shares
    assert few.heldout_examples == many.heldout_examples
    assert (few.rows, few.data_hash, few.max_length, few.check) == (
        many.rows,
        many.data_hash,
        many.max_length,
        many.check,
    )


def test_a_cap_chooses_by_content_and_leaves_the_split_of_other_files_alone(
    tmp_path: Path, enc: Encoder, files: tuple[Path, Path]
) -> None:
    capped = {"path": str(files[1]), "max_rows": 10}
    data = made(enc, files[0], capped)
    assert data.rows == 50
    backwards = write_rows(tmp_path / "back.jsonl", asked(30, "What about")[::-1])
    other = made(enc, files[0], capped | {"path": str(backwards)})

    def said(found: PreparedData) -> set[str]:
        return {e.messages[-1].content for e in found.heldout_examples}

    assert said(data) == said(other)
    share = sum(Path(e.source.file).name == "b.jsonl" for e in data.heldout_examples) / len(data.heldout_examples)
    assert share < 0.6  # the cap does not favour the rows that the split holds out
    assert made(enc, files[0], capped | {"max_rows": 500}).rows == 70


def test_no_prompt_stands_on_both_sides_though_in_two_files(tmp_path: Path, enc: Encoder) -> None:
    one = write_rows(tmp_path / "one.jsonl", asked(40, "Same"))
    two = write_rows(tmp_path / "two.jsonl", [r | {"completion": "Otherwise."} for r in asked(40, "Same")])
    data = made(enc, one, two)
    held = {e.messages[0].content for e in data.heldout_examples}
    texts = [enc.tokenizer.decode(data.train.row(i).input_ids) for i in range(len(data.train))]
    assert held
    assert not [text for text in texts for question in held if f"{question}<" in text]


def test_rows_of_all_files_are_checked_together(tmp_path: Path, enc: Encoder, files: tuple[Path, Path]) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "Zero?", "completion": "It is \0."}, *asked(5, "More")])
    with pytest.raises(DataCheckError, match=r"NUL: 1, first at .*bad.jsonl:1"):
        made(enc, files[0], bad)


def test_the_digest_of_a_mixture_knows_weights_and_bytes_but_not_places(
    tmp_path: Path, enc: Encoder, files: tuple[Path, Path]
) -> None:
    def digest(**entry: Any) -> str:
        return made(enc, files[0], {"path": str(files[1])} | entry).data_hash

    assert len({digest(), digest(weight=2.0), digest(max_rows=10), made(enc, *files[::-1]).data_hash}) == 4
    moved = shutil.copy(files[1], tmp_path / "moved.jsonl")
    assert digest(path=str(moved)) == digest()


def test_a_mixed_run_that_was_stopped_ends_as_the_unbroken_one_and_no_other_mixture_resumes_it(
    tmp_path: Path, config_tree: Tree, files: tuple[Path, Path]
) -> None:
    def tree(name: str, weight: float = 1.5) -> dict[str, Any]:
        mixed = [str(files[0]), {"path": str(files[1]), "weight": weight, "max_rows": 20}]
        return config_tree(data={"train": mixed}, train={"batch_size": 30, "max_steps": 4}, output={
            "folder": str(tmp_path / "results"), "name": name})  # fmt: skip

    whole = train(tree("whole"))
    with pytest.raises(Interrupted):
        train(tree("cut"), reporter=stop_after(2))
    with pytest.raises(RunError, match="a setting in its config"):
        train(tree("cut", weight=2.0), resume=True)
    assert outcome(train(tree("cut"), resume=True)) == outcome(whole)
    assert "an epoch draws" in (whole.path / "log.txt").read_text()
    assert configs.load(whole.path / "config.yaml").data.train_files[1].weight == 1.5


def test_a_mixture_is_written_as_yaml_or_on_the_command_line_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "model: {base_model: builtin:nano}\ndata:\n  train:\n    - a.jsonl\n    - {path: b.jsonl, weight: 0.5}\n"
    )
    config = configs.load(path)
    assert [(f.path, f.weight) for f in config.data.train_files] == [("a.jsonl", 1.0), ("b.jsonl", 0.5)]
    key, value = configs.parse_assignment("data.train=[{path: c.jsonl, max_rows: 5}]")
    assert configs.load(path, {key: value}).data.train_files[0].max_rows == 5
    for train_, told in (
        ([{"path": "a", "wieght": 2.0}], "data.train: unknown part of a file's entry 'wieght'. Did you mean 'weight'?"),
        ([{"path": "a", "weight": 0.0}], "data.train: must be text or a list of"),
        ([], "data.train: must be text or a list of"),
    ):
        with pytest.raises(ConfigError) as error:
            configs.load(None, {"model.base_model": "builtin:nano", "data.train": train_})
        assert told in str(error.value), json.dumps(train_)


def test_a_row_of_any_file_is_shown_with_where_it_lands(
    tmp_path: Path, tiny_base: Path, files: tuple[Path, Path]
) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(f"data: {{train: [{files[0]}, {{path: {files[1]}, weight: 3.0}}]}}\n")

    def shown(row: str | int | None) -> ShownRow:
        return api.show_data(path, model=str(tiny_base), row=row)

    landed = [shown(f"b.jsonl:{line}").sequences[0].landings for line in (1, 2, 3)]
    assert any(sum(one.epoch == 1 for one in landings) > 1 for landings in landed)  # drawn three times an epoch
    assert shown(3).source == Source(str(files[0]), 3)
    for row, told in (("c.jsonl:3", "unknown training file 'c.jsonl'"), ("b.jsonl:0", "from 1"), ("x", "FILE:LINE")):
        with pytest.raises(DataError, match=told):
            shown(row)
