"""Every setting, once. The docstring under a field is its documentation everywhere."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inlay.errors import unknown_name

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
DtypeName = Literal["float32", "bfloat16", "float16"]
Role = Literal["system", "user", "assistant", "tool"]


class Settings(BaseModel):
    """A frozen section, closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # `rank: true` and `rank: "8"` are mistakes, not 1 and 8
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def _is_changed(section: Settings, name: str) -> bool:
    """Whether a setting is not its default. Who set it says nothing: a run's own config writes every setting out."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)


class ModelConfig(Settings):
    base_model: Annotated[str, Field(min_length=1)]
    """The frozen base: a local folder, a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`, or `builtin:nano`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """Where to compute: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Auto | DtypeName = "auto"
    """Number format of the base weights. `auto` takes the fastest that passes a real forward and backward."""
    matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto"
    """What float32 products may be computed in, in torch's words. On a CPU `medium` hands them to oneDNN, and `auto` does
    where that is seen to be as exact and much faster. On a GPU `auto` is `highest`; `high` takes TF32."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Hold the base in 4 bits (`nf4`, QLoRA) or 8 bits (`int8`). Needs the `quant` extra."""
    double_quantization: bool = True
    """With `nf4`: quantize the quantization constants too (saves about 0.4 bits per weight)."""
    compute_dtype: Auto | DtypeName = "auto"
    """With `nf4`: the dtype that products are computed in."""
    quantization_fallback: bool = False
    """Go on unquantized when quantization does not work on this machine. Otherwise that is an error."""
    chat_template: str | None = None
    """A Jinja file to use in place of the tokenizer's own chat template."""

    @model_validator(mode="after")
    def _quantization_settings_take_effect(self) -> ModelConfig:
        if self.quantization != "nf4":
            for name, idle in (("compute_dtype", "auto"), ("double_quantization", True)):
                if getattr(self, name) != idle:
                    raise ValueError(
                        f"{name} has no effect with quantization {self.quantization}, only with nf4; leave it out"
                    )
        if self.quantization == "none" and self.quantization_fallback:
            raise ValueError("quantization_fallback has no effect with quantization none; leave it out")
        return self


class AdapterConfig(Settings):
    method: Literal["lora", "ia3", "prompt", "full"] = "lora"
    """What is trained: `lora` adds B·A to each layer, `ia3` scales keys, values and the feed-forward's inner values by
    a vector each, `prompt` trains virtual tokens before every sequence, `full` trains all weights of the base, in float32. See docs/methods.md."""
    rank: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Rank r of the update B·A of each adapted layer."""
    alpha: Annotated[float, Field(gt=0)] | Literal["1x", "2x", "4x"] = "2x"
    """Numerator of the scale alpha/r: a number, or a multiple of the rank by name."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input. Costs memory; the default needs none."""
    target_modules: Auto | Annotated[list[str], Field(min_length=1)] = "auto"
    """Which layers get an adapter: `auto` (all linear layers without the head, with `ia3` its three kinds) or name
    endings, each of which must match."""
    experts: bool = False
    """Give the experts of a mixture an adapter too, where the weights of all experts of a layer lie in one tensor: of
    `rank` for each expert. They are no linear layers, and `target_modules` does not reach them."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained along."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) in place of alpha/r."""
    dora: bool = False
    """Train magnitude and direction apart (DoRA). Slower."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva"] = "default"
    """How A and B start. `pissa` and `olora` start from the base weights (the saved adapter then has
    twice the rank), `eva` from its activations on the data."""
    start_from: str | None = None
    """A run, a checkpoint of one (`RUN@STEP`) or an adapter folder whose weights training starts from (`--from`).
    Rank and targets must agree with it."""

    prompt_tokens: PositiveInt = 20
    """With method `prompt`: how many virtual tokens. They count as positions of the context."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear_is_auto(cls, value: object) -> object:
        if value == "all-linear":
            raise ValueError("PEFT's `all-linear` is `auto` here, all linear layers without the head; write auto")
        return value

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> AdapterConfig:
        idle: tuple[str, ...] = (
            () if self.method == "lora" else ("rank", "alpha", "dropout", "experts", "bias", "rslora", "dora", "init")
        )
        idle += ("target_modules", "start_from") if self.method == "full" else ()
        idle += ("target_modules",) if self.method == "prompt" else ()
        idle += ("prompt_tokens",) if self.method != "prompt" else ()
        for name in idle:
            if _is_changed(self, name):
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
        if self.start_from is not None and self.init != "default":
            raise ValueError(
                f"init {self.init} has no effect with start_from, whose weights come instead; leave one out"
            )
        return self


class TrainFile(Settings):
    """One file of a mixture."""

    path: str
    """A data file or a dataset id on the hub."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each of its training rows is drawn in an epoch; 0.5 draws half of them, in turn."""
    max_rows: PositiveInt | None = None
    """At most so many of its rows are used, chosen by their content."""
    format: str | None = None
    """Its row format, where it is not that of `data.format`."""
    columns: dict[str, str] | None = None
    """Its columns, where they are not those of `data.columns`."""

    @model_validator(mode="before")
    @classmethod
    def _names_the_unknown(cls, value: object) -> object:
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(unknown_name("part of a file's entry", str(key), cls.model_fields).rstrip("."))
        return value


class DataConfig(Settings):
    train: str | Annotated[list[str | TrainFile], Field(min_length=1)]
    """Training file (docs/data.md lists the types), a folder or pattern of files, or a dataset of the hub. A list mixes:
    `[a.jsonl, {path: b.jsonl, weight: 2.0, max_rows: 1000}]`."""
    eval: str | None = None
    """Held-out file. Without one, `eval_fraction` of the training rows is held out by their content."""
    max_rows: PositiveInt | None = None
    """At most so many rows of each training file are used, chosen by their content, before some are held out. A file's
    entry in a list may say otherwise."""
    format: str = "auto"
    """Row format; `auto` finds it from the fields. See docs/data.md for the names."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames fields before the format reads them: {wanted: name in the file}."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the rows held out when no `eval` file is given. Rows with the same prompt stay on one side."""
    fold: Annotated[str, Field(pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")] | None = None
    """Instead of `eval_fraction`: hold out one of so many parts of the rows, made by their content, such as `2/5`. The
    parts of one number together are all rows, each once."""
    role_weights: dict[Role, Annotated[float, Field(ge=0, le=1_000_000)]] = Field(default_factory=dict)
    """How much each token of a turn counts by its role, such as `{user: 0.1}`, times the turn's own `weight` where its
    row has one. Of roles that are not named, assistant counts 1 and the others are masked."""
    max_length: Auto | Annotated[int, Field(ge=8)] = "auto"
    """Longest sequence in tokens, at most the model's context. `auto` is the longest of a set with under 200 rows, and the
    99th percentile of a larger one."""
    check: Literal["refuse", "warn", "off"] = "refuse"
    """What the check of the rows before training does with errors it finds: `refuse` stops, `warn` says them and
    goes on. It looks at all rows of an ordinary set and leaves out near duplicates; `inlay data check` does all."""
    special_tokens: Literal["refuse", "escape"] = "refuse"
    """Text of a row that the tokenizer would read as a special token, such as a quoted end of turn: `refuse` stops,
    `escape` encodes it as the ordinary text that it is. Serving does the same."""
    template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Switches of the chat template, such as `{enable_thinking: false}`, for training, generation and comparison alike.
    The saved tokenizer has them as defaults. A switch that the template does not read is an error."""
    overlong: Literal["drop", "cut", "error"] = "drop"
    """What happens to a row longer than `max_length`. `cut` keeps its first tokens."""
    max_lost_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """More rows than this share dropped or cut is an error."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that tokenize a large file on Linux, elsewhere threads. 0 takes every core."""
    cache: bool = True
    """Keep the tokenized rows on disk and reuse them while data, tokenizer and template are the same."""

    @property
    def train_files(self) -> tuple[TrainFile, ...]:
        """What is trained on, each file with its part in the mixture."""
        files = self.train if isinstance(self.train, list) else [self.train]
        each = (file if isinstance(file, TrainFile) else TrainFile(path=file) for file in files)
        return tuple(file.model_copy(update={"max_rows": file.max_rows or self.max_rows}) for file in each)

    @property
    def train_name(self) -> str:
        """The training files as a message names them."""
        return ", ".join(file.path for file in self.train_files)

    @property
    def weights_of_roles(self) -> dict[str, float]:
        """The roles that are trained, each with its weight."""
        every = {"assistant": 1.0} | {str(role): weight for role, weight in self.role_weights.items()}
        return {role: weight for role, weight in every.items() if weight}

    @model_validator(mode="after")
    def _assistants_are_trained(self) -> DataConfig:
        if self.role_weights.get("assistant") == 0:
            raise ValueError("role_weights gives assistant 0, and then there is no answer to train or measure")
        return self

    @model_validator(mode="after")
    def _fraction_takes_effect(self) -> DataConfig:
        if self.eval is not None and _is_changed(self, "eval_fraction"):
            raise ValueError("eval_fraction has no effect with data.eval, whose rows are held out; leave one out")
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_the_parts(self) -> DataConfig:
        if self.fold is not None:
            part, parts = map(int, self.fold.split("/"))
            if not part <= parts or parts < 2:
                raise ValueError(f"fold {self.fold} is none of two or more parts; write 1/5 to 5/5 for five")
            if self.eval is not None or _is_changed(self, "eval_fraction"):
                raise ValueError("fold says which rows are held out, and so do eval and eval_fraction; leave one out")
        return self


class TrainConfig(Settings):
    batch_size: PositiveInt = 16
    """Examples per optimizer step, over all devices and micro batches."""
    micro_batch_size: Auto | PositiveInt = "auto"
    """Examples per forward and backward. Changes memory and speed, not the gradient; only dropout draws otherwise."""
    epochs: PositiveInt = 3
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimizer steps, whatever `epochs` says."""
    learning_rate: Auto | Annotated[float, Field(gt=0)] = "auto"
    """Peak learning rate. `auto` follows hidden size and model family."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """LoRA+: how many times the learning rate the matrices B take; the paper has 16. With it, `learning_rate` `auto` is
    lower by the root of it, so that A and B stand on both sides of LoRA's own."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the adapter."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warmup; wins over `warmup_ratio`."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps spent warming up."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after warmup; `wsd` is warmup, stable, then linear decay over the last fifth."""
    learning_rate_factors: dict[PositiveInt, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factors on the learning rate by step, such as `{100: 1, 200: 0.1}`: in a line between the steps that are named,
    and beyond them as at the nearest."""
    branch_from: str | None = None
    """A checkpoint of another run (`RUN@STEP`) that this run goes on from as its own: adapter, optimizer, place in the
    data and metrics. Data, base, adapter, batch, seed and optimizer must agree with it."""
    base_dropout: bool = False
    """Train with the dropout that the base's own config sets (0.1 in GPT-2, OPT and others), as transformers' Trainer does.
    Off, a step does not depend on how its rows are shared out, and the direct path can be taken."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw` keeps fp32 state; the 8-bit ones need the `quant` extra, the paged one CUDA."""
    engine: Literal["auto", "plain", "direct"] = "auto"
    """What computes gradients: `direct` is written by hand for Llama-like decoders and faster, `plain` is transformers
    and autograd. `auto` takes the direct one where it gives the plain one's gradient, and elsewhere than on a CPU where it
    is the faster one too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offload: bool = False
    """Keep what the backward pass needs in the machine's memory instead of a GPU's. With gradient_checkpointing that is
    one value of each layer. Refused on a CPU, where there is only one memory."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after so many evaluations in a row without a better held-out loss."""
    order: Literal["random", "length", "loss", "column"] = "random"
    """Which training rows come first: a new random order in every epoch, or a curriculum, in which rows are drawn from
    a pool that grows from those with the least `length` in tokens, `loss` of the base, or number in `order_column`."""
    order_column: str | None = None
    """Field of the data file with a number for each row, for `order` `column`."""
    order_first: Literal["low", "high"] = "low"
    """Whether the rows with the low or with the high numbers come first. `high` is the anti-curriculum; the control
    without any is `order` `random`."""
    order_epochs: PositiveInt = 1
    """So many first epochs have the order of the curriculum; later ones are random. Every epoch has each row once."""
    order_pool: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the rows that the pool of a curriculum begins with."""
    order_pacing: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of an epoch after which the pool holds all rows. It grows linearly until then."""
    on_overfitting: Literal["stop", "note"] = "stop"
    """When the held-out loss has risen for good while the training loss has not: stop, or only say so."""
    on_plateau: Literal["note", "stop", "escape"] = "note"
    """When the losses have converged, stalled, or drowned in noise: only say so, stop, or after the run's end also try
    two other ways from about 100 steps earlier, and judge all three (docs/guards.md)."""
    seed: Seed = 0
    """Seed of the adapter's start, the order of rows, and dropout."""
    log_steps: PositiveInt = 1
    """Write a metrics line every so many steps."""
    eval_steps: Auto | Literal["epoch"] | PositiveInt = "auto"
    """Held-out loss every so many steps; `auto` is ten times a run."""
    save_steps: Auto | Literal["epoch"] | PositiveInt = "auto"
    """Checkpoint every so many steps; `auto` is with each evaluation."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """On a loss, gradient, weight or optimizer state that is not finite: stop, skip the batch, or roll back to the
    last checkpoint with half the learning rate and past the batches since."""
    max_nonfinite: PositiveInt = 3
    """With skip or rollback: stop after so many of them."""
    keep_checkpoints: PositiveInt = 3
    """Newest checkpoints kept; the best one and pinned ones are always kept beside them."""
    keep_every: PositiveInt | None = None
    """Also keep the checkpoints whose step this number divides."""
    export: Literal["best", "last"] = "best"
    """Which step becomes the run's adapter."""
    max_memory: str | None = None
    """Memory that each process may hold, such as `8GB`: tensors on CUDA and MPS, all that is resident on a CPU. The run is
    planned within it, and what goes beyond it is computed again in smaller batches. Default: what the device has free,
    for the plan alone."""

    @model_validator(mode="after")
    def _settings_take_effect(self) -> TrainConfig:
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is more than the batch_size of {self.batch_size} that it is "
                "a part of; lower it, or leave it out"
            )
        if self.order == "random":
            for name in ("order_column", "order_first", "order_epochs", "order_pool", "order_pacing"):
                if _is_changed(self, name):
                    raise ValueError(f"{name} has no effect with order random; leave one out")
        elif (self.order == "column") != (self.order_column is not None):
            raise ValueError("order column and order_column NAME go together; give both or neither")
        if self.on_nonfinite == "stop" and _is_changed(self, "max_nonfinite"):
            raise ValueError("max_nonfinite has no effect with on_nonfinite stop; leave one out")
        if self.on_plateau == "escape" and self.branch_from is not None:
            raise ValueError("on_plateau escape makes branches, and a run with branch_from is one; leave one out")
        if self.warmup_steps is not None and _is_changed(self, "warmup_ratio"):
            raise ValueError("warmup_ratio has no effect with warmup_steps; leave one out")
        return self


class EvalConfig(Settings):
    max_rows: PositiveInt = 200
    """At most so many held-out rows are scored, drawn by the training seed."""
    batch_size: PositiveInt = 16
    """Rows per forward pass when scoring and generating."""
    metric: str = "auto"
    """Metric that decides the verdict; `auto` is held-out loss."""
    prompts: list[str] = Field(default_factory=list)
    """Extra prompts answered by base and adapter side by side."""
    max_new_tokens: PositiveInt = 128
    """Longest answer generated for a comparison. Comparison is greedy."""
    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples of the interval."""
    retention_rows: Annotated[int, Field(ge=0)] = 24
    """Rows of general text, and of each example task not trained for, whose loss a comparison also measures; 0: none."""


class GenerationConfig(Settings):
    max_new_tokens: PositiveInt = 200
    """Longest answer in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sample from the smallest set of tokens with this much probability."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Sample from the k most likely tokens; 0 is all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.2
    """Above 1 makes repeated tokens less likely."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 3
    """No n-gram of this size twice; 0 allows all."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end the answer."""
    seed: Seed = 0
    """Seed of sampling."""


class TrackConfig(Settings):
    trackers: Auto | list[Literal["tensorboard", "wandb", "mlflow"]] = "auto"
    """Where metrics also go. `auto` is TensorBoard where it is installed. metrics.jsonl is always written."""
    project: str = "inlay"
    """Project or experiment name at the tracker."""


class OutputConfig(Settings):
    folder: str = "results"
    """Folder that holds all runs."""
    name: str | None = None
    """Name of the run; by default data and model with a number."""

    @field_validator("name")
    @classmethod
    def _is_one_folder(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[^\s./\\][^/\\\x00-\x1f]{0,199}", name):
            raise ValueError(f"must be one plain folder name of at most 200 characters (got {name!r})")
        return name


class Config(Settings):
    """One run, whole."""

    preset: str | None = None
    """A preset whose values stand under the ones given here."""
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    generation: GenerationConfig = GenerationConfig()
    track: TrackConfig = TrackConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        method = self.adapter.method
        if method != "lora" and self.train.lora_plus_ratio != 1:
            raise ValueError(f"train.lora_plus_ratio has no effect with adapter.method {method}; leave one out")
        if method != "lora" and self.train.engine == "direct":
            raise ValueError(f"train.engine direct knows LoRA only, not adapter.method {method}; leave it at auto")
        if method == "full" and self.model.dtype not in ("auto", "float32"):
            raise ValueError(
                f"adapter.method full trains the base's own weights, and {self.model.dtype} would round most steps away; "
                "leave model.dtype at auto, which is float32 then"
            )
        if method == "full" and self.model.quantization != "none":
            raise ValueError(
                "adapter.method full needs a base without model.quantization; leave one out, or train lora"
            )
        return self
