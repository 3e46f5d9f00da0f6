"""Hundreds of generated files: every bad one is refused or found at its line, no clean one gives a finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.corpus import File, bad_files, clean_files
from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data import read_examples
from inlay.data.checks.report import DataReport, check_files
from inlay.errors import DataError

BAD, CLEAN = bad_files(), clean_files()


def written(folder: Path, file: File) -> str:
    path = folder / file.name
    path.write_bytes(file.content)
    return str(path)


def lacking(words: tuple[str, ...], message: str) -> list[str]:
    """The words that the message does not have; `a|b` is either."""
    return [word for word in words if not any(choice in message for choice in word.split("|"))]


def check(path: str) -> DataReport:
    return check_files([TrainFile(path=path)], DataConfig(train="-"))


@pytest.mark.parametrize("file", [f for f in BAD if f.kind.startswith("unreadable")], ids=lambda f: f.id)
def test_a_file_that_cannot_be_read_is_refused_at_the_line_and_check_says_the_same(tmp_path: Path, file: File) -> None:
    path = written(tmp_path, file)
    with pytest.raises(DataError) as refusal:
        read_examples(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:{file.line or ''}"), message
    assert "\n" not in message
    assert lacking(file.words, message) == []
    (finding,) = [f for f in check(path).findings if f.severity == "error"]
    (place,) = finding.places
    assert finding.kind in (file.kind, "unreadable-file")  # one of another format refuses the file
    assert file.line in (0, place.source.line)
    assert lacking(file.words, place.shown) == []


@pytest.mark.parametrize("file", [f for f in BAD if not f.kind.startswith("unreadable")], ids=lambda f: f.id)
def test_a_file_that_would_spoil_training_gives_one_finding_at_the_line(tmp_path: Path, file: File) -> None:
    path = written(tmp_path, file)
    read_examples(path)
    (finding,) = check(path).findings
    assert (finding.kind, finding.places[0].source.line) == (file.kind, file.line)


@pytest.mark.parametrize("file", CLEAN, ids=lambda f: f.id)
def test_a_clean_file_is_read_and_gives_no_finding(tmp_path: Path, file: File) -> None:
    path = written(tmp_path, file)
    assert read_examples(path).examples
    assert check(path).findings == ()


def test_there_are_enough_files_and_no_two_are_the_same() -> None:
    assert len({(file.name, file.content) for file in BAD}) == len(BAD) >= 200
    assert len({(file.name, file.content) for file in CLEAN}) == len(CLEAN) >= 50
