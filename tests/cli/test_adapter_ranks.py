"""inlay adapters rank and shrink: how much rank an adapter uses, and a smaller one that keeps its gain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import api
from inlay.adapters.identity import read_entry
from inlay.adapters.library import Library
from inlay.adapters.lowrank import LowRank, core, cut, dense, lowrank_of, norm, padded, state_of
from inlay.errors import AdapterError, ConfigError, InlayError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import PlainReporter
from inlay.workflows.adapter_library.ranks import KEEP
from parts import qa_rows, write_rows
from program import Ended

QUIET = PlainReporter()


@pytest.fixture(scope="session")
def stored(trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapter of the run `first`, enlarged and cut to rank 2, which is stored at rank 8."""
    path = tmp_path_factory.mktemp("rank-two")
    shutil.copytree(trained[0] / "results" / "first" / "adapter", path / "two")
    adapter = lowrank_of(AdapterState.read(path / "two"), "base")
    factors = {module: padded(cut(core(each), 2), 8) for module, each in adapter.factors.items()}
    for each in factors.values():
        each.B_OR.mul_(8.0)
    (path / "two" / "manifest.json").unlink()
    state_of(replace(adapter, factors=factors)).write(path / "two")
    write_rows(path / "rows.jsonl", [row | {"answer": row["answer"][:40]} for row in qa_rows(24)])
    return path


@pytest.fixture
def rows(stored: Path) -> str:
    return str(stored / "rows.jsonl")


@pytest.fixture
def two(stored: Path, with_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """That adapter; the usual library is an empty one."""
    monkeypatch.setenv("INLAY_LIBRARY", str(tmp_path / "library"))
    return str(stored / "two")


def change_of(state: AdapterState) -> LowRank:
    return lowrank_of(state, "base")


def test_an_adapter_of_rank_2_stored_at_rank_8_is_told_to_keep_its_result_at_rank_2(
    two: str, rows: str, tmp_path: Path, inlay: Callable[..., Ended]
):
    page = tmp_path / "ranks.html"
    ended = inlay("adapters", "rank", two, "--rows", rows, "--out", str(page), "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    curve = {one["rank"]: one for one in found["curve"]}
    assert (found["rank"], found["recommended"], found["rows"], [*curve]) == (8, 2, 24, [8, 4, 2, 1])
    assert curve[8]["kept"] == 1.0
    assert curve[8]["error"] == curve[4]["error"] == curve[2]["error"] == 0.0 < curve[1]["error"]
    assert curve[2]["loss"] == pytest.approx(curve[8]["loss"], abs=1e-6)
    assert curve[8]["loss"] == curve[8]["adapter_loss"] < curve[1]["loss"] < curve[8]["base_loss"]
    assert all(one["energy_99"] <= 2 and one["stable_rank"] <= 2.0001 for one in found["modules"])
    text = page.read_text(encoding="utf-8")
    assert "this adapter keeps its result at rank 2; training at rank 2 may or may not reach it" in text
    assert text.count("<svg") == 3


def test_the_printed_error_of_a_rank_is_the_dense_one(two: str, rows: str):
    found = api.rank_adapter(two, rows=rows, reporter=QUIET)
    adapter = change_of(AdapterState.read(Path(two)))
    lost = sum(float((dense(f) - dense(cut(core(f), 1))).double().square().sum()) for f in adapter.factors.values())
    assert found.curve[-1].error == pytest.approx((lost**0.5) / norm(adapter), rel=1e-4)
    whole = api.compare("base", two, data=rows, metrics=["loss"], reporter=QUIET)
    assert found.curve[0].kept.other == pytest.approx(whole.metrics["loss"].other, abs=1e-6)


def test_without_rows_there_is_a_spectrum_and_the_reason_why_there_is_no_loss(two: str, inlay: Callable[..., Ended]):
    ended = inlay("adapters", "rank", two)
    assert ended.code == 0
    assert "no rows: its run is not here. Give rows of its task with --rows FILE" in ended.out
    assert "q_proj" in ended.out


def test_shrink_finds_the_rank_that_the_adapter_really_has_and_stores_it_with_its_parent(
    two: str, rows: str, tmp_path: Path, inlay: Callable[..., Ended]
):
    ended = inlay("adapters", "shrink", two, "--name", "small", "--rows", rows, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["kept"]["low"] >= KEEP
    assert found["as_rank"] <= 2
    assert found["parameters"] <= found["parameters_before"] / 4
    assert found["kept"]["rows"] + found["calibration_rows"] == 24
    assert found["calibration_rows"] == 6
    assert found["other_form"]["loss"] >= found["kept"]["loss"]
    entry = Library(tmp_path / "library").find("small")
    assert entry.card.operation is not None
    assert entry.card.operation.startswith("shrink to the size of rank")
    assert [parent.name for parent in entry.card.parents] == [two]
    before, after = change_of(AdapterState.read(Path(two))), change_of(read_entry(entry))
    lost = sum(
        float((dense(f) - (dense(after.factors[m]) if m in after.factors else 0)).double().square().sum())
        for m, f in before.factors.items()
    )
    assert found["error"] == pytest.approx(lost**0.5 / norm(before), rel=1e-4, abs=1e-6)


def test_a_size_that_was_asked_for_needs_no_rows_and_is_said_to_be_unmeasured(two: str, inlay: Callable[..., Ended]):
    ended = inlay("adapters", "shrink", two, "--name", "one", "--energy", "0.5")
    assert ended.code == 0, ended.err
    assert "at the size of rank 1" in ended.out
    assert "not measured: no rows" in ended.out


def test_a_run_is_shrunk_by_its_own_held_out_rows_and_keeps_them(with_run: Path, two: str):
    with pytest.raises(ConfigError, match="--energy 1: takes every rank"):
        api.shrink_adapter("first", "run-small", energy=1.0, reporter=QUIET)
    found = api.shrink_adapter("first", "run-small", rank=2, reporter=QUIET)
    assert found.kept is not None
    assert found.kept.rows > 0
    again = api.rank_adapter("run-small", reporter=QUIET)
    assert again.curve


def test_where_no_lower_rank_keeps_the_gain_nothing_is_written(
    two: str, rows: str, tmp_path: Path, inlay: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    state = AdapterState.read(Path(two))
    torch.manual_seed(0)
    worse = AdapterState(state.settings, {n: torch.randn_like(t) for n, t in state.tensors.items()})
    shutil.copytree(two, tmp_path / "worse")
    (tmp_path / "worse" / "manifest.json").unlink(missing_ok=True)
    worse.write(tmp_path / "worse")
    ended = inlay("adapters", "shrink", str(tmp_path / "worse"), "--name", "small", "--rows", rows)
    assert (ended.code, "gains nothing" in ended.err) == (1, True), ended.err
    monkeypatch.setattr("inlay.workflows.adapter_library.shrink.keeps", lambda *_: False)
    with pytest.raises(InlayError, match=r"no rank below 8 keeps 98% .* Nothing was written"):
        api.shrink_adapter(two, "small", rows=rows, reporter=QUIET)
    assert not Library(tmp_path / "library").names()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 8}, "rank 8, so there is nothing to cut"),
        ({"rank": 0}, "rank 0: must be at least 1"),
        ({"energy": 1.5}, "energy 1.5: must be above 0"),
        ({"keep": 98.0}, "--keep 98: must be a share of the gain between 0 and 1"),
        ({"rank": 2, "keep": 0.9}, "--rank and --keep: only one of them"),
        ({}, "has no held-out rows here to measure the gain on. Give --rows FILE, or a size"),
    ],
)
def test_a_size_that_cannot_be_is_refused(two: str, options: dict[str, Any], message: str):
    with pytest.raises((ConfigError, AdapterError)) as caught:
        api.shrink_adapter(two, "small", **options, reporter=QUIET)
    assert message in str(caught.value)
