"""Two bases are the same one where they compute the same, and what differs is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay import api
from inlay.errors import AdapterError, InlayError, ModelError, RunError
from inlay.models.base import BaseRef
from inlay.models.fingerprint import digest_of_files
from inlay.runs.folder import Run
from parts import edit_config, make_base


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base folder that a test may change."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors)
    save_file(tensors if changed is None else changed, folder / "model.safetensors", metadata={"format": "pt"})


def in_two_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(tensors)}
    for file in {*parts.values()}:
        save_file({k: v for k, v in tensors.items() if parts[k] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))


SAME: dict[str, Callable[[Path], Any]] = {
    "ends and padding": lambda f: edit_config(f, eos_token_id=[2, 0], pad_token_id=0, bos_token_id=1),
    "habits": lambda f: edit_config(f, use_cache=False, temperature=0.6, max_length=20),
    "versions and names": lambda f: edit_config(
        f, transformers_version="4.1", _name_or_path="x", torch_dtype="bfloat16"
    ),
    "a default written out": lambda f: edit_config(f, attention_bias=False, mlp_bias=False),
    "another file beside": lambda f: save_file({"x": torch.zeros(1)}, f / "draft.safetensors"),
    "other files": in_two_files,
    "other metadata": lambda f: edit_weights(f, lambda tensors: None),
}


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_number_leaves_a_base_the_same(change: str, base: Path) -> None:
    ref = BaseRef("x", base)
    record = {"base_digest": ref.digest(), "base_fingerprint": ref.fingerprint().to_json()}
    SAME[change](base)
    assert ref.difference(json.loads(json.dumps(record))) == ""


def first_up(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1


OTHER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a value": (lambda f: edit_weights(f, first_up), "its weights have other values"),
    "halves": (
        lambda f: edit_weights(f, lambda t: {k: v.half() for k, v in t.items()}),
        "the dtype of its weights was F32 and is F16",
    ),
    "a weight less": (
        lambda f: edit_weights(f, lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}),
        "its weights have other names or shapes",
    ),
    "an epsilon": (lambda f: edit_config(f, rms_norm_eps=1e-5), "rms_norm_eps was 1e-06 and is 1e-05"),
    "a rotation": (
        lambda f: edit_config(f, rope_parameters={"rope_type": "default", "rope_theta": 5.0}),
        'rope_parameters was {"rope_theta": 10000.0, "rope_type": "default"} and is {"rope_theta": 5.0, '
        '"rope_type": "default"}',
    ),
}


@pytest.mark.parametrize("change", OTHER)
def test_what_a_base_computes_with_otherwise_is_said(change: str, base: Path) -> None:
    ref = BaseRef("x", base)
    record = {"base_digest": ref.digest(), "base_fingerprint": ref.fingerprint().to_json()}
    act, said = OTHER[change]
    act(base)
    assert ref.digest() != record["base_digest"]
    assert ref.difference(json.loads(json.dumps(record))) == said


def uses(run: Run, tree: dict[str, Any], steps: int) -> list[Callable[[], Any]]:
    """Everything that a finished run is good for."""
    again = tree | {
        "adapter": tree["adapter"] | {"start_from": str(run.adapter)},
        "output": tree["output"] | {"name": "b"},
    }
    return [
        lambda: api.compare(run),
        lambda: api.load(run).generate("Hi", max_new_tokens=2),
        lambda: api.verify(run)["passed"] or 1 / 0,
        lambda: api.resume(run, extend=str(steps)),
        lambda: api.train(again, fresh=True),
    ]


def test_a_run_goes_on_over_a_base_that_computes_the_same_and_over_no_other(
    base: Path, config_tree: Callable[..., dict[str, Any]]
) -> None:
    tree = config_tree(model={"base_model": str(base)}, output={"name": "a"}, eval={"max_rows": 2, "max_new_tokens": 2})
    run = api.train(tree)
    SAME["ends and padding"](base)
    SAME["another file beside"](base)
    for use in uses(run, tree, 5):
        use()
    edit_weights(base, first_up)
    for use in uses(run, tree, 6):
        with pytest.raises((InlayError, ZeroDivisionError)) as caught:
            use()
        assert isinstance(caught.value, ZeroDivisionError) or "its weights have other values" in str(caught.value)


def as_before_fingerprints(run: Run, base: Path) -> None:
    digest = digest_of_files(base / "config.json", [base / "model.safetensors"])
    files = [run.path / "run.json", run.adapter / "card.json"]
    for path in files:
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "base_fingerprint"}
        path.write_text(json.dumps(kept | {"base_digest": digest}))


def test_a_record_of_whole_files_holds_for_just_those_files(
    base: Path, config_tree: Callable[..., dict[str, Any]]
) -> None:
    run = api.train(config_tree(model={"base_model": str(base)}))
    as_before_fingerprints(run, base)
    (run.adapter / "manifest.json").unlink()
    from inlay.adapters.reference import open_base
    from inlay.methods.adapter_state import AdapterState

    ref = open_base(run).ref
    AdapterState.read(run.adapter, ref)
    SAME["habits"](base)
    with pytest.raises(ModelError, match="which is all that was recorded then, differ"):
        open_base(run)
    with pytest.raises(AdapterError, match="which is all that was recorded then, differ"):
        AdapterState.read(run.adapter, ref)


def test_a_run_on_a_hubs_base_stays_on_its_commit_when_the_branch_moves_on(
    tmp_path: Path, config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--owner--name"
    first, second = "1" * 40, "2" * 40
    for seed, commit in enumerate((first, second)):
        make_base(repository / "snapshots" / commit, seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run = api.train(config_tree(model={"base_model": "owner/name"}, output={"name": "a"}))
    assert run.record.base_commit == first
    about = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (about["base_model_name_or_path"], about["revision"]) == ("owner/name", first)
    (repository / "refs" / "main").write_text(second)
    assert api.compare(run).verdict == "better"
    assert api.verify(run)["passed"]
    api.resume(run, extend="5")
    assert api.compare(str(run.adapter)).verdict == "better"
    shutil.rmtree(repository / "snapshots" / first)
    with pytest.raises((ModelError, RunError), match="owner/name"):
        api.compare(run)
