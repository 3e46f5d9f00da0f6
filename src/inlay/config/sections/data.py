"""The section data: what is trained on, what is held out, and how rows become tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inlay.config.sections.base import Auto, PositiveInt, Settings, is_changed
from inlay.errors import unknown_name

Role = Literal["system", "user", "assistant", "tool"]


class TrainFile(Settings):
    """One file of a mixture."""

    path: str
    """A data file or a dataset id on the hub."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each of its training rows is drawn in an epoch; 0.5 draws half of them, in turn."""
    max_rows: PositiveInt | None = None
    """Use at most this many of its rows, chosen by their content."""
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
    """Training and held-out rows."""

    train: str | Annotated[list[str | TrainFile], Field(min_length=1)]
    """Training data: a file (docs/data.md lists the types), a folder or pattern of files, or a dataset of the hub. A list
    mixes several: `[a.jsonl, {path: b.jsonl, weight: 2.0, max_rows: 1000}]`."""
    eval: str | None = None
    """Held-out file. Without one, `eval_fraction` of the training rows is held out, chosen by their content."""
    max_rows: PositiveInt | None = None
    """Use at most this many rows of each training file, chosen by their content, before some are held out. An entry of
    the list in `data.train` may set its own."""
    format: str = "auto"
    """Row format; `auto` detects it from the fields. See docs/data.md for the names."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames fields before the format reads them: {name in the format: name in the file}."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the rows held out when no `eval` file is given. Rows with the same prompt stay on one side."""
    fold: Annotated[str, Field(pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")] | None = None
    """Hold out one fold of the rows instead of `eval_fraction`, such as `2/5` for the second of five. Folds are made by
    content, and each row is in exactly one of them."""
    role_weights: dict[Role, Annotated[float, Field(ge=0, le=1_000_000)]] = Field(default_factory=dict)
    """Loss weight of each token of a message by its role, such as `{user: 0.1}`, times the message's own `weight` where its
    row has one. Of roles that are not named, assistant has weight 1 and the others are masked."""
    max_length: Auto | Annotated[int, Field(ge=8)] = "auto"
    """Longest sequence in tokens, at most the model's context. `auto` is the longest row of a set with under 200 rows, and
    the 99th percentile of a larger one."""
    check: Literal["refuse", "warn", "off"] = "refuse"
    """Reaction to errors that the data check before training finds: `refuse` stops, `warn` prints them and continues. It
    reads all rows of a set of ordinary size and skips near duplicates; `inlay data check` runs every check."""
    special_tokens: Literal["refuse", "escape"] = "refuse"
    """Text in a row that the tokenizer would read as a special token, such as a quoted end of turn: `refuse` stops,
    `escape` encodes it as ordinary text. Generation does the same."""
    template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Variables of the chat template, such as `{enable_thinking: false}`, for training, generation and comparison alike.
    The saved tokenizer has them as defaults. A variable that the template does not read is an error."""
    overlong: Literal["drop", "cut", "error"] = "drop"
    """Treatment of a row longer than `max_length`. `cut` keeps its first tokens."""
    max_lost_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """It is an error when more than this fraction of the rows is dropped or cut."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes (threads on other systems than Linux) that tokenize a large file. 0 uses every core."""
    cache: bool = True
    """Keep the tokenized rows on disk and reuse them while data, tokenizer and template are the same."""

    @property
    def train_files(self) -> tuple[TrainFile, ...]:
        """The training files, each with its part in the mixture."""
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
        if self.eval is not None and is_changed(self, "eval_fraction"):
            raise ValueError("eval_fraction has no effect with data.eval, whose rows are held out; leave one out")
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_the_parts(self) -> DataConfig:
        if self.fold is not None:
            part, parts = map(int, self.fold.split("/"))
            if not part <= parts or parts < 2:
                raise ValueError(f"fold {self.fold} is none of two or more parts; write 1/5 to 5/5 for five")
            if self.eval is not None or is_changed(self, "eval_fraction"):
                raise ValueError("fold says which rows are held out, and so do eval and eval_fraction; leave one out")
        return self
