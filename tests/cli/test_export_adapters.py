"""inlay adapters export: a folder for another program that holds the adapter, or nothing; the limits without writing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import api
from inlay.adapters.exports import gguf
from inlay.adapters.exports.form import ExportSource
from inlay.adapters.goldens import read_goldens
from inlay.adapters.lowrank import Factors, dense, lowrank_of
from inlay.adapters.reference import reference
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import PlainReporter
from inlay.storage import read_manifest
from inlay.workflows.adapter_library import export as exporting
from program import Ended


@pytest.fixture(scope="session")
def stored(trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the run `first` as `support`."""
    here, library = pytest.MonkeyPatch(), tmp_path_factory.mktemp("stored") / "library"
    here.chdir(trained[0])
    api.add_adapter("first", name="support", library=library, reporter=PlainReporter())
    here.undo()
    return library


@pytest.fixture
def library(stored: Path, with_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INLAY_LIBRARY", str(stored))
    return stored


def export(inlay: Callable[..., Ended], *arguments: str) -> tuple[Ended, Any]:
    ended = inlay("adapters", "export", *arguments, "--json")
    return ended, json.loads(ended.out) if ended.out else None


def test_an_export_has_its_origin_its_command_and_golden_answers(
    library: Path, tmp_path: Path, inlay: Callable[..., Ended]
):
    out = tmp_path / "out"
    ended, found = export(inlay, "support:1", str(out), "--to", "gguf")
    assert ended.code == 0, ended.err
    identity = json.loads((library / "support/versions/1/card.json").read_text())["identity"]
    assert (found["identity"], found["rank"], found["folder"], found["fits"]) == (identity, 8, str(out), True)
    assert found["read_back"]["error"] < 1e-6
    page = (out / "EXPORT.md").read_text()
    for text in (identity, "llama-server -m BASE.gguf --lora", "llama.cpp was not run", *found["commands"]):
        assert text in page
    goldens = read_goldens(out)
    assert len(goldens) == found["goldens"] == 4
    assert {golden.source for golden in goldens} == {"general"}, "rows of the data stay here"
    assert read_manifest(out)["identity"] == identity
    assert {*read_manifest(out)["files"]} == {"EXPORT.md", "goldens.jsonl", "support.gguf"}


def test_an_adapter_of_another_library_is_exported_and_merged_from_there(
    library: Path, tmp_path: Path, inlay: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("INLAY_LIBRARY")
    for form in ("peft", "folder"):
        refused = inlay("adapters", "export", "support:1", str(tmp_path / form), "--to", form)
        assert "no adapter 'support'" in refused.err
        export(inlay, "support:1", str(tmp_path / form), "--to", form, "--library", str(library))
        assert (tmp_path / form).is_dir()


def test_held_out_prompts_leave_only_when_they_are_asked_for(
    library: Path, tmp_path: Path, inlay: Callable[..., Ended]
):
    export(inlay, "support:1", str(tmp_path / "out"), "--to", "mlx", "--with-rows")
    assert {golden.source for golden in read_goldens(tmp_path / "out")} == {"general", "held-out"}


def test_a_run_is_exported_as_peft_takes_it(library: Path, tmp_path: Path, inlay: Callable[..., Ended]):
    one = reference("first", "results").adapter(None)
    assert one is not None
    for name, options in (("flat", ()), ("trained", ("--as-trained",))):
        ended, found = export(inlay, "first", str(tmp_path / name), "--to", "peft", *options)
        assert ended.code == 0, ended.err
        state = AdapterState.read(tmp_path / name)
        assert found["read_back"]["error"] < 1e-6
        expected, got = (lowrank_of(each, "a").factors for each in (one, state))
        assert all(torch.allclose(dense(got[m]), dense(expected[m]), atol=1e-6) for m in expected)
    assert state.settings["r"] == one.settings["r"]


def test_the_limits_alone_write_nothing_and_are_an_exit_code(
    library: Path, tmp_path: Path, inlay: Callable[..., Ended]
):
    ended = inlay("adapters", "export", "support:1", "--to", "vllm", "--check")
    assert ended.code == 0
    assert "support:1 as vllm: fits" in ended.out
    assert "--max-lora-rank 8" in ended.out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--to", "ggml", "{out}"), r"--to: .*'ggml'.*gguf"),
    (("--to", "gguf"), "give the folder to write, or --check"),
    (("--to", "gguf", "{out}", "--check"), "or --check and no folder"),
    (("--to", "vllm", "{out}", "--as-trained"), "--as-trained: has no effect on --to vllm"),
    (("--to", "gguf", "{out}", "--dtype", "int4"), "float16"),
    (("--to", "folder", "{out}", "--with-rows"), "--with-rows: has no effect on --to folder"),
    (("--to", "gguf", "{out}/there"), "is there already"),
])  # fmt: skip
def test_options_without_a_meaning_are_refused_before_anything_is_written(
    arguments: tuple[str, ...], message: str, library: Path, tmp_path: Path, inlay: Callable[..., Ended]
):
    (tmp_path / "out" / "there").mkdir(parents=True)
    (tmp_path / "out" / "there" / "mine").write_text("kept")
    ended = inlay("adapters", "export", "support:1", *(one.format(out=tmp_path / "out") for one in arguments))
    assert ended.code == 2
    assert re.search(message, ended.err), ended.err
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["there", "mine"]


def test_an_export_that_does_not_hold_the_adapter_leaves_nothing(
    library: Path, tmp_path: Path, inlay: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf, "turned", lambda b_OR, heads: b_OR)
    ended = inlay("adapters", "export", "support:1", str(tmp_path / "out"), "--to", "gguf")
    assert ended.code == 2
    assert "off by" in ended.err
    assert not [*tmp_path.iterdir()]


def test_a_change_that_float16_cannot_hold_is_refused_with_the_way_out(
    library: Path, tmp_path: Path, inlay: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    small = {"model.layers.0.self_attn.q_proj": Factors(torch.full((4, 32), 1e-9), torch.full((32, 4), 1.0))}
    whole = exporting.export_source

    def tiny(*arguments: Any) -> ExportSource:
        source = whole(*arguments)
        return exporting.replace(source, adapter=exporting.replace(source.lowrank, factors=small))

    monkeypatch.setattr(exporting, "export_source", tiny)
    ended = inlay("adapters", "export", "support:1", str(tmp_path / "out"), "--to", "mlx", "--dtype", "float16")
    assert ended.code == 2
    assert "Write it as float32" in ended.err
    assert not [*tmp_path.iterdir()]
