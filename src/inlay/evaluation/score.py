"""One model on the evaluation rows: its loss on the reference answers, and the answers that it generates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inlay.data.batches import micro_batches
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.data.reading.read import from_lines
from inlay.data.truncation import apply_max_length
from inlay.data.types import Example, Message
from inlay.engine.batch_invariance import batch_groups
from inlay.engine.loss import autocast, counted
from inlay.errors import DataError, RunError, count_shown
from inlay.generation.request import Sampling
from inlay.models.base import context_length
from inlay.runs.reporter import LateBar, Reporter
from inlay.tasks.task import Task


@dataclass(frozen=True, slots=True)
class EvalSet:
    """The rows that every model of a comparison is measured on."""

    examples: tuple[Example, ...]
    tokens: TokenSet
    """Their sequences; `tokens.examples` has the example of each."""
    prompt_ids: dict[int, list[int]]
    """Token ids of the prompt of each example with a reference answer, by its position. A plain document has none, nor
    has a prompt that `max_length` cut off."""
    references: dict[int, str]
    """The reference answer, by the same positions."""
    extra_prompts: tuple[str, ...]
    """Prompts without a reference answer."""
    trained_bytes: np.ndarray
    """(N,) UTF-8 bytes of the text that the loss of each example is over."""


@dataclass(frozen=True, slots=True)
class GenerationSpeed:
    """Number, length and time of the answers, generated in batches of `batch_size`."""

    answers: int
    tokens: int
    time_s: float
    batch_size: int

    @property
    def request_s(self) -> float:
        """Seconds of one answer."""
        return self.time_s / self.answers

    def to_json(self) -> dict[str, float]:
        """Counts, tokens and seconds per answer, as `--json` and the reports have them."""
        return {
            "answers": self.answers,
            "tokens_per_answer": self.tokens / self.answers,
            "tokens_per_s": self.tokens / self.time_s,
            "time_per_answer_s": self.request_s,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True, slots=True)
class Score:
    """Losses and answers of one model on the rows of an `EvalSet`. N examples."""

    nll: np.ndarray
    """(N,) summed nll of the trained tokens, in nats."""
    weight: np.ndarray
    """(N,) their summed weight."""
    hits: np.ndarray
    """(N,) summed weight of the trained tokens that are the model's own first choice."""
    answers: tuple[str | None, ...]
    """Greedy answer to each example's prompt; None for a plain document, or where no answers were generated."""
    stopped: tuple[bool, ...]
    """(N,) whether the model ended that answer itself."""
    extra_answers: tuple[str, ...]
    """Greedy answers to the extra prompts."""
    time_s: float
    speed: GenerationSpeed | None = None
    """None where no answer was generated."""


def prompt_and_reference(example: Example) -> tuple[str, str]:
    """Texts of the last trained answer and of the message before it, as (message, answer)."""
    before = example.prompt
    return before[-1].content, example.messages[len(before)].content


def prompt_text(example: Example) -> str:
    """Text of the last message before the answer; of a plain document its own."""
    before = example.messages if example.messages[0].role == "text" else example.prompt
    return before[-1].content if before else ""


def held_out(
    examples: Iterable[Example], encoder: Encoder, max_length: int, overlong: str, prompts: Sequence[str]
) -> EvalSet:
    """The evaluation rows with the ids and cuts that training on them would have; `prompts` are the extra ones."""
    kept = tuple(examples)
    whole = pack(encoder.examples(kept))
    last = {int(n): whole.row(i) for i, n in enumerate(whole.examples)}
    prompt_ids, references = {}, {}
    for n, example in enumerate(kept):
        if example.messages[0].role == "text":
            continue
        before = example.prompt
        prompt = encoder.prompt(before, example.tools, example.switches)
        if len(prompt) < max_length:
            prompt_ids[n] = prompt
            answer = example.messages[len(before)]
            # a tool call or a thought is compared as the template writes it
            rendered = encoder.text(last[n].input_ids[len(prompt) :].tolist())
            references[n] = rendered if answer.tool_calls or answer.thought else answer.content
    tokens, _ = apply_max_length(whole, max_length, overlong)
    return EvalSet(kept, tokens, prompt_ids, references, tuple(prompts), _trained_bytes(tokens, len(kept), encoder))


def _trained_bytes(tokens: TokenSet, count: int, encoder: Encoder) -> np.ndarray:
    sizes = np.zeros(count)
    for i, n in enumerate(tokens.examples):
        row = tokens.row(i)
        sizes[n] += len(encoder.text(row.input_ids[row.weights > 0].tolist()).encode("utf-8", "replace"))
    return sizes


def score(
    model: Any,
    name: str,
    rows: EvalSet,
    encoder: Encoder,
    task: Task,
    *,
    batch_size: int,
    max_new_tokens: int,
    device: str,
    dtype: torch.dtype | None,
    reporter: Reporter,
    generate: bool = True,
) -> Score:
    """Loss of every example, then greedy answers, with the adapter that is active in `model`, if any.

    `name` stands in the progress messages; without `generate` there are no answers.

    Raises: DataError for an extra prompt that leaves no room for an answer, before anything is scored.
    """
    began = time.perf_counter()
    prompts = _extra_prompt_ids(rows.extra_prompts, encoder, context_length(model.config)) if generate else []
    reporter.stage(f"{name}: loss on {count_shown(len(rows.examples), 'row')}")
    shares = micro_batches(range(len(rows.tokens)), rows.tokens.lengths, batch_size)
    shares = batch_groups(model).apart(shares, rows.tokens.lengths)
    with LateBar(reporter, len(rows.tokens), "row") as bar:
        batches = counted(shares, bar.reached)
        sequence_scores = task.score_rows(model, rows.tokens, batches, encoder.pad_id, device, dtype, hits=True).numpy()
    totals = np.zeros((3, len(rows.examples)))
    np.add.at(totals.T, rows.tokens.examples, sequence_scores.T)
    texts: list[str | None] = [None] * len(rows.examples)
    stopped = [False] * len(rows.examples)
    extra_answers: list[str] = []
    speed = None
    if generate:
        sampling = Sampling(max_new_tokens=max_new_tokens)
        all_prompts = [*rows.prompt_ids.values(), *prompts]
        reporter.stage(f"{name}: answering {count_shown(len(all_prompts), 'prompt')}")
        reporter.start(len(all_prompts), 0, "answer")
        start = time.perf_counter()
        try:
            with autocast(device, dtype):
                got = task.answers(
                    model, encoder, all_prompts, sampling, batch_size, lambda done: reporter.progress(done, {})
                )
        finally:
            reporter.end()
        if got:
            speed = GenerationSpeed(
                len(got), sum(answer.tokens for answer in got), time.perf_counter() - start, batch_size
            )
        for n, answer in zip(rows.prompt_ids, got, strict=False):
            texts[n], stopped[n] = answer.text, answer.stopped
        extra_answers = [answer.text for answer in got[len(rows.prompt_ids) :]]
    took = time.perf_counter() - began
    return Score(totals[0], totals[1], totals[2], tuple(texts), tuple(stopped), tuple(extra_answers), took, speed)


def _extra_prompt_ids(prompts: Sequence[str], encoder: Encoder, limit: int) -> list[list[int]]:
    found = [encoder.prompt([Message("user", prompt)]) for prompt in prompts]
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) >= limit:
            text = " ".join(prompt.split())
            named = text if len(text) <= 60 else f"{text[:59]}…"
            raise DataError(f"prompt {named!r}: {len(ids)} tokens fill the base's context of {limit}. Shorten it.")
    return found


def read_held_out(path: Path) -> tuple[Example, ...]:
    """The held-out rows that a run kept. Raises: RunError when they are gone."""
    try:
        return from_lines(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path}: the run's held-out rows cannot be read ({error}). Train again.") from None
