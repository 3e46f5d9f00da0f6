"""A config of another trainer becomes one of inlay, and what has no counterpart is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from inlay import config as configs
from inlay.config.foreign.import_config import import_config
from inlay.config.load import nested
from inlay.data import read_examples
from inlay.errors import ConfigError

FACTORY: dict[str, Any] = {
    "model_name_or_path": "org/base", "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8,
    "lora_target": "all", "dataset": "support", "dataset_dir": "sets", "template": "llama3", "cutoff_len": 2048,
    "max_samples": 1000, "output_dir": "saves/a", "logging_steps": 10, "save_steps": 500, "plot_loss": True,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "val_size": 0.1,
    "quantization_bit": 4, "resume_from_checkpoint": None,
}  # fmt: skip
AXOLOTL: dict[str, Any] = {
    "base_model": "org/base", "load_in_4bit": True, "adapter": "qlora", "lora_r": 32, "lora_alpha": 16,
    "lora_dropout": 0.05, "lora_target_linear": True, "sequence_len": 4096, "sample_packing": True,
    "datasets": [
        {"path": "chat.jsonl", "type": "chat_template", "field_messages": "conversations",
         "message_property_mappings": {"role": "from", "content": "value"}, "roles_to_train": ["assistant", "user"]},
        {"path": "more.jsonl", "type": "alpaca"},
    ],
    "val_set_size": 0.05, "gradient_accumulation_steps": 4, "micro_batch_size": 2, "num_epochs": 4,
    "optimizer": "paged_adamw_8bit", "lr_scheduler": "cosine", "learning_rate": 0.0002, "warmup_steps": 10,
    "flash_attention": True, "wandb_project": None, "weight_decay": 0.0,
}  # fmt: skip


def written(folder: Path, name: str, value: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))
    return path


def test_a_training_config_of_llama_factory_takes_its_dataset_along(tmp_path: Path) -> None:
    written(tmp_path, "sets/dataset_info.json", {"support": {"file_name": "a.jsonl", "columns": {"query": "context"}}})
    found = import_config(written(tmp_path, "train.yaml", FACTORY))
    assert found.values == {
        "data.train": [{"path": str(tmp_path / "sets" / "a.jsonl"), "max_rows": 1000}], "data.format": "alpaca",
        "data.columns": {"input": "context"}, "model.quantization": "nf4", "data.overlong": "cut",
        "train.batch_size": 16, "train.micro_batch_size": 2, "data.eval_fraction": 0.1,
        "model.base_model": "org/base", "adapter.rank": 8, "data.max_length": 2048, "train.epochs": 3,
        "train.log_steps": 10, "train.schedule": "cosine", "train.learning_rate": 1e-4, "train.warmup_ratio": 0.1,
        "train.save_steps": 500, "output.folder": "saves/a",
    }  # fmt: skip
    assert [key.partition(":")[0] for key in found.missing] == ["bf16", "plot_loss", "template"]


def test_an_axolotl_config_takes_its_blocks_as_a_mixture(tmp_path: Path) -> None:
    found = import_config(written(tmp_path, "a.yml", AXOLOTL))
    assert found.values == {
        "model.quantization": "nf4", "data.eval_fraction": 0.05,
        "data.train": [{"path": "chat.jsonl", "format": "sharegpt"}, {"path": "more.jsonl", "format": "alpaca"}],
        "model.attention": "flash_attention_2", "train.batch_size": 8, "train.micro_batch_size": 2,
        "model.base_model": "org/base", "adapter.rank": 32, "adapter.alpha": 16.0, "adapter.dropout": 0.05,
        "data.max_length": 4096, "train.epochs": 4, "train.optimizer": "paged_adamw_8bit", "train.schedule": "cosine",
        "train.learning_rate": 2e-4, "train.weight_decay": 0.0, "train.warmup_steps": 10,
    }  # fmt: skip
    assert [key.partition(":")[0] for key in found.missing] == ["datasets.roles_to_train", "sample_packing"]


def test_several_datasets_of_llama_factory_are_a_mixture(tmp_path: Path) -> None:
    entries = {
        "support": {"file_name": "a.jsonl"},
        "chat": {"file_name": "b.jsonl", "formatting": "sharegpt", "columns": {"messages": "turns"}, "num_samples": 50},
        "other": {"file_name": "c.jsonl"},
        "script": {"script_url": "some.py"},
    }
    written(tmp_path, "sets/dataset_info.json", entries)
    mixed = {"dataset": "support, chat,script", "eval_dataset": "other", "max_samples": None, "val_size": None,
             "mix_strategy": "interleave_under", "interleave_probs": "0.7,0.3"}  # fmt: skip
    found = import_config(written(tmp_path, "train.yaml", FACTORY | mixed))
    folder = tmp_path / "sets"
    assert found.values["data.train"] == [
        {"path": str(folder / "a.jsonl"), "format": "alpaca"},
        {"path": str(folder / "b.jsonl"), "max_rows": 50, "format": "sharegpt", "columns": {"conversations": "turns"}},
    ]
    assert found.values["data.eval"] == str(folder / "c.jsonl")
    assert {"mix_strategy: interleave_under", "interleave_probs: 0.7,0.3", "script_url: some.py"} <= set(found.missing)
    alike = import_config(written(tmp_path, "train.yaml", FACTORY | mixed | {"dataset": "support,other"}))
    assert alike.values["data.train"] == [str(folder / "a.jsonl"), str(folder / "c.jsonl")]
    assert alike.values["data.format"] == "alpaca"


@pytest.mark.parametrize(("name", "value"), [("a.yaml", FACTORY), ("a.yaml", AXOLOTL)])
def test_every_key_is_taken_or_listed(name: str, value: dict[str, Any], tmp_path: Path) -> None:
    unknown = {"some_new_switch": True, "other_switch": 3}
    found = import_config(written(tmp_path, name, value | unknown))
    assert {"some_new_switch: true", "other_switch: 3"} <= found.missing.keys()


def test_what_is_written_is_a_config_that_loads_as_what_was_found(tmp_path: Path) -> None:
    found = import_config(written(tmp_path, "a.yaml", AXOLOTL))
    text = found.as_yaml("a.yaml")
    (tmp_path / "inlay.yaml").write_text(text)
    config = configs.load(tmp_path / "inlay.yaml")
    assert (config.adapter.rank, config.train.batch_size) == (32, 8)
    assert [file.format for file in config.data.train_files] == ["sharegpt", "alpaca"]
    assert "#   sample_packing: true  (rows are never packed into one sequence; " in text
    assert [key.partition(":")[0] for key in found.missing] == ["datasets.roles_to_train", "sample_packing"]


def test_a_key_that_is_not_taken_over_says_where_its_counterpart_is(tmp_path: Path) -> None:
    over = {"report_to": "wandb", "packing": True, "fp16": True, "new": 1, "lora_r": 8, "deepspeed": "ds.json"}
    found = import_config(written(tmp_path, "a.yaml", FACTORY | over)).missing
    assert found["report_to: wandb"].startswith("see track.trackers: a list of tensorboard")
    assert found["packing: true"].startswith("rows are never packed")
    assert found["fp16: true"].startswith("see model.dtype: ")
    assert found["new: 1"] == "inlay has no such setting"
    assert found["lora_rank: 8"] == "adapter.rank is already 8, from lora_r"


ROWS = {
    "alpaca": ({"file_name": "rows.jsonl", "columns": {"prompt": "q", "query": "c", "response": "a"}},
               {"q": "2 + 3?", "c": "", "a": "5"}),
    "sharegpt": ({"file_name": "rows.jsonl", "formatting": "sharegpt"},
                 {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]}),
    "openai": ({"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "turns"},
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}},
               {"turns": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}),
    "ranking": ({"file_name": "rows.jsonl", "formatting": "sharegpt", "ranking": True,
                 "columns": {"messages": "conversations", "chosen": "good", "rejected": "bad"}},
                {"conversations": [{"from": "human", "value": "2 + 3?"}], "good": {"from": "gpt", "value": "5"},
                 "bad": {"from": "gpt", "value": "6"}}),
    "alpaca ranking": ({"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "chosen", "rejected": "bad"}},
                       {"instruction": "2 + 3?", "input": "", "chosen": "5", "bad": "6"}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_the_rows_of_a_described_dataset_are_read_as_it_says(case: str, tmp_path: Path) -> None:
    entry, row = ROWS[case]
    written(tmp_path, "rows.jsonl", row).write_text(json.dumps(row) + "\n")
    found = import_config(written(tmp_path, "dataset_info.json", {"one": entry}))
    assert found.missing == {}
    read = read_examples(found.values["data.train"], found.values["data.format"], found.values.get("data.columns"))
    assert [(m.role, m.content, m.weight) for m in read.examples[0].messages] == [
        ("user", "2 + 3?", 0), ("assistant", "5", 1),
    ]  # fmt: skip


def test_one_of_several_datasets_must_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "dataset_info.json", {"one": {"file_name": "a.json"}, "two": {"hf_hub_url": "o/n"}})
    with pytest.raises(ConfigError, match=r"holds 2 datasets\. Say which with --dataset: one, two"):
        import_config(path)
    with pytest.raises(ConfigError, match="Did you mean 'two'"):
        import_config(path, "tow")
    assert import_config(path, "two").values["data.train"] == "hub:o/n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "rank: 8\n", "neither a dataset_info.json nor"),
        ("a.yaml", "- 1\n", "holds no settings"),
        ("a.yaml", "a: [\n", "not valid YAML"),
        ("a.json", "{", "not valid JSON"),
        ("a.yaml", "base_model: a\ndatasets: [1]\n", "a list of blocks with a path"),
        ("a.yaml", "base_model: a\nadapter: lora\nlora_r: many\ndatasets: [{path: a.jsonl}]\n", "adapter.rank"),
    ],
)
def test_what_is_no_such_config_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        import_config(tmp_path / name)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (FACTORY | {"finetuning_type": "full"}, "adapter.rank has no effect with adapter.method full"),
        ({key: value for key, value in AXOLOTL.items() if key != "adapter"}, "adapter.dropout has no effect with"),
    ],
)
def test_full_fine_tuning_is_taken_over_without_the_settings_of_an_adapter(
    tmp_path: Path, theirs: dict[str, Any], reason: str
) -> None:
    found = import_config(written(tmp_path, "full.yaml", theirs))
    assert found.values["adapter.method"] == "full"
    assert [name for name in found.values if name.startswith("adapter.")] == ["adapter.method"]
    assert any(why.startswith(reason) for why in found.missing.values())
    assert "model.quantization has no effect with adapter.method full" in found.missing.values()
    values = {name: value for name, value in found.values.items() if not name.startswith("data.")}
    assert configs.validate(nested(values), "the import", partial=True).adapter.method == "full"


@pytest.mark.parametrize(("key", "name"), [("finetuning_type", "freeze"), ("stage", "pt"), ("stage", "dpo")])
def test_a_method_or_stage_without_counterpart_names_what_there_is(tmp_path: Path, key: str, name: str) -> None:
    found = import_config(written(tmp_path, "other.yaml", FACTORY | {key: name}))
    why = found.missing[f"{key}: {name}"]
    assert {"freeze": "ia3, prompt, full", "pt": "data.format: text", "dpo": "answers (sft)"}[name] in why
