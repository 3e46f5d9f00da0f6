"""Finding, checking and loading the frozen base and its tokenizer. Safetensors only, no remote code."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from inlay.config.sections.model import ModelConfig
from inlay.errors import ModelError, count_shown, nearest
from inlay.hardware.probe import pick_matmul_precision
from inlay.models.attention import refuse_attention
from inlay.models.fingerprint import Fingerprint, difference, digest_of_files, fingerprint
from inlay.models.generation_settings import without_sampling
from inlay.models.gguf import Gguf, dequantized, gguf_file
from inlay.models.hub import from_hub
from inlay.models.memory_mapped import paged_out
from inlay.models.quantization import forbid_cpu_repack
from inlay.models.sentencepiece_file import refuse_other_ids, require_sentencepiece
from inlay.models.unused_weights import refuse_unused
from inlay.storage import path_exists
from inlay.typed_json import JsonObject

BUILTIN = {"builtin:nano": "builtin/nano"}
SHORT_IDS = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt")},
    "distilgpt2": "distilbert/distilgpt2",
    "ctrl": "Salesforce/ctrl",
}
"""Short ids of the hub from before models had owners -> the ids of today."""
_SETTINGS = "adapter_config.json"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A base model on the local disk."""

    name: str
    """As the user wrote it."""
    folder: Path
    gguf: Gguf | None = None
    """The GGUF file whose weights the folder has, dequantized; None for a base that is safetensors itself."""

    def digest(self) -> str:
        """Hex digest over weights and config: two bases with the same digest compute the same."""
        return self.fingerprint().digest

    def fingerprint(self) -> Fingerprint:
        """Digests of its weights and of the fields of config.json that change a number."""
        return fingerprint(self.folder / "config.json", weight_files(self.folder))

    def difference(self, record: JsonObject) -> str:
        """Differences from the base in a run's record or an adapter's card, in words; empty when both compute the same.

        Records written before there were fingerprints have a digest over whole files, which must equal that of these.
        """
        recorded = record.get("base_digest")
        if recorded is None:
            return ""
        if then := record.get("base_fingerprint"):
            return difference(then, self.fingerprint())
        files = weight_files(self.folder), _all_weight_files(self.folder)
        if recorded in [self.digest(), *(digest_of_files(self.folder / "config.json", some) for some in files)]:
            return ""
        return "the bytes of its config.json or *.safetensors, which is all that was recorded then, differ"

    @property
    def hub_id(self) -> str | None:
        """owner/name of a base in the hub's cache, None for any other folder."""
        kind, _, rest = self.folder.parent.parent.name.partition("--")
        known = kind == "models" and self.folder.parent.name == "snapshots"
        return rest.replace("--", "/", 1) if known and rest else None

    @property
    def commit(self) -> str | None:
        """Commit of the hub repository; None for a base that is not from the hub."""
        return self.folder.name if self.hub_id else None

    def peft_settings(self) -> dict[str, str | None]:
        """Entries of an adapter's PEFT settings by which other programs find this base from any folder."""
        name = self.hub_id or str(self.folder.absolute())
        return {"base_model_name_or_path": name, "revision": self.commit}

    def card_entries(self) -> dict[str, str | None]:
        """Entries of an adapter's card: the base's name, hub id and commit, and where it is found."""
        local = None if self.hub_id else self.folder.absolute()
        found = f"on the hub as {self.hub_id}, commit {self.commit}"
        if self.name in BUILTIN:
            found = f"comes with inlay; on the machine of the training at {local}"
        elif self.gguf:
            found = (
                f"dequantized to {local} from {self.gguf.file.absolute()}; elsewhere give inlay that file as the base"
            )
        elif local:
            found = f"a folder of the machine of the training; elsewhere put the base at {local}, or its new place into {_SETTINGS}"
        named = self.name if self.pinned_commit or self.name in BUILTIN else str(self.folder.absolute())
        if self.gguf:
            named = os.path.abspath(os.path.expanduser(self.name))  # noqa: PTH100, PTH111 -- as in find_base
        return {"base_model": named, "base_hub_id": self.hub_id, "base_hub_commit": self.commit, "base_found": found}

    @property
    def pinned_commit(self) -> str | None:
        """The `revision` with which `find_base` finds this base again by its name."""
        return self.commit if self.name == self.hub_id else None


def find_base(name: str, revision: str | None = None, *, weights: bool = True) -> BaseRef:
    """The base of that name on the local disk; one from the hub is downloaded if it is not there.

    A short id of `SHORT_IDS` becomes the full id. Without `weights` only config and tokenizer are required.

    Raises: ModelError naming what is missing and the remedy.
    """
    if name.startswith("builtin:"):
        if name not in BUILTIN:
            raise ModelError(f"--model {name}: no such built-in model. Built in: {', '.join(BUILTIN)}.")
        return _checked(BaseRef(name, Path(str(resources.files("inlay"))) / BUILTIN[name]), weights)
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 -- Path.expanduser() raises for a user without a home
    if revision is not None and path_exists(folder):
        raise ModelError(f"model.revision {revision}: has no effect on the local folder {name}. Leave it out.")
    if path_exists(folder) and (file := gguf_file(folder)):
        made, gguf = dequantized(f"--model {name}", file, folder if folder.is_dir() else None)
        return _checked(BaseRef(name, made, gguf), weights)
    if path_exists(folder) and folder.is_dir():
        return _checked(BaseRef(name, folder), weights)
    if folder.exists():
        raise ModelError(
            f"--model {name}: a file. Give the folder that holds config.json and *.safetensors, or a file that ends in .gguf."
        )
    name = SHORT_IDS.get(name, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        close = nearest(folder.name, siblings)
        short = None if close else nearest(name, SHORT_IDS)
        hint = (
            f" Did you mean {folder.parent / close}?"
            if close
            else f" Did you mean {SHORT_IDS[short]}?"
            if short
            else ""
        )
        raise ModelError(
            f"--model {name}: no such folder.{hint} Give a local folder, a hub id like owner/name, or builtin:nano."
        )
    return _checked(BaseRef(name, from_hub(name, revision, weights)), weights)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that transformers loads; every safetensors file where it would find none."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return sorted({folder / name for name in index["weight_map"].values() if (folder / name).is_file()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _all_weight_files(folder)


def _all_weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter"))


def _checked(ref: BaseRef, weights: bool) -> BaseRef:
    where, folder = f"--model {ref.name}", ref.folder
    several = sorted(folder.glob("*.gguf"))  # one alone is dequantized
    gguf = f" It holds {len(several)} .gguf files: give one of them, such as {several[0]}." if several else ""
    if not (folder / "config.json").is_file():
        hint = gguf
        if "gguf" in ref.name.lower() and ref.hub_id:
            hint = " If the repository has .gguf files, download one of them and give --model FILE.gguf."
        if (folder / "adapter_config.json").is_file():
            hint = " It holds an adapter: give its base with --model, and the adapter as adapter.start_from."
        elif (folder / "run.json").is_file():
            hint = " It is a run: give its base with --model, and the run as adapter.start_from."
        raise ModelError(f"{where}: no config.json in {folder}, so this is not a model folder.{hint}")
    if not weights:
        return ref
    files = weight_files(folder)
    if not files:
        pickled = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pt*"), *folder.glob("*.ckpt")])), None)
        why = (
            f" It has {pickled.name}, which is a pickle and is not loaded: convert it to safetensors."
            if pickled
            else ""
        )
        why = gguf or why
        raise ModelError(f"{where}: no *.safetensors weights in {folder}.{why}")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{where}: {path.name} is not a whole safetensors file ({error}). Get it again.") from None
    if not any((folder / name).is_file() for name in ("model.safetensors", _INDEX)):
        raise ModelError(
            f"{where}: {_INDEX} is missing, which says what is in {files[0].name}{_and_more(len(files))}. Get it again."
        )
    missing = _shards_of_index(where, folder) - {p.name for p in files}
    if missing:
        raise ModelError(f"{where}: {min(missing)} is missing ({len(missing)} of its weight files). Get it again.")
    return ref


def _and_more(files: int) -> str:
    return f" and {files - 1} more" if files > 1 else ""


def _shards_of_index(where: str, folder: Path) -> set[str]:
    index = folder / _INDEX
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return set()
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where}: {index.name} cannot be read ({_first_line(error)}). Get it again.") from None


def parameter_count(ref: BaseRef) -> int:
    """Number of parameters in the weight files, without loading them."""
    count = 0
    for path in weight_files(ref.folder):
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def bytes_of_lora(ref: BaseRef, rank: int) -> int:
    """Size in fp32 of a LoRA of that rank on every matrix of the weight files, with copies of their largest two matrices."""
    values, largest = 0, [0, 0]
    for path in weight_files(ref.folder):
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        for shape in shapes:
            if len(shape) > 1:
                values += math.prod(shape[:-2]) * rank * (shape[-2] + shape[-1])
            values += shape[0] if shape else 0  # a bias or a DoRA magnitude
        largest = sorted([*largest, *map(math.prod, shapes)])[-2:]
    return 4 * (values + sum(largest))


def load_tokenizer(ref: BaseRef, chat_template: str | None = None) -> Any:
    """The tokenizer of a base; `chat_template` names a file whose template replaces its own. Raises: ModelError."""
    from transformers import AutoTokenizer

    where = f"--model {ref.name}"
    require_sentencepiece(where, ref.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(ref.folder), trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 -- tokenizers raises plain Exception for a damaged file
        raise ModelError(f"{where}: its tokenizer cannot be loaded ({_first_line(error)}).") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{where}: its tokenizer has no tokenizer.json (fast form), which inlay needs.")
    refuse_other_ids(where, ref.folder, tokenizer)
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"model.chat_template {chat_template}: cannot be read ({error}).") from None
    return tokenizer


def architecture(ref: BaseRef) -> Any:
    """The transformers config of a causal language model.

    Raises: ModelError when this transformers does not know it, or when it is another kind of model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    where = f"--model {ref.name}"
    try:
        known = AutoConfig.from_pretrained(str(ref.folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where}: its config.json cannot be used ({_first_line(error)}).") from None
    kind = str(known.model_type)
    if getattr(known, "is_encoder_decoder", False):
        raise ModelError(f"{where}: a {kind} is an encoder-decoder (seq2seq). inlay trains decoders, such as Qwen.")
    if kind not in DECODERS or (kind in ENCODERS and not getattr(known, "is_decoder", False)):
        raise ModelError(f"{where}: a {kind} does not generate text. inlay trains decoders, such as Qwen.")
    return known


def embedding_rows(model_config: Any) -> int:
    """Number of rows of the embedding: the ids that a base knows."""
    text = getattr(model_config, "text_config", None) or model_config
    return int(text.vocab_size)


def require_vocabulary(ref: BaseRef, tokenizer: Any, model_config: Any, used: Collection[int]) -> None:
    """Raises: ModelError when the tokenizer gives ids that the base has no embedding for.

    `used` are ids of the data and of the template. An added token that is not used may lie beyond the embedding: Gemma 3
    has one for images.
    """
    rows = embedding_rows(model_config)
    plain = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) - 1
    largest = max(plain, *used)
    if largest >= rows:
        token = str(tokenizer.convert_ids_to_tokens(largest))
        raise ModelError(
            f"--model {ref.name}: its tokenizer gives ids up to {largest} ({token!r}), but the base has only {rows} rows "
            "of embeddings. Put the base's own tokenizer into the folder, or take the added token out of it."
        )


def context_length(model_config: Any) -> int:
    """Longest sequence that the base was trained for, in tokens."""
    text = getattr(model_config, "text_config", None) or model_config
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def load_model(
    ref: BaseRef, settings: ModelConfig, dtype: torch.dtype, device: str, quantization: str,
    tell: Callable[[str], None] = lambda _: None,
) -> Any:  # fmt: skip
    """The base on its device, frozen, in eval mode. fp32 matmuls use `model.matmul_precision` from here on.

    `tell` gets a warning for each kind of unused weights. Raises: ModelError when files and config.json do not belong
    to one model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options: dict[str, object] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    options["ignore_mismatched_sizes"] = True  # they come back in the loading report, and are an error below
    if settings.attention != "auto":
        options["attn_implementation"] = settings.attention
    if quantization != "none":
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8 on float32 would warn at every matmul
        options |= _quantized(settings, quantization, dtype, device)
    try:
        with _without_reports(), _lean(ref.folder, quantization):
            model, found = AutoModelForCausalLM.from_pretrained(str(ref.folder), output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        refuse_attention(architecture(ref), settings.attention)
        raise ModelError(f"--model {ref.name}: cannot be loaded ({_first_line(error)}).") from None
    absent = sorted(found["missing_keys"]) or sorted(str(entry[0]) for entry in found["mismatched_keys"])
    if absent:
        raise ModelError(
            f"--model {ref.name}: {count_shown(len(absent), 'weight is', 'weights are')} missing or of another shape, "
            f"first {absent[0]}; they would "
            "be random. Give a whole causal language model."
        )
    whole = json.loads((ref.folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    for sentence in refuse_unused(
        f"--model {ref.name}", model, found["unexpected_keys"], part=whole != model.config.model_type
    ):
        tell(sentence)
    if quantization == "none":
        model.to(device)
    else:
        forbid_cpu_repack(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.set_float32_matmul_precision(pick_matmul_precision(device, settings.matmul_precision)[0])
    if model.generation_config is not None:  # a checkpoint's sampling habits would leak into greedy comparison
        model.generation_config = without_sampling(model.generation_config)
    return model.eval()


def _quantized(settings: ModelConfig, kind: str, dtype: torch.dtype, device: str) -> dict[str, object]:
    from transformers import BitsAndBytesConfig

    wanted = settings.compute_dtype
    compute = dtype if wanted == "auto" else getattr(torch, wanted)
    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=settings.double_quantization,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": nf4, "device_map": {"": device}}


def _lean(folder: Path, quantization: str) -> contextlib.AbstractContextManager[None]:
    # of a file that other weights are made of, only the embedding is read again
    return contextlib.nullcontext() if quantization == "none" else paged_out(folder)


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """Silences transformers' table of weights that did not fit: inlay raises an error for those that matter."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
