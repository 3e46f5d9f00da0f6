"""Answers from a model: by the loop where it takes the model, else by transformers, in batches of similar prompt length."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from inlay.data.encoding.encoder import Encoder
from inlay.engine.batch_invariance import BatchGroups, answer_groups
from inlay.errors import DataError, ModelError
from inlay.generation.blocks import blocks_for
from inlay.generation.loop import Limits, Loop
from inlay.generation.plain import PlainForward
from inlay.generation.request import Ask, Sampling
from inlay.methods.adapter import virtual_tokens
from inlay.models.base import context_length

_STEP_TOKENS = 256  # of prompts: nobody waits for the others' next token


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of a model to one prompt."""

    text: str
    """Decoded, without the end of turn and without what follows a stop string."""
    tokens: int
    """Generated tokens, without the one that ends the turn."""
    stopped: bool
    """True where the model or a stop string ended it; False where it was cut off."""


def answers(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int = 16,
    on_done: Callable[[int], None] = lambda done: None,
    streamer: Any = None,
) -> list[str]:
    """The texts of `full_answers`."""
    found = full_answers(model, encoder, prompts, sampling, batch_size, on_done, streamer)
    return [answer.text for answer in found]


def full_answers(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int = 16,
    on_done: Callable[[int], None] = lambda done: None,
    streamer: Any = None,
) -> list[Answer]:
    """The answer to each prompt (ids), in their order.

    Greedy answers do not depend on `batch_size` beyond rounding; sampled ones depend on seed and prompt. An answer ends at the latest where the model's
    context does. Raises: DataError for a prompt that is empty or fills the whole context.
    """
    limit = context_length(model.config) - virtual_tokens(model)
    for n, prompt in enumerate(prompts, 1):
        if not prompt:
            raise DataError(f"prompt {n}: no tokens. Give it some text.")
        if len(prompt) >= limit:
            raise DataError(f"prompt {n}: {len(prompt)} tokens fill the context of {limit}. Shorten it.")
    if streamer is None and (forward := _forward(model, prompts, sampling, batch_size)) is not None:
        return _by_loop(forward, encoder, prompts, sampling, batch_size, on_done)
    found: dict[int, Answer] = {}
    if sampling.temperature > 0:
        torch.manual_seed(sampling.seed)
    done = 0
    lengths, together = [len(p) for p in prompts], answer_groups(model) if len(prompts) > 1 else BatchGroups()
    for picked, room in _batches(
        lengths, sampling.max_new_tokens, limit, batch_size if together.shares else 1, together
    ):
        rows = _generate(model, encoder, [list(prompts[i]) for i in picked], sampling, room, streamer)
        for i, ids in zip(picked, rows, strict=True):
            found[i] = answer_of(encoder, ids, sampling.stop)
        done += len(picked)
        on_done(done)
    return [found[i] for i in range(len(prompts))]


def _forward(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int) -> PlainForward | None:
    """The steps of a loop over the model, as it is given; None where transformers' own generation answers."""
    if min(len(prompts), batch_size) < 2 or next(model.parameters()).device.type != "cpu":
        return None
    longest = min(max(map(len, prompts)) + sampling.max_new_tokens, context_length(model.config))
    try:
        return PlainForward(model, batch_size * blocks_for(longest))
    except ModelError:
        return None


def _by_loop(
    forward: PlainForward, encoder: Encoder, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int,
    on_done: Callable[[int], None],
) -> list[Answer]:  # fmt: skip
    loop = Loop(forward, encoder, limits=Limits(batch_size, step_tokens=_STEP_TOKENS))
    repeats: Counter[tuple[int, ...]] = Counter()
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))  # the long ones do not come last, alone
    numbers = {}
    for n in order:
        prompt = tuple(prompts[n])
        numbers[loop.add(Ask(prompt, sampling, choice=repeats[prompt]))] = n
        repeats[prompt] += 1
    ids: dict[int, list[int]] = {n: [] for n in order}
    found: dict[int, Answer] = {}
    while loop.live:
        before = len(found)
        for event in loop.step():
            n = numbers[event.row]
            ids[n] += event.ids
            if event.finish is not None:
                found[n] = replace(answer_of(encoder, ids[n], sampling.stop), stopped=event.finish == "stop")
        if len(found) > before:
            on_done(len(found))
    return [found[n] for n in range(len(prompts))]


def _batches(
    lengths: Sequence[int], max_new_tokens: int, limit: int, batch_size: int, together: BatchGroups
) -> Iterator[tuple[list[int], int]]:
    """(prompts, new tokens for each), longest first; only prompts with the same room left share a batch, and
    of those the ones that are answered as if each were alone."""

    def key(i: int) -> tuple[int, ...]:
        room = min(max_new_tokens, limit - lengths[i])
        return room, *together.answer_key(lengths[i], room)

    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for (room, *_), group in groupby(longest_first, key=key):
        members = list(group)
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size], room


def text_streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    """A streamer for one prompt that hands over decoded text as it becomes final."""
    from transformers import TextStreamer

    class _Streamer(TextStreamer):  # type: ignore[misc, unused-ignore]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return _Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _generate(
    model: Any, encoder: Encoder, prompts: list[list[int]], sampling: Sampling, room: int, streamer: Any
) -> list[list[int]]:
    from transformers import GenerationConfig as Settings

    width = max(len(p) for p in prompts)
    device = next(model.parameters()).device
    ids = torch.tensor([[encoder.pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    if sampling.stop:
        options["stop_strings"] = list(sampling.stop)
    settings = Settings(
        max_new_tokens=room,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        eos_token_id=sorted(encoder.stop_ids),
        pad_token_id=encoder.pad_id,
        **options,
    )
    with torch.inference_mode(), settings_alone(model, settings):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            streamer=streamer,
            **{cache_argument(): cache_for(model.config, width + room + virtual_tokens(model))},
            **({"tokenizer": encoder.tokenizer} if sampling.stop else {}),
        )
    rows: list[list[int]] = output[:, width:].tolist()
    return rows


@contextlib.contextmanager
def settings_alone(model: Any, settings: Any) -> Iterator[None]:
    """Inside, generate() takes these settings alone: those that a checkpoint brings along would fill what ours leave open."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.generation_config
    base.generation_config = settings
    try:
        yield
    finally:
        base.generation_config = before


def answer_of(encoder: Encoder, ids: list[int], stop: Sequence[str]) -> Answer:
    """The answer of these generated ids, up to the one that ends the turn and to a stop string."""
    end = next((n for n, i in enumerate(ids) if i in encoder.stop_ids), None)
    whole = encoder.text(ids[:end])
    text = whole
    for string in stop:
        text = text.partition(string)[0]
    return Answer(text.strip(), len(ids[:end]), end is not None or text != whole)


@cache
def cache_argument() -> str:
    """The argument by which `generate` and a model's `forward` take a cache in this version of transformers."""
    from transformers import GenerationMixin  # takes a second, which who only tokenizes need not wait

    # transformers 5.24 renamed it, and warns for whoever still says past_key_values
    known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in known else "past_key_values"


def cache_for(config: Any, length: int) -> DynamicCache | None:
    """An empty cache for so many positions; None where transformers had better choose.

    Layers that keep less than all positions stay those of transformers.
    """
    if config.is_encoder_decoder:
        return None
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    if not any(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [_Reserved(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _Reserved(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """Keys and values of one layer, (B, heads, positions, size), at the front of memory that is reserved once."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values with the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._whole = tuple(
                new.new_empty((*new.shape[:2], self._length, new.shape[3])) for new in (key_states, value_states)
            )
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values
