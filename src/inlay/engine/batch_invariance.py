"""Rows that may share a batch: each must be computed as if it were alone.

Two things break that. A longrope base takes other frequencies for the whole batch as soon as one row is longer than the
context it was first trained for. And in some architectures what stands before or behind a row leaks into it.

(Dynamic NTK frequencies change beyond the context only, and no row is longer than that.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from inlay.errors import StorageError
from inlay.hardware.facts import library_versions
from inlay.methods.adapter import virtual_tokens, without_virtual_tokens
from inlay.methods.table import is_adapter_parameter
from inlay.storage import cache_folder, write_file

_ROUNDING = {False: (1e-3, 1e-4), True: (5e-2, 1e-2)}
"""Relative difference of logits, padded from alone and under other padding, by whether matmuls are rounded to 16 bits."""
_LONG, _SHORT = 13, 7
_FIRST = 1  # token of every answer


class BatchGroups(NamedTuple):
    """Rules that keep rows of a base apart."""

    switch: int | None = None
    """Rows longer than so many tokens and the others never share a batch."""
    pads: bool = True
    """True where rows of different lengths may share a batch."""
    shares: bool = True
    """True where any rows may share a batch."""

    def apart(self, groups: Iterable[Sequence[int]], lengths: np.ndarray) -> list[list[int]]:
        """The micro batches, longest rows first, divided where rows must not be computed together."""
        if not self.shares:
            return [[row] for group in groups for row in group]
        return [list(rows) for group in groups for _, rows in groupby(group, lambda row: self._key(int(lengths[row])))]

    def _key(self, length: int) -> int:
        if not self.pads:
            return length
        return int(self.switch is not None and length > self.switch)

    def answer_key(self, length: int, room: int) -> tuple[int, int]:
        """The same for prompts that get up to `room` tokens more; those that cross the switch do so at the same token."""
        crosses = self._key(length) != self._key(length + room)
        return self._key(length), length if crosses else 0

    def summary(self) -> str:
        """For the pre-flight; empty where any rows share a batch."""
        if not self.shares:
            return "one row at a time: in this architecture the rows of a batch change each other"
        if not self.pads:
            return "rows of one length together: in this architecture padding leaks into a row"
        if self.switch is not None:
            return f"rows above and below {self.switch} tokens apart: the base has two sets of frequencies (longrope)"
        return ""


def groups_of_config(config: Any, virtual: int = 0) -> BatchGroups:
    """As far as a base's config tells, with so many virtual tokens before each row."""
    switch = _switch(config.get_text_config())
    return BatchGroups(None if switch is None else switch - virtual)


_seen: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def batch_groups(model: Any) -> BatchGroups:
    """Groups of rows padded on the right, for training and scoring. A base is probed once; no random numbers are drawn."""
    return _groups(model, "right")


def answer_groups(model: Any) -> BatchGroups:
    """Groups of prompts padded on the left, for generation."""
    return _groups(model, "left")


def _groups(model: Any, side: str) -> BatchGroups:
    pads = _is_seen(model, f"padded on the {side}")
    shares = pads or _is_seen(model, f"of one length, {side}")
    return groups_of_config(model.config, virtual_tokens(model))._replace(pads=pads, shares=shares)


def ropes_of(config: Any) -> list[Mapping[str, Any]]:
    """The RoPE settings of a base: all of them, and those of a kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [ropes, *(one for one in ropes.values() if isinstance(one, Mapping))]


def _switch(config: Any) -> int | None:
    for rope in ropes_of(config):
        if rope.get("rope_type") == "longrope":
            own = getattr(config, "original_max_position_embeddings", None)
            return int(rope.get("original_max_position_embeddings") or own or config.max_position_embeddings)
    return None


def _is_seen(model: Any, how: str) -> bool:
    """Whether a row in a batch of that kind has the logits that it has alone: seen before, here, or now."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if next(base.parameters()).is_meta:  # no values to see it by
        return True
    known = _seen.setdefault(base, {})
    if how in known:
        return known[how]
    note = cache_folder("batches") / _digest(base, how)
    with contextlib.suppress(OSError, ValueError, KeyError):
        known[how] = bool(json.loads(note.read_text(encoding="ascii"))["as alone"])
        return known[how]
    found = _holds(base, how)
    if found is None:
        return True
    known[how] = found
    with contextlib.suppress(StorageError):  # a cache that cannot be written costs time, nothing else
        write_file(note, json.dumps({"as alone": known[how]}))
    return known[how]


def _digest(base: Any, how: str) -> str:
    """Digest of all that decides it: the base, by a few of each weight's values, and how it is computed here."""
    weights = [
        p.detach().flatten()[:4].tolist() for name, p in base.named_parameters() if not is_adapter_parameter(name)
    ]
    config = {k: v for k, v in base.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    about = [
        config, base.config._attn_implementation, sorted({str(p.dtype) for p in base.parameters()}),
        str(base.device), library_versions(), torch.get_float32_matmul_precision(), how,
        weights,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _holds(base: Any, how: str) -> bool | None:
    """None where the base's logits are not finite, which other checks say."""
    left, pads = how.endswith("left"), how.startswith("padded")
    short, long_, other = _ids(base)
    blanks = [ids.expand(_LONG - _SHORT) for ids in (short[:1], other[:1])] if pads else [short[:0]] * 2
    rows = [torch.cat([blank, short] if left else [short, blank]) for blank in blanks]
    batch = torch.stack([long_ if pads else other, *rows])
    mask = torch.ones_like(batch)
    if pads:
        mask[1:, slice(None, -_SHORT) if left else slice(_SHORT, None)] = 0
    look = _answered if left else _read
    with _quiet(base):
        alone = look(base, short[None], torch.ones_like(short)[None])[0]
        _, one, same = look(base, batch, mask)
    if not all(bool(torch.isfinite(logits).all()) for logits in (alone, one, same)):
        return None
    dtypes = {p.dtype for p in base.parameters()}
    coarse = dtypes != {torch.float32} or torch.get_float32_matmul_precision() != "highest"
    from_alone, from_same = _ROUNDING[coarse]
    return _distance(one, alone) <= from_alone and _distance(same, one) <= from_same


def _ids(base: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(a short row, a long one, another short one)"""
    words, drawn = len(base.get_input_embeddings().weight), torch.Generator().manual_seed(0)
    ids = torch.randint(words, (2 * _SHORT + _LONG,), generator=drawn).to(base.device)
    return ids[:_SHORT], ids[_SHORT:-_SHORT], ids[-_SHORT:]


def _read(base: Any, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """(B, L, V) logits of the short row's tokens."""
    logits: Tensor = base(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits[:, :_SHORT]
    return logits.float()


def _answered(base: Any, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """(B, L, V) logits of two tokens of an answer: those of the second come out of the cache."""
    from transformers import GenerationConfig

    pad = int(ids_BL[-1, 0])
    settings = GenerationConfig(
        max_new_tokens=2, do_sample=False, pad_token_id=pad, output_logits=True, return_dict_in_generate=True
    )
    before, base.generation_config = base.generation_config, settings
    try:
        found = base.generate(
            input_ids=ids_BL, attention_mask=mask_BL, generation_config=settings,
            prefix_allowed_tokens_fn=lambda _row, _ids: [_FIRST],  # rounding would decide between near ones
        )  # fmt: skip
    finally:
        base.generation_config = before
    return torch.stack(found.logits, 1).float()


@contextlib.contextmanager
def _quiet(base: Any) -> Iterator[None]:
    was_training = base.training
    base.eval()  # draws no random numbers
    try:
        with torch.no_grad(), without_virtual_tokens(base):
            yield
    finally:
        base.train(was_training)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
