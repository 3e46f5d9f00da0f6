"""The card of a stored adapter: identity, base, size, origin and result, as `card.json` holds them.

No torch here: a thousand cards are read to print a list. `inlay.adapters.identity` computes the digests.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inlay.errors import AdapterError
from inlay.folder_files import read_bytes, shown
from inlay.typed_json import JsonObject

CARD: Final = "card.json"
SCHEMA: Final = 1
_KEY: Final = "^[0-9a-f]{32}$"


def is_tokenizer_key(text: str) -> bool:
    """Whether a folder below `tokenizers/` can have this name."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


class _Closed(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True, protected_namespaces=()
    )


class Verdict(_Closed):
    """Result of the run on its held-out rows: the adapter's metric minus the base's, with the 95% interval if there is one."""

    metric: str
    base: float
    adapter: float
    difference: float
    low: float | None = None
    high: float | None = None
    verdict: str
    rows: int | None = None
    """Number of held-out rows."""


class Parent(_Closed):
    """An adapter that this one was computed from."""

    identity: str
    name: str
    """Its reference then, such as `support:3`."""
    weight: float = 1.0


class StoredProofs(_Closed):
    """Outcome of the run's proofs when the adapter was added."""

    held: int
    failed: tuple[str, ...] = ()


class StoredGoldens(_Closed):
    """Number of golden answers, and where they were computed."""

    count: int
    computed_on: str


class Card(_Closed):
    """Everything that is known of one stored adapter. Written once with it, and never changed."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    identity: str
    """Digest of weights, tokenizer and chat template: what a name points to."""
    weights_digest: str
    """Digest of the base, the settings and the tensors."""

    base_model: str
    """Name of the base, as `--model` takes it."""
    base_digest: str
    base_fingerprint: JsonObject | None = None
    """See `inlay.models.fingerprint.Fingerprint`."""
    base_commit: str | None = None
    base_hub_id: str | None = None
    base_hub_commit: str | None = None
    base_found: str | None = None
    model_class: str | None = Field(default=None, alias="class")
    """The class that the base's config.json names, where another one was trained."""
    module_names: dict[str, str] | None = None
    """Prefix of module names in the trained class -> in that class."""
    dtype: str = "float32"
    """Dtype of the base's weights in training."""
    quantization: str = "none"

    method: str
    rank: int | None = None
    """Largest rank of a module; None for a method without one."""
    modules: int
    """Number of modules of the base that it changes."""
    parameters: int
    bytes: int
    """Size of its weights on disk."""

    tokenizer: str | None = Field(default=None, pattern=_KEY)
    """Folder below `tokenizers/`; None where the base's own tokenizer is used."""
    tokenizer_hash: str
    chat_template: str | None = None
    """Origin of the chat template, for people."""
    chat_template_hash: str
    template_kwargs: dict[str, Any] = {}

    task: str | None = None
    licence: str | None = None
    note: str | None = None
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    """ISO 8601, UTC."""
    versions: dict[str, str | None] = {}
    """Of inlay and the libraries that wrote it."""

    run: str | None = None
    """Name of the run that trained it."""
    run_folder: str | None = None
    step: int | None = None
    seed: int | None = None
    data_hash: str | None = None
    settings_hash: str | None = None
    verdict: Verdict | None = None
    proofs: StoredProofs | None = None
    goldens: StoredGoldens | None = None

    operation: str | None = None
    """The verb that computed it from its parents, or `imported`; None for one that a run trained."""
    parents: tuple[Parent, ...] = ()

    def to_json(self) -> JsonObject:
        """The JSON object of `card.json`; what is not known is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @staticmethod
    def read(folder: Path) -> Card:
        """The card in a folder.

        Raises: AdapterError when there is none, when it is damaged, or when a newer inlay wrote it.
        """
        path = folder / CARD
        try:
            return Card.model_validate_json(read_bytes(folder, CARD))
        except ValidationError as error:
            raise AdapterError(f"{path}: {_fault(error)}") from None


def _fault(error: ValidationError) -> str:
    newer = "It was written by a newer inlay: update this one, or add the adapter anew."
    faults = error.errors(include_url=False)
    for one in faults:
        if one["loc"] == ("schema",) and isinstance(one["input"], int) and one["input"] > SCHEMA:
            return f"has schema {one['input']}; this inlay reads {SCHEMA}. {newer}"
    unknown = [shown(".".join(map(str, one["loc"]))) for one in faults if one["type"] == "extra_forbidden"]
    if unknown:
        return f"has the unknown {'keys' if len(unknown) > 1 else 'key'} {', '.join(unknown)}. {newer}"
    first = faults[0]
    place = shown(".".join(map(str, first["loc"]))) if first["loc"] else ""
    return f"is damaged ({place + ': ' if place else ''}{first['msg']}). Restore it, or add the adapter anew."
