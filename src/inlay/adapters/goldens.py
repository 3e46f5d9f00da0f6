"""Golden answers of an adapter: what it answered when it was stored, to be replayed wherever it runs.

Shapes: T new tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from inlay.data.encoding.encoder import Encoder
from inlay.data.reading.read import read_examples
from inlay.data.types import Example
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, DataError
from inlay.generation.generate import cache_argument, cache_for, settings_alone
from inlay.hardware.facts import library_versions
from inlay.methods.adapter import virtual_tokens
from inlay.models.base import context_length
from inlay.storage import read_lines
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import Mistyped, decode, encode

FILE: Final = "goldens.jsonl"
OF_EACH: Final = 4
"""Prompts of general text, and of held-out rows."""
NEW_TOKENS: Final = 32
_PROMPT_TOKENS: Final = 48
"""Tokens of a general text that are the prompt."""
_LONGEST_PROMPT: Final = 512
_NEAR: Final = 0.05
_NEAR_FLOAT32: Final = 1e-3
"""Margins in nats under which rounding may choose another token; the second between two float32 computations."""


_OFF: Final = 0.5
_OFF_FLOAT32: Final = 1e-2
"""How far a log-probability may be off on the same kind of device and dtype, in nats."""
Top = Sequence[Sequence[tuple[int, float]]]
"""At each token of an answer the most probable ids with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One prompt and its greedy answer."""

    source: str
    """`general` or `held-out`."""
    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """At most `NEW_TOKENS` ids, the one that ends the answer included."""
    margins: tuple[float, ...]
    """At each id the log-probability of the first choice minus that of the second."""
    top: tuple[tuple[tuple[int, float], ...], ...]
    """At each id the five most probable ids with their log-probabilities."""
    computed_on: str
    """Device, dtype and torch version."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Answers against golden ones."""

    equal: int
    near_ties: int
    """Answers that part where the two first choices were as good as tied."""
    differing: int
    first: str
    """The first that differs, in words; empty where none does."""


def golden_prompts(encoder: Encoder, held_out: Iterable[Example]) -> list[tuple[str, list[int]]]:
    """(source, ids) of the prompts: the beginnings of general texts, then the prompts of the first held-out rows."""
    general = Path(str(resources.files("inlay") / "builtin" / "general.jsonl"))
    found = []
    for example in read_examples(str(general)).examples[:OF_EACH]:
        found.append(("general", encoder.prompt(example.messages)[:_PROMPT_TOKENS]))
    prompted = (one for one in held_out if one.messages[0].role != "text")
    for example in prompted:
        if len(found) == 2 * OF_EACH:
            break
        ids = encoder.prompt(example.prompt, example.tools, example.switches)
        if len(ids) <= _LONGEST_PROMPT:
            found.append(("held-out", ids))
    return found


def goldens_of(
    ready: OpenedBase, model: Any, prompts: Sequence[tuple[str, list[int]]],
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Golden]:  # fmt: skip
    """The golden answers of a model, in the order of the prompts; those without room for an answer are left out."""
    found, encoder = [], ready.encoder
    room = context_length(model.config) - virtual_tokens(model)
    where = _computed_on(ready)
    for number, (source, prompt) in enumerate(prompts, 1):
        if prompt and len(prompt) < room:
            with autocast(ready.device, ready.autocast_dtype):
                ids, logits_TV = _greedy(model, encoder, prompt, min(NEW_TOKENS, room - len(prompt)))
            top = logits_TV.float().log_softmax(-1).topk(min(5, logits_TV.shape[-1]), -1)
            values, chosen = top.values.tolist(), top.indices.tolist()
            found.append(
                Golden(
                    source, encoder.text(prompt), tuple(prompt), tuple(ids),
                    tuple(round(row[0] - row[1], 6) for row in values),
                    tuple(tuple((i, round(v, 5)) for i, v in zip(*row, strict=True)) for row in zip(chosen, values, strict=True)),
                    where,
                )
            )  # fmt: skip
        on_done(number)
    return found


def lines_of(goldens: Sequence[Golden]) -> str:
    """The content of `goldens.jsonl`."""
    return "".join(json.dumps(encode(golden), ensure_ascii=False) + "\n" for golden in goldens)


def read_goldens(folder: Path) -> list[Golden]:
    """The golden answers in a folder; empty without any. Raises: AdapterError when they are damaged."""
    try:
        return [decode(Golden, line, f"line {n}") for n, line in enumerate(read_lines(folder / FILE), 1)]
    except Mistyped as error:
        raise AdapterError(f"{folder / FILE}: is damaged ({error}). Add the adapter anew.") from None


def agree(
    goldens: Sequence[Golden], answers: Sequence[Sequence[int]], computed_on: str = "",
    tops: Sequence[Top] | None = None,
) -> Agreement:  # fmt: skip
    """The answers (ids, in the order of the goldens) against the golden ones.

    Two that part where the golden margin is under 0.05 nats are a near tie; under 0.001 where both are of float32 on the
    same kind of device. What follows such a place is not compared.
    Of equal answers the log-probabilities of the five most probable ids are compared with `tops`, where they were computed
    on the same kind of device in the same dtype: they may be off by 0.01 nats in float32, by 0.5 in a narrower dtype.
    """
    if len(goldens) != len(answers):
        raise DataError(f"goldens: {len(goldens)} are stored, {len(answers)} answers were given.")
    equal = near = 0
    differing = []
    for row, (golden, answer) in enumerate(zip(goldens, answers, strict=True)):
        limit = (
            _NEAR_FLOAT32 if _exact(golden.computed_on) and _exact(computed_on) == _exact(golden.computed_on) else _NEAR
        )
        at = next((n for n, (a, b) in enumerate(zip(golden.ids, answer, strict=False)) if a != b), None)
        if at is None and len(golden.ids) != len(answer):
            at = min(len(golden.ids), len(answer))
        off = _largest_gap(golden, tops[row], computed_on) if at is None and tops is not None else None
        if off is not None:
            differing.append(f"{golden.source} prompt {golden.prompt[:40]!r}: same tokens, {off}")
        elif at is None:
            equal += 1
        elif at < len(golden.margins) and golden.margins[at] < limit:
            near += 1
        else:
            margin = f", margin {golden.margins[at]:.2g}" if at < len(golden.margins) else ""
            differing.append(f"{golden.source} prompt {golden.prompt[:40]!r}: token {at + 1} differs{margin}")
    return Agreement(equal, near, len(differing), differing[0] if differing else "")


def replayed(ready: OpenedBase, model: Any, goldens: Sequence[Golden], on_done: Callable[[int], None]) -> Agreement:
    """The model's answers to the golden prompts, against the golden ones."""
    prompts = [(golden.source, list(golden.prompt_ids)) for golden in goldens]
    now = goldens_of(ready, model, prompts, on_done)
    return agree(goldens, [golden.ids for golden in now], _computed_on(ready), [golden.top for golden in now])


def _largest_gap(golden: Golden, top: Top, computed_on: str) -> str | None:
    """Where log-probabilities are too far from the golden ones, in words; None where they are near, or not comparable."""
    if golden.computed_on.partition(",")[0] != computed_on.partition(",")[0]:
        return None
    limit = _OFF_FLOAT32 if _exact(computed_on) else _OFF
    for token, (before, after) in enumerate(zip(golden.top, top, strict=True), 1):
        now, least = dict(after), min(after, key=lambda one: one[1])[1]
        for one, then in before:
            # an id that is no longer among the first has at most the last one's
            if (one in now and abs(now[one] - then) > limit) or (one not in now and then - least > limit):
                value = f"{now[one]:.4g}" if one in now else f"below {least:.4g}"
                return f"the log-probability of id {one} at token {token} is {value}, then {then:.4g}"
    return None


def _computed_on(ready: OpenedBase) -> str:
    precision = ready.precision
    quantized = "" if precision.quantization == "none" else f" {precision.quantization}"
    dtype = str(precision.dtype).removeprefix("torch.")
    return f"{precision.device.partition(':')[0]} {dtype}{quantized}, torch {library_versions().get('torch')}"


def _exact(computed_on: str) -> str:
    """The device where a computation was in unquantized float32; empty for any other."""
    device, _, rest = computed_on.partition(" ")
    return device if rest.startswith("float32,") else ""


def _greedy(model: Any, encoder: Encoder, prompt: list[int], room: int) -> tuple[list[int], Tensor]:
    """(ids, logits_TV) of the greedy answer, the id that ends it included."""
    from transformers import GenerationConfig as Settings

    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    settings = Settings(
        max_new_tokens=room, do_sample=False, eos_token_id=sorted(encoder.stop_ids), pad_token_id=encoder.pad_id,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    cache = {cache_argument(): cache_for(model.config, len(prompt) + room + virtual_tokens(model))}
    with torch.inference_mode(), settings_alone(model, settings):
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **cache
        )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float().cpu()
