"""After full fine-tuning the model's folder can be saved, whatever the base says about how it is asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay import api
from inlay.config.sections.model import ModelConfig
from inlay.models.base import find_base, load_model
from inlay.models.generation_settings import FILE, generation_settings

HABITS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sampling": ({"do_sample": True, "temperature": 0.7, "min_p": 0.05, "typical_p": 0.9}, []),
    "sampling that is off": ({"do_sample": False, "temperature": 1e-6, "top_p": 0.6}, ["temperature", "top_p"]),
    "beams that are none": (
        {"num_beams": 1, "length_penalty": 0.6, "early_stopping": True}, ["early_stopping", "length_penalty"],
    ),
    "nonsense": ({"do_sample": True, "early_stopping": "soon", "eos_token_id": 2}, ["early_stopping"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # transformers names what it finds there
@pytest.mark.parametrize("name", HABITS)
def test_a_base_can_be_saved_and_its_habits_are_kept_as_far_as_transformers_saves_them(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    given_settings, left_out = HABITS[name]
    (base / FILE).write_text(json.dumps(given_settings))
    found = generation_settings(base)
    assert found is not None
    assert found == ({k: v for k, v in given_settings.items() if k not in left_out}, left_out)
    if name == "nonsense":  # no base of the field: transformers does not load it
        return
    model = load_model(find_base(str(base)), ModelConfig(base_model="x"), torch.float32, "cpu", "none")
    model.save_pretrained(str(tmp_path / "saved"))
    (tmp_path / "saved" / FILE).write_text(json.dumps(found[0]))
    again = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    again.generation_config.max_length = 300  # changed, so that saving is strict
    again.save_pretrained(str(tmp_path / "again"))


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 60), st.floats(0, 2), st.just("never"))
NAMES = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "num_beams", "early_stopping",
    "length_penalty", "max_new_tokens", "pad_token_id", "cache_implementation",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_whatever_a_base_says_something_valid_is_left(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "settings"
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(values))
    found = generation_settings(folder)
    assert found is not None
    kept, left_out = found
    transformers.GenerationConfig(**kept).validate(strict=True)
    assert {**kept, **{name: values[name] for name in left_out}} == values


@pytest.mark.filterwarnings("ignore")
def test_full_fine_tuning_of_a_base_with_settings_that_cannot_be_saved_says_so_first_and_ends(
    tiny_base: Path, tmp_path: Path, config_tree: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / FILE).write_text(json.dumps({"num_beams": 1, "length_penalty": 0.6, "eos_token_id": 2}))
    about = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(about | {"temperature": 0.5}))  # as older models have it
    run = api.train(
        config_tree(model={"base_model": str(base)}, train={"max_steps": 1}) | {"adapter": {"method": "full"}}
    )
    said = capsys.readouterr()
    assert (said.out + said.err).index("written without length_penalty") < (said.out + said.err).index("pre-flight")
    assert json.loads((run.model / FILE).read_text())["num_beams"] == 1
    transformers.AutoModelForCausalLM.from_pretrained(str(run.model))
