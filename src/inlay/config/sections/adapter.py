"""The section adapter: the fine-tuning method and its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from inlay.config.sections.base import Auto, OneOf, PositiveInt, Settings, is_changed

_OF_LORA: Final = ("rank", "alpha", "dropout", "experts", "bias", "rslora", "dora", "init")
METHOD_SETTINGS: Final[dict[str, Sequence[str]]] = {
    "lora": (*_OF_LORA, "target_modules", "start_from"),
    "ia3": ("target_modules", "start_from"),
    "prompt": ("start_from", "prompt_tokens"),
    "full": (),
}
"""Method -> settings of this section that have an effect with it; `inlay.methods.table` has what each method does."""


class AdapterConfig(Settings):
    """Settings of the fine-tuning method and its adapter."""

    method: Annotated[str, OneOf(METHOD_SETTINGS)] = "lora"
    """Fine-tuning method. `lora` adds a low-rank update B·A to each layer. `ia3` scales keys, values and the inner
    activations of the feed-forward layers. `prompt` trains virtual tokens before every sequence. `full` trains all weights
    of the base, in float32. See docs/methods.md."""
    rank: Auto | Annotated[int, Field(ge=1, le=65_536)] = 16
    """Rank r of the update B·A of each adapted layer. `auto` is a rule of thumb: as many parameters as the rows have trained
    tokens, from rank 8 to 256."""
    alpha: Annotated[float, Field(gt=0)] | Literal["1x", "2x", "4x"] = "2x"
    """Numerator of the scale alpha/r: a number, or a multiple of the rank such as `2x`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input. It costs memory; 0 costs none."""
    target_modules: Auto | Annotated[list[str], Field(min_length=1)] = "auto"
    """Layers that get an adapter: `auto` (all linear layers but the lm_head; with `ia3` its three kinds of layers), or a
    list of name endings, each of which must match a layer."""
    experts: bool = False
    """Also adapt the experts of a mixture-of-experts model where one tensor holds the weights of all experts of a layer:
    `rank` for each expert. These are not linear layers, so `target_modules` does not reach them."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too, as in PEFT."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r (rsLoRA)."""
    dora: bool = False
    """Train magnitude and direction separately (DoRA). Slower."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva"] = "default"
    """Initialization of A and B. `pissa` and `olora` use the base weights (the saved adapter then has twice the rank),
    `eva` the activations of the base on the data."""
    start_from: str | None = None
    """Start from the trained weights of a run, of a checkpoint (`RUN@STEP`) or of an adapter folder. Rank and target
    modules must agree with it."""

    prompt_tokens: PositiveInt = 20
    """With method `prompt`: number of virtual tokens. They take positions of the context."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear_is_auto(cls, value: object) -> object:
        if value == "all-linear":
            raise ValueError("PEFT's `all-linear` is `auto` here, all linear layers without the head; write auto")
        return value

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> AdapterConfig:
        for name in (*_OF_LORA, "target_modules", "start_from", "prompt_tokens"):
            if name not in METHOD_SETTINGS[self.method] and is_changed(self, name):
                raise ValueError(f"{name} has no effect with method {self.method}; leave one out")
        return self

    @model_validator(mode="after")
    def _experts_are_plain_lora(self) -> AdapterConfig:
        for name, idle in (("dropout", 0.0), ("dora", False), ("init", "default")):
            if self.experts and getattr(self, name) not in (idle, "gaussian"):
                raise ValueError(
                    f"experts cannot be combined with {name}, which PEFT does not know there; leave one out"
                )
        return self

    @model_validator(mode="after")
    def _start_takes_effect(self) -> AdapterConfig:
        if self.init in ("pissa", "olora") and self.dora:
            raise ValueError(f"init {self.init} cannot be combined with dora; leave one out")
        if self.start_from is not None and self.rank == "auto":
            raise ValueError("rank auto cannot be combined with start_from, whose rank stays; write that rank")
        if self.start_from is not None and self.init != "default":
            raise ValueError(
                f"init {self.init} has no effect with start_from, whose weights come instead; leave one out"
            )
        return self
