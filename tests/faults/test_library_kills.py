"""The adapter library after kill -9 at a file event of add, tag and remove: nothing is half there, and the verb repeated
ends as if it had never been killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab import at_event, kill, workplace

from inlay.adapters.cards import Card
from inlay.adapters.library import Library
from inlay.errors import AdapterError
from inlay.storage import verified
from training_runs import Forked


def fill(folder: Path, content: str = "x") -> None:
    (folder / "adapter_model.safetensors").write_bytes(content.encode() * 100)
    (folder / "adapter_config.json").write_text("{}")


def put(library: Library, content: str) -> None:
    digest = hashlib.sha256(content.encode()).hexdigest()
    card = Card(
        identity=digest, weights_digest=digest, base_model="b", base_digest="d", method="lora", modules=1, parameters=1,
        bytes=1, tokenizer_hash="t", chat_template_hash="c", tokenizer=digest[:32],
    )  # fmt: skip
    library.put("a", partial(fill, content=content), card, fill)


def remove(library: Library) -> None:
    with contextlib.suppress(AdapterError):  # gone already, if the kill came after
        library.remove("a:2")


def untag(library: Library) -> None:
    with contextlib.suppress(AdapterError):
        library.untag("a:1", "prod")


VERBS: dict[str, tuple[Callable[[Library], Any], dict[str, Any]]] = {
    "add": (lambda library: put(library, "third"), {"versions": [1, 2, 3], "tags": {"prod": 1}}),
    "tag": (lambda library: library.tag("a:2", "prod"), {"versions": [1, 2], "tags": {"prod": 2}}),
    "untag": (untag, {"versions": [1, 2], "tags": {}}),
    "remove": (remove, {"versions": [1], "tags": {"prod": 1}}),
}
"""Verb -> (call, what must be there in the end)."""


def tokenizers(library: Library) -> set[str]:
    return {path.name for path in (library.path / "tokenizers").iterdir() if len(path.name) == 32}


def state_of(library: Library) -> dict[str, Any]:
    return {"versions": library.versions("a"), "tags": library.tags("a")}


def faults_in(library: Library, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is half there in a library of which a process was killed."""
    found = [entry for entry in library.entries() if verified(entry.folder)["identity"] != entry.card.identity]
    state = state_of(library)
    faults = [f"{entry.ref} has another identity" for entry in found]
    for entry in library.entries():
        assert entry.tokenizer_folder is not None
        verified(entry.tokenizer_folder)
    faults += [] if state in (before, after) else [f"neither before nor after: {state}"]
    library.history("a")
    return faults


def killed_at_each(verb: str, folder: Path, step: int) -> list[str]:
    """Faults after kills at every `step`th event."""
    call, expected = VERBS[verb]
    origin = Library(folder / "origin")
    for content in ("first", "second"):
        put(origin, content)
    origin.tag("a:1", "prod")
    before, faults, number = state_of(origin), list[str](), 0
    while True:
        library = Library(folder / f"{verb}-{number}")
        shutil.copytree(origin.path, library.path)
        number += 1
        event = (number - 1) * step + 1
        if (pid := os.fork()) == 0:
            at_event(library.path, event, kill)(None)
            call(library)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        faults += [f"{verb}, event {event}: {fault}" for fault in faults_in(library, before, expected)]
        call(library)
        left = [path.name for path in library.path.rglob("*") if "staging" in path.name]
        lines = [
            (line["action"], line["version"]) for line in library.history("a") if line["action"] in ("add", "remove")
        ]
        if state_of(library) != expected or left or len(lines) != len(set(lines)):
            faults.append(f"{verb}, event {event}, repeated: {state_of(library)}, left {left}, history {lines}")
        if tokenizers(library) != {entry.card.tokenizer for entry in library.entries()}:
            faults.append(f"{verb}, event {event}: tokenizers {tokenizers(library)}")
        if lines != [("add", 1), ("add", 2), *{"add": [("add", 3)], "remove": [("remove", 2)]}.get(verb, [])]:
            faults.append(f"{verb}, event {event}: history {lines}")
        shutil.rmtree(library.path)
        if not killed:
            break
    return [*faults, *([] if number > 3 else [f"{verb}: only {number} events"])]


def campaign(step: int, found: str) -> None:
    faults = []
    with workplace() as folder:
        for verb in VERBS:
            (folder / verb).mkdir()
            faults += killed_at_each(verb, folder / verb, step)
    Path(found).write_text(json.dumps(faults))


def faults_of_campaign(folder: Path, step: int) -> list[str]:
    code, printed = Forked(partial(campaign, step, str(folder / "found.json")), folder).wait(600)
    assert code == 0, printed
    found: list[str] = json.loads((folder / "found.json").read_text())
    return found


def test_a_kill_leaves_nothing_half_there_in_the_library(tmp_path: Path) -> None:
    assert faults_of_campaign(tmp_path, step=5) == []


@pytest.mark.slow
def test_a_kill_at_any_file_event_leaves_nothing_half_there_in_the_library(tmp_path: Path) -> None:
    assert faults_of_campaign(tmp_path, step=1) == []
