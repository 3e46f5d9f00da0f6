"""Each check finds what it is for, and says nothing about rows that only look like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inlay.config.settings import DataConfig
from inlay.data.checks import Finding
from inlay.data.checks.findings import KEPT
from inlay.data.checks.report import DataReport, check_files
from inlay.errors import DataError
from parts import qa_rows, write_rows

KEY = "AKIA" + "Q7RT2WXJ5LMN3VKP"
GITHUB = "ghp_" + "a8Kd93jfLq02mZx7Yb5Rt6Uw1Vc4Ne0Ps9Qg"
CARD = "4539 1488 0343 6467"
LOOP = "I am not sure. " + "and then we went there again, " * 40


def qa(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def checked(path: Path, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None) -> DataReport:
    write_rows(path / "a.jsonl", rows)
    other = str(write_rows(path / "b.jsonl", held_out)) if held_out else None
    return check_files([str(path / "a.jsonl")], DataConfig(train="-", eval=other))


def kinds(report: DataReport) -> dict[str, int]:
    return {finding.kind: finding.count for finding in report.findings}


def finding(report: DataReport, kind: str) -> Finding:
    return next(f for f in report.findings if f.kind == kind)


FOUND: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # name: (kind, rows besides clean ones)
    "nul": ("nul-character", [qa("What?", "a\0b")]),
    "replacement character": ("replacement-character", [qa("Caf\ufffd?", "yes")]),
    "mojibake": ("mojibake", [qa("Where is the cafÃ©?", "there")]),
    "mojibake of quotes": ("mojibake", [qa("It doesnâ€™t work", "restart it")]),
    "mojibake of emoji": ("mojibake", [qa("Hi", "Hello ðŸ˜€")]),
    "mojibake of cyrillic": ("mojibake", [qa("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "ok")]),
    "mojibake of chinese": ("mojibake", [qa("ä¸\xadæ–‡", "ok")]),
    "mojibake of a space": ("mojibake", [qa("10Â\xa0kg", "ok")]),
    "terminal colours": ("control-character", [qa("What?", "\x1b[31mred\x1b[0m")]),
    "html entities": ("html-entity", [qa("a &amp; b?", "yes")]),
    "no words": ("answer-without-words", [qa("What?", "...")]),
    "missing value": ("answer-says-nothing", [qa("What?", "N/A")]),
    "echo": ("answer-is-the-question", [qa("Please tell me all about the opening hours of it.", "please tell me  all about the opening hours of it.")]),
    "loop": ("repeating-answer", [qa("What?", LOOP)]),
    "placeholder": ("placeholder", [qa("Who are you?", "I am {{name}}, made by {{author}}.")]),
    "insert here": ("placeholder", [qa("Who?", "Dear [insert name here], hello.")]),
    "boilerplate": ("assistant-boilerplate", [qa("Who?", "As an AI language model, I cannot say.")]),
    "duplicate": ("duplicate", [qa("Who is it?", "Me."), qa("who  is it?", "me.")]),
    "several answers": ("several-answers", [qa("Tell a long story", "Once there was a fox who lived in a wood far away."), qa("tell a long story", "Long ago a bear went out to look for some honey.")]),
    "aws key": ("aws-access-key", [qa("Key?", f"Use {KEY} for it")]),
    "github token": ("github-token", [qa("Key?", f"token {GITHUB}")]),
    "private key": ("private-key", [qa("Key?", "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 20 + "\n-----END RSA PRIVATE KEY-----")]),
    "password in an address": ("password-in-an-address", [qa("Where?", "postgres://admin:Tr0ub4dor9x@db.acme.io/main")]),
    "card": ("card-number", [qa("Pay?", f"My card is {CARD}, thanks")]),
    "e-mail": ("e-mail-address", [qa("Who?", "write to jane.doe@acme.io")]),
    "phone": ("phone-number", [qa("Who?", "call +49 30 9018 2042")]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_would_spoil_training_is_found_once_and_at_its_line(tmp_path: Path, name: str) -> None:
    kind, rows = FOUND[name]
    clean = qa_rows(30)
    report = checked(tmp_path, clean + rows)
    assert kinds(report) == {kind: 1}
    place = report.findings[0].places[0]
    assert (Path(place.source.file).name, place.source.line) == ("a.jsonl", 30 + len(rows))
    assert report.findings[0].fix


FINE: dict[str, list[dict[str, Any]]] = {
    "accents": [qa("Où est «LE CAFÉ»?", "Là-bas, à côté du musée. IRMÃ, Ærø, Ångström, naïve, Â, ÂGE")],
    "german quotes": [qa("Was ist „Spaß“?", "Eine „Süße“ Sache – größer…")],
    "many scripts": [qa("Привет, как дела?", "Всё хорошо"), qa("中文怎么说？", "你好。"), qa("שלום", "مرحبا"), qa("नमस्ते", "สวัสดี")],
    "emoji": [qa("Fun?", "👍🏽 yes 👨‍👩‍👧 ❤️")],
    "code": [qa("Code?", "```python\nif a & b:\n    x['k'] = [1, 2, 3]\n\treturn f'{x}'\n```")],
    "jinja in a question": [qa("What is {{ name }} in jinja?", "A variable")],
    "numbers": [qa("Pi to many places?", "3.14159265358979323846"), qa("1234567890123456 / 3?", "411522630041152"), qa("Year?", "In 1999-2001, on 2024-05-17 at 10:30:55")],
    "a table": [qa("Table?", "| a | b |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(40)))],
    "a card that fails its checksum": [qa("Card?", "4539 1488 0343 6468")],
    "all the same digit": [qa("Card?", "0000 0000 0000 0000")],
    "example key": [qa("Key?", "AKIAIOSFODNN7EXAMPLE or sk-your-key-goes-here-xxxxxxxxxxxxxxxxxxxxxx")],
    "example mail": [qa("Mail?", "name@example.com and user@localhost, pip install a@b")],
    "fictional phone": [qa("Phone?", "(212) 555-0123")],
    "short answers": [qa("Which label?", "7"), qa("Truth?", "No"), qa("Grade?", "A+")],
    "a poem with a refrain": [qa("Sing", "Row, row, row your boat, gently down the stream.\n" * 4)],
    "a system turn": [chat(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))],
    "short echo": [qa("ping", "ping")],
    "isbn, iban, hashes": [qa("Ids?", "ISBN 978-3-16-148410-0, DE89 3704 0044 0532 0130 00, 9f86d081884c7d659a2feaa0c55ad015, 550e8400-e29b-41d4-a716-446655440000")],
}  # fmt: skip


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
    report = check_files([str(tmp_path / "a.jsonl")], DataConfig(train="-"))
    assert [place.source.line for place in finding(report, "unreadable-row").places] == [8, 10, 31, 4]
    assert (report.rows, report.files[0].faulty, report.has_errors) == (27, 4, True)


def test_a_file_that_ends_in_damage_is_checked_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(qa_rows(30))[:-4])
    report = check_files([str(tmp_path / "a.json")], DataConfig(train="-"))
    assert kinds(report) == {"unreadable-file": 1}
    assert report.rows == 29


@pytest.mark.parametrize("name", ["none.jsonl", "a.txt"])
def test_a_file_that_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError):
        check_files([str(tmp_path / name)], DataConfig(train="-"))


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
