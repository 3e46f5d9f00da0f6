"""The proofs of a run: at the end of training from memory, later from its folder alone.

`proofs.json` in the run folder keeps the outcome and the evidence for later proofs: digests of the adapter before step 1
and at the end, losses on a few held-out rows, digests of the run's files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from inlay.config import Config
from inlay.data.batches import Batch, collate
from inlay.data.curriculum import Curriculum, curriculum, difficulty
from inlay.data.encoding.encoder import Encoder, TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet
from inlay.data.prepare import PreparedData, prepare
from inlay.data.types import Example
from inlay.engine.loss import autocast, for_inference, predictions
from inlay.errors import InlayError, StorageError
from inlay.evaluation.score import held_out, read_held_out
from inlay.methods.adapter import adapter_disabled, detach
from inlay.methods.adapter_state import AdapterState
from inlay.methods.initialization import FROM_WEIGHTS
from inlay.methods.lora import rank_of
from inlay.methods.table import method_of
from inlay.models import base as bases
from inlay.proof import proofs as p
from inlay.proof.proofs import Proof, Refuted, Unknown, proof
from inlay.runs.folder import PROOFS, Run
from inlay.storage import sha256_of, write_json
from inlay.tasks.opened_base import OpenedBase
from inlay.training import loss_curriculum
from inlay.training.job import AdapterJob
from inlay.typed_json import decode, encode

_FILES = ("config.yaml", "heldout.jsonl", "metrics.jsonl", loss_curriculum.FILE)
_ROWS, _POSITIONS, _SAMPLE = 2, 16, 4
_EXACT, _ROUNDING, _COARSE = 0.0, 1e-4, 3e-2


@dataclass(frozen=True, slots=True)
class Evidence:
    """Records of the end of training that later proofs compare with; None where a file lacks one."""

    start: dict[str, str] | None = None
    """Digest of each of the adapter's tensors before step 1."""
    adapter: dict[str, str] | None = None
    """Digest of each of its exported tensors."""
    losses: list[float | None] | None = None
    """Loss of the adapter on a few held-out rows; None for one that was not finite."""
    base_losses: list[float | None] | None = None
    files: dict[str, str] | None = None
    """Digest of each of the run's files."""


@dataclass(frozen=True, slots=True)
class Start:
    """Adapter and base before step 1."""

    digests: dict[str, str]
    """Digest of each of the adapter's tensors."""
    base_logits: Tensor
    """(B, K, V), of a few held-out rows."""

    @staticmethod
    def of(job: AdapterJob) -> Start:
        """Take it before a checkpoint is loaded: a resumed run starts from the same adapter."""
        with adapter_disabled(job.model):
            logits = _logits(job.model, _few(job.heldout, job.pad_id), job.device, job.base.autocast_dtype)[0]
        started = AdapterState.of(job.model, job.name).exported().tensors
        return Start(p.digests_of(p.trained_part(started, _moving_rank(job.config))), logits)


def prove_trained(job: AdapterJob, step: int, start: Start) -> list[Proof]:
    """The proofs of a run that has just exported its adapter from `step`; writes proofs.json.

    The adapter is read back: the model then holds the one of the folder.
    """
    run, data, config = job.run, job.data, job.config
    few = _few(job.heldout, job.pad_id)

    def look() -> tuple[Tensor, list[float]]:
        return _logits(job.model, few, job.device, job.base.autocast_dtype)

    exported = AdapterState.of(job.model, job.name).exported()
    memory, _ = look()
    job.base.model = detach(job.model, job.name)
    base, base_losses = look()
    stored = _read_onto(job, run)
    back, losses = look()
    with adapter_disabled(job.model):
        off, _ = look()

    def saved() -> str:
        same = p.same_tensors(_tensors(stored), digests)
        return f"{same}; {p.same_logits(memory, back, _EXACT, 'read back')}"

    def untouched() -> str:
        if method_of(config).trains_base:
            if changed := job.base.ref.difference(job.base_record):
                raise Refuted(f"{job.base.ref.folder}: the base has changed while it was trained: {changed}.")
            return p.same_logits(base, start.base_logits, _EXACT, "base before training, and from its files after it")
        before = p.same_logits(base, start.base_logits, _EXACT, "base before and after training")
        return f"{before}; {p.same_logits(off, base, _EXACT, 'adapter off and bare base')}"

    digests = p.digests_of(exported.tensors)
    files = {name: sha256_of(run.path / name) for name in _FILES if (run.path / name).is_file()}
    evidence = Evidence(start.digests, digests, _finite(losses), _finite(base_losses), files)
    found = [
        *_of_folder(run, step, evidence, lambda: _tensors(stored), config),
        *_of_data(data.train, sample_of(data.train, data.train_sample), job.encoder, config, lambda: job.curriculum, job.progress.trained_batches(),
                  job.progress.trained_tokens_seen, ""),
        proof("saved = in memory", saved),
        proof(_names(config)["base"], untouched),
        _served(sample_of(data.train, data.train_sample), lambda: _encoder_of(run), job.encoder),
    ]  # fmt: skip
    _write(run, found, evidence)
    return found


def prove_stored(run: Run, open_base: Callable[[], OpenedBase]) -> list[Proof]:
    """The proofs of a finished run from its folder, its base and, where it is still there, its data.

    `open_base` gives the run's base with the tokenizer of its adapter folder. The proofs that need it fail with the
    message of an InlayError that it raises.
    """
    opened = lru_cache(open_base)
    record, config = run.record, run.config
    result = record.result
    step = result.adapter_step if result else 0
    batches = (result and result.trained_batches) or [[1, result.steps if result else 0]]
    evidence = _evidence(run)
    training = _training_encoder(run)
    data, why = _data(config, training, record.data_hash)
    heldout = held_out(read_held_out(run.heldout), training, int(config.data.max_length), config.data.overlong, ())
    rows, examples = (data.train, data.train_sample) if data else (heldout.tokens, heldout.examples[:_SAMPLE])
    sample = sample_of(rows, examples)

    @lru_cache
    def tensors() -> dict[str, Tensor]:
        return AdapterState.read(run.trained, record.base_digest).tensors

    @lru_cache
    def looks() -> tuple[Tensor, Tensor, list[float], list[float], float]:
        ready = opened()
        device, dtype = ready.device, ready.autocast_dtype
        few = _few(heldout.tokens, training.pad_id)
        bare, base_losses = _logits(ready.model, few, device, dtype)
        model = ready.with_adapter(AdapterState.read(run.trained, record.base_digest))
        _, losses = _logits(model, few, device, dtype)
        with adapter_disabled(model):
            off, _ = _logits(model, few, device, dtype)
        return bare, off, base_losses, losses, _ROUNDING if dtype is None else _COARSE

    def saved() -> str:
        same = p.same_tensors(tensors(), _recorded(evidence, "adapter"))
        _, _, _, losses, rounding = looks()
        return f"{same}; {p.same_losses(losses, _recorded(evidence, 'losses'), rounding, 'adapter')}"

    def untouched() -> str:
        bare, off, losses, _, rounding = looks()
        trains_base = method_of(config).trains_base
        same = p.same_logits(off, bare, _EXACT, "adapter off and bare base") if not trains_base else ""
        known = p.same_losses(losses, _recorded(evidence, "base_losses"), rounding, "base")
        return f"{same or 'its files have their digest'}; {known}"

    return [
        *_of_folder(run, step, evidence, tensors, config),
        *_of_data(rows, sample, training, config, lambda: _order(run, config, rows), batches,
                  result.trained_tokens_seen if result else 0, why),
        proof("saved = in memory", saved),
        proof(_names(config)["base"], untouched),
        _served(sample, lambda: opened().encoder, training),
    ]  # fmt: skip


def _names(config: Config) -> dict[str, str]:
    trains_base = method_of(config).trains_base
    what = "weights" if trains_base else "adapter"
    return {
        "finite": f"{what} finite",
        "moved": f"{what} moved",
        "base": "base untouched" if trains_base else "adapter off = base",
    }


def _read_onto(job: AdapterJob, run: Run) -> AdapterState | InlayError:
    """The adapter of the folder, now on the job's bare base; or the error that prevents it."""
    try:
        stored = AdapterState.read(run.trained)
        job.base.model = stored.attach_to(job.model, job.name)
    except InlayError as error:
        return error
    return stored


def _of_folder(
    run: Run, step: int, evidence: Evidence | InlayError,
    tensors: Callable[[], dict[str, Tensor]], config: Config,
) -> list[Proof]:  # fmt: skip
    def moved() -> str:
        start = _recorded(evidence, "start")
        if not method_of(config).has_rank:
            return p.every_tensor_moved(start, tensors())
        return p.every_matrix_moved(start, tensors(), _moving_rank(config), step)

    return [
        proof("files", lambda: p.files_are_whole(run, _recorded(evidence, "files"))),
        proof(_names(config)["finite"], lambda: p.every_value_is_finite(tensors())),
        proof(_names(config)["moved"], moved),
    ]


def _moving_rank(config: Config) -> int | None:
    """See `proofs.trained_part`."""
    return rank_of(config) if config.adapter.init in FROM_WEIGHTS else None


def _of_data(
    rows: TokenSet, sample: list[tuple[Example, list[TokenizedSequence]]], encoder: Encoder, config: Config,
    order: Callable[[], Curriculum | None], batches: list[list[int]], seen: int, missing: str,
) -> list[Proof]:  # fmt: skip
    """`missing` is the reason that `rows` are the held-out ones and not those that were trained; empty when they are not."""

    def counted() -> str:
        if missing:
            raise Unknown(missing)
        return p.tokens_were_counted(rows, config.train.seed, config.train.batch_size, order(), batches, seen)

    return [
        proof("trained tokens", counted),
        proof("mask", lambda: p.answers_are_trained(sample, encoder)),
        proof("end of turn", lambda: p.answers_end(rows, encoder.stop_ids, int(config.data.max_length))),
    ]


def _served(
    sample: list[tuple[Example, list[TokenizedSequence]]], served: Callable[[], Encoder], training: Encoder
) -> Proof:
    return proof("served = trained", lambda: p.prompts_are_prefixes(sample, served(), training))


def sample_of(rows: TokenSet, examples: tuple[Example, ...]) -> list[tuple[Example, list[TokenizedSequence]]]:
    """Each example that `max_length` did not cut, with its sequences."""
    found = {example.source: [rows.row(i) for i in rows.rows_of(example.source)] for example in examples}
    return [(example, found[example.source]) for example in examples if found[example.source]]


def _few(tokens: TokenSet, pad_id: int) -> Batch:
    return collate(tokens, range(min(_ROWS, len(tokens))), pad_id)


def _logits(model: Any, batch: Batch, device: str, dtype: torch.dtype | None) -> tuple[Tensor, list[float]]:
    """((B, K, V) float32 logits of the last trained positions, mean loss of each row there); leaves the mode alone."""
    with for_inference(model), autocast(device, dtype):
        weights_BK, targets_BK, logits_BKV = predictions(model, batch.to(device), last=_POSITIONS)
        logits_BKV = logits_BKV.float()
        nll_BK = -logits_BKV.log_softmax(-1).gather(-1, targets_BK[..., None])[..., 0] * (weights_BK > 0)
    means_B = nll_BK.sum(1) / (weights_BK > 0).sum(1).clamp(min=1)
    return logits_BKV.cpu(), [float(mean) for mean in means_B]


def _finite(losses: Sequence[float]) -> list[float | None]:
    """As JSON can hold them: the proof that met another number has failed."""
    return [loss if math.isfinite(loss) else None for loss in losses]


def _tensors(stored: AdapterState | InlayError) -> dict[str, Tensor]:
    if isinstance(stored, InlayError):
        raise stored
    return stored.tensors


def _encoder_of(run: Run) -> Encoder:
    """The encoder of the adapter folder, as serving makes it."""
    tokenizer = bases.load_tokenizer(bases.BaseRef(f"{run.name}'s tokenizer", run.trained))
    return Encoder.of(tokenizer, run.config.data)


def _training_encoder(run: Run) -> Encoder:
    config = run.config
    base = bases.find_base(config.model.base_model, run.base_revision)
    tokenizer = bases.load_tokenizer(base, config.model.chat_template)
    return Encoder.of(tokenizer, config.data, config.model.chat_template)


def _data(config: Config, encoder: Encoder, data_hash: str) -> tuple[PreparedData | None, str]:
    """The data as it was trained, or the reason that it is gone."""
    try:
        data = prepare(config.data, encoder, int(config.data.max_length), config.eval.max_rows, config.train.seed)
    except InlayError as error:
        return None, f"the data cannot be read any more ({error})"
    if data.data_hash != data_hash:
        return None, f"{config.data.train_name}: changed since the run; the mask is shown on the held-out rows."
    return data, ""


def _order(run: Run, config: Config, train: TokenSet) -> Curriculum | None:
    """The run's order of its training rows. Raises: Unknown when it kept no losses to order by."""
    if config.train.order == "random":
        return None
    known = loss_curriculum.stored(run) if config.train.order == "loss" else difficulty(config, train)
    if known is None or len(known) != len(train):
        raise Unknown(f"{run.path / loss_curriculum.FILE}: the losses that the rows were ordered by cannot be read.")
    return curriculum(config.train, known)


def _evidence(run: Run) -> Evidence | InlayError:
    try:
        return decode(Evidence, json.loads((run.path / PROOFS).read_text(encoding="utf-8"))["evidence"], "evidence")
    except (OSError, ValueError, LookupError, TypeError) as error:
        return StorageError(f"{run.path / PROOFS}: the records of the end of training cannot be read ({error}).")


def _recorded(evidence: Evidence | InlayError, key: str) -> Any:
    if isinstance(evidence, InlayError):
        raise evidence
    if getattr(evidence, key) is None:
        raise Refuted(f"{PROOFS}: holds no {key}.")
    return getattr(evidence, key)


def _write(run: Run, found: list[Proof], evidence: Evidence) -> None:
    passed = all(one.passed is not False for one in found)
    write_json(
        run.path / PROOFS,
        {"passed": passed, "proofs": [one.to_json() for one in found], "evidence": encode(evidence)},
    )
