"""A generator of bad files, each with the place and the words that it must be refused with, and of clean ones.

Faults of a row are put into the middle of good rows and written in every kind of file that can carry them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data.checks.cases import FINE, FOUND
from inlay.data.reading.formats import FORMATS
from parts import qa_rows

Rows = list[dict[str, Any]]
BEFORE = 6  # good rows before the bad one; three come after it


@dataclass(frozen=True)
class File:
    """One file, and what must be said of it."""

    id: str
    name: str
    content: bytes
    line: int = 0
    words: tuple[str, ...] = ()
    kind: str = "unreadable-row"
    """The finding of `data check`; `unreadable-…` are refused by reading too."""


def jsonl(rows: Rows) -> tuple[bytes, list[int]]:
    return "".join(json.dumps(row) + "\n" for row in rows).encode(), list(range(1, len(rows) + 1))


def raw_jsonl(rows: Rows) -> tuple[bytes, list[int]]:
    """As text is, with blank lines, a byte order mark and Windows line ends."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return ("\ufeff" + "\r\n\r\n".join(lines)).encode(), [2 * n + 1 for n in range(len(rows))]


def array(rows: Rows) -> tuple[bytes, list[int]]:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode(), list(range(1, len(rows) + 1))


def wrapped(rows: Rows) -> tuple[bytes, list[int]]:
    return json.dumps({"version": 1, "data": rows}).encode(), list(range(1, len(rows) + 1))


def table(delimiter: str) -> Callable[[Rows], tuple[bytes, list[int]]]:
    def write(rows: Rows) -> tuple[bytes, list[int]]:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        lines = []
        for row in rows:
            lines.append(text.getvalue().count("\n") + 1)
            writer.writerow(row)
        return text.getvalue().encode(), lines

    return write


def parquet(rows: Rows) -> tuple[bytes, list[int]]:
    import pyarrow
    from pyarrow import parquet as files

    buffer = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=4)
    return buffer.getvalue(), list(range(1, len(rows) + 1))


def zipped(write: Callable[[Rows], tuple[bytes, list[int]]]) -> Callable[[Rows], tuple[bytes, list[int]]]:
    def packed(rows: Rows) -> tuple[bytes, list[int]]:
        content, lines = write(rows)
        return gzip.compress(content), lines

    return packed


JSON = {"a.jsonl": jsonl, "raw.jsonl": raw_jsonl, "a.json": array, "wrapped.json": wrapped}
TABLES = {"a.csv": table(","), "a.tsv": table("\t"), "a.parquet": parquet}
ALL = JSON | TABLES | {"a.jsonl.gz": zipped(jsonl), "a.csv.gz": zipped(table(","))}


def in_the_middle(bad: dict[str, Any], good: Rows) -> Rows:
    return [*good[:BEFORE], bad, *good[BEFORE : BEFORE + 3]]


def of_fields() -> Iterator[File]:
    """Each required field of each format: missing, null, true, empty."""
    for form in FORMATS.values():
        good = [form.example] * 9
        for field in [choice.partition("|")[0] for choice in form.required]:
            for fault, value in (("null", None), ("true", True), ("blank", " ")):
                if (form.name, field, fault) == ("preference", "rejected", "blank"):
                    continue  # it is not trained, and may be empty
                rows = in_the_middle(form.example | {field: value}, good)
                for name in ("a.jsonl", "a.json"):
                    content, lines = JSON[name](rows)
                    yield File(f"{form.name}: {field} {fault}, {name}", name, content, lines[BEFORE], (f"'{field}'",))
            without = {key: value for key, value in form.example.items() if key != field}
            content, lines = jsonl(in_the_middle(without | {"x": 1}, good))
            yield File(
                f"{form.name}: {field} missing",
                "a.jsonl",
                content,
                lines[BEFORE],
                (f"'{field}' is missing|written as",),
            )


def of_cells() -> Iterator[File]:
    """Empty and blank cells in every kind of file."""
    for field in ("question", "answer"):
        for fault, value in (("empty", ""), ("blank", "\t \n")):
            rows = in_the_middle(qa_rows(1)[0] | {field: value}, qa_rows(9))
            for name, write in ALL.items():
                if name == "a.tsv":  # a cell with a tab and a line break reads as two rows
                    rows = in_the_middle(qa_rows(1)[0] | {field: value.strip("\t")}, qa_rows(9))
                content, lines = write(rows)
                words = (f"'{field}'", "It must hold some text. Fill it or remove the row.")
                yield File(f"{field} {fault}, {name}", name, content, lines[BEFORE], words)


DAMAGE: dict[str, tuple[bytes, bytes, tuple[str, ...]]] = {
    # name: (what stands in a good line, what takes its place, words)
    "latin-1": (b"What", b"Caf\xe9", ("byte 0xe9", "iconv")),
    "cp1252 quote": (b"What", b"\x93What", ("byte 0x93", "not UTF-8")),
    "cut character": (b"What", b"\xf0\x9f\x98", ("not UTF-8",)),
    "overlong encoding": (b"What", b"\xc0\xaf", ("not UTF-8",)),
    "surrogate in utf-8": (b"What", b"\xed\xa0\x80", ("not UTF-8",)),
    "nul": (b"What", b"Wh\0at", ("NUL byte",)),
}
JSON_DAMAGE: dict[str, tuple[bytes, bytes, tuple[str, ...]]] = {
    "python none": (b'"We', b'None, "We', ("None", "is not JSON")),
    "nan": (b'"answer":', b'"score": NaN, "answer":', ("NaN is not a JSON number",)),
    "minus infinity": (b'"answer":', b'"score": -Infinity, "answer":', ("-Infinity",)),
    "huge number": (b'"answer":', b'"score": 1e400, "answer":', ("too large",)),
    "leading zero": (b'"answer":', b'"score": 007, "answer":', ("is missing",)),
    "hex number": (b'"answer":', b'"score": 0x1F, "answer":', ("is missing",)),
    "single quotes": (b'"answer"', b"'answer'", ("single quotes",)),
    "missing colon": (b'"answer":', b'"answer"', ("':' is missing",)),
    "missing comma": (b'", "answer"', b'" "answer"', ("',' is missing",)),
    "trailing comma": (b'"}', b'",}', ("trailing comma",)),
    "double comma": (b'", "answer"', b'",, "answer"', ("not JSON",)),
    "never closed": (b'"}', b"}", ("is never closed",)),
    "no closing brace": (b'"}', b'"', ("before it is complete",)),
    "two objects": (b'"}', b'"} {"question": "a", "answer": "b"}', ("two objects on one line",)),
    "text after": (b'"}', b'"} # ok', ("text after the object",)),
    "comma after": (b'"}', b'"},', ("comma after the object",)),
    "comment": (b'{"question"', b'// row\t{"question"', ("not JSON",)),
    "unquoted key": (b'"answer":', b"answer:", ("not JSON",)),
    "raw tab": (b"What about", b"What\tabout", ("control character",)),
    "raw escape": (b"What about", b"What\x1babout", ("control character",)),
    "windows path": (b"What about", b"C:\\data", ("unknown escape",)),
    "bad unicode escape": (b"What about", b"\\u12G4", ("escape",)),
    "half a pair": (b"What about", b"\\ud83d and", ("surrogate pair",)),
    "key twice": (b'"answer":', b'"question": "x", "answer":', ("'question' appears twice",)),
    "a list": (b'{"question"', b'["question"', ("is missing",)),
    "deep": (b'"answer":', b'"x": ' + b"[" * 5000 + b"]" * 5000 + b', "answer":', ("nested too deep",)),
}


def of_bytes() -> Iterator[File]:
    """Damage to one line in the middle of a file of lines."""
    for damages, names in (
        (DAMAGE, ("a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz")),
        (JSON_DAMAGE, ("a.jsonl", "a.jsonl.gz")),
    ):
        for fault, (good, bad, words) in damages.items():
            for name in names:
                plain, lines = ALL[name.removesuffix(".gz")](qa_rows(9))
                parts = plain.split(b"\n")
                line = lines[BEFORE]
                changed = parts[line - 1].replace(good, bad, 1)
                assert changed != parts[line - 1], fault
                content = b"\n".join([*parts[: line - 1], changed, *parts[line:]])
                # a lost line of a table may have begun or ended a cell: what follows cannot be trusted
                kind = "unreadable-file" if name in TABLES else "unreadable-row"
                content = gzip.compress(content) if ".gz" in name else content
                yield File(f"{fault}, {name}", name, content, line, words, kind)


def cut_off() -> Iterator[File]:
    """Files that end in the middle, at many places."""
    whole, _ = array(qa_rows(9))
    for share in (3, 5, 7, 9):
        at = len(whole) * share // 10
        line = whole[:at].rstrip().count(b"\n") + 1
        yield File(f"json cut at {share}0%", "a.json", whole[:at], line, (), "unreadable-file")
    whole, _ = parquet(qa_rows(9))
    for share in (1, 5, 9):
        cut = whole[: len(whole) * share // 10]
        yield File(f"parquet cut at {share}0%", "a.parquet", cut, 1, ("not a whole parquet file",), "unreadable-file")
    whole = gzip.compress(jsonl(qa_rows(900))[0])
    for share in (3, 6, 9):
        yield File(
            f"gzip cut at {share}0%",
            "a.jsonl.gz",
            whole[: len(whole) * share // 10],
            0,
            ("cut off",),
            "unreadable-file",
        )
    for name, write in TABLES.items():
        if name != "a.parquet":
            sign = b"," if name == "a.csv" else b"\t"
            for fault, more in (("one cell too many", b"a" + sign + b"b" + sign + b"c\n"), ("one cell", b"alone\n")):
                yield File(f"{fault}, {name}", name, write(qa_rows(9))[0] + more, 11, ("cells where the header has 2",))


def of_checks() -> Iterator[File]:
    """What can be read and is found by a check, in every kind of file."""
    for case, (kind, rows) in FOUND.items():
        for name in ("raw.jsonl", "a.json", "a.csv", "a.parquet"):
            if name == "a.csv" and "\0" in json.dumps(rows).encode().decode("unicode_escape", "ignore"):
                continue  # a table of text cannot hold it
            content, lines = ALL[name](qa_rows(30) + rows)
            yield File(f"{case}, {name}", name, content, lines[-1], (), kind)


def bad_files() -> list[File]:
    return [*of_fields(), *of_cells(), *of_bytes(), *cut_off(), *of_checks()]


def clean_files() -> list[File]:
    """Files that must be read whole and give no finding."""
    made = []
    for case, rows in FINE.items():
        for name, write in (ALL if "question" in rows[0] else JSON).items():
            made.append(File(f"{case}, {name}", name, write(qa_rows(30) + rows if "question" in rows[0] else rows)[0]))
    for form in FORMATS.values():
        for name, write in JSON.items():
            made.append(File(f"{form.name}, {name}", name, write([form.example])[0]))
    return made
