"""Processes that train together train on the same thing, or none of them begins."""

from __future__ import annotations

import json
from typing import Any

from inlay.config import Config
from inlay.config.identity import PLACES
from inlay.config.render import explicit_values
from inlay.errors import RunError
from inlay.hardware.facts import library_versions
from inlay.hardware.probe import dtype_name
from inlay.training.job import AdapterJob
from inlay.typed_json import JsonObject

_NAMED = 3
_OWN = ("output.", "track.", "data.cache", "model.device", "preset")
"""Settings in which processes may differ: only the first one writes, and each has its own device."""


def require_same(job: AdapterJob, requested: Config) -> None:
    """Raises: RunError, the same on every rank, when one has other versions, settings, data or base than another.

    `requested` is the config as it was given, before `auto` was settled.
    """
    group = job.base.group
    if group.size == 1:
        return
    every = [json.loads(text) for text in group.gather(json.dumps(_seen(job, requested), default=str))]
    for kind, way_out in _WAYS.items():  # the cause before what follows from it
        differing = [name for name in every[0][kind] if len({json.dumps(one[kind].get(name)) for one in every}) > 1]
        if differing:
            differences = "; ".join(
                _difference_text(name, [one[kind].get(name) for one in every]) for name in differing[:_NAMED]
            )
            more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            raise RunError(f"the {group.size} processes differ in {differences}{more}. {way_out} Nothing was written.")


_WAYS = {
    "versions": "Install the same versions everywhere.",
    "settings": "Start all of them with the same command and the same files.",
    "inputs": "Give all of them the same files.",
    "resolved": "Use like devices, or set these so that all do the same.",
}


def _seen(job: AdapterJob, requested: Config) -> dict[str, JsonObject]:
    """Values that must be the same in all processes, under the names that a user knows."""
    settings = explicit_values(requested, everything=True)
    inputs = job.inputs
    return {
        "versions": library_versions(),
        "settings": {
            path: value for path, value in settings.items() if path not in PLACES and not path.startswith(_OWN)
        },
        "inputs": {
            "the data": inputs["data_hash"][:12],
            "the base model": inputs["base_digest"][:12],
            "the tokenizer": inputs["tokenizer_hash"][:12],
            "the chat template": inputs["chat_template_hash"][:12],
        },
        "resolved": {
            "device": job.device.partition(":")[0],
            "dtype": dtype_name(job.base.dtype),
            "quantization": job.base.precision.quantization,
            "engine": job.engine.name,
            "settings": inputs["settings_hash"][:12],
        },
    }


def _difference_text(name: str, values: list[Any]) -> str:
    """`train.seed (0 on process 0, 1 on process 1)`, each value once."""
    firsts = {json.dumps(value): (value, rank) for rank, value in reversed(list(enumerate(values)))}
    shown = sorted(firsts.values(), key=lambda one: one[1])
    return f"{name} ({', '.join(f'{_short(value)} on process {rank}' for value, rank in shown)})"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
