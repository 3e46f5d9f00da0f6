"""Each check finds what it is for, and says nothing about rows that only look like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.checks.cases import CARD, FINE, FOUND, GITHUB, KEY, chat, qa
from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data.checks import Finding
from inlay.data.checks.findings import KEPT
from inlay.data.checks.report import DataReport, check_files
from inlay.errors import DataError
from parts import qa_rows, write_rows


def checked(path: Path, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None) -> DataReport:
    write_rows(path / "a.jsonl", rows)
    other = str(write_rows(path / "b.jsonl", held_out)) if held_out else None
    return check_files([TrainFile(path=str(path / "a.jsonl"))], DataConfig(train="-", eval=other))


def kinds(report: DataReport) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def finding(report: DataReport, kind: str) -> Finding:
    return next(f for f in report.findings if f.kind == kind)


@pytest.mark.parametrize("name", FOUND)
def test_what_would_spoil_training_is_found_once_and_at_its_line(tmp_path: Path, name: str) -> None:
    kind, rows = FOUND[name]
    clean = qa_rows(30)
    report = checked(tmp_path, clean + rows)
    assert kinds(report) == {kind: 1}
    place = report.findings[0].places[0]
    assert (Path(place.source.file).name, place.source.line) == ("a.jsonl", 30 + len(rows))
    assert report.findings[0].fix


@pytest.mark.parametrize("name", FINE)
def test_rows_that_only_look_odd_give_no_finding(tmp_path: Path, name: str) -> None:
    clean = qa_rows(30) if "question" in FINE[name][0] else []
    assert kinds(checked(tmp_path, clean + FINE[name])) == {}


def test_labels_that_contradict_each_other_are_a_conflict_that_shows_both(tmp_path: Path) -> None:
    rows = [{"text": f"message number {n}", "label": "good" if n % 2 else "bad"} for n in range(40)]
    report = checked(tmp_path, [*rows, {"text": "Message number 3", "label": "bad"}])
    assert kinds(report) == {"label-conflict": 1}
    place = report.findings[0].places[0]
    assert (place.source.line, place.other and place.other.line) == (41, 4)
    assert "'good' there, 'bad' here" in place.shown


def test_held_out_rows_that_training_has_seen_are_an_error_and_the_same_question_a_warning(tmp_path: Path) -> None:
    rows = qa_rows(30)
    report = checked(tmp_path, rows, [rows[3], qa(rows[4]["question"].upper(), "Another answer"), qa("New?", "Yes")])
    assert kinds(report) == {"leaked-row": 1, "leaked-question": 1}
    assert finding(report, "leaked-row").severity == "error"
    assert finding(report, "leaked-question").severity == "warning"
    place = finding(report, "leaked-row").places[0]
    assert (place.source.line, place.other and place.other.line) == (1, 4)


def test_one_leaked_row_among_hundreds_is_a_warning(tmp_path: Path) -> None:
    rows = qa_rows(500)
    report = checked(tmp_path, rows[:250], [*rows[250:], rows[0]])
    assert finding(report, "leaked-row").severity == "warning"


def test_marks_of_images_in_nearly_every_row_are_an_error(tmp_path: Path) -> None:
    rows = [row | {"question": f"<image>\n{row['question']}"} for row in qa_rows(20)]
    report = checked(tmp_path, [*rows, qa("Hi", "Hello")])
    assert (finding(report, "media-placeholder").severity, report.has_errors) == ("error", True)
    assert finding(checked(tmp_path, rows[:10] + qa_rows(30)), "media-placeholder").severity == "warning"


@pytest.mark.parametrize(
    "text",
    ["Below is a task.\n\n### Instruction:\nAdd 2 and {}.\n\n### Response:\nDone.", "USER: Hi {} ASSISTANT: Hello.",
     "Human: Hi {}\n\nHuman: Are you there?\n\nAssistant: Yes."],
)  # fmt: skip
def test_documents_that_look_like_conversations_are_found(tmp_path: Path, text: str) -> None:
    words = ["amber", "basalt", "cedar", "delta", "ember", "flint"]
    rows = [{"text": text.format(word)} for word in words]
    report = checked(tmp_path, [*rows, {"text": "The word Response: stands here. The end, User: none."}])
    assert finding(report, "conversation-in-a-document").count == len(words)


def test_answers_that_are_all_the_same_are_found(tmp_path: Path) -> None:
    assert kinds(checked(tmp_path, [qa(f"Question {n}", "Yes") for n in range(30)])) == {"all-answers-equal": 1}


@pytest.mark.parametrize("secret", [KEY, GITHUB, CARD, "jane.doe@acme.io", "+49 30 9018 2042"])
def test_a_secret_is_never_shown_whole_in_any_finding(tmp_path: Path, secret: str) -> None:
    filler = "word " * 30
    rows = [qa(f"{secret} what? {n}", f"{filler[:n]} {secret} {filler}\0") for n in range(90)]
    rows += [qa(f"{secret} what? 1", f"I say {secret} too"), rows[5]]
    shown = json.dumps(checked(tmp_path, rows).to_json(), ensure_ascii=False)
    assert secret not in shown
    assert secret.replace(" ", "") not in shown


def test_every_broken_row_of_a_file_is_reported_and_the_others_are_checked(tmp_path: Path) -> None:
    rows = qa_rows(30)
    lines = [json.dumps(row) for row in rows]
    lines[3], lines[7], lines[9] = '{"question": "a", "answer": ""}', "{", '{"question": NaN}'
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"question": "caf\xe9", "answer": "b"}\n')
    report = check_files([TrainFile(path=str(tmp_path / "a.jsonl"))], DataConfig(train="-"))
    assert [place.source.line for place in finding(report, "unreadable-row").places] == [8, 10, 31, 4]
    assert (report.rows, report.files[0].faulty, report.has_errors) == (27, 4, True)


def test_a_file_that_ends_in_damage_is_checked_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(qa_rows(30))[:-4])
    report = check_files([TrainFile(path=str(tmp_path / "a.json"))], DataConfig(train="-"))
    assert kinds(report) == {"unreadable-file": 1}
    assert report.rows == 29


@pytest.mark.parametrize("name", ["none.jsonl", "a.md"])
def test_a_file_that_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.md").write_text("a")
    with pytest.raises(DataError):
        check_files([TrainFile(path=str(tmp_path / name))], DataConfig(train="-"))


def test_places_are_all_counted_and_the_first_hundred_kept(tmp_path: Path) -> None:
    report = checked(tmp_path, [qa(f"Question {n}", f"a {n}\0") for n in range(KEPT + 20)])
    assert kinds(report) == {"nul-character": KEPT + 20}
    assert len(report.findings[0].places) == KEPT


def test_a_survey_counts_rows_turns_roles_and_scripts(tmp_path: Path) -> None:
    rows = [
        chat(("user", "Hi"), ("assistant", "Hello")),
        chat(("system", "Да"), ("user", "Привет"), ("assistant", "Ну")),
    ]
    facts = checked(
        tmp_path, [*rows, chat(("user", "1"), ("assistant", "2"), ("user", "中文"), ("assistant", "好"))]
    ).files[0]
    assert facts.roles == {"user": 4, "assistant": 4, "system": 1}
    assert (facts.turns, facts.scripts) == ({2: 1, 3: 1, 4: 1}, {"Latin": 1, "Cyrillic": 1, "Han": 1})
    assert (facts.format, facts.with_system, facts.trained_turns) == ("messages", 1, 4)
