"""The section generation: how answers are sampled."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inlay.config.sections.base import PositiveInt, Seed, Settings


class GenerationConfig(Settings):
    """Sampling of answers in generate and chat."""

    max_new_tokens: PositiveInt = 200
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sample from the smallest set of tokens with at least this probability in sum."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Sample from the k most likely tokens; 0 from all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.2
    """Values above 1 make repeated tokens less likely."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 3
    """No n-gram of this size occurs twice; 0 allows all."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end the answer."""
    seed: Seed = 0
    """Seed of sampling."""
