"""The section train: batches, learning rate, order, guards, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inlay.config.sections.base import Auto, PositiveInt, Seed, Settings, is_changed


class TrainConfig(Settings):
    """The training loop."""

    batch_size: PositiveInt = 16
    """Examples per optimizer step, over all devices and micro batches."""
    micro_batch_size: Auto | PositiveInt = "auto"
    """Examples per forward and backward pass. It changes memory and speed, not the gradient; only dropout draws other
    random numbers."""
    epochs: PositiveInt = 3
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` is."""
    learning_rate: Auto | Annotated[float, Field(gt=0)] = "auto"
    """Peak learning rate. `auto` depends on hidden size and model family."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """LoRA+: learning rate of the matrices B as a multiple of `learning_rate`; the paper uses 16. An `auto` learning rate is
    divided by the square root of it, so that A and B lie on both sides of plain LoRA's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the adapter."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warmup; overrides `warmup_ratio`."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the steps that are warmup."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warmup; `wsd` (warmup, stable, decay) is constant, then decays linearly over the last fifth."""
    learning_rate_factors: dict[PositiveInt, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factors on the learning rate by step, such as `{100: 1, 200: 0.1}`: linear interpolation in between, constant
    outside."""
    branch_from: str | None = None
    """A checkpoint of another run (`RUN@STEP`) that this run continues as its own: adapter, optimizer, position in the
    data and metrics. Data, base, adapter, batch, seed and optimizer must agree with it."""
    base_dropout: bool = False
    """Train with the dropout that the base's own config sets (0.1 in GPT-2, OPT and others), as transformers' Trainer does.
    Without it, a step does not depend on how its rows are split into micro batches, and the hand-written engine can be used."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw` keeps float32 state; the 8-bit ones need the `quant` extra, the paged one CUDA."""
    engine: Literal["auto", "autograd", "handwritten"] = "auto"
    """Engine that computes the gradient: `handwritten` has a backward pass of its own for Llama-like decoders and is faster,
    `autograd` is transformers with autograd. `auto` uses the hand-written engine where a test finds the same gradient and,
    but for CPUs, that it is faster."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offload: bool = False
    """Keep activations for the backward pass in host memory (RAM) instead of GPU memory. With gradient_checkpointing that
    is one tensor per layer. An error on a CPU, which has one memory only."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better held-out loss."""
    order: Literal["random", "length", "loss", "column"] = "random"
    """Order of the training rows: a new random one in every epoch, or a curriculum. A curriculum draws rows from a pool
    that grows from those with the least `length` in tokens, `loss` of the base, or number in `order_column`."""
    order_column: str | None = None
    """With `order` `column`: field of the data file that holds a number for each row."""
    order_first: Literal["low", "high"] = "low"
    """Whether rows with low or with high numbers come first. `high` is the anti-curriculum; the control without a
    curriculum is `order` `random`."""
    order_epochs: PositiveInt = 1
    """Number of epochs in the order of the curriculum; later ones are random. Every epoch has each row once."""
    order_pool: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the rows in the pool of a curriculum at its beginning."""
    order_pacing: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Fraction of an epoch after which the pool holds all rows. It grows linearly until then."""
    on_overfitting: Literal["stop", "note"] = "stop"
    """Reaction when the held-out loss has risen for good and the training loss has not: stop, or only print a note."""
    on_plateau: Literal["note", "stop", "escape"] = "note"
    """Reaction when the losses have converged, stalled, or are lost in noise: print a note, stop, or (`escape`) at the end
    of the run also train two branches from about 100 steps earlier and compare all three (docs/guards.md)."""
    seed: Seed = 0
    """Seed of the adapter's initialization, the order of rows, and dropout."""
    log_steps: PositiveInt = 1
    """Steps between two lines of metrics.jsonl."""
    eval_steps: Auto | Literal["epoch"] | PositiveInt = "auto"
    """Steps between two evaluations of the held-out loss; `auto` gives ten in a run."""
    save_steps: Auto | Literal["epoch"] | PositiveInt = "auto"
    """Steps between two checkpoints; `auto` saves with each evaluation."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """Reaction to a NaN or infinite loss, gradient, weight or optimizer state: stop, skip the batch, or return to the last
    checkpoint with half the learning rate and leave out the batches since."""
    max_nonfinite: PositiveInt = 3
    """With skip or rollback: stop after this many of them."""
    keep_checkpoints: PositiveInt = 3
    """Number of newest checkpoints to keep; the best one and pinned ones are always kept too."""
    keep_every: PositiveInt | None = None
    """Also keep every checkpoint whose step is a multiple of this number."""
    export: Literal["best", "last"] = "best"
    """Checkpoint that becomes the run's adapter: the one with the lowest held-out loss, or the last."""
    max_memory: str | None = None
    """Memory limit of each process, such as `8GB`: tensors on CUDA and MPS, resident memory on a CPU. The run is planned
    within it, and a batch that exceeds it is recomputed in smaller ones. By default the free memory of the device, for
    the plan only."""

    @model_validator(mode="after")
    def _settings_take_effect(self) -> TrainConfig:
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is more than the batch_size of {self.batch_size} that it is "
                "a part of; lower it, or leave it out"
            )
        if self.order == "random":
            for name in ("order_column", "order_first", "order_epochs", "order_pool", "order_pacing"):
                if is_changed(self, name):
                    raise ValueError(f"{name} has no effect with order random; leave one out")
        elif (self.order == "column") != (self.order_column is not None):
            raise ValueError("order column and order_column NAME go together; give both or neither")
        if self.on_nonfinite == "stop" and is_changed(self, "max_nonfinite"):
            raise ValueError("max_nonfinite has no effect with on_nonfinite stop; leave one out")
        if self.on_plateau == "escape" and self.branch_from is not None:
            raise ValueError("on_plateau escape makes branches, and a run with branch_from is one; leave one out")
        if self.warmup_steps is not None and is_changed(self, "warmup_ratio"):
            raise ValueError("warmup_ratio has no effect with warmup_steps; leave one out")
        return self
