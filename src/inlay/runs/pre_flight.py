"""The facts of a run before its first step, and the block that shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from inlay.errors import count_shown
from inlay.runs.reporter import bytes_shown, duration_shown


@dataclass(frozen=True, slots=True)
class Chosen:
    """The value of a setting, and why it has it."""

    value: str
    reason: str = "as set"

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The rows that are trained on and held out."""

    rows: int
    format: Chosen
    template: str
    max_length: Chosen
    kept: int
    cut: int
    dropped: int
    trained_tokens_lost: int
    heldout: int
    heldout_available: int
    heldout_fitting: int
    heldout_cut: int
    heldout_dropped: int
    leaked: int
    """Held-out rows whose prompt is that of a training row."""
    trained_tokens: int
    tokens: int
    trained_share: float
    check: str = ""
    """Findings of the data check; empty where it did not run."""
    mixture: str = ""
    """Rows of each file that an epoch draws; empty for a single file."""

    def block(self) -> list[tuple[str, str]]:
        """Names and words, for the reader."""
        drawn = " (drawn by seed)" if self.heldout < self.heldout_fitting else ""
        lost = self.heldout_dropped + self.heldout_cut
        held = f"{self.heldout} of {count_shown(self.heldout_available, 'row')}{drawn}"
        held += f"; {self.heldout_dropped} dropped, {self.heldout_cut} cut" if lost else ""
        held += f"; {self.leaked} with the prompt of a training row" if self.leaked else ""
        tokens_lost = count_shown(self.trained_tokens_lost, "trained token")
        return [
            ("data", f"{count_shown(self.rows, 'row')}, format {self.format}"),
            *([("data check", self.check)] if self.check else []),
            ("template", self.template),
            *([("mixture", self.mixture)] if self.mixture else []),
            ("rows", f"{self.kept} kept, {self.cut} cut, {self.dropped} dropped ({tokens_lost} lost); "
                     f"max_length {self.max_length}"),
            ("held out", held),
            ("trained tokens", f"{self.trained_tokens:,} of {self.tokens:,} ({self.trained_share:.0%})"),
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The adapter, or the weights of the base, that the run trains."""

    summary: str
    """Method and size, such as `rank 16, alpha 32`."""
    trainable: int
    targets: list[str] = field(default_factory=list)
    coverage: str = ""
    """Share of the decoder's weights that the target modules hold; empty where there are none."""
    experts: bool = False
    dora: bool = False
    rslora: bool = False
    init: str = "default"
    start_from: str = ""
    dropout: float = 0.0
    bias: str = "none"
    targets_reason: str = ""
    rank: Chosen | None = None
    """Where it was `auto`."""

    def words(self) -> str:
        """The adapter in one line."""
        parts = [
            self._kind(),
            "DoRA" if self.dora else "",
            "scaled by alpha/sqrt(r)" if self.rslora else "",
            f"started by {self.init}" if self.init != "default" else "",
            f"started from {self.start_from}" if self.start_from else "",
            f"dropout {self.dropout:g}" if self.dropout else "",
            f"biases {self.bias}" if self.bias != "none" else "",
            self.targets_reason,
        ]
        return ", ".join(text for text in parts if text)

    def _kind(self) -> str:
        if not self.coverage:
            return self.summary
        places = ", ".join(self.targets)
        if any(part.isdigit() for name in self.targets for part in name.split(".")):  # each layer by its full name
            kinds = sorted({name.rpartition(".")[2] for name in self.targets})
            places = f"{len(self.targets)} layers named {', '.join(kinds)}"
        return f"{self.summary}, on {places}{' and all experts' if self.experts else ''}: {self.coverage}"


@dataclass(frozen=True, slots=True)
class OrderFacts:
    """The order of the rows in the first epochs, where it is not random."""

    by: str
    """length, loss or column."""
    column: str | None
    first: str
    epochs: int
    pool: float
    pacing: float

    def words(self) -> str:
        """The order in one line."""
        what = {"length": "length", "loss": "loss of the base", "column": f"column {self.column}"}[self.by]
        epochs = f"first {self.epochs} epochs" if self.epochs > 1 else "first epoch"
        return (
            f"by {what}, {self.first} first, in the {epochs}: from a pool of {self.pool:.0%} of the rows that holds all after "
            f"{self.pacing:.0%} of an epoch"
        )


@dataclass(frozen=True, slots=True)
class StepFacts:
    """Batch sizes, schedule, learning rate and engine of the steps."""

    batch_size: int
    micro_batch_size: int
    """As configured; a process may have fewer rows of a step."""
    processes: int
    rows: int
    """Rows that an epoch draws; a step has no more."""
    total: int
    warmup: int
    schedule: str
    learning_rate: float
    learning_rate_reason: str
    lora_plus_ratio: float
    eval_every: int
    save_every: int
    engine: Chosen
    apart: str = ""
    """Rows that are computed apart, and why; empty where any share a batch."""
    order: OrderFacts | None = None

    def block(self) -> list[tuple[str, str]]:
        """Names and words, for the reader."""
        several = self.processes > 1
        of_b = f", of B {self.lora_plus_ratio:g} times that" if self.lora_plus_ratio != 1 else ""
        return [
            ("engine", str(self.engine)),
            *([("processes", f"{self.processes}, each with its share of every step and of the held-out rows")] if several else []),
            ("batch", self._batch()),
            *([("apart", self.apart)] if self.apart else []),
            *([("order", self.order.words())] if self.order else []),
            ("steps", f"{self.total}, warmup {self.warmup}, {self.schedule}, learning rate {self.learning_rate:g} "
                      f"({self.learning_rate_reason}){of_b}"),
            ("evaluate, save", f"every {self.eval_every}, every {count_shown(self.save_every, 'step')}"),
        ]  # fmt: skip

    def _batch(self) -> str:
        """Rows of a step as they are shared out: processes × rows computed at once × micro batches."""
        rows = min(self.batch_size, self.rows)
        share = -(-rows // self.processes)
        at_once = min(self.micro_batch_size, share)
        times = -(-share // at_once)
        over = f"{self.processes} processes × " if self.processes > 1 else ""
        each = " of each process" if self.processes > 1 else ""
        shown = f"{rows} = {over}{at_once} × {times}"
        if rows != self.processes * at_once * times:
            shown = f"{rows}, in {times} micro batches{each} of at most {at_once}"
        if rows == self.batch_size:
            return shown
        return (
            f"{shown} (train.batch_size {self.batch_size} is larger than the {rows} rows of an epoch, so each epoch is one "
            "step; a smaller one takes more steps)"
        )


@dataclass(frozen=True, slots=True)
class Outlook:
    """Memory and time that the rest of the run will take."""

    memory_bytes: int
    memory_parts: dict[str, int]
    """Bytes by purpose."""
    expected_s: float
    tokens_per_s: float
    """Of one process in one micro batch."""
    processes: int
    folder: str

    def block(self) -> list[tuple[str, str]]:
        """Names and words, for the reader."""
        parts = ", ".join(f"{name} {bytes_shown(size)}" for name, size in self.memory_parts.items())
        speed = f"{self.tokens_per_s:,.0f} tokens/s in one micro batch" + (
            " of each process" if self.processes > 1 else ""
        )
        return [
            ("memory", f"about {bytes_shown(self.memory_bytes)} beside Python and its libraries: {parts}"),
            ("expected time", f"about {duration_shown(self.expected_s)} ({speed})"),
            ("run folder", self.folder),
        ]


@dataclass(frozen=True, slots=True)
class PreFlight:
    """Everything about a run that is known before its first step."""

    base: str
    base_digest: str
    base_form: str
    """Form of its weights where they were converted: a dequantized GGUF file."""
    total_parameters: int
    device: Chosen
    dtype: Chosen
    matmul_precision: Chosen
    quantization: Chosen
    data: DataFacts
    adapter: AdapterFacts
    steps: StepFacts
    named_class: str = ""
    """What config.json names where something else is trained."""
    base_dropout: Chosen | None = None
    """Whether the base's own dropout is on; None for a base that has none."""
    outlook: Outlook | None = None
    """What only a calibration can tell; None before it."""

    def block(self) -> list[tuple[str, str]]:
        """The rows of the pre-flight block: names and words."""
        trainable = self.adapter.trainable
        return [
            ("base", f"{self.base} ({self.base_form + '; ' if self.base_form else ''}{self.total_parameters / 1e6:.1f}M parameters, {self.base_digest[:12]})"),
            *([("class", self.named_class)] if self.named_class else []),
            ("device", str(self.device)),
            ("dtype", str(self.dtype)),
            *([("matmuls", str(self.matmul_precision))] if self.matmul_precision.value != "highest" else []),
            ("quantization", str(self.quantization)),
            *self.data.block(),
            ("adapter", self.adapter.words()),
            *([("rank", str(self.adapter.rank))] if self.adapter.rank else []),
            *([("base's dropout", str(self.base_dropout))] if self.base_dropout else []),
            ("trainable", f"{trainable:,} ({trainable / self.total_parameters:.2%})"),
            *self.steps.block(),
            *(self.outlook.block() if self.outlook else []),
        ]  # fmt: skip
