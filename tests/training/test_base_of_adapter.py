"""An adapter says which base it belongs on in a way that other programs, other folders and other machines can follow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from inlay import api
from inlay.errors import InlayError
from inlay.models.base import BaseRef, find_base

COMMIT = "1" * 40


def about(folder: Path, name: str = "adapter_config.json") -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_an_adapter_on_a_folder_that_was_named_from_here_is_found_from_elsewhere(
    tiny_base: Path, tmp_path: Path, config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    few = {"max_rows": 2, "max_new_tokens": 2}
    run = api.train(config_tree(model={"base_model": "./base/"}, train={"max_steps": 1, "eval_steps": 1}, eval=few))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    alone = Path(shutil.copytree(run.adapter, tmp_path / "alone" / "adapter"))
    ids = torch.arange(5, 20)[None]
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(alone), dtype=torch.float32).eval()(input_ids=ids).logits
    assert torch.equal(theirs, api.load(run).model(input_ids=ids).logits)
    assert about(alone, "card.json")["base_model"] == str(tmp_path / "base")
    assert "elsewhere put the base at" in about(alone, "card.json")["base_found"]
    rows = str(tmp_path / "data.jsonl")
    assert api.evaluate(str(alone), data=rows)["n"] > 0
    # on another machine the card's folder is not there, and PEFT's settings may have been put right
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(InlayError):
        api.evaluate(str(alone), data=rows)
    path = alone / "adapter_config.json"
    path.write_text(json.dumps(about(alone) | {"base_model_name_or_path": str(tmp_path / "moved")}))
    assert api.evaluate(str(alone), data=rows)["n"] > 0


def test_a_base_of_the_hubs_cache_goes_by_its_id_and_commit_however_it_was_named(
    tiny_base: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--owner--some--name" / "snapshots" / COMMIT
    shutil.copytree(tiny_base, snapshot)
    by_id, by_path = BaseRef("owner/some--name", snapshot), find_base(str(snapshot))
    for ref in (by_id, by_path):
        assert ref.peft_settings() == {"base_model_name_or_path": "owner/some--name", "revision": COMMIT}
        assert ref.card_entries()["base_found"] == f"on the hub as owner/some--name, commit {COMMIT}"
    assert (by_id.pinned_commit, by_path.pinned_commit) == (COMMIT, None)
    assert by_id.card_entries()["base_model"] == "owner/some--name"
    assert by_path.card_entries()["base_model"] == str(snapshot)


def test_a_built_in_base_is_explained(tmp_path: Path) -> None:
    nano = find_base("builtin:nano")
    assert (Path(str(nano.peft_settings()["base_model_name_or_path"])) / "config.json").is_file()
    assert nano.card_entries()["base_model"] == "builtin:nano"
    assert str(nano.card_entries()["base_found"]).startswith("comes with inlay; on the machine of the training at /")
