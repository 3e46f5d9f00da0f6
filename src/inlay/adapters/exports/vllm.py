"""vLLM: PEFT's format in flat form, within the limits that vLLM's source states."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inlay.adapters.exports import peft
from inlay.adapters.exports.form import ExportSource, Form, Limit, ReadBack, compared, method_limits
from inlay.errors import ConfigError

_HEADS: Final = frozenset(("embed_tokens", "lm_head"))
_NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """Limits of one version of vLLM."""

    source: str
    """Files in which they were read."""
    ranks: tuple[int, ...]
    """Values that `--max-lora-rank` takes."""
    families: Mapping[str, frozenset[str]]
    """Model type -> modules beside the linear layers of its blocks that may be adapted (`embedding_modules`)."""
    without_lora: frozenset[str]
    """Model types whose class does not take adapters (`SupportsLoRA`)."""


LIMITS: Final = {
    "0.32": VllmLimits(
        "vllm/config/lora.py, vllm/lora/peft_helper.py and vllm/model_executor/models of vLLM 0.32.0",
        (1, 8, 16, 32, 64, 128, 256, 320, 512),
        {
            "cohere": frozenset(("embed_tokens",)), "ernie4_5": _HEADS, "exaone4": _HEADS, "gemma": _NONE, "gemma2": _NONE,
            "gemma3_text": _NONE, "glm4": _NONE, "granite": _HEADS, "llama": _HEADS, "mistral": _NONE, "nemotron": _HEADS,
            "phi3": _HEADS, "qwen2": _NONE, "qwen3": _HEADS,
        },
        frozenset(("gpt2", "stablelm")),
    ),
}  # fmt: skip
"""By version, newest last."""
_VERSION: Final = next(reversed(LIMITS))


def served_rank(rank: int, ranks: tuple[int, ...]) -> int | None:
    """The least value of `--max-lora-rank` that an adapter of that rank can be served with; None where none is enough."""
    return next((each for each in ranks if each >= rank), None)


def limits(source: ExportSource) -> list[Limit]:
    """The checks that vLLM makes when it loads an adapter, and whether its class takes the adapted modules."""
    found = method_limits(source)
    if source.adapter is None:
        return found
    known = LIMITS[_VERSION]
    served = served_rank(source.rank, known.ranks)
    found.append(
        Limit(
            "rank",
            served is not None,
            f"{source.rank}: --max-lora-rank {served}"
            if served
            else f"{source.rank} is above {known.ranks[-1]}: `inlay adapters shrink`, or `inlay adapters merge`",
        )
    )
    if source.family in known.without_lora:
        found.append(Limit("family", False, f"the class of {source.family} takes no adapters: `inlay adapters merge`"))
    elif source.family not in known.families:
        found.append(
            Limit("family", None, f"{source.family} is not in the table; vLLM says at the start if it refuses")
        )
    else:
        found.append(Limit("family", True, source.family))
    outside = {module.rpartition(".")[2] for module in source.adapter.factors if not _is_in_block(module)}
    allowed = known.families.get(source.family, _NONE)
    refused = sorted(outside - allowed)
    words = f"{refused[0]} of {source.family} cannot be adapted: `inlay adapters merge`" if refused else "fit"
    found.append(Limit("modules", not refused, words))
    found.append(Limit("version", True, f"these are the limits of vLLM {_VERSION} ({known.source})"))
    return found


def _is_in_block(module: str) -> bool:
    return any(part.isdigit() for part in module.split("."))


def write(source: ExportSource, folder: Path) -> None:
    """Writes PEFT's two files in flat form. Raises: ConfigError for an export as trained."""
    if source.as_trained:
        raise ConfigError("--as-trained: has no effect on --to vllm, which takes the flat form. Use --to peft.")
    peft.write(source, folder)


def read_back(source: ExportSource, folder: Path) -> ReadBack:
    """The files against the adapter."""
    return compared(source.lowrank.factors, peft.read_factors(source, folder))


def commands(source: ExportSource, folder: Path) -> list[str]:
    """The server; the adapter is the `model` of a request."""
    base = source.base.peft_settings()["base_model_name_or_path"] or source.base.name
    rank = served_rank(source.rank, LIMITS[_VERSION].ranks)
    modules = shlex.quote(f"{source.name}={folder}")
    return [f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} --lora-modules {modules}"]


VLLM = Form(
    "vLLM", limits, write, read_back, commands,
    "vLLM was not run. It computes in the dtype of the base, usually bfloat16, and rounds the adapter to it.",
)  # fmt: skip
