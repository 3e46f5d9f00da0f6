"""Answers from a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inlay.adapters import reference
from inlay.config import Config, validate_section
from inlay.config.sections.base import Assignments
from inlay.config.sections.generation import GenerationConfig
from inlay.data.encoding.encoder import Encoder
from inlay.data.types import Message
from inlay.engine.loss import autocast
from inlay.errors import RunError
from inlay.generation.generate import text_streamer
from inlay.generation.request import Sampling
from inlay.runs.folder import RunLike
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.tasks.task import task_of

Prompt = str | Sequence[Mapping[str, str]]
"""The text of a user, or the messages of a conversation."""


@dataclass
class Loaded:
    """A base with an adapter on it, ready to answer."""

    name: str
    config: Config
    """Its `generation` section holds the settings that a keyword overrides."""
    model: Any
    encoder: Encoder
    device: str
    autocast_dtype: Any
    """As in training and scoring: the dtype of matmuls over a 16-bit base, None for that of the weights."""

    def generate(self, prompt: Prompt, **sampling: Any) -> str:
        """The answer to a prompt or a conversation; keywords override its `generation` settings.

        Raises: ConfigError for an unknown keyword or a value out of range.
        """
        return self.generate_many([prompt], **sampling)[0]

    def generate_many(self, prompts: Sequence[Prompt], **sampling: Any) -> list[str]:
        """The answers to several prompts, computed together."""
        return self._answers(prompts, sampling)

    def stream(self, messages: Sequence[Mapping[str, str]], on_text: Callable[[str], None], **sampling: Any) -> str:
        """The answer, as by `generate`; `on_text` gets each piece of it as soon as it is there."""
        return self._answers([messages], sampling, text_streamer(self.encoder.tokenizer, on_text))[0]

    def _answers(self, prompts: Sequence[Prompt], over: Assignments, streamer: Any = None) -> list[str]:
        settings = validate_section(GenerationConfig, self.config.generation.model_dump() | dict(over))
        sampling = Sampling.of(settings)
        encoded = [self.encoder.prompt(_conversation(prompt)) for prompt in prompts]
        with autocast(self.device, self.autocast_dtype):
            found = task_of(self.config).answers(self.model, self.encoder, encoded, sampling, streamer=streamer)
        return [answer.text for answer in found]


def load(
    run: RunLike = None, *, adapter: bool = True, reporter: Reporter | None = None, folder: str = "results"
) -> Loaded:
    """The base of a run with its adapter (`adapter=False`: without), with that of a checkpoint, `RUN@STEP`, or of the
    library, `NAME:VERSION` or `NAME:TAG`.

    By default the run trained last. Raises: RunError for a name of neither.
    """
    reporter = reporter or PlainReporter()
    named = reference.reference(run, folder, reporter.note)
    if named.run is None and named.entry is None:
        raise RunError(
            f"{run}: not a run, and only a run says how to answer. Name a run, a checkpoint of one as RUN@120, or a library "
            "adapter as NAME:3. A model without one is scored by `inlay eval MODEL --data FILE`; a base answers under the "
            "run that was trained on it, with --base."
        )
    if adapter and named.caution:
        reporter.note(named.caution)
    config = reference.config_of(named)
    ready = reference.opened(named, config)
    model = ready.with_adapter(named.adapter(ready.ref) if adapter else None)
    return Loaded(named.name, config, model, ready.encoder, ready.device, ready.autocast_dtype)


def _conversation(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [Message(turn["role"], turn["content"]) for turn in prompt]
