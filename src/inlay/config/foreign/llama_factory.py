"""LLaMA-Factory: training configs and dataset_info.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from inlay.config.foreign.imported import Imported, Keys, take_eval_fraction, take_held_out, take_train, translate
from inlay.config.foreign.read import read_keys
from inlay.config.foreign.transformers_keys import leave_idle, other_methods, take_batch, take_rest, take_same
from inlay.errors import ConfigError, unknown_name

_HERE: Final = frozenset({"file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name"})
_COLUMNS: Final = ("prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected")


def is_dataset_info(tree: Keys) -> bool:
    """Whether a file describes datasets, each by a file or a hub id."""
    return bool(tree) and all(isinstance(entry, dict) and _HERE & entry.keys() for entry in tree.values())


def dataset_info(path: Path, tree: Keys, dataset: str | None) -> Imported:
    """The data section of one entry of a dataset_info.json. Raises: ConfigError when it is not clear which one."""
    found, part = Imported("LLaMA-Factory dataset_info.json"), Imported("")
    _entry(part, _chosen(path, tree, dataset), "data.train", path.parent)
    take_train(found, [part], "file_name")
    return found


def training_config(path: Path, tree: Keys) -> Imported:
    """The settings of a training config, with those of its datasets."""
    found, left = Imported("LLaMA-Factory training config"), dict(tree)
    if (stage := left.pop("stage", "sft")) == "pt":
        found.leave("stage", stage, "data.format: text trains every token; data.columns: {text: COLUMN} names the text")
    elif stage != "sft":
        found.leave("stage", stage, "inlay trains on answers (sft), or on plain text")
    kind = left.pop("finetuning_type", "lora")
    if kind == "full":
        found.take("adapter.method", kind, "finetuning_type")
    elif kind != "lora":
        found.leave("finetuning_type", kind, other_methods())
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
        translate(found, "model.attention", "flash_attn", attention, names)
    take_batch(found, left, "per_device_train_batch_size")
    if (share := left.pop("val_size", None)) is not None:
        take_eval_fraction(found, "val_size", share)
    take_same(found, left)
    take_rest(found, left, optimizer="optim", schedule="lr_scheduler_type")
    leave_idle(found)
    return found


def _datasets(found: Imported, left: Keys, path: Path) -> None:
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
            _entry(parts[-1], _chosen(info, read_keys(info), name), "data.train", info.parent)
        if setting == "data.train":
            take_train(found, parts, key, cap)
        else:
            take_held_out(found, parts[0], key, every[0])
            for name in every[1:]:
                found.leave(key, name, "data.eval names one file; join the files first")


def _chosen(path: Path, entries: Keys, name: str | None) -> Keys:
    if name is None and len(entries) == 1:
        return dict(next(iter(entries.values())))
    if name is None:
        names = ", ".join(sorted(entries)[:20])
        raise ConfigError(f"{path}: holds {len(entries)} datasets. Say which with --dataset: {names}.")
    if name not in entries:
        raise ConfigError(f"{path}: {unknown_name('dataset', name, entries)}")
    return dict(entries[name])


def _entry(found: Imported, entry: Keys, setting: str, folder: Path) -> None:
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


def _alpaca(found: Imported, columns: Keys, ranking: bool) -> None:
    theirs = {"prompt": "instruction", "query": "input"} | ({} if ranking else {"response": "output"}) | columns
    ours = {"prompt": "instruction", "query": "input", "response": "output"}
    _columns(
        found, "preference" if ranking else "alpaca", theirs, ours, optional=() if "query" in columns else ("input",)
    )


def _sharegpt(found: Imported, columns: Keys, tags: Keys, ranking: bool) -> None:
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


def _columns(found: Imported, name: str, theirs: Keys, ours: Mapping[str, str], optional: tuple[str, ...] = ()) -> None:
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
