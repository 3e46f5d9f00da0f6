"""A base that is only there as a GGUF file: dequantized once into a folder of safetensors in the user's cache.

transformers' GGUF loader does it, in float32, so nothing of the file's values is lost. From then on the base is a folder
like any other: PEFT opens it, and its digest is that of the dequantized weights, however the file packs them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from inlay.errors import ModelError
from inlay.file_digests import known_sha256
from inlay.hardware.probe import first_line
from inlay.storage import cache_folder, one_at_a_time, read_manifest, require_space, sweep_abandoned, write_folder
from inlay.typed_json import JsonObject

_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
READ_SINCE: Final = (5, 24)
"""transformers that splits text as the file says; older ones split every byte-level text as GPT-2 does."""
_OWN_TOKENIZER: Final = (
    "Put the file into a folder with the model's tokenizer.json and tokenizer_config.json, and give that folder."
)


@dataclass(frozen=True, slots=True)
class Gguf:
    """The GGUF file that a base comes from."""

    file: Path
    quantization: str
    """Such as `Q4_K_M (Q4_K, Q6_K, F32)`: the kind that the file names, and the types of its tensors by size."""
    sha256: str

    def summary(self) -> str:
        """For the pre-flight block."""
        return f"dequantized to float32 from GGUF {self.quantization}"

    def to_json(self) -> JsonObject:
        """As it is written into run.json and the card."""
        return {"file": str(self.file.absolute()), "quantization": self.quantization, "sha256": self.sha256}


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path stands for: itself, or the only one in a folder without safetensors; None for others."""
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return found[0] if len(found) == 1 and not any(path.glob("*.safetensors")) else None


def dequantized(where: str, file: Path, tokenizer: Path | None) -> tuple[Path, Gguf]:
    """(model folder with the file's weights in float32, the file's facts); kept in the cache for the next time.

    `tokenizer` is a folder whose tokenizer.json, if it has one, goes before the tokenizer in the file.
    Raises: ModelError where the file would become another model than it is.
    """
    given = (
        [tokenizer / name for name in _TOKENIZER_FILES]
        if tokenizer and (tokenizer / "tokenizer.json").is_file()
        else []
    )
    given = [path for path in given if path.is_file()]
    digest = known_sha256(file)
    made_of = [digest, importlib.metadata.version("transformers"), *(known_sha256(path) for path in given)]
    final = cache_folder("gguf") / f"{file.stem}-{hashlib.sha256(' '.join(made_of).encode()).hexdigest()[:16]}"
    with one_at_a_time(final.with_name(f"{final.name}.lock")):
        if not final.is_dir():
            sweep_abandoned(final.parent)
            _require_package(where)
            reader = _opened(where, file)
            facts = Gguf(file, _quantization(reader), digest)
            size_bytes = 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)
            require_space(
                final.parent, size_bytes, f"{file.name} in float32", "set INLAY_CACHE to a folder with more room"
            )
            write_folder(final, lambda folder: _convert(where, file, reader, given, folder), {"gguf": facts.to_json()})
    return final, Gguf(file, str(read_manifest(final)["gguf"]["quantization"]), digest)


def _require_package(where: str) -> None:
    import transformers

    if find_spec("gguf") is None:
        raise ModelError(
            f'{where}: a GGUF file is read by the package gguf, which is not installed: pip install "inlay[gguf]"'
        )
    if tuple(map(int, transformers.__version__.split(".")[:2])) < READ_SINCE:
        raise ModelError(
            f"{where}: GGUF files need transformers {'.'.join(map(str, READ_SINCE))} or newer (got {transformers.__version__})."
        )


def _opened(where: str, file: Path) -> Any:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
        parts, kind = _field(reader, "split.count"), _field(reader, "general.type")
    except Exception as error:  # noqa: BLE001 -- numpy's and gguf's errors at a damaged file
        raise ModelError(
            f"{where}: {file.name} is not a whole GGUF file ({first_line(error)}). Get it again."
        ) from None
    if parts and int(parts) > 1:
        raise ModelError(
            f"{where}: {file.name} is one of {parts} parts. Join them first: llama-gguf-split --merge {file.name} WHOLE.gguf"
        )
    if kind not in (None, "model"):
        raise ModelError(f"{where}: {file.name} holds a GGUF {kind}, not a model. Give the file of the base model.")
    return reader


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _quantization(reader: Any) -> str:
    from gguf import LlamaFileType

    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    types, named = ", ".join(name for name, _ in sizes.most_common()), _field(reader, "general.file_type")
    known = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    return f"{known[named]} ({types})" if named in known else types


def _convert(where: str, file: Path, reader: Any, given: Collection[Path], folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not given:
        _require_known_tokenizer(where, reader)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
        )  # fmt: skip
        tokenizer = None if given else AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # noqa: BLE001 -- the loader's errors at a file that it does not know
        kind = _field(reader, "general.architecture")
        raise ModelError(
            f"{where}: transformers cannot read this GGUF file of a {kind} ({first_line(error)}). "
            "Get the model's safetensors form."
        ) from None
    _require_all_weights(where, reader, model, found)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model.config).pop("_model_name_or_path", None)  # general.name, which computes nothing
    model.save_pretrained(str(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    for path in given:
        shutil.copy(path, folder / path.name)


def _require_known_tokenizer(where: str, reader: Any) -> None:
    """Raises: ModelError where the loader would cut texts otherwise than the model was trained with."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, GGUF_TOKENIZER_TYPES

    kind, pre = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if kind is None or reader.get_field("tokenizer.ggml.tokens") is None:
        raise ModelError(f"{where}: the file has no tokenizer. {_OWN_TOKENIZER}")
    if kind not in GGUF_TOKENIZER_TYPES:
        raise ModelError(f"{where}: transformers cannot build the file's tokenizer, of kind {kind!r}. {_OWN_TOKENIZER}")
    if kind == "gpt2" and pre not in {*GGUF_PRE_TOKENIZER_SPLITS, "gpt-2"}:
        raise ModelError(
            f"{where}: the file's tokenizer splits texts as {pre!r}, which transformers does not know, so their ids would be "
            f"others than the model's. {_OWN_TOKENIZER}"
        )


def _require_all_weights(where: str, reader: Any, model: Any, found: Any) -> None:
    """Raises: ModelError where the loader left out weights of the file, or filled some at random."""
    if absent := sorted(found["missing_keys"]):
        raise ModelError(f"{where}: the file has no weights for {absent[0]}{_and_more(absent)}; they would be random.")
    held = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    in_file = [tensor for tensor in reader.tensors if not _is_without_effect(tensor)]
    if (count := sum(int(tensor.n_elements) for tensor in in_file)) != sum(held.values()):
        scaled = [tensor.name for tensor in in_file if tensor.name.startswith("rope_")]
        what = (
            f"such as {scaled[0]}, by which it scales its rotary positions"
            if scaled
            else "so it would be another model"
        )
        raise ModelError(
            f"{where}: transformers' GGUF loader takes {sum(held.values()):,} of the file's {count:,} weights and leaves out "
            f"others, {what}. Get the model's safetensors form."
        )


def _is_without_effect(tensor: Any) -> bool:
    return bool(tensor.name.startswith("rope_") and (tensor.data == 1).all())  # factors of one on the rotary positions


def _and_more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
