"""The reader gives the rows that are in the file, or says which line is wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.data.reading import compressed
from inlay.data.reading import sources as sources_module
from inlay.data.reading.sources import content_hash, rows
from inlay.errors import DataError

ROWS = [{"prompt": "a é 漢 \U0001f600", "completion": "b"}, {"prompt": "c", "completion": "d\ne"}]


def written(folder: Path, name: str, data: bytes | str) -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def read(path: str) -> list[dict[str, object]]:
    return [row.value for row in rows(path)]


def as_jsonl(values: list[dict[str, str]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


CLEAN = {
    "plain.jsonl": as_jsonl(ROWS),
    "same.ndjson": as_jsonl(ROWS),
    "no_newline_at_the_end.jsonl": as_jsonl(ROWS).rstrip("\n"),
    "blank_lines.jsonl": "\n" + as_jsonl(ROWS).replace("\n", "\n\n  \n"),
    "windows_line_ends.jsonl": as_jsonl(ROWS).replace("\n", "\r\n"),
    "byte_order_mark.jsonl": b"\xef\xbb\xbf" + as_jsonl(ROWS).encode(),
    "characters_unescaped.jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS),
    "indented_lines.jsonl": "  " + as_jsonl(ROWS).replace("\n", "  \n  "),
    "array.json": json.dumps(ROWS),
    "pretty_array.json": json.dumps(ROWS, indent=2),
    "wrapped.json": json.dumps({"version": 1, "tags": ["x"], "data": ROWS}),
    "lines_inside.json": as_jsonl(ROWS),
    "table.csv": 'prompt,completion\na é 漢 \U0001f600,b\nc,"d\ne"\n',
    "spaced_header.csv": 'prompt, completion\n\na é 漢 \U0001f600,b\n\nc,"d\ne"\n',
    "bom.csv": b"\xef\xbb\xbf" + 'prompt,completion\r\n"a é 漢 \U0001f600","b"\r\nc,"d\ne"\r\n'.encode(),
    "table.tsv": 'prompt\tcompletion\na é 漢 \U0001f600\tb\nc\t"d\ne"\n',
}


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("packed", [False, True])
def test_a_clean_file_gives_its_rows(tmp_path: Path, name: str, packed: bool) -> None:
    content = CLEAN[name]
    data = content.encode() if isinstance(content, str) else content
    path = written(tmp_path, name + ".gz" * packed, gzip.compress(data) if packed else data)
    assert read(path) == ROWS


def test_rows_know_their_line(tmp_path: Path) -> None:
    lines = written(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.source.line for row in rows(lines)] == [2, 4]
    table = written(tmp_path, "a.csv", 'a\n"x\ny"\nz\n')
    assert [row.source.line for row in rows(table)] == [2, 4]
    array = written(tmp_path, "a.json", '[\n\n{"a": 1},\n{"a": 2}]')
    assert [row.source.line for row in rows(array)] == [1, 2]


def test_a_single_object_in_a_json_file_is_one_row_and_its_turns_are_not_rows(tmp_path: Path) -> None:
    value = {"messages": [{"role": "user", "content": "x"}]}
    assert read(written(tmp_path, "a.json", json.dumps(value, indent=1))) == [value]


def test_long_cells_and_huge_integers_are_fine(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.csv", "a,b\n" + "x" * 300_000 + ",y\n"))[0]["a"] == "x" * 300_000
    assert read(written(tmp_path, "a.jsonl", '{"a": ' + "9" * 400 + "}\n")) == [{"a": int("9" * 400)}]


def test_parquet_gives_its_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), out)
    path = written(tmp_path, "a.parquet", out.getvalue())
    assert read(path) == ROWS
    assert [row.source.line for row in rows(path)] == [1, 2]
    assert read(written(tmp_path, "a.parquet.gz", gzip.compress(out.getvalue()))) == ROWS
    with pytest.raises(DataError, match=r"cut\.parquet:1: not a whole parquet file"):
        read(written(tmp_path, "cut.parquet", out.getvalue()[:-20]))


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'pip install "inlay\[parquet\]"'):
        read(written(tmp_path, "a.parquet", b"PAR1"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.csv.gz"])
def test_the_hash_handed_in_has_seen_every_byte(tmp_path: Path, name: str) -> None:
    data = b'{"a": "1"}\n' * 5000 if "csv" not in name else b"a,b\n" + b"1,2\n" * 5000
    path = written(tmp_path, name, gzip.compress(data) + b"\0" * 600 if name.endswith("gz") else data)
    sha = hashlib.sha256()
    list(rows(path, sha))
    assert sha.hexdigest() == hashlib.sha256(Path(path).read_bytes()).hexdigest() == content_hash([path])


def test_the_hash_of_several_files_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    one, two = written(tmp_path, "one", "x" * 10), written(tmp_path, "two", "y")
    assert content_hash([one, two]) == hashlib.sha256(b"x" * 10 + b"y").hexdigest()
    assert content_hash([two, one]) != content_hash([one, two])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_lines_are_streamed(tmp_path: Path, name: str) -> None:
    """The defect at the end is not met before the rows at the start are given."""
    head = b"a,b\n" if "csv" in name else b""
    good = b'"1","2"\n' if "csv" in name else b'{"a": "1"}\n'
    data = head + good * 30_000 + b"\xff\n"
    found = rows(written(tmp_path, name, gzip.compress(data, 1) if name.endswith("gz") else data))
    assert next(found).value["a"] == "1"
    with pytest.raises(DataError, match="not UTF-8"):
        list(found)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "train.jsonl", "")
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file\. Did you mean '.*/train\.jsonl'\?"):
        read(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"The folder '.*nowhere' does not exist either"):
        read(str(tmp_path / "nowhere" / "train.jsonl"))


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", as_jsonl(ROWS))
    Path(path).chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="no permission"):
        read(path)


@pytest.mark.parametrize("path", ["a\0b.jsonl", "x" * 5000 + ".jsonl", "", "hub:", "hub:a b/c"])
def test_an_impossible_path_is_one_clear_error(path: str) -> None:
    with pytest.raises(DataError):
        read(path)


class TestHub:
    CONFIGURATIONS: ClassVar = {"owner/name": ["default"], "owner/many": ["main", "other"], "no/network": []}

    @pytest.fixture
    def loaded(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
        """A stand-in for the network: what was asked of `datasets`."""
        asked: list[tuple[str, ...]] = []

        def load_dataset(name: str, config: str | None = None, *, split: str, streaming: bool) -> Iterator[Any]:
            if name == "no/network":
                raise ConnectionError("cannot reach the hub\nsecond line")
            if config is None and len(self.CONFIGURATIONS[name]) > 1:
                raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', ...")
            if split not in ("train", "test") or config not in (None, *self.CONFIGURATIONS[name]):
                raise ValueError(f"Bad split: {split}")
            asked.append((name, *([config] if config else []), split))
            return iter(ROWS)

        module = ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        module.get_dataset_config_names = self.CONFIGURATIONS.get  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return asked

    @pytest.mark.parametrize(
        ("path", "wanted"),
        [
            ("hub:owner/name", ("owner/name", "train")),
            ("hub:owner/name:test", ("owner/name", "test")),
            ("owner/name", ("owner/name", "train")),
            ("hub:owner/many:other", ("owner/many", "other", "train")),
            ("hub:owner/many:main:test", ("owner/many", "main", "test")),
            ("owner/many:main:test", ("owner/many", "main", "test")),
        ],
    )
    def test_an_id_gives_the_rows_of_a_configuration_and_a_split(
        self, loaded: list[tuple[str, ...]], path: str, wanted: tuple[str, ...]
    ) -> None:
        sha = hashlib.sha256()
        found = list(rows(path, sha))
        assert [row.value for row in found] == ROWS
        assert str(found[1].source) == f"hub:{':'.join(wanted)}:2"
        assert loaded == [wanted]
        assert sha.hexdigest() != hashlib.sha256().hexdigest()

    @pytest.mark.parametrize(
        ("path", "way"),
        [
            ("hub:owner/many", "several configurations, and none is named. Write hub:owner/many:main,"),
            ("hub:owner/many:test", "several configurations, and none is named. Write hub:owner/many:main:test,"),
            ("hub:owner/many:othr", "several configurations, and none is named. Write hub:owner/many:other,"),
            ("hub:owner/many:othr:test", "no configuration 'othr'. Write hub:owner/many:other:test,"),
        ],
    )
    def test_a_configuration_that_is_missing_or_misspelt_is_answered_with_all_of_them(
        self, loaded: list[tuple[str, ...]], path: str, way: str
    ) -> None:
        with pytest.raises(DataError) as caught:
            read(path)
        assert way in str(caught.value)
        assert str(caught.value).endswith("configurations: main, other.")

    @pytest.mark.parametrize("path", ["hub:owner/many:main:mian", "hub:owner/name:mian"])
    def test_a_split_that_there_is_not_is_said_as_the_library_says_it(
        self, loaded: list[tuple[str, ...]], path: str
    ) -> None:
        with pytest.raises(DataError, match="Bad split: mian"):
            read(path)

    def test_a_file_comes_before_an_id(
        self, loaded: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner").mkdir()
        with pytest.raises(DataError, match="no such file"):
            read("owner/name")
        assert not loaded

    def test_no_network_is_one_line(self, loaded: list[tuple[str, ...]]) -> None:
        with pytest.raises(DataError, match=r"cannot be read \(cannot reach the hub\)") as caught:
            read("hub:no/network")
        assert "\n" not in str(caught.value)

    def test_without_datasets_the_command_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r'pip install "inlay\[hub\]"'):
            read("owner/name")


def test_reading_does_not_import_torch() -> None:
    code = "import sys, inlay.data; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KINDS = [*sources_module.EXTENSIONS, *(".jsonl" + one for one in compressed.COMPRESSIONS), ".zip"]
JSONISH = st.text('{}[]",:\\ \n\r\t0123456789.eE+-truefalsnNaIiuUdD8\x00é', max_size=60).map(str.encode)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80) | JSONISH)
def test_any_bytes_give_rows_or_one_line_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: bytes
) -> None:
    path = written(tmp_path_factory.getbasetemp(), "any" + kind, data)
    refusal = path
    try:
        for row in rows(path):
            json.dumps(row.value, allow_nan=False, ensure_ascii=False).encode()
    except DataError as error:
        refusal = str(error)
    assert refusal.startswith(path)
    assert "\n" not in refusal


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.dictionaries(st.text(max_size=5), ANY_JSON, max_size=3), min_size=1, max_size=4))
def test_what_json_writes_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = "".join(json.dumps(value) + "\n" for value in values)
    assert read(written(folder, "any.jsonl", lines)) == values
    assert read(written(folder, "any.json", json.dumps(values, indent=1))) == values


@pytest.mark.parametrize("path", ["./folder", "/folder", "folder"])
def test_a_folder_behind_hub_is_told_to_stand_alone(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        DataError, match=re.escape(f"hub:{path}: a path of this machine") + f".* Write it without hub: {path}"
    ):
        list(rows(f"hub:{path}"))
