"""The library on disk: names, versions, tags, history, and what other processes see of a change."""

from __future__ import annotations

import errno
import json
import os
import shutil
import string
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from stored import card, fill, put

from inlay.adapters import library as libraries
from inlay.adapters.cards import Card
from inlay.adapters.library import RESERVED, Library, held, is_library_ref, require_name, require_tag, split_ref
from inlay.errors import AdapterError, StorageError
from inlay.storage import verified
from training_runs import Forked

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(NAMES)
def test_every_name_of_the_allowed_form_is_taken_but_the_reserved_ones(name: str) -> None:
    if name in RESERVED or ".." in name:
        with pytest.raises(AdapterError, match=r"reserved|cannot be used"):
            require_name(name)
    else:
        assert require_name(name) == name
        assert split_ref(f"{name}:12") == (name, "12")
        assert is_library_ref(f"{name}:12")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=70))
def test_no_other_name_is_taken_and_the_message_shows_it(name: str) -> None:
    allowed = set(string.ascii_lowercase + string.digits + "._-")
    if not name or len(name) > 64 or set(name) - allowed or name[0] in "._-":
        with pytest.raises(AdapterError, match="cannot be used"):
            require_name(name)


@pytest.mark.parametrize("tag", ["12", "latest", "auto", "Prod", "a/b", "", ".."])
def test_a_tag_is_a_name_and_no_number(tag: str) -> None:
    with pytest.raises(AdapterError, match=r"tag '.*': "):
        require_tag(tag)


@pytest.mark.parametrize("ref", ["a:b:c", "a:", ":3", "a: 3", "a:../b", "../a:3", "A:3"])
def test_a_text_that_is_no_reference_is_refused(ref: str) -> None:
    assert not is_library_ref(ref)
    with pytest.raises(AdapterError, match=r"names no adapter|cannot be used"):
        split_ref(ref)


class Histories(RuleBasedStateMachine):
    """Any order of add, tag, untag and remove on two names, next to a model of what must be there."""

    folder: Path

    @initialize()
    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.library = Library(self.folder)
        self.there: dict[str, dict[int, str]] = {"a": {}, "b.1": {}}
        self.tags: dict[str, dict[str, int]] = {"a": {}, "b.1": {}}
        self.given = {"a": 0, "b.1": 0}

    @rule(name=st.sampled_from(["a", "b.1"]), content=st.sampled_from("xyz"))
    def add(self, name: str, content: str) -> None:
        entry, is_new = put(self.library, name, content)
        known = [version for version, held_ in self.there[name].items() if held_ == content]
        if known:
            assert (entry.version, is_new) == (known[0], False)
        else:
            self.given[name] += 1
            assert (entry.version, is_new) == (self.given[name], True)
            self.there[name][entry.version] = content

    @rule(
        name=st.sampled_from(["a", "b.1"]),
        version=st.integers(1, 4),
        tag=st.sampled_from(["prod", "x"]),
        on=st.booleans(),
    )
    def retag(self, name: str, version: int, tag: str, on: bool) -> None:
        may = version in self.there[name] and (on or self.tags[name].get(tag) == version)
        call = self.library.tag if on else self.library.untag
        if not may:
            with pytest.raises(AdapterError):
                call(f"{name}:{version}", tag)
            return
        assert (tag in call(f"{name}:{version}", tag).tags) is on
        self.tags[name] = {t: v for t, v in self.tags[name].items() if t != tag} | ({tag: version} if on else {})

    @rule(name=st.sampled_from(["a", "b.1"]), version=st.integers(1, 4))
    def remove(self, name: str, version: int) -> None:
        if version in self.there[name] and version not in self.tags[name].values():
            assert self.library.remove(f"{name}:{version}") == f"{name}:{version}"
            del self.there[name][version]
        else:
            with pytest.raises(AdapterError):
                self.library.remove(f"{name}:{version}")

    @invariant()
    def holds(self) -> None:
        for name, versions in self.there.items():
            found = self.library.entries(name)
            assert {one.version: one.card.identity for one in found} == {
                v: card(c).identity for v, c in versions.items()
            }
            assert self.library.tags(name) == self.tags[name]
            if versions:
                assert self.library.find(name).version == max(versions) == self.library.find(f"{name}:latest").version
            for tag, version in self.tags[name].items():
                assert self.library.find(f"{name}:{tag}").version == version
        assert self.library.names() == sorted(name for name, versions in self.there.items() if versions)


def test_versions_and_tags_are_as_the_calls_made_them(tmp_path: Path) -> None:
    Histories.folder = tmp_path / "library"
    run_state_machine_as_test(Histories, settings=settings(max_examples=6, stateful_step_count=12, deadline=None))


def test_every_change_is_a_line_of_history_with_when_and_by_whom(tmp_path: Path) -> None:
    library = Library(tmp_path)
    put(library, "a")
    put(library, "a", "b")
    library.tag("a:1", "prod")
    library.tag("a:2", "prod")
    library.untag("a:prod", "prod")
    library.remove("a:1")
    lines = library.history("a")
    assert [(line["action"], line["version"]) for line in lines] == [
        ("add", 1), ("add", 2), ("tag", 1), ("tag", 2), ("untag", 2), ("remove", 1),
    ]  # fmt: skip
    assert lines[3]["moved_from"] == 1
    assert all("@" in line["by"] and line["at"] for line in lines)


def test_the_number_of_a_removed_version_is_never_given_again(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for content in "ab":
        put(library, "a", content)
    library.remove("a:2")
    assert put(library, "a", "b").entry.version == 3
    library.remove("a:1")
    library.remove("a:3")
    assert library.names() == []
    assert put(library, "a", "b").entry.version == 4


def test_a_version_has_a_manifest_and_stays_when_the_next_one_comes(tmp_path: Path) -> None:
    library = Library(tmp_path)
    folder = put(library, "a").entry.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    put(library, "a", "b")
    assert verified(folder)["identity"] == card().identity
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unknown_name_is_answered_with_the_nearest_three(tmp_path: Path) -> None:
    library = Library(tmp_path)
    with pytest.raises(AdapterError, match="It is empty: inlay adapters add RUN --name support"):
        library.find("support")
    for name in ("support", "support-de", "supports", "legal"):
        put(library, name)
    with pytest.raises(AdapterError, match=r"Did you mean support, supports or support-de\?"):
        library.find("suport")
    library.tag("support:1", "prod")
    with pytest.raises(AdapterError, match=r"no version or tag 'prd'. Did you mean prod\? Versions: 1; tags: prod"):
        library.find("support:prd")
    with pytest.raises(AdapterError, match="no version or tag '7'"):
        library.find("support:7")


def test_a_version_with_a_tag_and_one_in_use_are_not_removed(tmp_path: Path) -> None:
    library = Library(tmp_path)
    entry = put(library, "a").entry
    library.tag("a:1", "prod")
    with pytest.raises(
        AdapterError, match=r"has the tag prod. Take it off first: inlay adapters tag a:1 prod --remove"
    ):
        library.remove("a")
    library.untag("a:1", "prod")
    with held(entry), held(entry), pytest.raises(AdapterError, match="in use by a running process"):
        library.remove("a:1")
    library.remove("a:1")
    with pytest.raises(AdapterError, match="was removed just now"), held(entry):
        pass


def _hold(library: str, ready: str) -> None:
    with held(Library(library).find("a")):
        Path(ready).touch()
        time.sleep(60)


def test_what_a_process_held_is_free_when_it_was_killed(tmp_path: Path) -> None:
    library, ready = Library(tmp_path / "library"), tmp_path / "ready"
    put(library, "a")
    process = Forked(partial(_hold, str(library.path), str(ready)), tmp_path / "process")
    process.wait_until(ready.exists)
    with pytest.raises(AdapterError, match="in use"):
        library.remove("a")
    process.send(9)
    process.wait()
    assert library.remove("a") == "a:1"


def _busy(path: str, who: str) -> None:
    library = Library(path)
    Path(path).with_name(f"{who} is ready").touch()
    while len(list(Path(path).parent.glob("* is ready"))) < 2:
        time.sleep(0.001)
    for n in range(5):
        entry = put(library, "a", f"{who}{n}").entry
        library.tag(entry.ref, "newest")
        library.tag(entry.ref, who)
        put(library, "a", "same")


def test_processes_that_add_and_tag_at_once_get_distinct_versions_and_whole_tags(tmp_path: Path) -> None:
    path = tmp_path / "library"
    processes = [Forked(partial(_busy, str(path), who), tmp_path / who) for who in ("p", "q")]
    assert [process.wait() for process in processes] == [(0, "")] * 2
    library = Library(path)
    assert library.versions("a") == list(range(1, 12))
    assert len({entry.card.identity for entry in library.entries("a")}) == 11
    tags = library.tags("a")
    assert set(tags) == {"newest", "p", "q"}
    assert tags["newest"] in (tags["p"], tags["q"])
    assert len([line for line in library.history("a") if line["action"] == "add"]) == 11


def test_a_card_of_a_newer_inlay_is_named_as_such_and_hides_no_other_version(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for content in "abc":
        put(library, "a", content)
    for version, change in ((1, {"schema": 2}), (2, {"signature": "x"})):
        path = tmp_path / "a" / "versions" / str(version) / "card.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        AdapterError, match=r"has schema 2; this inlay reads 1. It was written by a newer inlay: update"
    ):
        library.find("a:1")
    with pytest.raises(AdapterError, match=r"has the unknown key signature. It was written by a newer inlay"):
        library.find("a:2")
    damaged: list[libraries.Damaged] = []
    assert [entry.ref for entry in library.entries(on_damage=damaged.append)] == ["a:3"]
    assert [(one.name, one.version) for one in damaged] == [("a", 1), ("a", 2)]
    assert put(library, "a", "d").entry.version == 4
    assert library.remove("a:1") == "a:1"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": "1"}', "null", "\xff"])
def test_a_damaged_card_is_one_message_with_its_path(tmp_path: Path, content: str) -> None:
    put(Library(tmp_path), "a")
    path = tmp_path / "a" / "versions" / "1" / "card.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(AdapterError, match=r"card\.json: is damaged") as caught:
        Library(tmp_path).find("a")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_card_says_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = card(task="support", note="ü", versions={"torch": None}, verdict={
        "metric": "loss", "base": 2.0, "adapter": 1.0, "difference": -1.0, "low": -1.5, "high": -0.5, "verdict": "better",
    }, parents=({"identity": "x", "name": "b:1", "weight": 0.7},), template_kwargs={"think": False})  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps(whole.to_json()))
    assert Card.read(tmp_path) == whole


def test_damaged_tags_and_a_cut_line_of_history_are_met(tmp_path: Path) -> None:
    library = Library(tmp_path)
    put(library, "a")
    log = tmp_path / "a" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-10])
    library.tag("a", "prod")
    assert [(line["action"], line["version"]) for line in library.history("a")] == [("add", 1), ("tag", 1)]
    (tmp_path / "a" / "tags.json").write_text('{"prod": "1"}')
    with pytest.raises(AdapterError, match=r"tags\.json: cannot be used"):
        library.find("a:prod")


def test_a_full_or_read_only_disk_is_one_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(tmp_path)
    put(library, "a")

    def refuse(number: int, folder: Path) -> None:
        fill(folder)
        raise OSError(number, "refused")

    for number, text in ((errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "no permission")):
        with pytest.raises(StorageError, match=f"{text}.*--library"):
            library.put("a", partial(refuse, number), card("b"))
    with pytest.raises(
        StorageError, match=r"MB free, but this adapter needs about .* choose another library with --library"
    ):
        put(library, "a", "b", bytes=1 << 60)
    assert [path.name for path in (tmp_path / "a" / "versions").iterdir()] == ["1"]
    monkeypatch.setattr("os.access", lambda *_: False)
    for call in (partial(put, library, "a", "b"), partial(library.tag, "a", "x"), partial(library.remove, "a")):
        with pytest.raises(StorageError, match="no permission to write here"):
            call()


def test_a_card_that_is_no_ordinary_file_is_damage_and_nothing_waits_for_it(tmp_path: Path) -> None:
    library = Library(tmp_path)
    cards = [put(library, "a", content).entry.folder / "card.json" for content in "xyz"]
    cards[0].unlink()
    os.mkfifo(cards[0])
    cards[1].unlink()
    cards[1].symlink_to("/dev/zero")
    damaged: list[libraries.Damaged] = []
    assert [entry.version for entry in library.entries(on_damage=damaged.append)] == [3]
    assert ["not an ordinary file" in damaged[0].fault, "is a link" in damaged[1].fault] == [True, True]
    assert library.remove("a:1") == "a:1"


ONE, OTHER = "1" * 32, "2" * 32


def put_with(library: Library, name: str, content: str, tokenizer: str) -> None:
    library.put(name, lambda folder: fill(folder, content), card(content, tokenizer=tokenizer), fill)


def tokenizers(library: Library) -> set[str]:
    return {path.name for path in (library.path / "tokenizers").iterdir() if not path.name.startswith(".")}


def test_a_tokenizer_goes_with_the_last_version_that_uses_it(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for name, content, tokenizer in (("a", "x", ONE), ("b", "y", ONE), ("b", "z", OTHER)):
        put_with(library, name, content, tokenizer)
    (tmp_path / "tokenizers" / "mine").mkdir()
    library.remove("a:1")
    assert tokenizers(library) == {ONE, OTHER, "mine"}
    library.remove("b:1")
    assert tokenizers(library) == {OTHER, "mine"}
    put_with(library, "a", "x", ONE)
    assert tokenizers(library) == {ONE, OTHER, "mine"}


def test_an_unreadable_card_keeps_every_tokenizer(tmp_path: Path) -> None:
    library = Library(tmp_path)
    put_with(library, "a", "x", ONE)
    put_with(library, "b", "y", OTHER)
    (tmp_path / "b" / "versions" / "1" / "card.json").write_text("{")
    library.remove("a:1")
    assert tokenizers(library) == {ONE, OTHER}


def test_a_tokenizer_stays_while_a_version_with_it_is_being_added(tmp_path: Path) -> None:
    library = Library(tmp_path)
    put_with(library, "a", "x", ONE)
    removing = threading.Thread(target=Library(tmp_path).remove, args=("a:1",))

    def slowly(folder: Path) -> None:
        removing.start()
        while library.versions("a"):
            time.sleep(0.001)
        removing.join(0.2)
        fill(folder, "y")

    library.put("b", slowly, card("y", tokenizer=ONE), fill)
    removing.join()
    assert (library.names(), tokenizers(library)) == (["b"], {ONE})


@pytest.mark.parametrize("name", ["tags.json", "log.jsonl"])
def test_tags_and_history_that_are_no_ordinary_files_are_one_message(tmp_path: Path, name: str) -> None:
    library = Library(tmp_path)
    put(library, "a")
    (tmp_path / "a" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "a" / name)
    with pytest.raises(AdapterError, match=f"{name}.*ordinary file"):
        library.tag("a", "prod")


@pytest.mark.parametrize("ref", ["a:\u00b2", "a:" + "9" * 5000, "a:\u0663"])
def test_a_number_that_no_version_can_have_is_one_message(tmp_path: Path, ref: str) -> None:
    library = Library(tmp_path)
    put(library, "a")
    (tmp_path / "a" / "versions" / "\u00b2").mkdir()
    assert [entry.version for entry in library.entries()] == [1]
    with pytest.raises(AdapterError, match="names no adapter"):
        library.find(ref)


def test_a_line_of_history_without_a_version_is_told_and_stops_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path)
    put(library, "a", "x")
    log = tmp_path / "a" / "log.jsonl"
    log.write_bytes(b'{"action": "add"}\n' + log.read_bytes())
    assert put(library, "a", "y").entry.version == 2
    library.tag("a:2", "prod")
    library.remove("a:1")
    assert library.history("a")[0]["damaged"].startswith(f"{log}:1: is no line of history")


def test_a_tag_that_a_terminal_would_obey_is_damage(tmp_path: Path) -> None:
    library = Library(tmp_path)
    put(library, "a")
    (tmp_path / "a" / "tags.json").write_text(json.dumps({"\x1b]0;title\x07": 1}))
    with pytest.raises(AdapterError, match=r"tags\.json: cannot be used") as caught:
        library.find("a")
    assert str(caught.value).isprintable()
    with pytest.raises(AdapterError) as caught:
        Card.read(_with_card(tmp_path / "b", {"\x1b[2J": 1}))
    assert "\x1b" not in str(caught.value)


def _with_card(folder: Path, more: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(card().to_json() | more))
    return folder


@pytest.mark.parametrize("key", ["../../outside", "/etc", "A" * 32, "a" * 32 + "\n"])
def test_the_tokenizer_of_a_card_is_a_folder_of_the_library(tmp_path: Path, key: str) -> None:
    with pytest.raises(AdapterError, match="is damaged"):
        Card.read(_with_card(tmp_path / "b", {"tokenizer": key}))


def test_a_version_that_another_process_removes_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(tmp_path)
    put(library, "a", "x")
    put(library, "a", "y")
    monkeypatch.setattr(Library, "versions", lambda self, name: [1, 2])
    shutil.rmtree(tmp_path / "a" / "versions" / "1")
    damaged: list[libraries.Damaged] = []
    assert [entry.version for entry in library.entries("a", on_damage=damaged.append)] == [2]
    assert damaged == []
