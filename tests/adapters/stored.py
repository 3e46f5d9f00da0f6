"""Small library entries that need no model: a card and two files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from inlay.adapters.cards import Card
from inlay.adapters.library import Library, Stored


def card(content: str = "a", **fields: Any) -> Card:
    """A card whose identity follows from `content`; keywords are its other fields."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    plain: dict[str, Any] = {
        "identity": digest, "weights_digest": digest, "base_model": "builtin:nano", "base_digest": "b" * 64, "method": "lora",
        "rank": 8, "modules": 4, "parameters": 1000, "bytes": 4000, "tokenizer_hash": "t" * 64, "chat_template_hash": "c" * 64,
    }  # fmt: skip
    return Card(**plain | fields)


def fill(folder: Path, content: str = "a") -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(content.encode() * 100)


def put(library: Library, name: str, content: str = "a", **fields: Any) -> Stored:
    return library.put(name, lambda folder: fill(folder, content), card(content, **fields))
