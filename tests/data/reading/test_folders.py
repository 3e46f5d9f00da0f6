"""A folder or a pattern is one data set in several files, or it is said which ones lie there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toys
from inlay import api
from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data.checks.report import check_files
from inlay.data.encoding.encoder import Encoder
from inlay.data.prepare import PreparedData, prepare
from inlay.data.reading.folders import files_of
from inlay.data.reading.read import read_examples
from inlay.data.reading.sources import is_data_name, rows
from inlay.errors import DataError
from parts import NANO, empty_cache, qa_rows, write_rows


def shards(folder: Path, count: int = 40, parts: int = 3) -> tuple[Path, Path]:
    """(a folder with the rows in parts, one file with all of them)."""
    every = qa_rows(count)
    (folder / "set").mkdir()
    for n in range(parts):
        some = every[n * count // parts : (n + 1) * count // parts]
        write_rows(folder / "set" / f"train-{n:05}-of-{parts:05}.jsonl", some)
    return folder / "set", write_rows(folder / "whole.jsonl", every)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"prompt": "a", "completion": "b"}\n')
    return folder


def read(path: str | Path) -> list[dict[str, Any]]:
    return [row.value for row in rows(str(path))]


def test_a_folder_and_a_pattern_give_the_rows_of_their_files_in_order(tmp_path: Path) -> None:
    folder, whole = shards(tmp_path)
    for path in (folder, folder / "*.jsonl", folder / "train-*", tmp_path / "**" / "*-of-*.jsonl"):
        assert read(path) == read(whole)
    assert str(list(rows(str(folder)))[-1].source) == f"{folder}/train-00002-of-00003.jsonl:14"


def test_what_is_made_of_a_folder_is_what_is_made_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", empty_cache(tmp_path / "cache"))
    encoder = Encoder(toys.nano())

    def made(path: Path, **more: Any) -> PreparedData:
        return prepare(DataConfig(train=[TrainFile(path=str(path), **more)]), encoder, 256, 100, 0)

    folder, whole = shards(tmp_path)
    for more in ({}, {"max_rows": 25}):
        one = made(whole, **more)
        for data in (made(folder, **more), made(folder, **more)):  # the second is read from the cache
            assert data.rows == one.rows
            for mine, other in ((data.train, one.train), (data.heldout, one.heldout)):
                assert [mine.row(i).input_ids.tolist() for i in range(len(mine))] == [
                    other.row(i).input_ids.tolist() for i in range(len(other))
                ]
            assert [e.messages for e in data.heldout_examples] == [e.messages for e in one.heldout_examples]
            assert [e.source for e in data.heldout_examples] == [
                data.heldout.source(i) for i in range(len(data.heldout))
            ]
    assert "3 files" in made(folder).format_reason


def test_a_row_of_a_folder_is_shown_by_its_file_and_line(tmp_path: Path) -> None:
    folder, _ = shards(tmp_path)
    name = "train-00001-of-00003.jsonl"
    shown = api.show_data(folder, model=str(NANO), row=f"{name}:2")
    assert (shown.source.file, shown.source.line) == (f"{folder}/{name}", 2)
    with pytest.raises(DataError, match=rf"{name}: there is no row at line 99"):
        api.show_data(folder, model=str(NANO), row=f"{name}:99")


def test_a_damaged_row_of_a_folder_is_found_in_its_file(tmp_path: Path) -> None:
    folder, _ = shards(tmp_path)
    path = folder / "train-00001-of-00003.jsonl"
    path.write_text(path.read_text().replace('{"question"', "{question", 1))
    (finding,) = check_files([TrainFile(path=str(folder))], DataConfig(train="-")).findings
    assert str(finding.places[0].source) == f"{path}:1"


def test_a_run_trains_on_a_folder_and_is_verified(tmp_path: Path) -> None:
    folder, _ = shards(tmp_path)
    settings = ["train.max_steps=2", f"output.folder={tmp_path}", "train.eval_steps=2", "model.device=cpu"]
    run = api.train(api.config_of(str(folder), settings, given={"model.base_model": str(NANO)}))
    assert run.path.name.startswith("set-")
    assert all(proof["passed"] for proof in api.verify(run)["proofs"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["train-0.jsonl", "train-1.jsonl", "test.jsonl"],
            "inlay train 'F/train-*.jsonl' --set data.eval=F/test.jsonl",
        ),
        (["data/train-0.jsonl", "data/validation-0.jsonl"], "data.eval=F/data/validation-0.jsonl"),
        (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], "inlay train F/train --set data.eval=F/test/a.jsonl"),
        (["main/train.jsonl", "other/train.jsonl"], "(F/main/train.jsonl, F/other/train.jsonl)"),
        (["a.jsonl", "a.csv"], "(F/a.csv, F/a.jsonl)"),
    ],
)
def test_several_data_sets_in_a_folder_are_named_and_not_mixed(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(DataError) as caught:
        read(touch(tmp_path, *names))
    assert "holds several data sets" in str(caught.value)
    assert told.replace("F/", f"{tmp_path}/") in str(caught.value)


def test_a_pattern_that_takes_in_what_is_held_out_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train-0.jsonl", "train-1.jsonl", "test-0.jsonl", "notes.md")
    assert len(read(tmp_path / "train-*")) == 2
    with pytest.raises(DataError, match="holds several data sets"):
        read(tmp_path / "*")


def test_what_lies_beside_the_rows_is_not_read(tmp_path: Path) -> None:
    beside = (".git/x.jsonl", ".hidden.jsonl", "README.md", "LICENSE.txt", "dataset_infos.json")
    touch(tmp_path, "a.jsonl", "b.jsonl", *beside)
    assert files_of(str(tmp_path), is_data_name) == (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl")


def test_half_of_the_parts_are_refused_with_the_name_of_one_that_is_missing(tmp_path: Path) -> None:
    folder, _ = shards(tmp_path)
    (folder / "train-00001-of-00003.jsonl").unlink()
    for path in (folder, folder / "*"):
        with pytest.raises(DataError, match=r"train-00001-of-00003\.jsonl: no such file, but it is one of the 3 parts"):
            read(path)


@pytest.mark.parametrize("name", ["", "nothing-*.jsonl", "empty"])
def test_a_folder_or_pattern_without_data_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        read(f"{tmp_path}/{name}" if name else "")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].jsonl", "a1.jsonl")
    (row,) = rows(str(tmp_path / "a[1].jsonl"))
    assert row.source.file == str(tmp_path / "a[1].jsonl")


def test_an_empty_part_is_passed_over_and_nothing_but_empty_parts_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "c.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    assert len(read(tmp_path)) == 2
    for name in ("a", "c"):
        (tmp_path / f"{name}.jsonl").write_text("")
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path)


def test_a_folder_of_save_to_disk_gives_its_rows_and_one_of_splits_names_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
        for name in names:
            table = pyarrow.table({"prompt": [split], "completion": [name]})
            with pyarrow.ipc.new_stream(str(folder / name), table.schema) as out:
                out.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = read(tmp_path / "saved" / "test")
    assert found == [{"prompt": "test", "completion": name} for name in names]
    way = f"inlay train {tmp_path}/saved/train --set data.eval={tmp_path}/saved/test"
    with pytest.raises(DataError) as caught:
        read(tmp_path / "saved")
    assert str(caught.value).endswith(way)
    (tmp_path / "saved" / "test" / names[1]).unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: no such file, but state\.json names it"):
        read(tmp_path / "saved" / "test")


def test_one_part_named_alone_is_read_and_said_to_be_one_of_several(tmp_path: Path) -> None:
    folder, whole = shards(tmp_path)
    part = folder / "train-00001-of-00003.jsonl"
    assert f"one of 3 parts is read, and others lie beside it (for all: '{folder}/train-*-of-00003.jsonl')" in (
        read_examples(str(part)).why
    )
    assert "parts" not in read_examples(str(whole)).why
    for other in set(folder.iterdir()) - {part}:
        other.unlink()
    assert "parts" not in read_examples(str(part)).why
