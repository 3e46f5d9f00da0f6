"""A base whose tokenizer is a SentencePiece model alone: what is needed to read it, and whether it is read right."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inlay.errors import ModelError

_PROBES = ("Question 7: how many?", "  two  spaces ", "h\u00e9 \u6f22\n")
"""A word at the start, spaces that a model may drop, and characters that few models have a piece for."""
_RIGHT_SINCE = (5, 24)
"""transformers that reads a model's own normalizer and prefix when no class of tokenizer is named."""


def require_sentencepiece(where: str, folder: Path) -> None:
    """Raises: ModelError where a SentencePiece model is all there is of a tokenizer, and what reads it is missing."""
    if not _is_all_there_is(folder):
        return
    with contextlib.suppress(ModuleNotFoundError):  # of the package above it
        if find_spec("sentencepiece") and find_spec("google.protobuf"):
            return
    raise ModelError(
        f"{where}: its tokenizer is a SentencePiece model alone (tokenizer.model), which needs sentencepiece "
        'and protobuf: pip install "inlay[sentencepiece]"'
    )


def refuse_other_ids(where: str, folder: Path, tokenizer: Any) -> None:
    """Raises: ModelError where transformers built the tokenizer from a SentencePiece model alone, and a text gets other
    ids than SentencePiece itself gives it. A class of tokenizer that the base names has rules of its own."""
    import transformers

    if type(tokenizer) is not transformers.TokenizersBackend or not _is_all_there_is(folder):
        return
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in _PROBES:
        ids, wanted = tokenizer(text, add_special_tokens=False).input_ids, theirs.encode(text)
        if ids != wanted:
            is_old = tuple(map(int, transformers.__version__.split(".")[:2])) < _RIGHT_SINCE
            newer = f"Install transformers {'.'.join(map(str, _RIGHT_SINCE))} or newer, or put" if is_old else "Put"
            raise ModelError(
                f"{where}: transformers {transformers.__version__} makes other ids of its tokenizer.model than "
                f"SentencePiece does ({text!r}: {ids}, not {wanted}). {newer} the base's tokenizer.json beside it."
            )


def _is_all_there_is(folder: Path) -> bool:
    model = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not model.is_file():
        return False
    with model.open("rb") as file:
        return file.read(1) == b"\n"  # the first field of its message; a tiktoken file is lines of text
