"""`inlay adapters merge` gives a complete model that keeps what was trained, or nothing at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inlay import api
from inlay.adapters.reference import Reference, reference
from inlay.errors import AdapterError, ConfigError
from inlay.runs.folder import Run
from inlay.workflows.adapter_library import merge as merging
from inlay.workflows.adapter_library.merge import MergeOptions, merge
from training_runs import Quiet, train

Tree = Callable[..., dict[str, Any]]


@pytest.fixture
def run(config_tree: Tree) -> Run:
    return train(config_tree(train={"learning_rate": 3e-2}))


def named(run: Run) -> Reference:
    return reference(run, str(run.path.parent))


def merged(run: Run, out: Path, **options: Any) -> Any:
    return merge([(named(run), 1.0)], out, MergeOptions(**options), Quiet())


def test_a_merged_run_keeps_its_gain_and_is_a_model_that_compare_takes(run: Run, tmp_path: Path):
    found = merged(run, tmp_path / "merged")
    assert found.kept.share == pytest.approx(1.0, abs=1e-4)
    assert found.agreement.largest < 1e-4
    assert found.agreement.same_choice == 1.0
    assert found.losses["merged"] == pytest.approx(found.losses["adapter"], abs=1e-5)
    assert (tmp_path / "merged/generation_config.json").read_bytes() == (
        run.adapter / "generation_config.json"
    ).read_bytes()
    comparison = api.compare(run, str(tmp_path / "merged"), metrics=["loss"], reporter=Quiet())
    assert comparison.metrics["loss"].difference == pytest.approx(0.0, abs=1e-5)


def test_a_merge_that_loses_the_gain_is_refused_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(merging, "changes_of", lambda *_: {})
    with pytest.raises(AdapterError, match=r"keeps 0\.0% of the gain"):
        merged(run, tmp_path / "merged")
    assert not [*tmp_path.glob("*merged*")]
    assert merged(run, tmp_path / "merged", accept_loss=True).kept.share == pytest.approx(0.0)


def test_a_merge_that_is_interrupted_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "write_merged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merged(run, tmp_path / "merged")
    assert not [*tmp_path.glob("*merged*")]


def test_a_folder_with_files_in_it_is_never_overwritten(run: Run, tmp_path: Path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="there already"):
        merged(run, tmp_path / "merged")
    assert (tmp_path / "merged/mine.txt").read_text() == "kept"


@pytest.mark.parametrize(("weight", "options", "message"), [
    (0.0, {}, "finite number other than 0"), (float("nan"), {}, "finite number"), (1.0, {"dtype": "int4"}, "bfloat16"),
    (1.0, {"onto": "original"}, "was not quantized"),
])  # fmt: skip
def test_options_without_a_meaning_are_refused_before_anything_is_written(
    weight: float, options: dict[str, Any], message: str, run: Run, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        merge([(named(run), weight)], tmp_path / "merged", MergeOptions(**options), Quiet())
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_a_quantized_base_is_merged_onto_what_it_was_trained_over(config_tree: Tree, tmp_path: Path):
    run = train(config_tree(model={"quantization": "nf4", "dtype": "bfloat16"}, train={"learning_rate": 3e-2}))
    trained, original = (
        merged(run, tmp_path / onto, onto=onto, dtype="float32", accept_loss=True) for onto in ("trained", "original")
    )
    assert trained.losses["merged"] == pytest.approx(trained.losses["adapter"], abs=0.02)
    assert original.losses["merged"] == pytest.approx(original.losses["adapter over the original weights"], abs=0.02)
    assert trained.agreement.largest < original.agreement.largest


def test_weights_that_transformers_makes_of_several_tensors_are_merged_in_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def elsewhere(*_: Any, **__: Any) -> None:
        raise merging.NotInFiles("model.layers.0.mlp.experts")

    monkeypatch.setattr(merging, "plan_merge", elsewhere)
    found = merged(run, tmp_path / "merged")
    assert found.in_memory == "model.layers.0.mlp.experts"
    assert found.losses["merged"] == pytest.approx(found.losses["adapter"], abs=1e-4)


def test_two_adapters_are_merged_as_their_weighted_sum(run: Run, config_tree: Tree, tmp_path: Path):
    other = train(config_tree(train={"learning_rate": 3e-2, "seed": 3}, adapter={"rank": 2}))
    parts = [(named(run), 0.6), (named(other), -0.5)]
    found = merge(parts, tmp_path / "merged", MergeOptions(), Quiet())
    assert found.agreement.largest < 1e-4
    alone = {weight: merge([(one, weight)], tmp_path / f"{weight}", MergeOptions(), Quiet()) for one, weight in parts}
    assert all(one.losses["merged"] != found.losses["merged"] for one in alone.values())
    own, both, first, second = (
        load_file(folder / "model.safetensors")
        for folder in (Path(run.config.model.base_model), *(tmp_path / name for name in ("merged", "0.6", "-0.5")))
    )
    for name in own:
        torch.testing.assert_close(both[name], first[name] + second[name] - own[name], atol=1e-6, rtol=0)


def test_a_run_in_sixteen_bits_is_checked_in_the_precision_of_what_was_written(config_tree: Tree, tmp_path: Path):
    run = train(config_tree(model={"dtype": "bfloat16"}, train={"learning_rate": 3e-2}))
    exact, rounded = (merged(run, tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert exact.agreement.relative < 1e-4
    assert exact.losses["merged"] == pytest.approx(exact.losses["adapter"], abs=1e-4)
    assert rounded.agreement.relative == pytest.approx(rounded.rounding.relative, rel=1.0)
    assert rounded.rounding.relative > 1e-4


def test_weights_that_are_not_finite_are_refused_in_every_dtype(run: Run, tmp_path: Path):
    for weight, options in ((1e30, {}), (1e39, {"check": False})):
        with pytest.raises(AdapterError, match="not finite"):
            merge([(named(run), weight)], tmp_path / "merged", MergeOptions(**options), Quiet())
        assert not (tmp_path / "merged").exists()


def test_adapters_without_a_common_sum_are_merged_and_the_missing_comparison_is_named(
    config_tree: Tree, tmp_path: Path
):
    run = train(config_tree() | {"adapter": {"method": "ia3"}})
    found = merge([(named(run), 0.5)], tmp_path / "half", MergeOptions(), Quiet())
    assert "IA3 multiplies activations" in found.unchecked
    assert found.agreement is None
    assert found.losses.keys() == {"base", "merged"}


def test_what_a_killed_merge_left_is_gone_after_the_next_one(run: Run, tmp_path: Path):
    left, living = tmp_path / ".staging-merged-999999999", tmp_path / f".staging-merged-{os.getppid()}"
    for folder in (left, living):
        folder.mkdir()
    merged(run, tmp_path / "merged", check=False)
    assert not left.exists()
    assert living.exists()


def test_the_card_of_a_base_that_was_itself_fine_tuned_is_not_the_merged_models(config_tree: Tree, tmp_path: Path):
    whole = train(config_tree(output={"name": "whole"}) | {"adapter": {"method": "full"}})
    run = train(config_tree(model={"base_model": str(whole.model)}, output={"name": "over"}))
    merged(run, tmp_path / "merged", check=False)
    assert not (tmp_path / "merged/card.json").exists()


@pytest.mark.parametrize("options", [{"rows": "rows.jsonl"}, {"accept_loss": True}])
def test_options_of_the_check_have_no_place_beside_no_check(options: dict[str, Any], run: Run, tmp_path: Path):
    with pytest.raises(ConfigError, match="no effect with --no-check"):
        merged(run, tmp_path / "merged", check=False, **options)


def test_a_part_that_was_trained_over_another_precision_is_named(run: Run, config_tree: Tree, tmp_path: Path):
    other = train(config_tree(model={"quantization": "nf4", "dtype": "bfloat16"}, train={"seed": 2}))
    reporter = Quiet()
    merge([(named(run), 1.0), (named(other), 1.0)], tmp_path / "both", MergeOptions(check=False), reporter)
    assert any("over nf4 weights" in note for note in reporter.notes)
