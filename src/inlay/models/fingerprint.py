"""Fingerprint of a base: digests of its weights, and the fields of its config.json that change a number."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from inlay.file_digests import known_of, known_sha256
from inlay.typed_json import JsonObject

_BLOCK_BYTES = 1 << 23
_LONGEST = 60
_NOT_COMPUTED_WITH: Final = frozenset((
    "_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map", "dtype", "finetuning_task", "id2label",
    "initializer_range", "label2id", "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "prefix",
    "problem_type", "return_dict", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    # where a text begins, ends and is padded
    "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "pad_token_id", "sep_token_id", "suppress_tokens",
    # how a token is drawn
    "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "temperature", "top_k", "top_p", "typical_p",
))  # fmt: skip
"""Fields of a config.json that change neither logits nor gradients, or that inlay sets itself."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identity of a base: two with the same fingerprint compute the same."""

    weights: str
    """Hex digest over names, shapes, dtypes and values, however they are cut into files."""
    layout: str
    """Hex digest over names and shapes alone."""
    dtypes: str
    config: JsonObject
    """The fields of config.json that change what is computed."""

    @property
    def digest(self) -> str:
        """Hex digest over weights and config."""
        return _hex([self.weights, self.config])

    def to_json(self) -> JsonObject:
        """As it is written into run.json and the card."""
        return asdict(self)


def fingerprint(config: Path, weights: list[Path]) -> Fingerprint:
    """The fingerprint of a config.json and its safetensors files. Digests are cached by file, so each byte is read once."""
    tensors: dict[str, list[Any]] = {}
    for path in weights:
        tensors |= json.loads(known_of(path, "tensors", _tensors_of))
    return Fingerprint(
        weights=_hex(tensors),
        layout=_hex({name: shape for name, (_, shape, _) in tensors.items()}),
        dtypes=", ".join(sorted({dtype for dtype, _, _ in tensors.values()})),
        config=_computed_with(json.loads(config.read_text(encoding="utf-8"))),
    )


def digest_of_files(config: Path, weights: list[Path]) -> str:
    """Hex digest over the bytes of the files, as runs recorded it before there were fingerprints."""
    return _hex({path.name: known_sha256(path) for path in [config, *weights]})


def difference(then: JsonObject, now: Fingerprint) -> str:
    """Differences of the base `now` from the recorded fingerprint `then`, in words; empty when both compute the same.

    A field that one config.json leaves to its default and the other names is no difference.
    """
    found = []
    if then.get("weights") != now.weights:
        layout, dtypes = then.get("layout"), then.get("dtypes")
        found.append(
            "its weights have other names or shapes" if layout != now.layout
            else f"the dtype of its weights was {dtypes} and is {now.dtypes}" if dtypes != now.dtypes
            else "its weights have other values"
        )  # fmt: skip
    before, after = dict(then.get("config") or {}), now.config
    if before != after:
        before, after = _filled_in(before), _filled_in(after)
    found += [
        f"{name} was {_short(before.get(name))} and is {_short(after.get(name))}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    return "; ".join(found)


def _tensors_of(path: Path) -> str:
    """{name: [dtype, shape, digest of the values]} of a safetensors file, as JSON."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        found = {}
        for name, about in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
            begin, end = about["data_offsets"]
            file.seek(8 + size + begin)
            digest, left = hashlib.sha256(), end - begin
            while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
            found[name] = [about["dtype"], about["shape"], digest.hexdigest()[:32]]
    return json.dumps(found)


def _computed_with(config: Any) -> Any:
    if isinstance(config, (list, tuple)):
        return [_computed_with(value) for value in config]
    if isinstance(config, float) and not math.isfinite(config):  # JSON has none
        return str(config)
    if not isinstance(config, dict):
        return config
    return {name: _computed_with(value) for name, value in config.items() if name not in _NOT_COMPUTED_WITH}


def _filled_in(config: JsonObject) -> JsonObject:
    """The config with every default of this transformers; unchanged where transformers does not know it."""
    from transformers import CONFIG_MAPPING

    try:
        found = CONFIG_MAPPING[config["model_type"]].from_dict(config).to_dict()
        return dict(_computed_with(json.loads(json.dumps(found, default=str))))
    except Exception:  # noqa: BLE001 -- anything may be wrong with a config that somebody edited
        return config


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _hex(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
