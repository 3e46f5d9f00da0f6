"""Finding, checking and loading the frozen base and its tokenizer. Safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from inlay.config import Config
from inlay.errors import ModelError, nearest
from inlay.storage import sha256_of

BUILTIN = {"builtin:nano": "builtin/nano"}


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A base model on this disk."""

    name: str
    """As the user wrote it."""
    folder: Path

    def digest(self) -> str:
        """Hex digest over config and weights: two bases with the same digest compute the same."""
        parts = {p.name: sha256_of(p) for p in [self.folder / "config.json", *weight_files(self.folder)]}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find_base(name: str, revision: str | None = None) -> BaseRef:
    """The base of that name with its weights on this disk; a hub id is fetched if it is not there.

    Raises: ModelError naming what is missing and the way out.
    """
    if name.startswith("builtin:"):
        if name not in BUILTIN:
            raise ModelError(f"--model {name}: no such built-in model. Built in: {', '.join(BUILTIN)}.")
        return _checked(BaseRef(name, Path(str(resources.files("inlay"))) / BUILTIN[name]))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(BaseRef(name, folder))
    if folder.exists():
        raise ModelError(f"--model {name}: a file. Give the folder that holds config.json and *.safetensors.")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        close = nearest(folder.name, siblings)
        hint = f" Did you mean {folder.parent / close}?" if close else ""
        raise ModelError(
            f"--model {name}: no such folder.{hint} Give a local folder, a hub id like owner/name, or builtin:nano."
        )
    return _checked(BaseRef(name, _from_hub(name, revision)))


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise ModelError(
            f"--model {name}: no such folder here and no such model on the hub (or it is gated: set HF_TOKEN)."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"--model {name}: no such folder here, and the hub cannot be reached ({type(error).__name__}). "
            "Give a local folder or builtin:nano."
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, adapters left out."""
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter"))


def _checked(ref: BaseRef) -> BaseRef:
    where = f"--model {ref.name}"
    if not (ref.folder / "config.json").is_file():
        adapter = (
            " It holds an adapter: give its base, and the adapter with --from."
            if (ref.folder / "adapter_config.json").is_file()
            else ""
        )
        raise ModelError(f"{where}: no config.json in {ref.folder}, so this is not a model folder.{adapter}")
    files = weight_files(ref.folder)
    if not files:
        pickled = [p.name for p in ref.folder.glob("*.bin")] + [p.name for p in ref.folder.glob("*.pt*")]
        why = (
            f" It has {pickled[0]}, which is a pickle and is not loaded: convert it to safetensors." if pickled else ""
        )
        raise ModelError(f"{where}: no *.safetensors weights in {ref.folder}.{why}")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{where}: {path.name} is not a readable safetensors file ({error}).") from None
    return ref


def load_tokenizer(ref: BaseRef, chat_template: str | None = None) -> Any:
    """The tokenizer of a base, with another chat template where a file is named."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(ref.folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"--model {ref.name}: its tokenizer cannot be loaded ({_first_line(error)}).") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"--model {ref.name}: its tokenizer has no tokenizer.json (fast form), which inlay needs.")
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"model.chat_template {chat_template}: cannot be read ({error}).") from None
    return tokenizer


def architecture(ref: BaseRef) -> Any:
    """The transformers config of a base. Raises: ModelError when this transformers does not know it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(ref.folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"--model {ref.name}: its config.json cannot be used ({_first_line(error)}).") from None


def context_length(model_config: Any) -> int:
    """Longest sequence the base was made for."""
    text = getattr(model_config, "text_config", None) or model_config
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def load_model(ref: BaseRef, config: Config, dtype: torch.dtype, device: str, quantization: str) -> Any:
    """The base on its device, frozen, in eval mode."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if config.model.attention != "auto":
        options["attn_implementation"] = config.model.attention
    if quantization != "none":
        options |= _quantized(config, quantization, dtype, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(ref.folder), **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"--model {ref.name}: cannot be loaded ({_first_line(error)}).") from None
    if quantization == "none":
        model.to(device)
    else:
        from inlay.models.quantization import forbid_cpu_repack

        forbid_cpu_repack(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if model.generation_config is not None:  # a checkpoint's sampling habits would leak into greedy comparison
        model.generation_config.do_sample = False
        model.generation_config.temperature = None
        model.generation_config.top_p = None
        model.generation_config.top_k = None
    return model.eval()


def _quantized(config: Config, kind: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    wanted = config.model.compute_dtype
    compute = dtype if wanted == "auto" else getattr(torch, wanted)
    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.model.double_quantization,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
