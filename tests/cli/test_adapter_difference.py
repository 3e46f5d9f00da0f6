"""inlay adapters diff: two adapters by facts, weights, behaviour and answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay import api
from inlay.cli.render.adapter_difference import difference_text
from inlay.errors import ConfigError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.reporter import PlainReporter
from program import Ended

QUIET = PlainReporter()


def test_an_adapter_and_itself_differ_in_nothing(with_run: Path, inlay: Callable[..., Ended]):
    ended = inlay("adapters", "diff", "first", "first", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["weights"]["cosine"] == pytest.approx(1.0, abs=1e-9)
    assert found["weights"]["distance"] == 0.0
    behaviour = found["behaviour"]
    assert (behaviour["kl"], behaviour["same_choice"]) == (0.0, 1.0)
    assert behaviour["equal_answers"] == behaviour["prompts"] == 8
    assert found["settings"] == {}
    assert all(a == b for a, b in found["facts"].values())


def test_two_steps_of_a_run_differ_in_step_weights_and_behaviour_and_the_page_says_what_a_cosine_is_not(
    with_run: Path, tmp_path: Path
):
    page = tmp_path / "page.html"
    found = api.diff_adapters("first@1", "first@3", answers=True, page=page, reporter=QUIET)
    shown = difference_text(found, str(page), 100)
    assert "1  |  3" in shown
    assert "first@3 against first@1" in shown
    assert f"page: {page}" in shown
    text = page.read_text(encoding="utf-8")
    assert "The cosine of weights is not similarity of behaviour" in text
    assert text.count("<svg") == 3
    assert "Answers on held-out rows" in text
    assert found.weights is not None
    assert found.weights.distance > 0
    assert found.behaviour is not None
    assert found.behaviour.kl > 0


def test_adapters_without_low_rank_factors_are_compared_in_behaviour_alone(
    with_run: Path, tmp_path: Path, inlay: Callable[..., Ended]
):
    shutil.copytree(with_run / "results" / "first" / "adapter", tmp_path / "dora")
    (tmp_path / "dora" / "manifest.json").unlink()
    state = AdapterState.read(tmp_path / "dora")
    norms = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): t.norm(dim=1) + 1.0
        for name, t in state.tensors.items()
        if "lora_B" in name
    }
    AdapterState(state.settings | {"use_dora": True}, dict(state.tensors) | norms).write(tmp_path / "dora")
    ended = inlay("adapters", "diff", "first", str(tmp_path / "dora"))
    assert ended.code == 0, ended.err
    assert "weights are not compared: DoRA scales the base's own weights" in ended.out
    assert "behaviour  KL" in ended.out


def test_rows_without_answers_are_refused(with_run: Path):
    with pytest.raises(ConfigError, match="Add --answers"):
        api.diff_adapters("first", "first", rows="data.jsonl", reporter=QUIET)
