"""Whatever the bytes are, reading gives rows or a DataError of one line, and the check gives a report.

`make fuzz` runs this for long: INLAY_FUZZ is the number of examples a test.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.corpus import ALL
from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data import read_examples
from inlay.data.checks.report import check_files
from inlay.data.reading.formats import FORMATS
from inlay.errors import DataError
from parts import qa_rows

EXAMPLES = int(os.environ.get("INLAY_FUZZ", "60"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
NAMES = st.sampled_from([*ALL, "a.json.gz", "a.parquet.gz", "a.ndjson", "a.txt", "a"])
FOLDER = Path(tempfile.mkdtemp(prefix="inlay-fuzz-"))


def try_all(name: str, content: bytes) -> None:
    """Reads and checks the file; anything but rows, a report or a DataError escapes."""
    path = FOLDER / name
    path.write_bytes(content)
    try:
        examples = read_examples(str(path)).examples
        assert examples
        assert all(any(m.weight > 0 for m in e.messages) for e in examples)
    except DataError as error:
        examples, told = (), str(error)
        if not told.startswith(str(path)) or "\n" in told:
            raise AssertionError(told) from error
    try:
        report = check_files([TrainFile(path=str(path))], DataConfig(train="-"))
    except DataError:  # of no known kind
        assert not examples
        return
    assert report.rows >= len(examples)
    assert report.has_errors or report.rows == len(examples)
    json.dumps(report.to_json())


@fuzzed
@given(NAMES, st.binary(max_size=400))
@example("a.jsonl", b"\xef\xbb\xbf{}")
@example("a.csv", b'"\n')
def test_any_bytes(name: str, content: bytes) -> None:
    try_all(name, content)


@functools.cache
def whole(name: str) -> bytes:
    return ALL[name](qa_rows(6))[0]


@fuzzed
@given(st.sampled_from([*ALL]), st.data())
def test_a_whole_file_with_some_bytes_changed(name: str, data: st.DataObject) -> None:
    content = bytearray(whole(name))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(at, min(len(content), at + 8)))
        content[at:end] = data.draw(st.binary(max_size=6))
    try_all(name, bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content))


FIELDS = sorted({field for form in FORMATS.values() for field in form.fields} | {"role", "content", "from", "value"})
WORDS = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "function_call", "", " ", "{}", "a"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | WORDS
KEYS = st.sampled_from([*FIELDS, "name", "arguments", "function", "weight", "tool_calls", "type", "text", "x"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@fuzzed
@given(st.sampled_from([*FORMATS]), st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=3))
def test_any_values_in_the_fields_of_any_format(form: str, rows: list[dict[str, Any]]) -> None:
    mixed = [FORMATS[form].example | row for row in rows]
    try_all("a.jsonl", "".join(json.dumps(row) + "\n" for row in mixed).encode())
    try_all("a.json", json.dumps(rows).encode())
