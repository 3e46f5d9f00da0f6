"""A base's generation_config.json, as transformers reads and saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from inlay.typed_json import JsonObject

FILE: Final = "generation_config.json"
_OF_SAMPLING: Final = ("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS: Final = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints")
_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def generation_settings(folder: Path) -> tuple[JsonObject, list[str]] | None:
    """(generation settings that transformers agrees to save, names left out); None for a base without them.

    Settings without effect, such as a temperature without sampling, are left out; where that is not enough, all but the
    ids of special tokens.
    """
    if not (folder / FILE).is_file():
        return None
    given = json.loads((folder / FILE).read_text(encoding="utf-8"))
    idle = {
        *(() if given.get("do_sample") else _OF_SAMPLING),
        *(_OF_BEAMS if given.get("num_beams") in (None, 1) else ()),
    }
    for kept in (
        given,
        {name: value for name, value in given.items() if name not in idle},
        {name: given[name] for name in _IDS if name in given},
        {},
    ):
        if _can_be_saved(kept):
            return kept, sorted({*given} - {*kept})
    raise AssertionError("no settings at all can be saved")


def ends_of_base(model: Any) -> set[int]:
    """Ids that end an answer by the base's own generation settings, which transformers makes of its config where there
    are none."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if ends is None else {int(one) for one in (ends if isinstance(ends, list) else [ends])}


def without_sampling(settings: Any) -> Any:
    """The ids of special tokens of a generation config, without its sampling settings."""
    from transformers import GenerationConfig

    return GenerationConfig(**{name: getattr(settings, name, None) for name in _IDS})


def _can_be_saved(values: JsonObject) -> bool:
    from transformers import GenerationConfig

    try:
        GenerationConfig(**values).validate(strict=True)
    except (ValueError, TypeError):
        return False
    return True
