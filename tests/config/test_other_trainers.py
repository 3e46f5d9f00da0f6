"""Names of other trainers are answered with those of inlay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from inlay.cli.render.settings import explanation_text
from inlay.config import load, parse_assignment
from inlay.config.foreign.import_config import import_config
from inlay.config.load import setting_paths
from inlay.config.other_trainers import COUNTERPARTS, Counterpart, counterpart, in_words
from inlay.config.render import explain
from inlay.config.settings import Config
from inlay.errors import ConfigError

LEAST: dict[str, Any] = {"model": {"base_model": "m"}, "data": {"train": "d.jsonl"}}


def refusal(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    return str(caught.value)


def test_every_setting_that_the_table_names_exists() -> None:
    sections = "|".join(name for name in Config.model_fields if name != "preset")
    for name, found in COUNTERPARTS.items():
        told = {*found.settings, *re.findall(rf"\b(?:{sections})\.[a-z_]+", found.differs)}
        assert told <= set(setting_paths()), name
        assert found.settings or found.differs, name
        assert not found.same or len(found.settings) == 1, name
        assert not found.differs.endswith("."), name


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("gradient_accumulation_steps", "train.batch_size"),
        ("per_device_train_batch_size", "train.batch_size"),
        ("num_train_epochs", "train.epochs"),
        ("lr", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("fp16", "model.dtype"),
        ("bf16", "model.dtype"),
        ("load_in_4bit", "model.quantization"),
        ("save_total_limit", "train.keep_checkpoints"),
        ("r", "adapter.rank"),
        ("lora_alpha", "adapter.alpha"),
        ("report_to", "track.trackers"),
        ("device_map", "model.device"),
        ("max_seq_length", "data.max_length"),
        ("cutoff_len", "data.max_length"),
        ("flash_attn", "model.attention"),
        ("--num-train-epochs", "train.epochs"),
        ("train.lr", "train.learning_rate"),
        ("neftune_noise_alpha", None),
        ("packing", None),
        ("deepspeed", None),
    ],
)
def test_explain_knows_the_names_of_other_trainers(name: str, first: str | None) -> None:
    rows = explain(name)
    assert rows[0]["setting"] == first
    shown = explanation_text(rows, 10_000)
    assert name == "learning_rate" or shown.startswith(in_words(name, COUNTERPARTS[_tail(name)]))
    assert (first is None) == ("has no counterpart here: " in shown)


def _tail(name: str) -> str:
    return name.rpartition(".")[2].lstrip("-").replace("-", "_")


def test_a_setting_of_our_own_goes_before_a_name_of_others() -> None:
    assert [row["setting"] for row in explain("seed")] == ["train.seed", "generation.seed"]
    assert "elsewhere" not in explain("model.dtype")[0]
    assert explain("dtype")[0]["elsewhere"].startswith("dtype is model.dtype here: ")


def test_the_sentence_names_what_is_here_and_what_differs() -> None:
    assert in_words("train.lr", Counterpart(("train.learning_rate",))) == "lr is train.learning_rate here"
    assert in_words("a", Counterpart(("b.c", "b.d", "b.e"), "why")) == "a is b.c, b.d and b.e here: why"
    assert in_words("a", Counterpart((), "why")) == "a has no counterpart here: why"
    assert counterpart("no_such_name") is None


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("train.lr=1e-4", "unknown setting 'train.lr'. Did you mean 'train.learning_rate'?"),
        ("num_train_epochs=3", "Did you mean 'train.epochs'? num_train_epochs is train.epochs here: whole epochs"),
        ("train.gradient_accumulation_steps=4", "Did you mean 'train.batch_size' or 'train.micro_batch_size'?"),
        ("adapter.r=8", "Did you mean 'adapter.rank'?"),
        ("train.packing=true", "unknown setting 'train.packing'. packing has no counterpart here: rows are never packed"),
        ("gradient_acumulation_steps=4", "Did you mean 'gradient_accumulation_steps'? gradient_accumulation_steps is train."),
    ],
)  # fmt: skip
def test_an_assignment_under_a_name_of_another_trainer_is_answered_with_ours(assignment: str, part: str) -> None:
    text = refusal(parse_assignment, assignment)
    assert part in text
    assert "\n" not in text


def test_a_config_under_names_of_another_trainer_is_answered_with_ours(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("num_train_epochs: 3\nlora_r: 8\npacking: true\nmodel: {base_model: m}\n")
    lines = refusal(load, tmp_path / "c.yaml").split("\n")
    assert [line.removeprefix(f"{tmp_path / 'c.yaml'}: ")[:44] for line in lines[:3]] == [
        "unknown setting 'num_train_epochs'. Did you ", "unknown setting 'lora_r'. Did you mean 'adap",
        "unknown setting 'packing'. packing has no co",
    ]  # fmt: skip
    assert "Did you mean 'train.learning_rate'?" in refusal(load, tree=LEAST | {"train": {"lr": 1e-4}})


@pytest.mark.parametrize(
    "text", ["model_name_or_path: a\nlora_rank: 8\n", "base_model: a\nadapter: lora\ndatasets: [{path: a.jsonl}]\n"]
)
def test_a_config_of_another_trainer_is_sent_to_config_import(text: str, tmp_path: Path) -> None:
    path = tmp_path / "their.yaml"
    path.write_text(text)
    said = refusal(load, path)
    command = f"inlay config import {path} --out {tmp_path / 'their.inlay.yaml'}"
    assert said == f"{path}: is a config of another trainer. Turn it into one of inlay: {command}"
    assert import_config(path).values["model.base_model"] == "a"


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("trian", "unknown setting or section 'trian'. Did you mean 'train'?"),
        ("generations", "Did you mean 'generation'?"),
        ("temprature", "Did you mean 'generation.temperature'?"),
        ("curriculum", "Settings whose description has the word: train.order"),
        ("zzz", "Look them up with: inlay config explain"),
    ],
)
def test_explain_of_a_word_that_is_no_setting_names_what_is_near(word: str, part: str) -> None:
    assert part in refusal(explain, word)
