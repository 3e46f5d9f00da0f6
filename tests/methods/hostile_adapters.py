"""Folders that claim to hold an adapter of the tiny Llama, each damaged or made to harm in its own way."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model.model.layers.0."
Q_A, Q_B = f"{ROOT}self_attn.q_proj.lora_A.weight", f"{ROOT}self_attn.q_proj.lora_B.weight"
BOMB = r"(([a-z_.0-9])*)*!"
Damage = Callable[[Path], Any]


def honest_settings(**changed: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "owner/base", "r": 2, "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj"], "bias": "none", "inference_mode": True, "lora_dropout": 0.0,
    } | changed  # fmt: skip


def honest_tensors(rank: int = 2) -> dict[str, torch.Tensor]:
    """Of q_proj (16 to 16) and down_proj (24 to 16) in both layers."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in (0, 1):
        for name, inputs, outputs in (("self_attn.q_proj", WIDTH, WIDTH), ("mlp.down_proj", MLP, WIDTH)):
            place = f"base_model.model.model.layers.{layer}.{name}"
            found[f"{place}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.1
            found[f"{place}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.1
    return found


WIDTH, MLP = 16, 24


def write(folder: Path, settings: Any = None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(honest_settings() if settings is None else settings))
    (folder / WEIGHTS).write_bytes(save(honest_tensors() if tensors is None else tensors))


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: Any = 0, end: Any = 128, shape: Any = (2, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, end]}


def _settings(**changed: Any) -> Damage:
    return lambda folder: write(folder, honest_settings(**changed))


def _text(text: str | bytes) -> Damage:
    return lambda folder: (folder / SETTINGS).write_bytes(text if isinstance(text, bytes) else text.encode())


def _weights(data: bytes) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes(data)


def _header(header: Any, data: bytes = bytes(128), length: int | None = None) -> Damage:
    return _weights(file_of(header, data, length))


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any], **settings: Any) -> Damage:
    def act(folder: Path) -> None:
        tensors = honest_tensors()
        changed = change(tensors)
        write(folder, honest_settings(**settings), changed if isinstance(changed, dict) else tensors)

    return act


def _without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _instead(name: str, other: str, data: bytes) -> Damage:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        (folder / other).write_bytes(data)

    return act


def _linked(name: str, target: str | None = None) -> Damage:
    """A link out of the folder: to a copy of the honest file, or to `target`."""

    def act(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(target or outside)

    return act


def _special(name: str, make: Callable[[Path], Any]) -> Damage:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return act


def _sparse(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def _all_nan(value: float, name: str = Q_B) -> Damage:
    return _tensors(lambda tensors: tensors[name].view(-1)[-1:].fill_(value))


def _named(name: str) -> Damage:
    return _tensors(lambda tensors: tensors.update({name: torch.zeros(2, 16)}))


def _card(**entries: Any) -> Damage:
    return lambda folder: (folder / "card.json").write_text(json.dumps(entries))


def _many(count: int) -> Damage:
    def act(folder: Path) -> None:
        names = (f'"base_model.model.m{n}.lora_A.weight":' for n in range(count))
        entries = (
            f'{{"dtype":"F32","shape":[1],"data_offsets":[{4 * n},{4 * n + 4}]}}' for n in range(count)
        )  # fmt: skip
        text = "{" + ",".join(name + one for name, one in zip(names, entries, strict=True)) + "}"
        (folder / WEIGHTS).write_bytes(file_of(text.encode(), bytes(4 * count)))

    return act


def _large_rank(rank: int) -> Damage:
    return lambda folder: write(folder, honest_settings(r=rank), honest_tensors(rank))


def _swapped(tensors: dict[str, torch.Tensor]) -> None:
    tensors[Q_A], tensors[Q_B] = tensors[Q_B], tensors[Q_A]


_HONEST = save(honest_tensors())
_OFF_BY_DEFAULT = {
    "modules_to_save": ["lm_head"], "megatron_config": {"a": 1}, "trainable_token_indices": [1], "velora_config": {"a": 1},
    "alora_invocation_tokens": [1], "use_qalora": True, "monteclora_config": {"a": 1}, "layer_replication": [[0, 1]],
    "lora_bias": True, "use_bdlora": {"a": 1}, "arrow_config": {"a": 1}, "kasa_config": {"a": 1}, "enable_lora": [True],
    "merge_weights": True,
}  # fmt: skip
_VALUES: dict[str, list[Any]] = {
    "r": [0, -1, 10**6, True, "2", 2.0, None, [2], 10**40, 3],
    "lora_alpha": [0, -1, 1e30, "16", True, None, [1], {}, 10**400],
    "lora_dropout": [1.0, -0.1, "0", True, None],
    "bias": ["some", True, 1, ["all"], None],
    "use_rslora": [1, "true", None, []],
    "use_dora": [1, "true", {}],
    "fan_in_fan_out": ["yes", 1],
    "target_modules": [5, {"a": 1}, [1], [["q_proj"]], ["q_proj"], ["nothing"]],
    "exclude_modules": [5, [None], {"a": "b"}],
    "target_parameters": ["x", [1], {"a": 1}],
    "rank_pattern": [[1], {"q_proj": "4"}, {"q_proj": 0}, {"q_proj": True}, {"q_proj": 10**6}, "q_proj"],
    "alpha_pattern": [[1], {"q_proj": "4"}, {"q_proj": 0}, {"q_proj": 1e9}, {"q_proj": None}, "q_proj"],
    "layers_to_transform": ["0", [True], {"a": 1}, [0.5]],
    "layers_pattern": [5, [1]],
    "task_type": ["SEQ_CLS", "FEATURE_EXTRACTION", 5, ["CAUSAL_LM"]],
    "peft_type": ["VERA", "ADALORA", "FULL", None, 5, ["LORA"], {"LORA": 1}],
    "init_lora_weights": ["pissa", "pissa_niter_4", "PiSSA", "olora", "corda", "loftq", "lora_ga", "new_trick", 5, ["a"]],
}  # fmt: skip

CASES: dict[str, Damage] = {
    # the files
    "no settings": _without(SETTINGS),
    "no weights": _without(WEIGHTS),
    "settings are a link": _linked(SETTINGS),
    "weights are a link": _linked(WEIGHTS),
    "settings link to a device": _linked(SETTINGS, "/dev/zero"),
    "weights link to a device": _linked(WEIGHTS, "/dev/zero"),
    "settings link nowhere": _linked(SETTINGS, "nowhere"),
    "weights link to themselves": _linked(WEIGHTS, WEIGHTS),
    "settings link to a file with passwords": _linked(SETTINGS, "/etc/passwd"),
    "settings are a FIFO": _special(SETTINGS, os.mkfifo),
    "weights are a FIFO": _special(WEIGHTS, os.mkfifo),
    "the card is a FIFO": lambda folder: os.mkfifo(folder / "card.json"),
    "the card is a link": lambda folder: (folder / "card.json").symlink_to("/etc/passwd"),
    "settings are a folder": _special(SETTINGS, Path.mkdir),
    "weights are a folder": _special(WEIGHTS, Path.mkdir),
    "a pickle in place of weights": _instead(WEIGHTS, "adapter_model.bin", b"\x80\x04cos\nsystem\n."),
    "a .pt file in place of weights": _instead(WEIGHTS, "adapter_model.pt", b"PK\x03\x04"),
    "a .pth file in place of weights": _instead(WEIGHTS, "adapter_model.pth", b"PK\x03\x04"),
    "a zip in place of weights": _instead(WEIGHTS, "adapter.zip", b"PK\x03\x04"),
    "a tar in place of settings": _instead(SETTINGS, "adapter.tar.gz", b"\x1f\x8b"),
    "a zip by the name of weights": _weights(b"PK\x03\x04" + bytes(200)),
    "a pickle by the name of weights": _weights(b"\x80\x04\x95\x1d\x00\x00\x00\x00" + b"\x00cos\nsystem\n."),
    "a gzip by the name of weights": _weights(b"\x1f\x8b\x08\x08" + b"\xff" * 60),
    "GGUF by the name of weights": _weights(b"GGUF\x03\x00\x00\x00" + bytes(60)),
    "a pointer of Git LFS": _weights(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "settings of a gigabyte": _sparse(SETTINGS, 2**30),
    "settings one byte too large": lambda folder: (folder / SETTINGS).write_text(
        json.dumps(honest_settings()).ljust(256 * 1024 + 1)
    ),
    "a card of a gigabyte": lambda folder: [_card(a=1)(folder), os.truncate(folder / "card.json", 2**30)],
    "weights continued to a terabyte": _sparse(WEIGHTS, 2**40),
    "weights one byte longer": _weights(_HONEST + b"\0"),
    "weights one byte shorter": _weights(_HONEST[:-1]),
    # JSON
    "settings are empty": _text(""),
    "settings are a list": _text("[1]"),
    "settings are null": _text("null"),
    "settings are cut off": _text(json.dumps(honest_settings())[:-5]),
    "settings go on": _text(json.dumps(honest_settings()) + "{}"),
    "settings in Latin-1": _text(b'{"peft_type": "LORA\xe9"}'),
    "settings in UTF-16": _text(json.dumps(honest_settings()).encode("utf-16")),
    "a key twice": _text('{"peft_type": "LORA", "r": 2, "r": 200}'),
    "a key twice, within": _text('{"peft_type": "LORA", "rank_pattern": {"a": 1, "a": 2}}'),
    "40,000 keys twice": _text("{" + ",".join(f'"{n}":1' for n in [*range(9000), *range(9000)]) + "}"),
    "NaN": _text('{"peft_type": "LORA", "lora_alpha": NaN}'),
    "infinity": _text('{"peft_type": "LORA", "lora_alpha": Infinity}'),
    "a number beyond floats": _text('{"peft_type": "LORA", "lora_alpha": 1e999}'),
    "a number of 9,000 digits": _text('{"peft_type": "LORA", "r": ' + "9" * 9000 + "}"),
    "100,000 brackets": _text('{"peft_type": ' + "[" * 100_000),
    "100,000 objects in each other": _text('{"a":' * 40_000 + "1" + "}" * 40_000),
    "the settings' newline in a key": _text('{"peft_type": "LORA", "a\\nb\\u001b[31m": 1}'),
    # settings
    "auto_map": _settings(auto_map={"AutoModel": "evil.Model"}),
    "an unknown setting that is off": _settings(use_new_trick=False),
    "an unknown setting": _settings(use_new_trick=1),
    "9,000 unknown settings": _settings(**{f"key{n}": n for n in range(9000)}),
    **{f"uses {name}": _settings(**{name: value}) for name, value in _OFF_BY_DEFAULT.items()},
    **{
        f"{name} is {str(value)[:40]!r} ({type(value).__name__})": _settings(**{name: value})
        for name, values in _VALUES.items()
        for value in values
    },
    "two targets tied": lambda folder: write(
        folder, honest_settings(ensure_weight_tying=True), {ROOT + "e.lora_embedding_A": torch.ones(2, 8),
                                                            ROOT + "e.lora_embedding_B": torch.ones(8, 2)},
    ),
    # patterns
    "an endless alpha_pattern": _settings(alpha_pattern={BOMB: 4}),
    "an alpha for all that ends so": _settings(alpha_pattern={".*q_proj": 4}),
    "an alpha by alternatives": _settings(alpha_pattern={"q_proj|down_proj": 4}),
    "an invalid alpha_pattern": _settings(alpha_pattern={"(q_proj": 4}),
    "an alpha for no name": _settings(alpha_pattern={"": 4}),
    # the header of the tensors
    "no bytes": _weights(b""),
    "seven bytes": _weights(b"\2\0\0\0\0\0\0"),
    "a header of 2^63 bytes": _header({Q_A: entry()}, length=2**63),
    "a header of all 64 bits": _header({Q_A: entry()}, length=2**64 - 1),
    "a header longer than the file": _header({Q_A: entry()}, length=10**6),
    "a header shorter than it is": _header({Q_A: entry()}, length=20),
    "a header of no bytes": _header(b""),
    "an empty header": _header({}),
    "only metadata": _header({"__metadata__": {"format": "pt"}}, b""),
    "metadata twice": _header(b'{"__metadata__":{},"__metadata__":{}}', b""),
    "metadata as a text": _header({"__metadata__": "pt", Q_A: entry()}),
    "a megabyte of metadata": _header({"__metadata__": {"a": "b" * 2**20}, Q_A: entry()}),
    "a header that is a list": _header([1, 2]),
    "a header that is no JSON": _header(b"{" * 50),
    "a header that is not UTF-8": _header(b"\xff" * 50),
    "a header in brackets": _header(b'{"a":' + b"[" * 100_000),
    "a header of lists": _header(b'{"a":[' + b"[]," * 10**6 + b"[]]}"),
    "a tensor twice": _header((f'{{"{Q_A}": ' + json.dumps(entry()) + f', "{Q_A}": ' + json.dumps(entry()) + "}").encode()),
    "an entry twice": _header(f'{{"{Q_A}": {{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}}}'.encode()),
    "text after the header": _header(json.dumps({Q_A: entry()}).encode() + b" x"),
    "a comma at the end": _header(json.dumps({Q_A: entry()}).encode()[:-1] + b",}"),
    "overlapping tensors": _header({Q_A: entry(), Q_B: entry(64, 192)}, bytes(192)),
    "the same bytes for two": _header({Q_A: entry(), Q_B: entry(0, 128, (16, 2))}),
    "a gap between tensors": _header({Q_A: entry(), Q_B: entry(136, 264, (16, 2))}, bytes(264)),
    "bytes before the first": _header({Q_A: entry(8, 136)}, bytes(136)),
    "bytes after the last": _header({Q_A: entry()}, bytes(4096)),
    "offsets beyond the file": _header({Q_A: entry(0, 2**62, (2**30, 2**30))}),
    "offsets backwards": _header({Q_A: entry(128, 0)}),
    "offsets below zero": _header({Q_A: entry(-128, 0)}),
    "offsets as texts": _header({Q_A: entry("0", "128")}),
    "offsets as fractions": _header({Q_A: entry(0.0, 128.0)}),
    "offsets as truths": _header({Q_A: entry(False, True, (1,))}, b"\0"),
    "three offsets": _header({Q_A: {"dtype": "F32", "shape": [2, 16], "data_offsets": [0, 128, 256]}}),
    "no offsets": _header({Q_A: {"dtype": "F32", "shape": [2, 16]}}),
    "one key more": _header({Q_A: entry() | {"strides": [16, 1]}}),
    "an entry that is a list": _header({Q_A: [0, 128]}),
    "a shape of 2^63": _header({Q_A: entry(shape=(2**63, 1))}),
    "a shape whose product wraps around": _header({Q_A: entry(shape=(2**33, 2**33))}),
    "a shape below zero": _header({Q_A: entry(shape=(-2, -16))}),
    "a shape of nothing": _header({Q_A: entry(0, 0, (0, 16))}, b""),
    "a shape with a truth": _header({Q_A: entry(0, 64, (True, 16))}, bytes(64)),
    "a shape as a text": _header({Q_A: entry(shape="2x16")}),
    "a scalar": _header({Q_A: entry(0, 4, ())}, bytes(4)),
    "six dimensions": _header({Q_A: entry(shape=(1, 1, 1, 1, 2, 16))}),
    "a thousand dimensions": _header({Q_A: entry(shape=(1,) * 1000)}),
    "F64": _header({Q_A: entry(0, 256, dtype="F64")}, bytes(256)),
    "I64": _header({Q_A: entry(0, 256, dtype="I64")}, bytes(256)),
    "F8": _header({Q_A: entry(0, 32, dtype="F8_E4M3")}, bytes(32)),
    "BOOL": _header({Q_A: entry(0, 32, dtype="BOOL")}, bytes(32)),
    "a dtype of no name": _header({Q_A: entry(dtype="pickle")}),
    "100,000 tensors": _many(100_000),
    # names
    "a name with ..": _named("base_model.model.../../etc.lora_A.weight"),
    "a name with an empty part": _named("base_model.model.model..q_proj.lora_A.weight"),
    "a name with a slash": _named("base_model.model.model/layers.lora_A.weight"),
    "a name with a NUL": _named("base_model.model.model\0.lora_A.weight"),
    "a name with escapes of a terminal": _named("base_model.model.\x1b[31mred.lora_A.weight"),
    "a name of 10,000 letters": _named("base_model.model." + "a" * 10_000 + ".lora_A.weight"),
    "a name of 300 parts": _named("base_model.model" + ".a" * 300 + ".lora_A.weight"),
    "a name of no adapter": _named("model.layers.0.self_attn.q_proj.weight"),
    "a name in another alphabet": _named("base_model.model.м.lora_A.weight"),
    "a tensor of another method": _named(f"{ROOT}self_attn.q_proj.ia3_l"),
    "a start beside A": _named(f"{ROOT}self_attn.q_proj.lora_A.inlay_start.weight"),
    "a private attribute": _named("base_model.model.__class__.__init__.lora_C.weight"),
    # the layers
    "no A": _tensors(lambda tensors: tensors.pop(Q_A)),
    "no B": _tensors(lambda tensors: tensors.pop(Q_B)),
    "a layer without both": _tensors(lambda tensors: [tensors.pop(Q_A), tensors.pop(Q_B)]),
    "A and B swapped": _tensors(_swapped),
    "A transposed": _tensors(lambda tensors: tensors.update({Q_A: tensors[Q_A].T.contiguous()})),
    "B of another rank": _tensors(lambda tensors: tensors.update({Q_B: torch.zeros(WIDTH, 3)})),
    "A for other inputs": _tensors(lambda tensors: tensors.update({Q_A: torch.zeros(2, WIDTH + 1)})),
    "B for other outputs": _tensors(lambda tensors: tensors.update({Q_B: torch.zeros(WIDTH + 1, 2)})),
    "A of three dimensions": _tensors(lambda tensors: tensors.update({Q_A: torch.zeros(2, WIDTH, 1)})),
    "A of one dimension": _tensors(lambda tensors: tensors.update({Q_A: torch.zeros(2)})),
    "a layer that is not there": _tensors(
        lambda tensors: {name.replace("layers.1", "layers.9"): tensor for name, tensor in tensors.items()}
    ),
    "a layer that is no linear one": _tensors(
        lambda tensors: {name.replace("self_attn.q_proj", "input_layernorm"): tensor for name, tensor in tensors.items()},
        target_modules=["input_layernorm", "down_proj"],
    ),
    "a whole block as a layer": _tensors(
        lambda tensors: {name.replace(".self_attn.q_proj", ""): tensor for name, tensor in tensors.items()},
        target_modules=["0", "1", "down_proj"],
    ),
    "layers that the settings do not name": _settings(target_modules=["down_proj"]),
    "more layers in the settings": _settings(target_modules=["q_proj", "k_proj", "down_proj"]),
    "another base's width": _tensors(
        lambda tensors: {name: torch.zeros([2 * n if n > 2 else n for n in t.shape]) for name, t in tensors.items()}
    ),
    "a rank of 513": _large_rank(513),
    "DoRA without magnitudes": _settings(use_dora=True),
    "magnitudes without DoRA": _tensors(
        lambda tensors: tensors.update({f"{ROOT}self_attn.q_proj.lora_magnitude_vector": torch.ones(WIDTH)})
    ),
    "a weight of the base beside": _named(f"{ROOT}self_attn.k_proj.weight"),
    "a bias that is not there": _tensors(
        lambda tensors: tensors.update({f"{ROOT}self_attn.q_proj.bias": torch.ones(WIDTH)}), bias="all"
    ),
    "experts that are not there": _settings(target_parameters=["mlp.experts.gate_up_proj"], lora_dropout=0.5),
    # values
    "NaN in A": _all_nan(float("nan"), Q_A),
    "NaN in B": _all_nan(float("nan")),
    "infinity in B": _all_nan(float("inf")),
    "minus infinity in B": _all_nan(float("-inf")),
    "NaN in float16": _tensors(lambda tensors: {n: (t.half() * float("nan")) for n, t in tensors.items()}),
    "infinity in bfloat16": _tensors(lambda tensors: {n: (t / 0).bfloat16() for n, t in tensors.items()}),
    # other methods
    "IA3 with A and B": _settings(peft_type="IA3"),
    "IA3 with ranks": lambda folder: write(folder, {"peft_type": "IA3", "target_modules": ["q_proj"]}),
    "IA3 of another width": lambda folder: write(
        folder, {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []},
        {f"base_model.model.model.layers.{n}.self_attn.q_proj.ia3_l": torch.ones(WIDTH + 1, 1) for n in (0, 1)},
    ),
    "prompt tuning without a prompt": lambda folder: write(folder, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}),
    "prompt tuning of other rows": lambda folder: write(
        folder, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5}, {"prompt_embeddings": torch.ones(4, WIDTH)}
    ),
    "prompt tuning of another width": lambda folder: write(
        folder, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, {"prompt_embeddings": torch.ones(4, WIDTH + 1)}
    ),
    "prompt tuning of 10^12 tokens": lambda folder: write(
        folder, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**12}, {"prompt_embeddings": torch.ones(4, WIDTH)}
    ),
    # cards
    "a card that is no object": lambda folder: (folder / "card.json").write_text("[1]"),
    "a card with names that are none": _card(base_digest="0" * 64, module_names={"model": 5}),
    "a card with a list of names": _card(base_digest="0" * 64, module_names=["model"]),
    "a card with names of another base": _card(base_digest="0" * 64, module_names={"elsewhere": "model"}),
    "a card of another base": _card(base_digest="1" * 64),
    "a card with a number as digest": _card(base_digest=5),
}  # fmt: skip
