"""What a container adds (nulls, label numbers, quotes, an index, compression) is not taken for content."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import random
import sys
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.data import read_examples
from inlay.data.reading.columnar import as_written
from inlay.data.reading.sources import rows
from inlay.errors import DataError

LINES = "".join(json.dumps({"prompt": f"Question {n}", "completion": f"answer {n}"}) + "\n" for n in range(50)).encode()


def written(folder: Path, name: str, data: bytes | str) -> str:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def read(path: str) -> list[dict[str, Any]]:
    return [row.value for row in rows(path)]


class TestColumns:
    """Parquet and Arrow."""

    CALLS: ClassVar = [
        {"messages": [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "call": {"city": "Oslo"}}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "call": {"a": 1, "b": [{"c": 2}, {}]}}]},
    ]

    @pytest.fixture(params=["parquet", "arrow stream", "arrow file"])
    def saved(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        def save(table: Any) -> str:
            if request.param == "parquet":
                parquet.write_table(table, tmp_path / "a.parquet")
                return str(tmp_path / "a.parquet")
            opened = pyarrow.ipc.new_stream if request.param == "arrow stream" else pyarrow.ipc.new_file
            with opened(str(tmp_path / "a.arrow"), table.schema) as out:
                out.write_table(table, max_chunksize=1)
            return str(tmp_path / "a.arrow")

        return save

    def test_a_key_that_other_rows_have_is_not_in_this_one(self, saved: Any) -> None:
        import pyarrow

        assert read(saved(pyarrow.Table.from_pylist(self.CALLS))) == self.CALLS

    def test_a_null_in_a_column_of_its_own_stays(self, saved: Any) -> None:
        import pyarrow

        values = [{"prompt": "a", "input": None, "tags": ["x", None]}, {"prompt": "b", "input": "c", "tags": None}]
        assert read(saved(pyarrow.Table.from_pylist(values))) == values

    def test_a_map_is_an_object(self, saved: Any) -> None:
        import pyarrow

        of = pyarrow.map_(pyarrow.string(), pyarrow.struct([("a", pyarrow.int64()), ("b", pyarrow.int64())]))
        table = pyarrow.table({"m": pyarrow.array([[("x", {"a": 1, "b": None})], [], None], of)})
        assert [row["m"] for row in read(saved(table))] == [{"x": {"a": 1}}, {}, None]

    def described(self, saved: Any, values: dict[str, Any], features: dict[str, Any]) -> list[dict[str, Any]]:
        import pyarrow

        about = {"huggingface": json.dumps({"info": {"features": features}})}
        return read(saved(pyarrow.table(values).replace_schema_metadata(about)))

    LABEL: ClassVar = {"names": ["no", "yes"], "_type": "ClassLabel"}

    def test_a_label_is_its_name_and_not_its_number(self, saved: Any) -> None:
        values = {
            "text": ["a", "b", "c"],
            "label": [1, 0, -1],
            "all": [[1, 0], [], [0]],
            "in": [{"l": 1}, {"l": 0}, {}],
        }
        features = {
            "text": {"dtype": "string", "_type": "Value"},
            "label": self.LABEL,
            "all": {"feature": self.LABEL, "_type": "List"},
            "in": {"l": self.LABEL},
        }
        found = self.described(saved, values, features)
        assert [row["label"] for row in found] == ["yes", "no", None]
        assert [row["all"] for row in found] == [["yes", "no"], [], ["no"]]
        assert [row["in"] for row in found] == [{"l": "yes"}, {"l": "no"}, {}]

    def test_a_label_without_a_name_is_refused(self, saved: Any) -> None:
        with pytest.raises(DataError, match=r":1: field 'label': label 2 has no name"):
            self.described(saved, {"text": ["a"], "label": [2]}, {"label": self.LABEL})

    def test_a_json_column_is_what_its_text_says(self, saved: Any) -> None:
        found = self.described(saved, {"call": ['{"a": null}', "[1]", None]}, {"call": {"_type": "Json"}})
        assert [row["call"] for row in found] == [{"a": None}, [1], None]
        with pytest.raises(DataError, match=r":1: field 'call': .*NaN"):
            self.described(saved, {"call": ["NaN"]}, {"call": {"_type": "Json"}})

    def test_the_index_that_pandas_adds_is_no_field(self, saved: Any) -> None:
        import pyarrow

        assert read(saved(pyarrow.table({"prompt": ["a"], "__index_level_0__": [7]}))) == [{"prompt": "a"}]

    def test_the_hash_has_seen_every_byte(self, saved: Any) -> None:
        import pyarrow

        path = saved(pyarrow.table({"prompt": ["a"] * 50}))
        sha = hashlib.sha256()
        list(rows(path, sha))
        assert sha.hexdigest() == hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def test_a_large_file_is_hashed_and_not_held(self, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import pyarrow

        monkeypatch.setattr("inlay.data.reading.sources._SMALL_BYTES", 100)
        self.test_the_hash_has_seen_every_byte(saved)
        assert len(read(saved(pyarrow.table({"prompt": ["a"] * 50})))) == 50

    def test_an_arrow_stream_that_was_cut_or_continued_is_refused(self, tmp_path: Path) -> None:
        """Cut between two batches it reads as a shorter one, and of two in one file only the first would be read."""
        pyarrow = pytest.importorskip("pyarrow")
        out = io.BytesIO()
        table = pyarrow.table({"prompt": ["a", "b", "c"]})
        ends = []
        with pyarrow.ipc.new_stream(out, table.schema) as stream:
            for batch in table.to_batches(max_chunksize=1):
                stream.write_batch(batch)
                ends.append(out.tell())
        assert len(read(written(tmp_path, "whole.arrow", out.getvalue()))) == 3
        for end in ends:
            with pytest.raises(DataError, match="not a whole Arrow file"):
                read(written(tmp_path, "cut.arrow", out.getvalue()[:end]))
        with pytest.raises(DataError, match="something follows its end mark"):
            read(written(tmp_path, "two.arrow", out.getvalue() * 2))

    def test_rows_of_the_hub_are_given_as_they_were_written(self) -> None:
        features = {"label": self.LABEL, "turns": {"feature": {"a": {"_type": "Value"}}, "_type": "List"}}
        read_row = as_written(features)
        row = {"label": 1, "turns": [{"a": None, "b": "x"}], "more": {"c": None}}
        assert read_row(row, "hub:a/b", 1) == {"label": "yes", "turns": [{"b": "x"}], "more": {}}


class TestTsv:
    """A line is a row and a quote is text, but for what only a CSV writer makes."""

    def table(self, folder: Path, text: str) -> list[list[str]]:
        return [list(row.values()) for row in read(written(folder, "a.tsv", text))]

    def test_quotes_around_a_cell_or_in_it_are_text(self, tmp_path: Path) -> None:
        text = 'source\ttarget\n"Yes."\t"Ja."\n"No," he said.\t\u201eNein\u201c.\nfive inch 5"\tx\n"\t"\n'
        assert self.table(tmp_path, text) == [
            ['"Yes."', '"Ja."'],
            ['"No," he said.', "\u201eNein\u201c."],
            ['five inch 5"', "x"],
            ['"', '"'],
        ]

    def test_a_quote_that_opens_a_cell_swallows_no_line(self, tmp_path: Path) -> None:
        text = 'source\ttarget\n"Open\tOffen\nBack."\tZur\u00fcck\nx\t"y\nz\tw"\n'
        assert self.table(tmp_path, text) == [
            ['"Open', "Offen"], ['Back."', "Zur\u00fcck"], ["x", '"y'], ["z", 'w"'],
        ]  # fmt: skip

    def test_a_file_whose_header_is_quoted_is_read_as_csv(self, tmp_path: Path) -> None:
        assert self.table(tmp_path, '"source"\t"target"\n"Yes."\t"J\na"\n') == [["Yes.", "J\na"]]

    def test_a_line_with_too_few_or_too_many_cells_is_refused_at_its_place(self, tmp_path: Path) -> None:
        for text, line in (('a\tb\n1\t"2\n3\n', 2 + 1), ("a\tb\n1\t2\n1\t2\t3\n", 3), ('a\tb\n"1\n2\t3\n', 2)):
            with pytest.raises(DataError, match=rf"a\.tsv:{line}: \d cells? where the header has 2 \(a, b\)\. A line"):
                self.table(tmp_path, text)

    CELL = st.text(st.sampled_from('ab "\n\u2028é'), min_size=1, max_size=6)

    @settings(max_examples=100, deadline=None)
    @given(cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4))
    def test_what_a_csv_writer_writes_with_tabs_is_read_back(
        self, tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
    ) -> None:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter="\t", lineterminator="\n").writerows([("a", "b"), *cells])
        text = out.getvalue().encode()
        assert self.table(tmp_path_factory.getbasetemp(), text.decode()) == [list(pair) for pair in cells]

    PLAIN = st.text(st.sampled_from('ab "é,'), min_size=1, max_size=6).filter(lambda text: '""' not in text)

    @settings(max_examples=100, deadline=None)
    @given(cells=st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=4))
    def test_what_stands_between_tabs_is_the_text(
        self, tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
    ) -> None:
        text = "a\tb\n" + "".join(f"{one}\t{other}\n" for one, other in cells)
        assert self.table(tmp_path_factory.getbasetemp(), text) == [list(pair) for pair in cells]


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data))


def zipped(data: bytes, *names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("inside/a.jsonl", "__MACOSX/._a.jsonl", ".DS_Store"):
            archive.writestr(name, data)
    return out.getvalue()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd, ".zip": zipped}


class TestCompressed:
    @pytest.mark.parametrize("ending", PACK)
    def test_the_rows_are_those_inside_and_the_hash_has_seen_every_byte(self, tmp_path: Path, ending: str) -> None:
        path = written(tmp_path, "a.jsonl" + ending, PACK[ending](LINES))
        sha = hashlib.sha256()
        assert [row.value for row in rows(path, sha)] == read(written(tmp_path, "a.jsonl", LINES))
        assert sha.hexdigest() == hashlib.sha256(Path(path).read_bytes()).hexdigest()

    @pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
    def test_several_members_are_read_one_after_the_other(self, tmp_path: Path, ending: str) -> None:
        assert len(read(written(tmp_path, "a.jsonl" + ending, PACK[ending](LINES) + PACK[ending](LINES)))) == 100

    @pytest.mark.parametrize("ending", PACK)
    @pytest.mark.parametrize("kind", ["parquet", "csv"])
    def test_a_table_may_be_packed_too(self, tmp_path: Path, ending: str, kind: str) -> None:
        table = b"prompt\na\n"
        if kind == "parquet":
            pyarrow = pytest.importorskip("pyarrow")
            out = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), out)
            table = out.getvalue()
        data = zipped(table, f"a.{kind}") if ending == ".zip" else PACK[ending](table)
        assert read(written(tmp_path, f"a.{kind}{ending}", data)) == [{"prompt": "a"}]

    @pytest.mark.parametrize("ending", PACK)
    def test_one_that_is_cut_damaged_or_followed_by_something_is_refused(self, tmp_path: Path, ending: str) -> None:
        whole = PACK[ending](random.Random(1).randbytes(90_000).hex().encode().join([b'{"a": "', b'"}\n']) + LINES)
        bad = [whole[: len(whole) * part // 10] for part in range(1, 10)] + [whole[:-1]]
        bad += [whole[:cut] + bytes([whole[cut] ^ 0x55]) + whole[cut + 1 :] for cut in (300, 40_000)]
        bad += [] if ending == ".zip" else [whole + b"more"]
        for data in bad:
            with pytest.raises(DataError) as caught:
                read(written(tmp_path, "a.jsonl" + ending, data))
            assert "\n" not in str(caught.value)

    def test_an_archive_of_several_files_or_of_none_is_refused(self, tmp_path: Path) -> None:
        for names, told in ((("a.jsonl", "b.jsonl"), "holds 2 files (a.jsonl, b.jsonl)"), ((".x",), "holds no file")):
            with pytest.raises(DataError) as caught:
                read(written(tmp_path, "a.zip", zipped(LINES, *names)))
            assert told in str(caught.value)
        with pytest.raises(DataError, match=r"a\.zip: a\.md inside it: unknown file type '\.md'"):
            read(written(tmp_path, "a.zip", zipped(LINES, "a.md")))

    def test_without_the_library_the_command_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "zstandard", None)
        monkeypatch.setitem(sys.modules, "openpyxl", None)
        with pytest.raises(DataError, match=r'pip install "inlay\[zst\]"'):
            read(written(tmp_path, "a.jsonl.zst", b"\x28\xb5\x2f\xfd"))
        with pytest.raises(DataError, match=r'pip install "inlay\[excel\]"'):
            read(written(tmp_path, "a.xlsx", b"PK\x03\x04"))


class TestText:
    def test_documents_are_parted_by_empty_lines(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.txt", b"\xef\xbb\xbf\r\nOne\r\n  two\r\n \r\n\r\nThree\n\nFour")
        found = list(rows(path))
        assert [row.value["text"] for row in found] == ["One\n  two", "Three", "Four"]
        assert [row.source.line for row in found] == [2, 6, 8]
        assert read_examples(path).format == "text"

    def test_json_lines_are_not_taken_for_text(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.txt:1: the content is JSON lines"):
            read(written(tmp_path, "a.txt", LINES))
        assert read(written(tmp_path, "a.txt", "{curly} is text\n")) == [{"text": "{curly} is text"}]


class TestWorkbook:
    def book(self, folder: Path, *sheets: list[list[Any]]) -> str:
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        book.remove(book.active)
        for n, cells in enumerate(sheets):
            sheet = book.create_sheet(f"sheet {n}")
            for row in cells:
                sheet.append(row)
        book.save(folder / "a.xlsx")
        return str(folder / "a.xlsx")

    def test_cells_are_the_text_of_a_csv_and_a_row_names_its_row(self, tmp_path: Path) -> None:
        path = self.book(tmp_path, [["text", "label"], ["a", 5], [], ["b", 2.5], ["c\nd", True], ["e", None]], [])
        assert read(path) == [
            {"text": "a", "label": "5"},
            {"text": "b", "label": "2.5"},
            {"text": "c\nd", "label": "TRUE"},
            {"text": "e", "label": ""},
        ]
        assert [row.source.line for row in rows(path)] == [2, 4, 5, 6]

    def test_several_sheets_a_wide_row_and_an_error_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"2 sheets with rows \(sheet 0, sheet 1\)"):
            read(self.book(tmp_path, [["a"], [1]], [["b"], [2]]))
        with pytest.raises(DataError, match=r"a\.xlsx:2: 2 cells where the header has 1"):
            read(self.book(tmp_path, [["a"], [1, 2]]))
        with pytest.raises(DataError, match=r"a\.xlsx:3: column 'a' holds the error #REF!"):
            read(self.book(tmp_path, [["a"], [1], ["#REF!"]]))
        with pytest.raises(DataError, match=r"not a whole \.xlsx workbook"):
            read(written(tmp_path, "b.xlsx", Path(self.book(tmp_path, [["a"], [1]])).read_bytes()[:-30]))


class TestJsonTables:
    TABLE: ClassVar = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]

    @pytest.mark.parametrize(
        "value",
        [
            {"prompt": {"0": "a", "1": "c"}, "completion": {"0": "b", "1": "d"}},
            {"0": TABLE[0], "1": TABLE[1]},
            {"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]},
            {"prompt": ["a", "c"], "completion": ["b", "d"]},
            {"schema": {"fields": [{"name": "prompt"}]}, "data": TABLE},
        ],
        ids=["columns", "index", "split", "lists", "table"],
    )
    def test_a_table_of_pandas_or_datasets_gives_its_rows(self, tmp_path: Path, value: Any) -> None:
        assert read(written(tmp_path, "a.json", json.dumps(value))) == self.TABLE

    def test_lists_of_turns_are_a_table_and_one_list_of_them_is_a_row(self, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "x"}]
        assert read(written(tmp_path, "a.json", json.dumps({"messages": turns}))) == [{"messages": turns}]
        assert read(written(tmp_path, "a.json", json.dumps({"messages": [turns, turns]}))) == [{"messages": turns}] * 2

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            ({"prompt": ["a", "b"], "completion": ["c"]}, "not of the same rows (2 and 1)"),
            ({"prompt": {"0": "a"}, "completion": {"1": "b"}}, "not of the same rows (1 and 1)"),
            ({"q1": TABLE[0], "q2": TABLE[1]}, "to_json(orient='records')"),
            ({"columns": ["a", "b"], "index": [0], "data": [["a"]]}, "row 1 of 'data'"),
        ],
    )  # fmt: skip
    def test_one_that_can_be_read_in_several_ways_or_in_none_is_refused(
        self, tmp_path: Path, value: Any, told: str
    ) -> None:
        with pytest.raises(DataError) as caught:
            read(written(tmp_path, "a.json", json.dumps(value)))
        assert told in str(caught.value)
