"""inlay adapters merge, as a person and a script see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from program import Ended


def test_a_merge_prints_what_the_check_found_and_a_command_that_works(
    with_run: Path, tmp_path: Path, inlay: Callable[..., Ended]
) -> None:
    whole = str(tmp_path / "whole")
    ended = inlay("adapters", "merge", "first", "--out", whole)
    assert ended.code == 0, ended.err
    assert "keeps 100.0% of the gain" in ended.out
    assert ended.out.splitlines()[-1] == f"Next: inlay compare first {whole}"
    compared = inlay("compare", "first", whole, "--metrics", "loss", "--json")
    assert json.loads(compared.out)["verdict"] == "not distinguishable"


def test_a_script_gets_one_json_value_with_loss_and_share_of_the_gain(
    with_run: Path, tmp_path: Path, inlay: Callable[..., Ended]
) -> None:
    ended = inlay("adapters", "merge", "first=0.5", "--out", str(tmp_path / "half"), "--dtype", "bfloat16", "--json")
    found = json.loads(ended.out)
    assert found["parts"] == [{"name": "first", "weight": 0.5}]
    assert found["dtype"] == "bfloat16"
    assert found["losses"].keys() == {"base", "adapter", "merged"}
    assert found["kept"]["kept"] > 0.9


def test_what_cannot_be_merged_is_one_message_and_no_folder(
    with_run: Path, tmp_path: Path, inlay: Callable[..., Ended]
) -> None:
    whole = tmp_path / "whole"
    model = inlay("adapters", "merge", "builtin:nano", "--out", str(whole))
    assert model.code != 0
    assert "is a model and no adapter" in model.err
    assert "first" in inlay("adapters", "merge", "frist", "--out", str(whole)).err
    assert "the weight 'x' is no number" in inlay("adapters", "merge", "first=x", "--out", str(whole)).err
    assert not whole.exists()
