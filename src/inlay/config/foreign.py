"""Configs of LLaMA-Factory and Axolotl to a config of inlay, with a list of what has no counterpart here.

Every key of the file is either taken over or listed. A key that says null is not set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from inlay.config.counterparts import COUNTERPARTS, why_left
from inlay.config.load import in_yaml, nested, parse_yaml, validate
from inlay.errors import ConfigError, unknown_name

_NO_SETTING: Final = "inlay has no such setting"
_SCHEDULES: Final = {"cosine": "cosine", "linear": "linear", "constant": "constant", "warmup_stable_decay": "wsd"}
_OPTIMIZERS: Final = {
    "adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit", "adamw_torch_8bit": "adamw_8bit",
}  # fmt: skip
_HERE: Final = frozenset({"file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name"})
_COLUMNS: Final = ("prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected")


@dataclass
class Imported:
    """What became of a foreign config."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted setting of inlay to value."""
    origins: dict[str, str] = field(default_factory=dict)
    """The setting to what it was written as."""
    missing: dict[str, str] = field(default_factory=dict)
    """What has no counterpart, and why."""

    def take(self, setting: str, value: Any, origin: str) -> None:
        self.values[setting] = value
        self.origins[setting] = origin

    def leave(self, key: str, value: Any, why: str | None = None) -> None:
        self.missing[f"{key}: {in_yaml(value)}"] = why or why_left(key) or _NO_SETTING

    def as_yaml(self, source: str) -> str:
        """The config as text; what was left out stands above it as comments."""
        lines = [f"# From {source} ({self.kind})."]
        lines += ["# Without a counterpart:"] if self.missing else ["# Everything in it has a counterpart."]
        lines += [f"#   {key}  ({why})" for key, why in self.missing.items()]
        for section, inner in nested(self.values).items():
            lines.append(f"{section}:")
            for key, value in inner.items():
                lines.append(f"  {key}: {in_yaml(value)}  # {self.origins[f'{section}.{key}']}")
        return "\n".join(lines) + "\n"


def import_config(path: Path, dataset: str | None = None) -> Imported:
    """The config that a file of another trainer means; `dataset` picks an entry of a dataset_info.json.

    Raises: ConfigError when it is not such a file, or a value in it cannot be.
    """
    tree = _read(path)
    if tree and all(isinstance(entry, dict) and _HERE & entry.keys() for entry in tree.values()):
        found, part = Imported("LLaMA-Factory dataset_info.json"), Imported("")
        _entry(part, _chosen(path, tree, dataset), "data.train", path.parent)
        _mix(found, [part], "file_name")
    elif dataset is not None:
        raise ConfigError(f"{path}: is no dataset_info.json, so there is no dataset {dataset!r} to pick. Leave it out.")
    elif "model_name_or_path" in tree or "finetuning_type" in tree:
        found = Imported("LLaMA-Factory training config")
        _llama_factory(found, tree, path)
    elif isinstance(tree.get("datasets"), list):
        found = Imported("Axolotl config")
        _axolotl(found, tree)
    else:
        raise ConfigError(
            f"{path}: neither a dataset_info.json nor a training config of LLaMA-Factory (model_name_or_path), nor an "
            "Axolotl config (datasets: [...]). Give one of these."
        )
    validate(nested(found.values), f"{path}, as an inlay config", partial=True)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if path.suffix == ".json":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}.") from None
    else:
        value = parse_yaml(text, str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path}: holds no settings. Give a config of LLaMA-Factory or Axolotl.")
    return {key: inner for key, inner in value.items() if inner is not None}


# --- LLaMA-Factory -------------------------------------------------------------------------------------------


def _chosen(path: Path, entries: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    if name is None and len(entries) == 1:
        return dict(next(iter(entries.values())))
    if name is None:
        names = ", ".join(sorted(entries)[:20])
        raise ConfigError(f"{path}: holds {len(entries)} datasets. Say which with --dataset: {names}.")
    if name not in entries:
        raise ConfigError(f"{path}: {unknown_name('dataset', name, entries)}")
    return dict(entries[name])


def _entry(found: Imported, entry: dict[str, Any], setting: str, folder: Path) -> None:
    """One entry of a dataset_info.json."""
    left = {key: value for key, value in entry.items() if value is not None}
    split = left.pop("split", "train")
    if hub := left.pop("hf_hub_url", None):
        found.take(setting, f"hub:{hub}" + ("" if split == "train" else f":{split}"), "hf_hub_url")
    elif name := left.pop("file_name", None):
        found.take(setting, str(folder / name), "file_name")
    if (count := left.pop("num_samples", None)) is not None:
        found.take("max_rows", count, "num_samples")
    columns = left.pop("columns", {})
    ranking = bool(left.pop("ranking", False))
    if left.pop("formatting", "alpaca") == "sharegpt":
        _sharegpt(found, columns, left.pop("tags", {}), ranking)
    else:
        _alpaca(found, columns, ranking)
    for key, value in left.items():
        found.leave(key, value)


def _alpaca(found: Imported, columns: dict[str, Any], ranking: bool) -> None:
    theirs = {"prompt": "instruction", "query": "input"} | ({} if ranking else {"response": "output"}) | columns
    ours = {"prompt": "instruction", "query": "input", "response": "output"}
    _columns(
        found, "preference" if ranking else "alpaca", theirs, ours, optional=() if "query" in columns else ("input",)
    )


def _sharegpt(found: Imported, columns: dict[str, Any], tags: dict[str, Any], ranking: bool) -> None:
    openai = tags.get("role_tag", "from") == "role" and tags.get("content_tag", "value") == "content"
    field_ = "conversations" if ranking or not openai else "messages"
    _columns(found, "preference" if ranking else "messages" if openai else "sharegpt",
             {"messages": "conversations"} | columns, {"messages": field_})  # fmt: skip
    known = {"role_tag": "role" if openai else "from", "content_tag": "content" if openai else "value"}
    roles = {
        "user_tag": ("user", "human"), "assistant_tag": ("assistant", "gpt"), "observation_tag": ("observation", "tool"),
        "function_tag": ("function_call",), "system_tag": ("system",),
    }  # fmt: skip
    for key, value in tags.items():
        if value != known.get(key) and value not in roles.get(key, ()):
            found.leave(f"tags.{key}", value, "name the fields and roles in the file as docs/data.md lists them")


def _columns(
    found: Imported, name: str, theirs: Mapping[str, Any], ours: Mapping[str, str], optional: tuple[str, ...] = ()
) -> None:
    """The format, and the columns that are called otherwise there than in the format."""
    found.take("data.format", name, "formatting")
    mapped = {}
    for key, column in theirs.items():
        if key not in _COLUMNS or (key == "response" and name == "preference"):
            found.leave(f"columns.{key}", column)
        elif column and ours.get(key, key) not in optional and ours.get(key, key) != column:
            mapped[ours.get(key, key)] = column
    if mapped:
        found.take("data.columns", mapped, "columns")


def _llama_factory(found: Imported, tree: dict[str, Any], path: Path) -> None:
    left = dict(tree)
    if (stage := left.pop("stage", "sft")) not in ("sft",):
        found.leave("stage", stage, "inlay trains on answers (sft) only")
    if (kind := left.pop("finetuning_type", "lora")) != "lora":
        found.leave("finetuning_type", kind, "inlay trains LoRA adapters only")
    left.pop("do_train", None)
    _datasets(found, left, path)
    bits = left.pop("quantization_bit", None)
    if bits in (4, 8):
        found.take("model.quantization", "nf4" if bits == 4 else "int8", f"quantization_bit: {bits}")
    elif bits is not None:
        found.leave("quantization_bit", bits, "inlay holds a base in 4 or 8 bits")
    target = left.pop("lora_target", None)
    if isinstance(target, str) and target != "all":
        found.take("adapter.target_modules", [name.strip() for name in target.split(",")], "lora_target")
    if left.pop("pissa_init", False):
        found.take("adapter.init", "pissa", "pissa_init")
    if "cutoff_len" in left:
        found.take("data.overlong", "cut", "as LLaMA-Factory cuts at cutoff_len")
    if (attention := left.pop("flash_attn", None)) is not None:
        names = {"auto": "auto", "fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
        _translate(found, "model.attention", "flash_attn", attention, names)
    _batch(found, left, "per_device_train_batch_size")
    if (share := left.pop("val_size", None)) is not None:
        _share(found, "val_size", share)
    _simple(found, left)
    _shared(found, left, optimizer="optim", schedule="lr_scheduler_type")


def _datasets(found: Imported, left: dict[str, Any], path: Path) -> None:
    folder = Path(left.pop("dataset_dir", "data"))
    cap = left.pop("max_samples", None)
    for key in ("mix_strategy", "interleave_probs"):
        if (value := left.pop(key, None)) not in (None, "concat"):
            found.leave(
                key, value, "a weight in data.train says how often each row is drawn, whatever the size of its file"
            )
    places = [folder / "dataset_info.json", path.parent / folder / "dataset_info.json"]
    info = next((place for place in places if place.is_file()), None)
    for key, setting in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if (names := left.pop(key, None)) is None:
            continue
        every = [name.strip() for name in (names if isinstance(names, list) else str(names).split(","))]
        if info is None:
            found.leave(key, names, f"no dataset_info.json in {folder}; set {setting} to its file")
            continue
        parts = []
        for name in every if setting == "data.train" else every[:1]:
            parts.append(Imported(""))
            _entry(parts[-1], _chosen(info, _read(info), name), "data.train", info.parent)
        if setting == "data.train":
            _mix(found, parts, key, cap)
        else:
            _held_out(found, parts[0], key, every[0])
            for name in every[1:]:
                found.leave(key, name, "data.eval names one file; join the files first")


_PARTS: Final = {"data.train": "path", "data.format": "format", "data.columns": "columns", "max_rows": "max_rows"}


def _mix(found: Imported, parts: list[Imported], key: str, cap: int | None = None) -> None:
    """One training file as it is, or several as a mixture; what all have in common stands beside it once."""
    for part in parts:
        found.missing |= part.missing
        if cap is not None:
            part.values["max_rows"] = min(cap, part.values.get("max_rows", cap))
    parts = [part for part in parts if "data.train" in part.values] or parts[:1]
    if len(parts) == 1 and ("max_rows" not in parts[0].values or "data.train" not in parts[0].values):
        for setting in ("data.train", "data.format", "data.columns"):
            if setting in parts[0].values:
                found.take(setting, parts[0].values[setting], parts[0].origins[setting])
        return
    shared = [s for s in ("data.format", "data.columns") if len({in_yaml(p.values.get(s)) for p in parts}) == 1]
    for setting in shared:
        if setting in parts[0].values:
            found.take(setting, parts[0].values[setting], parts[0].origins[setting])
    entries = [{_PARTS[s]: value for s, value in part.values.items() if s not in shared} for part in parts]
    found.take("data.train", [entry["path"] if len(entry) == 1 else entry for entry in entries], key)


def _held_out(found: Imported, part: Imported, key: str, told: Any) -> None:
    """A held-out file, where its rows are written as `data.format` and `data.columns` say."""
    found.missing |= part.missing
    mixed = "data.format" not in found.values and not part.values.get("data.columns")
    same = all(part.values.get(s) in (None, found.values.get(s)) for s in ("data.format", "data.columns"))
    if (mixed or same) and "data.train" in part.values:
        found.take("data.eval", part.values["data.train"], part.origins["data.train"] if key != "eval_dataset" else key)
    else:
        found.leave(key, told, "data.eval has the format of data.train")


# --- Axolotl -------------------------------------------------------------------------------------------------

_AXOLOTL_TYPES: Final = {
    "alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": "messages", "completion": "text",
    "alpaca_chat.load_qa": "question_answer",
}  # fmt: skip


def _axolotl(found: Imported, tree: dict[str, Any]) -> None:
    left = dict(tree)
    kind = left.pop("adapter", "none")
    if kind not in ("lora", "qlora"):
        found.leave("adapter", kind, "inlay trains LoRA adapters only")
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
            _share(found, "val_set_size", share)
    if left.pop("flash_attention", False):
        found.take("model.attention", "flash_attention_2", "flash_attention")
    elif left.pop("sdp_attention", False):
        found.take("model.attention", "sdpa", "sdp_attention")
    if (overlong := left.pop("excess_length_strategy", None)) is not None:
        _translate(found, "data.overlong", "excess_length_strategy", overlong,
                   {"drop": "drop", "truncate": "cut", "raise": "error"})  # fmt: skip
    _batch(found, left, "micro_batch_size")
    _simple(found, left)
    _shared(found, left, optimizer="optimizer", schedule="lr_scheduler")


def _blocks(found: Imported, blocks: Any, setting: str, key: str) -> None:
    if not isinstance(blocks, list) or not all(isinstance(block, dict) and "path" in block for block in blocks):
        raise ConfigError(f"{key}: it must be a list of blocks with a path each.")
    parts = [part for block in blocks for part in _block({k: v for k, v in block.items() if v is not None}, key)]
    if setting == "data.train":
        if parts:
            _mix(found, parts, key)
        return
    for n, part in enumerate(parts):
        if n == 0:
            _held_out(found, part, key, part.values["data.train"])
        else:
            found.leave(key, part.values["data.train"], "data.eval names one file; join the files first")


def _block(left: dict[str, Any], key: str) -> list[Imported]:
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


def _block_format(found: Imported, left: dict[str, Any], key: str) -> tuple[str | None, dict[str, str]]:
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


# --- both ----------------------------------------------------------------------------------------------------


_NAMED_ALIKE: Final = ("early_stopping_patience", "gradient_checkpointing")


def _simple(found: Imported, left: dict[str, Any]) -> None:
    """Keys whose value means the same here."""
    names = {theirs: one.settings[0] for theirs, one in COUNTERPARTS.items() if one.same}
    names |= {"base_model": "model.base_model"} | {name: f"train.{name}" for name in _NAMED_ALIKE}
    for theirs in [key for key in left if key in names]:
        ours, value = names[theirs], left.pop(theirs)
        if ours in found.values:
            found.leave(theirs, value, f"{ours} is already {in_yaml(found.values[ours])}, from {found.origins[ours]}")
            continue
        if ours == "train.epochs" and isinstance(value, float):
            if not value.is_integer():
                found.leave(theirs, value, "epochs are whole; use train.max_steps")
                continue
            value = int(value)
        if ours in ("adapter.dropout", "adapter.alpha") and isinstance(value, int):
            value = float(value)
        found.take(ours, value, theirs)


def _shared(found: Imported, left: dict[str, Any], *, optimizer: str, schedule: str) -> None:
    """The keys that both take from transformers; all that is then left has no counterpart."""
    if (name := left.pop(optimizer, None)) is not None:
        _translate(found, "train.optimizer", optimizer, name, _OPTIMIZERS)
    if (name := left.pop(schedule, None)) is not None:
        _translate(found, "train.schedule", schedule, name, _SCHEDULES)
    if left.get("warmup_steps") and left.get("warmup_ratio") is not None:
        found.leave("warmup_ratio", left.pop("warmup_ratio"), "warmup_steps wins")
    if left.get("max_steps", 0) in (-1, 0):
        left.pop("max_steps", None)
    for key, convert in _COMMON.items():
        if key in left:
            found.take(f"train.{key}", convert(left.pop(key)), key)
    for key in ("eval_steps", "save_steps"):
        if key in left:
            value = left.pop(key)
            if isinstance(value, int):
                found.take(f"train.{key}", value, key)
            else:
                found.leave(key, value, "a whole number of steps is needed")
    for key, value in left.items():
        found.leave(key, value)


_COMMON: Final[dict[str, Callable[[Any], Any]]] = {
    "learning_rate": float, "weight_decay": float, "max_grad_norm": float, "warmup_ratio": float,
    "warmup_steps": int, "max_steps": int, "seed": int,
}  # fmt: skip


def _batch(found: Imported, left: dict[str, Any], micro_key: str) -> None:
    """Examples per step: theirs are counted on each device."""
    micro, times = left.pop(micro_key, None), left.pop("gradient_accumulation_steps", 1)
    if micro is not None:
        found.take("train.batch_size", micro * times, f"{micro_key} × gradient_accumulation_steps, for one device")
        found.take("train.micro_batch_size", micro, micro_key)
    elif times != 1:
        found.leave("gradient_accumulation_steps", times, "train.batch_size counts the examples of a whole step")


def _share(found: Imported, key: str, value: Any) -> None:
    if isinstance(value, int | float) and 0 < value < 1:
        found.take("data.eval_fraction", float(value), key)
    else:
        found.leave(key, value, "data.eval_fraction is a share between 0 and 1; inlay always holds rows out")


def _translate(found: Imported, setting: str, key: str, value: Any, names: Mapping[str, str]) -> None:
    if value in names:
        found.take(setting, names[value], f"{key}: {value}")
    else:
        found.leave(key, value, f"{setting} takes {', '.join(dict.fromkeys(names.values()))}")
