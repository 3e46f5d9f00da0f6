"""The content of run.json, typed: status of a run, its inputs, its machine, its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from inlay.typed_json import JsonObject, decode, encode

Kind = Literal["overfitting", "converged", "noise-bound", "stalled"]
Status = Literal["running", "finished", "interrupted", "failed"]
RUNNING: Final = "running"
FINISHED: Final = "finished"
INTERRUPTED: Final = "interrupted"
FAILED: Final = "failed"

INPUTS: Final = ("settings_hash", "data_hash", "base_digest", "tokenizer_hash", "chat_template_hash")
"""The digests of a record that decide the numbers of its run."""


@dataclass(frozen=True, slots=True)
class OutOfMemoryEvent:
    """From `step` on a batch of this phase holds at most `batch_size` rows."""

    phase: str
    step: int
    batch_size: int
    error: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The course of the losses as an evaluation found it, and the figures it follows from."""

    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """The plateau that the run is to escape from, and the step of the checkpoint that it goes back to."""

    step: int
    back_to: int
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """A return to the checkpoint of `step` after a non-finite number; its fields are its line in metrics.jsonl."""

    step: int
    event: Literal["rollback"] = "rollback"
    failed_step: int
    error: str
    learning_rate_factor: float
    """Holds from here on."""
    batches_passed: tuple[int, int]
    """First and last batch of the data order that is not trained on again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestEvaluation:
    """The evaluation with the lowest held-out loss of one branch."""

    step: int
    eval_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceRecord:
    """A difference between two models on the same rows, with its interval and statistics, as files hold it."""

    base: float
    adapter: float
    difference: float
    low: float | None
    high: float | None
    level: float
    wins: int
    ties: int
    losses: int
    n: int
    clusters: int | None
    seeds: int | None
    standard_error: float | None
    mde: float | None
    p: float | None
    test: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EscapeOutcome:
    """Results of the branches of a run with a plateau, or the reason why none was trained."""

    tried: bool
    reason: str | None = None
    """Why it was not tried; None where it was."""
    plateau: Kind | None = None
    steps: tuple[int, int] | None = None
    """First and last step of the branches."""
    eval_loss: Mapping[str, float] | None = None
    """Held-out loss after the last step, by branch."""
    best: Mapping[str, BestEvaluation] | None = None
    against: Mapping[str, DifferenceRecord] | None = None
    """Held-out loss of the escape minus that of each other branch."""
    beat: list[str] | None = None
    """The branches that the escape is better than."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Steps, losses, verdict and costs of a finished run."""

    run: str
    status: str
    steps: int
    adapter_step: int
    """Step of the checkpoint that the exported adapter is of."""
    best_step: int | None
    train_loss: float | None
    eval_loss: float
    base_eval_loss: float
    difference: float
    """`eval_loss` minus `base_eval_loss`; `low` and `high` are its 95% interval, None of a single row."""
    low: float | None
    high: float | None
    verdict: str
    reason: str | None = None
    """The cause of the verdict; None of a run of 0.1.0."""
    stopped_early: bool
    diagnosis: Diagnosis | None
    plateau: Plateau | None
    skipped_steps: int
    trained_batches: list[list[int]]
    """[first, last] of every stretch of the data order that the weights have seen."""
    rollbacks: int
    gradient_spikes: int
    out_of_memory: int
    tokens_seen: int
    trained_tokens_seen: int
    train_time_s: float
    time_s: float
    adapter: str
    """Folder of the adapter, or of the model after full fine-tuning."""
    opens_in: str = ""
    """Class of transformers in which the adapter has its effect, where config.json names another than was trained."""
    escape: EscapeOutcome | None = None
    """Of a run with `train.on_plateau: escape` that met a plateau, once its branches are judged."""

    def to_json(self) -> JsonObject:
        """The JSON object that run.json and `--json` show."""
        return dict(encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessShare:
    """Device, host and computed tokens of one process of a run."""

    device: str
    host: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything that run.json holds."""

    status: Status
    started_at: str
    """ISO 8601, UTC."""
    seed: int
    versions: Mapping[str, str | None]
    """Of the libraries; None for one that is not installed."""
    device: str
    dtype: str
    quantization: str
    heldout_available: int
    """Held-out rows before `eval.max_rows` drew some of them."""
    max_length: int
    eval_batch_size: int
    """Rows of one forward pass of an evaluation, as planned at the start."""
    trainable_parameters: int
    total_parameters: int
    settings_hash: str
    data_hash: str
    base_digest: str
    tokenizer_hash: str
    chat_template_hash: str
    base_fingerprint: JsonObject | None = None
    """See `inlay.models.fingerprint.Fingerprint`."""
    base_commit: str | None
    """Commit of a base from the hub."""
    base_gguf: JsonObject | None = None
    """File, quantization and sha256 of the GGUF file that the base was dequantized from."""
    error: str | None
    machine: JsonObject | None = None
    """A quick `inlay doctor` as of the last start: for a reader, so its keys are those of the version that wrote it."""
    failed_step: int | None = None
    """The step at which a failed run stopped; None where no step is at fault."""
    resumed_at: str | None = None
    out_of_memory: tuple[OutOfMemoryEvent, ...] = ()
    order_sha256: str | None = None
    """Digest of the losses that `train.order: loss` orders rows by."""
    profile: Mapping[str, float] | None = None
    """Seconds by part of a step."""
    result: Result | None = None
    """None until the run is finished."""
    processes: tuple[ProcessShare, ...] = ()
    """Of a run with several processes."""
    unknown: JsonObject = field(default_factory=dict)
    """Keys that a newer version of inlay wrote; they are kept when the record is written again."""

    @property
    def inputs(self) -> dict[str, str]:
        """The digests of everything that decided the numbers of the run, by key."""
        return {key: getattr(self, key) for key in INPUTS}

    @property
    def base(self) -> JsonObject:
        """The keys that tell the base from others, as an adapter's card has them."""
        return {
            "base_digest": self.base_digest,
            "base_fingerprint": self.base_fingerprint,
            "base_commit": self.base_commit,
        }

    @property
    def awaits_escape(self) -> bool:
        """Whether branches of a plateau are still to be trained."""
        result = self.result
        return self.status == FINISHED and result is not None and result.plateau is not None and result.escape is None

    @staticmethod
    def from_json(value: object) -> RunRecord:
        """The record of a run.json. Raises: inlay.typed_json.Mistyped naming the key at fault."""
        known = {one.name for one in fields(RunRecord)} - {"unknown"}
        if not isinstance(value, dict):
            return decode(RunRecord, value, "run.json")
        return decode(RunRecord, {**value, "unknown": {k: v for k, v in value.items() if k not in known}})

    def to_json(self) -> JsonObject:
        """The JSON object of run.json."""
        tree = dict(encode(self))
        unknown = dict(tree.pop("unknown"))
        return tree | unknown
