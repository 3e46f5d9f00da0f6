"""The pre-flight facts of a job as values: its settings, and the memory and time that a measured micro batch predicts."""

from __future__ import annotations

import time

import numpy as np
import torch

from inlay.data.prepare import PreparedData
from inlay.engine.batch_invariance import batch_groups
from inlay.hardware.probe import synchronize
from inlay.methods.table import method_of
from inlay.runs.pre_flight import AdapterFacts, Chosen, DataFacts, OrderFacts, Outlook, PreFlight, StepFacts
from inlay.training.job import TRAINING, AdapterJob
from inlay.training.loop import TrainingLoop, accumulate
from inlay.training.memory import run_with_oom_retry
from inlay.training.optimizer import warmup_steps
from inlay.training.process import StopRequest
from inlay.training.process_group import share_size


def pre_flight(job: AdapterJob, outlook: Outlook | None = None) -> PreFlight:
    """All that is known of the job before its first step."""
    base, config, dropout = job.base, job.config, job.reasons.get("train.base_dropout")
    return PreFlight(
        base=config.model.base_model,
        base_digest=job.base_digest,
        base_form=base.ref.gguf.summary() if base.ref.gguf else "",
        total_parameters=base.total_parameters,
        device=_chosen(job, "model.device", job.device),
        dtype=_chosen(job, "model.dtype", str(config.model.dtype)),
        matmul_precision=_chosen(job, "model.matmul_precision", config.model.matmul_precision),
        quantization=_chosen(job, "model.quantization", base.precision.quantization),
        data=_data(job, job.data),
        adapter=_adapter(job),
        steps=_steps(job),
        named_class=base.named.summary() if base.named else "",
        base_dropout=Chosen("on" if config.train.base_dropout else "off", dropout) if dropout else None,
        outlook=outlook,
    )


def look_ahead(loop: TrainingLoop, job: AdapterJob) -> Outlook:
    """Memory and time of the steps that are left, by a micro batch that is computed for it. Raises: Interrupted."""
    group, train, memory = loop.group, job.config.train, job.memory
    share = share_size(train.batch_size, group.size)
    pace_s, _ = run_with_oom_retry(
        job, TRAINING, job.progress.step, lambda text: loop.note(job, text),
        lambda size: seconds_per_token(job, min(size, share), loop.stop),
    )  # fmt: skip
    loop.raise_if_interrupted()
    pace_s = group.max(pace_s)  # the slowest has the others wait
    remaining = job.total_steps - job.progress.step
    per_step = job.train.token_count / len(job.train) * min(train.batch_size, job.train.drawn)
    evaluations = remaining // job.eval_every + 1
    parts = {
        "weights": memory.weights,
        "adapter and optimizer": memory.adapter + memory.gradients + memory.optimizer,
        "activations": memory.activations,
        "logits and workspace": max(memory.logits, memory.workspace),
    }
    if left := memory.total - sum(parts.values()):
        parts["copies, kernels and what stays in the heap"] = left
    return Outlook(
        memory_bytes=memory.total,
        memory_parts=parts,
        # a forward pass alone costs about a third of forward and backward
        expected_s=pace_s / group.size * (remaining * per_step + evaluations * job.heldout.token_count / 3),
        tokens_per_s=1 / pace_s,
        processes=group.size,
        folder=str(job.run.path),
    )


def _chosen(job: AdapterJob, path: str, value: str) -> Chosen:
    return Chosen(value, job.reasons.get(path, "as set"))


def _data(job: AdapterJob, data: PreparedData) -> DataFacts:
    lengths, held = data.train_lengths, data.heldout_lengths
    return DataFacts(
        rows=data.rows,
        format=Chosen(data.format, data.format_reason),
        template=job.encoder.template_summary,
        max_length=Chosen(str(data.max_length), data.max_length_reason),
        kept=lengths.kept,
        cut=lengths.cut,
        dropped=lengths.dropped,
        trained_tokens_lost=lengths.trained_tokens_lost,
        heldout=len(data.heldout_examples),
        heldout_available=data.heldout_available,
        heldout_fitting=data.heldout_fitting,
        heldout_cut=held.cut,
        heldout_dropped=held.dropped,
        leaked=data.leaked,
        trained_tokens=data.train.trained_tokens,
        tokens=data.train.token_count,
        trained_share=data.trained_share,
        check=data.check.summary() if data.check else "",
        mixture=data.mixture,
    )


def _adapter(job: AdapterJob) -> AdapterFacts:
    adapter = job.config.adapter
    return AdapterFacts(
        summary=method_of(job.config).summary(job.config),
        trainable=job.trainable,
        targets=job.targets,
        coverage=job.reasons.get("adapter.coverage", ""),
        experts=adapter.experts,
        dora=adapter.dora,
        rslora=adapter.rslora,
        init=adapter.init,
        start_from=adapter.start_from or "",
        dropout=adapter.dropout,
        bias=adapter.bias,
        targets_reason=job.reasons.get("adapter.target_modules", ""),
        rank=_chosen(job, "adapter.rank", str(adapter.rank)) if "adapter.rank" in job.reasons else None,
    )


def _steps(job: AdapterJob) -> StepFacts:
    train, reasons = job.config.train, job.reasons
    order = OrderFacts(
        train.order, train.order_column, train.order_first, train.order_epochs, train.order_pool, train.order_pacing
    )
    return StepFacts(
        batch_size=train.batch_size,
        micro_batch_size=int(train.micro_batch_size),
        processes=job.base.group.size,
        rows=job.train.drawn,
        total=job.total_steps,
        warmup=warmup_steps(train, job.total_steps),
        schedule=train.schedule,
        learning_rate=job.peak_learning_rate,
        learning_rate_reason=reasons.get("train.learning_rate", "as set"),
        lora_plus_ratio=train.lora_plus_ratio,
        eval_every=job.eval_every,
        save_every=job.save_every,
        engine=_chosen(job, "train.engine", job.engine.name),
        apart=batch_groups(job.model).summary(),
        order=order if train.order != "random" else None,
    )


_ENOUGH_TOKENS = 256  # for a CPU to multiply matrices nearly as fast as it ever does
_BUDGET_S = 1.5
_MOST_PASSES = 6


def seconds_per_token(job: AdapterJob, micro_batch_size: int, stop: StopRequest) -> float:
    """Seconds per token of one forward and backward over a micro batch of middling length; on a CPU over some of its rows
    where all of them would take long. The quickest of a few passes: other work only ever slows one down.

    Leaves no gradient and no changed weight behind.
    """
    by_length = np.argsort(job.lengths, kind="stable")
    middle = len(by_length) // 2
    rows = [int(i) for i in by_length[middle : middle + micro_batch_size]]
    few = rows
    if job.device == "cpu":
        few = rows[: max(1, int((job.lengths[rows].cumsum() <= _ENOUGH_TOKENS).sum()))]
    pace_s = _quickest(job, few, stop)
    if len(few) < len(rows) and pace_s * int(job.lengths[rows].sum()) < _BUDGET_S:  # what a call costs counts for less
        pace_s = min(pace_s, _quickest(job, rows, stop))
    job.optimizer.zero_grad(set_to_none=True)
    return pace_s


def _quickest(job: AdapterJob, rows: list[int], stop: StopRequest) -> float:
    """Seconds per token, of two passes and of more while they are quick: the first also pays for warming up."""
    times_s: list[float] = []
    while len(times_s) < 2 or (sum(times_s) < _BUDGET_S / 2 and len(times_s) < _MOST_PASSES):
        began = time.perf_counter()
        accumulate(job, 0, [rows], float(job.row_weights[rows].sum()), stop)
        synchronize(torch.device(job.device))
        times_s.append(time.perf_counter() - began)
    return min(times_s) / int(job.lengths[rows].sum())
