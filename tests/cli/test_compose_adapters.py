"""inlay adapters compose: a weighted sum of library adapters, runs and checkpoints becomes an entry of the library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import api
from inlay.adapters.identity import read_entry
from inlay.adapters.library import Library
from inlay.adapters.lowrank import LowRank, dense, lowrank_of, state_of
from inlay.cli.render.adapters import weights_of
from inlay.errors import AdapterError, ConfigError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import PlainReporter
from parts import make_base, qa_rows, write_rows
from program import Ended

QUIET = PlainReporter()


@pytest.fixture(scope="session")
def two_stored(trained: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the adapter of the run `first` as `support`, and a folder with another one, of rsLoRA."""
    here, path = pytest.MonkeyPatch(), tmp_path_factory.mktemp("two")
    here.chdir(trained[0])
    api.add_adapter("first", name="support", library=path / "library", reporter=QUIET)
    here.undo()
    shutil.copytree(trained[0] / "results" / "first" / "adapter", path / "other")
    torch.manual_seed(0)
    state = AdapterState.read(path / "other")
    kept = {
        name: torch.randn_like(t) * 0.1 for name, t in state.tensors.items() if ".q_proj." in name or "0.mlp." in name
    }
    (path / "other" / "manifest.json").unlink()
    modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in kept})
    AdapterState(state.settings | {"use_rslora": True, "target_modules": modules}, kept).write(path / "other")
    return path


@pytest.fixture
def library(two_stored: Path, with_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A copy of that library, which is the usual one here; `other` lies beside it."""
    shutil.copytree(two_stored, tmp_path / "two")
    monkeypatch.setenv("INLAY_LIBRARY", str(tmp_path / "two" / "library"))
    return Library(tmp_path / "two" / "library")


def change_of(state: AdapterState) -> LowRank:
    return lowrank_of(state, "base")


def assert_sum(got: LowRank, parts: list[tuple[float, LowRank]], tolerance: float = 1e-6) -> None:
    for module in {module for _, part in parts for module in part.factors}:
        expected = sum(w * dense(part.factors[module]) for w, part in parts if module in part.factors)
        assert torch.allclose(dense(got.factors[module]), expected, atol=tolerance), module  # type: ignore[arg-type]


def test_a_sum_of_adapters_is_an_entry_with_its_parents_and_no_verdict(
    library: Library, tmp_path: Path, inlay: Callable[..., Ended]
) -> None:
    other = str(tmp_path / "two" / "other")
    ended = inlay("adapters", "compose", "support=0.7", f"{other}=-0.3", "--name", "both", "--json")
    assert ended.code == 0, ended.err
    row = json.loads(ended.out)
    assert (row["version"], row["is_new"], row["operation"], row["verdict"]) == (1, True, "compose", None)
    assert (row["error"], row["rank_before"], row["rank"]) == (0.0, 8, 8)
    entry = library.find("both")
    parents = {one.name: one for one in entry.card.parents}
    assert {name: one.weight for name, one in parents.items()} == {"support:1": 0.7, other: -0.3}
    assert parents["support:1"].identity == library.find("support").card.identity
    first, second = change_of(read_entry(library.find("support"))), change_of(AdapterState.read(Path(other)))
    assert set(second.factors) < set(first.factors)
    assert_sum(change_of(read_entry(entry)), [(0.7, first), (-0.3, second)])
    text = inlay("adapters", "compose", "support=0.7", f"{other}=-0.3", "--name", "both").out
    assert "both:1 already holds the exact sum of 0.7·support" in text
    assert "not measured: the verdicts of its parts do not carry over" in text
    assert inlay("adapters", "check", "both").code == 0
    added = api.add_adapter(other, name="other", reporter=QUIET)
    assert added.entry.card.identity == parents[other].identity


def test_a_sum_is_cut_by_rank_energy_or_size_with_its_error_printed(
    library: Library, inlay: Callable[..., Ended]
) -> None:
    whole = library.find("support").card

    def composed(*options: str) -> Any:
        ended = inlay("adapters", "compose", "support=1", "--name", "short", *options, "--json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    rank = composed("--rank", "2")
    assert (rank["rank"], rank["rank_before"]) == (2, 4)
    assert 0 < rank["error"] < 1
    assert composed("--energy", "0.9")["error"] ** 2 <= 0.1
    budget = composed("--budget", f"{whole.bytes // 2}")
    assert budget["bytes"] <= whole.bytes // 2
    assert budget["error"] < 1
    assert len(library.versions("short")) == 3
    operations = {one.card.operation for one in library.entries("short")}
    assert operations == {"compose, rank 2", "compose, energy 0.9", f"compose, budget {whole.bytes // 2} bytes"}
    lossy = composed("--as", "dare_svd", "--density", "0.5")
    assert lossy["operation"] == "compose, as dare_svd of density 0.5"
    assert lossy["error"] > 0.1


def test_weights_are_fitted_to_one_half_of_the_rows_and_judged_on_the_other(
    library: Library, tmp_path: Path, inlay: Callable[..., Ended]
) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", qa_rows(20)))
    other = str(tmp_path / "two" / "other")
    ended = inlay("adapters", "compose", "support", other, "--name", "fitted", "--fit", rows)
    assert ended.code == 0, ended.err
    assert "weights fitted on 10 rows; judged on 10 others" in ended.out
    assert ", Holm)" in ended.out
    assert all(name in ended.out for name in ("support alone", "sum", "mean"))
    few = str(write_rows(tmp_path / "few.jsonl", qa_rows(4)))
    ended = inlay("adapters", "compose", "support", "--name", "few", "--fit", few)
    assert ended.code == 0, ended.err
    assert "not distinguishable (only 2 rows" in ended.out
    entry = library.find("fitted")
    assert entry.card.operation == "compose, fitted weights"
    parts = {"support:1": read_entry(library.find("support")), other: AdapterState.read(Path(other))}
    weighted = [(one.weight, change_of(parts[one.name])) for one in entry.card.parents]
    assert_sum(change_of(read_entry(entry)), weighted)


def test_each_block_of_layers_can_have_fitted_weights_of_its_own(
    library: Library, tmp_path: Path, inlay: Callable[..., Ended]
) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", qa_rows(12)))
    ended = inlay("adapters", "compose", "support", "--name", "blocks", "--fit", rows, "--blocks", "2", "--json")
    assert ended.code == 0, ended.err
    first, second = json.loads(ended.out)["fit"]["weights"]["support"]
    entry = library.find("blocks")
    assert entry.card.operation == "compose, fitted weights, in 2 blocks of layers"
    assert [one.weight for one in entry.card.parents] == [pytest.approx((first + second) / 2)]
    before, after = (change_of(read_entry(one)).factors for one in (library.find("support"), entry))
    for module, factors in before.items():
        weight = first if ".layers.0." in module else second
        assert torch.allclose(dense(after[module]), weight * dense(factors), atol=1e-6)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no weight": (("support", "first=1"), "support: has no weight. Write support=0.7"),
    "zero": (("support=0",), "support=0: an adapter of weight 0 has no part"),
    "not a number": (("support=nan",), "support=nan: the weight must be a number"),
    "text": (("support=much",), "the weight 'much' is no number"),
    "twice": (("support=1", "support=2"), "support: is named twice"),
    "cancelled": (("support=1", "first=-1"), "cancel each other"),
    "unknown": (("suport=1",), "Did you mean support?"),
    "rank": (("support=1", "--rank", "9"), "rank 9: the adapter has rank 4, so there is nothing to cut"),
    "two limits": (("support=1", "--rank", "2", "--energy", "0.5"), "only one of rank, energy and budget"),
    "density alone": (("support=1", "--density", "0.2"), "--density: only a lossy merge"),
    "merge": (("support=1", "--as", "ties"), "Did you mean 'ties_svd'"),
    "weights with fit": (("support=1", "--fit", "rows.jsonl"), "--fit: finds the weights itself"),
    "blocks without fit": (
        ("support=1", "--blocks", "2"),
        "--blocks: weights of blocks of layers are fitted. Add --fit",
    ),
    "whole model": (("builtin:nano=1",), "is a whole model, not an adapter"),
    "size": (("support=1", "--budget", "much"), "budget: not an amount"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_sum_is_one_message_and_no_entry(case: str, library: Library, inlay: Callable[..., Ended]) -> None:
    arguments, text = REFUSED[case]
    ended = inlay("adapters", "compose", *arguments, "--name", "both")
    assert ended.code == 2
    assert text in " ".join(ended.err.split())
    assert library.versions("both") == []


def test_adapters_on_two_bases_and_of_dora_are_refused_with_the_way_out(library: Library, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "two" / "other", elsewhere)
    (elsewhere / "card.json").unlink()
    base = make_base(tmp_path / "base-2", seed=1)
    settings = json.loads((elsewhere / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    digest = library.find("support").card.base_digest[:12]
    with pytest.raises(AdapterError, match=rf"is on another base \(\w{{12}}\) than support \({digest}\)"):
        api.compose_adapters({"support": 1.0, str(elsewhere): 1.0}, "both", reporter=QUIET)
    other = tmp_path / "two" / "other"
    state = AdapterState.read(other)
    magnitudes = {
        name.replace("lora_B.weight", "lora_magnitude_vector.weight"): torch.ones(len(tensor))
        for name, tensor in state.tensors.items()
        if "lora_B" in name
    }
    AdapterState(state.settings | {"use_dora": True}, state.tensors | magnitudes).write(other)
    with pytest.raises(AdapterError, match=r"other: DoRA scales .*`inlay adapters merge`"):
        api.compose_adapters({str(other): 1.0}, "both", reporter=QUIET)


def test_another_chat_template_is_noted(library: Library, tmp_path: Path) -> None:
    other = tmp_path / "two" / "other"
    template = (other / "chat_template.jinja").read_text()
    stranger = tmp_path / "stranger"
    shutil.copytree(other, stranger)
    card = json.loads((stranger / "card.json").read_text())
    (stranger / "card.json").unlink()
    settings = json.loads((stranger / "adapter_config.json").read_text())
    base = Path(settings["base_model_name_or_path"])
    copied = tmp_path / "base"
    shutil.copytree(base, copied)
    (copied / "chat_template.jinja").write_text(template.replace("\n", "\n\n") + " ")
    (stranger / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(copied)}))
    assert card["base_digest"]
    found = api.compose_adapters({"support": 1.5, str(stranger): 1.5}, "both", reporter=QUIET)
    assert any("another tokenizer or chat template than support" in note for note in found.notes)
    assert any("weights sum to 3: ‖ΔW‖ is" in note for note in found.notes)


def test_parts_are_read_with_the_last_equals_sign() -> None:
    assert weights_of(["a=0.7", "results/x=1/adapter=-2e-1", "b"]) == {"a": 0.7, "results/x=1/adapter": -0.2, "b": None}
    with pytest.raises(ConfigError, match="is named twice"):
        weights_of(["a=1", "a"])


def test_a_checkpoint_of_a_run_is_a_part_too(library: Library) -> None:
    found = api.compose_adapters({"first": 2.0, "first@2": -1.0}, "extrapolated", reporter=QUIET)
    assert found.entry.card.modules == library.find("support").card.modules
    assert state_of(change_of(read_entry(found.entry))).settings["r"] <= 8


def test_parts_are_looked_for_in_the_library_that_is_named(library: Library, tmp_path: Path) -> None:
    entry = library.entries()[0]
    shutil.copytree(library.path, tmp_path / "elsewhere")
    shutil.rmtree(library.path)
    composed = api.compose_adapters({entry.ref: 0.5}, "half", library=tmp_path / "elsewhere", reporter=PlainReporter())
    assert composed.entry.card.parents[0].name == entry.ref
