"""Axolotl: training configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from inlay.config.foreign.imported import Imported, Keys, take_eval_fraction, take_held_out, take_train, translate
from inlay.config.foreign.transformers_keys import leave_idle, other_methods, take_batch, take_rest, take_same
from inlay.errors import ConfigError

_AXOLOTL_TYPES: Final = {
    "alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": "messages", "completion": "text",
    "alpaca_chat.load_qa": "question_answer",
}  # fmt: skip


def training_config(tree: Keys) -> Imported:
    """The settings of a training config."""
    found, left = Imported("Axolotl config"), dict(tree)
    kind = left.pop("adapter", None) or None
    if kind is None:
        found.take("adapter.method", "full", "no adapter")
    elif kind not in ("lora", "qlora"):
        found.leave("adapter", kind, other_methods())
    four, eight = left.pop("load_in_4bit", False), left.pop("load_in_8bit", False)
    if four or kind == "qlora":
        found.take("model.quantization", "nf4", "load_in_4bit" if four else "adapter: qlora")
    elif eight:
        found.take("model.quantization", "int8", "load_in_8bit")
    linear = left.pop("lora_target_linear", False)
    if (modules := left.pop("lora_target_modules", None)) and not linear:
        if isinstance(modules, list):
            found.take("adapter.target_modules", modules, "lora_target_modules")
        else:
            found.leave("lora_target_modules", modules, "adapter.target_modules takes a list of name endings")
    elif modules:
        found.leave("lora_target_modules", modules, "every linear layer is adapted (lora_target_linear)")
    _blocks(found, left.pop("datasets"), "data.train", "datasets")
    if (tests := left.pop("test_datasets", None)) is not None:
        _blocks(found, tests, "data.eval", "test_datasets")
    if (share := left.pop("val_set_size", None)) is not None:
        if "data.eval" in found.values:
            found.leave("val_set_size", share, "test_datasets are held out")
        else:
            take_eval_fraction(found, "val_set_size", share)
    if left.pop("flash_attention", False):
        found.take("model.attention", "flash_attention_2", "flash_attention")
    elif left.pop("sdp_attention", False):
        found.take("model.attention", "sdpa", "sdp_attention")
    if (overlong := left.pop("excess_length_strategy", None)) is not None:
        translate(found, "data.overlong", "excess_length_strategy", overlong,
                   {"drop": "drop", "truncate": "cut", "raise": "error"})  # fmt: skip
    take_batch(found, left, "micro_batch_size")
    take_same(found, left)
    take_rest(found, left, optimizer="optimizer", schedule="lr_scheduler")
    leave_idle(found)
    return found


def _blocks(found: Imported, blocks: Any, setting: str, key: str) -> None:
    if not isinstance(blocks, list) or not all(isinstance(block, dict) and "path" in block for block in blocks):
        raise ConfigError(f"{key}: it must be a list of blocks with a path each.")
    parts = [part for block in blocks for part in _block({k: v for k, v in block.items() if v is not None}, key)]
    if setting == "data.train":
        if parts:
            take_train(found, parts, key)
        return
    for n, part in enumerate(parts):
        if n == 0:
            take_held_out(found, part, key, part.values["data.train"])
        else:
            found.leave(key, part.values["data.train"], "data.eval names one file; join the files first")


def _block(left: Keys, key: str) -> list[Imported]:
    """The files of one block of `datasets:`."""
    path, split = str(left.pop("path")), left.pop("split", "train")
    files = left.pop("data_files", None)
    files = files if isinstance(files, list) else [files] if files else []
    left.pop("ds_type", None)  # the name of the file says it
    is_file = bool(files) or Path(path).suffix in (".json", ".jsonl", ".csv", ".parquet", ".gz") or Path(path).exists()
    places = [str(file) for file in files or [path]]
    found = Imported("")
    name, columns = _block_format(found, left, key)
    if name:
        found.take("data.format", name, f"{key}.type")
        if columns:
            found.take("data.columns", columns, f"{key}.field_*")
    if (roles := left.pop("roles_to_train", None)) not in (None, ["assistant"]):
        found.leave(f"{key}.roles_to_train", roles, "data.role_weights says it for all files together")
    for inner, value in left.items():
        found.leave(f"{key}.{inner}", value)
    parts = []
    for place in places:
        where = place if is_file else f"hub:{path}" + ("" if split == "train" else f":{split}")
        parts.append(Imported("", {"data.train": where} | found.values, {"data.train": f"{key}.path"} | found.origins))
    parts[0].missing = found.missing
    return parts


def _block_format(found: Imported, left: Keys, key: str) -> tuple[str | None, dict[str, str]]:
    kind = left.pop("type", None)
    if isinstance(kind, dict):
        inner = {k: v for k, v in kind.items() if v is not None}
        pairs = {ours: inner.pop(f"field_{ours}", None) for ours in ("instruction", "input", "output", "system")}
        for name, value in inner.items():
            found.leave(f"{key}.type.{name}", value, "the chat template of the base writes the turns")
        return "alpaca", {ours: column for ours, column in pairs.items() if column and column != ours}
    name = _AXOLOTL_TYPES.get(str(kind))
    if name is None:
        if kind is not None:
            found.leave(f"{key}.type", kind, "the format is found from the fields")
        return None, {}
    columns = {}
    if name == "messages":
        mapping = left.pop("message_property_mappings", {})
        role = left.pop("message_field_role", None) or mapping.get("role", "role")
        content = left.pop("message_field_content", None) or mapping.get("content", "content")
        column = left.pop("field_messages", "messages")
        name = "sharegpt" if (role, content) == ("from", "value") else "messages"
        if name == "messages" and (role, content) != ("role", "content"):
            found.leave(f"{key}.message_property_mappings", {"role": role, "content": content},
                        "turns are read as role/content or from/value")  # fmt: skip
        ours = "conversations" if name == "sharegpt" else "messages"
        columns = {} if column == ours else {ours: column}
    elif name == "text" and (column := left.pop("field", "text")) != "text":
        columns = {"text": column}
    return name, columns
