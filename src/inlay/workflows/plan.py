"""Memory and time of a run before anything of it runs: from the sizes of the base, the lengths
of the rows and the speed of this machine; or calibrated on two micro batches of the run itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from inlay.config import Config
from inlay.data.batches import micro_batches, step_rows
from inlay.data.prepare import PreparedData, prepare
from inlay.engine import cpu_ops
from inlay.engine.batch_invariance import groups_of_config
from inlay.engine.estimate import MemoryEstimate, Shape, Work, estimate, largest_micro_batch
from inlay.engine.memory import held_bytes, measured_peak, release
from inlay.evaluation.costs import Bill, Prices, bills_json
from inlay.hardware.facts import memory_facts
from inlay.hardware.probe import dtype_name, matmul_dtype, pick_device, pick_dtype, synchronize
from inlay.methods.adapter import attach
from inlay.methods.auto_rank import auto_rank, with_rank
from inlay.methods.lora import rank_of
from inlay.methods.table import METHODS, method_of
from inlay.methods.target_modules import expert_targets
from inlay.models.base import find_base
from inlay.models.dropout import switch_off
from inlay.runs.reporter import Reporter
from inlay.tasks.opened_base import OpenedBase, Precision
from inlay.tasks.task import task_of
from inlay.training.loop import accumulate
from inlay.training.memory import parse_bytes, token_cap, work_of
from inlay.training.optimizer import length_of
from inlay.training.process import StopRequest
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job, targets_of
from inlay.typed_json import JsonObject
from inlay.workflows.benchmark_layers import LayerSpeed, MicroBatchSize

_STEPS: Final = 200  # whose batches are looked at
_LARGEST_RANK: Final = 1024
_ROUNDS: Final = 4  # in which each of two micro batches is computed to calibrate; the first pays for warming up


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest values that still fit, each with everything else as the config has it; 0 where not even the least does."""

    micro_batch_size: int
    max_length: int
    """Of rows one at a time."""
    rank: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Memory and time of one way to train."""

    method: str
    """`lora`, `qlora`, `full`, or what else the config trains."""
    engine: str
    trainable: int
    memory: MemoryEstimate
    recomputed: MemoryEstimate
    """With `train.gradient_checkpointing`."""
    total_bytes: int
    """At its peak, with what Python, the libraries and the rows hold."""
    fits: bool
    step_s: float
    """Seconds of an optimizer step, on average."""
    train_s: float
    """Seconds of all steps and evaluations."""
    checkpoint_bytes: int
    stored_bytes: int
    """Bytes that must be kept to serve it beside the base: the adapter, or for full fine-tuning all weights."""
    request_s: float
    """Seconds of a request as long as these rows, answered in batches of `eval.batch_size`. A rough figure."""
    largest: Largest

    def to_json(self) -> JsonObject:
        """The forecast as `inlay plan --json` prints it."""
        return {
            "method": self.method, "engine": self.engine, "trainable": self.trainable,
            "memory_bytes": self.memory.to_json(), "memory_bytes_with_gradient_checkpointing": self.recomputed.to_json(),
            "total_bytes": self.total_bytes, "fits": self.fits, "step_s": self.step_s, "train_s": self.train_s,
            "checkpoint_bytes": self.checkpoint_bytes, "stored_bytes": self.stored_bytes, "request_s": self.request_s,
            "largest": {"micro_batch_size": self.largest.micro_batch_size, "max_length": self.largest.max_length,
                        "rank": self.largest.rank},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemorySaving:
    """A setting that would make the run smaller."""

    setting: str
    total_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecasts for LoRA, QLoRA and full fine-tuning of one config on this machine."""

    base: str
    parameters: int
    device: str
    dtype: str
    steps: int
    batch_size: int
    micro_batch_size: int
    max_length: int
    rank: int
    tokens: int
    """Tokens of all steps."""
    room_bytes: int
    """Memory that is planned with."""
    other_bytes: int
    """Of it what Python, the libraries and the rows hold; 0 on a device with memory of its own."""
    is_calibrated: bool
    wanted: str
    """The method of the config."""
    forecasts: tuple[Forecast, ...]
    changes: tuple[MemorySaving, ...]
    """Settings that would make the wanted method smaller, where it does not fit."""
    bills: tuple[Bill, ...] = ()
    """Costs of each way; empty where no price was given."""

    @property
    def forecast(self) -> Forecast:
        """The forecast of the config's own method."""
        return next(one for one in self.forecasts if one.method == self.wanted)

    def to_json(self) -> JsonObject:
        """The plan as `inlay plan --json` prints it."""
        plain = ("base", "parameters", "device", "dtype", "steps", "batch_size", "micro_batch_size", "max_length", "rank",
                 "tokens", "room_bytes", "other_bytes", "is_calibrated", "wanted")  # fmt: skip
        return {name: getattr(self, name) for name in plain} | {
            "forecasts": [one.to_json() for one in self.forecasts],
            "changes": [{"setting": c.setting, "total_bytes": c.total_bytes, "fits": c.fits} for c in self.changes],
            "costs": bills_json(self.bills),
        }


def plan(config: Config, memory: str | None, calibrate: bool, reporter: Reporter, prices: Prices | None = None) -> Plan:
    """See `inlay.api.plan`."""
    if memory is not None:
        parse_bytes(memory, "--memory")  # before anything is read
    base = find_base(config.model.base_model, config.model.revision, weights=calibrate)
    opened = OpenedBase.of(base, config)
    opened.require_vocabulary()
    reporter.stage(f"reading {config.data.train_name}")
    context = opened.context_length - method_of(config).virtual_tokens(config)
    data = prepare(config.data, opened.encoder, context, config.eval.max_rows, config.train.seed, reporter)
    device = pick_device(config.model.device).device
    dtype = pick_dtype(device, "float32" if method_of(config).trains_base else config.model.dtype).dtype
    reporter.stage("measuring this machine")
    situation = _Situation(config, data, device, getattr(torch, dtype), opened.architecture, context, memory)
    found = situation.plan(config.model.base_model)
    if calibrate:
        reporter.stage("two micro batches of the run itself")
        found = _calibrated(found, situation, reporter)
    if prices is None:
        return found
    costs = prices.on(device)
    bills = tuple(Bill(f.method, costs, f.request_s, f.train_s, f.stored_bytes) for f in found.forecasts)
    return replace(found, bills=bills)


class _Situation:
    """Base, rows and machine, without any weights."""

    def __init__(
        self, config: Config, data: PreparedData, device: str, dtype: torch.dtype, architecture: Any, context: int,
        memory: str | None,
    ) -> None:  # fmt: skip
        bare = _without_weights(architecture, config, dtype)
        config = _rank_settled(config, bare, data)
        self.config, self.data, self.device, self.dtype, self.context = config, data, device, dtype, context
        self.together = groups_of_config(architecture, method_of(config).virtual_tokens(config))
        self.bare = Shape.of(bare)
        self.ways = self._ways(architecture, dtype)
        self.total, self.eval_every, _ = length_of(config.train, data.train.drawn)
        if device == "cpu":
            cpu_ops.reason(matmul_dtype(device, dtype))  # loads the loops, which the run will hold too
        self.other = 0 if device.startswith("cuda") else held_bytes(device)
        self.room = _room(memory, config, device, self.other)
        self._loads: dict[tuple[int, str], list[list[MicroBatchSize]]] = {}
        shape, work = self.ways["lora"]
        size = self._micro_batch_size(shape, work)
        loads = sorted((one for step in self.loads(size, work.engine) for one in step), key=lambda one: one.tokens)
        lengths = [int(data.train.lengths[row]) for row in loads[len(loads) // 2].rows]
        works = [work for _, work in self.ways.values()]
        self.speed = LayerSpeed.measured(architecture, config, self.bare, dtype, device, lengths, works)

    def _ways(self, architecture: Any, dtype: torch.dtype) -> dict[str, tuple[Shape, Work]]:
        """LoRA, QLoRA, full fine-tuning and what else the config trains: the base as it is held, how it is trained."""
        config, kind = self.config, self.config.model.quantization
        packed = "nf4" if kind == "none" else kind
        small = self.bare.in_int8() if packed == "int8" else self.bare.in_nf4(config.model.double_quantization)
        lora = _adapted(architecture, config, "lora", dtype)
        plain = work_of(*lora, Precision(self.device, dtype))
        ways = {"lora": (self.bare, plain)}
        if config.adapter.method not in ("lora", "full"):
            own = _adapted(architecture, config, config.adapter.method, dtype)
            held = self.bare if kind == "none" else small
            ways[config.adapter.method] = held, work_of(*own, Precision(self.device, dtype, kind))
        ways["qlora"] = small, work_of(*lora, Precision(self.device, dtype, packed))
        full = replace(
            plain,
            engine="autograd",
            width=None,
            makes_kernels=False,
            adapter=0,
            rank=0,
            method="full",
            head_in_chunks=False,
        )
        return ways | {"full": (self.bare.in_fp32(), full)}

    def plan(self, name: str) -> Plan:
        config = self.config
        is_qlora = config.adapter.method == "lora" and config.model.quantization != "none"
        wanted = "qlora" if is_qlora else config.adapter.method
        shape, work = self.ways[wanted]
        size = self._micro_batch_size(shape, work)
        forecasts = tuple(self._forecast(method, *way, size) for method, way in self.ways.items())
        mine = next(one for one in forecasts if one.method == wanted)
        return Plan(
            base=name, parameters=self.bare.parameters, device=self.device,
            dtype=dtype_name(self.dtype), steps=self.total, batch_size=self.config.train.batch_size,
            micro_batch_size=size, max_length=self.data.max_length, rank=rank_of(self.config),
            tokens=round(self.total * float(self.data.train.lengths.mean()) * self.config.train.batch_size),
            room_bytes=self.room, other_bytes=self.other, is_calibrated=False, wanted=wanted, forecasts=forecasts,
            changes=() if mine.fits else self._changes(shape, work, size),
        )  # fmt: skip

    def loads(self, size: int, engine: str) -> list[list[MicroBatchSize]]:
        """The micro batches of the first steps, laid out once for each size and engine."""
        if (size, engine) in self._loads:
            return self._loads[size, engine]
        train, config = self.data.train, self.config.train
        lengths, trained = train.lengths, train.trained_counts
        found = []
        for step in range(1, min(self.total, _STEPS) + 1):
            rows = step_rows(step, config.seed, train.shares, config.batch_size)
            shares = self.together.apart(micro_batches(rows, lengths, size), lengths)
            found.append([_load(share, lengths, trained, engine) for share in shares])
        self._loads[size, engine] = found
        return found

    def needed(self, shape: Shape, work: Work, size: int, recompute: bool | None = None) -> MemoryEstimate:
        """At the largest micro batch of so many rows."""
        work = work if recompute is None else replace(work, recompute=recompute)
        heaviest = max((load for step in self.loads(size, work.engine) for load in step), key=lambda load: load.tokens)
        return estimate(shape, work, heaviest.tokens, heaviest.longest, heaviest.trained)

    def step_s(self, shape: Shape, work: Work, size: int) -> float:
        steps = self.loads(size, work.engine)
        passes = sum(self.speed.seconds(shape, work, load) for step in steps for load in step) / len(steps)
        return passes + self.speed.step_s(shape, work)

    def train_s(self, step_s: float) -> float:
        """All steps, and evaluations, whose forward pass is a third of a step's work for a token."""
        per_step = float(self.data.train.lengths.mean()) * self.config.train.batch_size
        evaluations = self.total // self.eval_every + 4  # of the base before, and of both for the verdict
        return step_s * (self.total + evaluations * self.data.heldout.token_count / per_step / 3)

    def _forecast(self, method: str, shape: Shape, work: Work, size: int) -> Forecast:
        memory = self.needed(shape, work, size)
        step_s = self.step_s(shape, work, size)
        if work.unpacks:
            step_s += self.speed.unpacking_s(shape, work) * -(-self.config.train.batch_size // size)
        numbers = work.adapter or shape.parameters
        return Forecast(
            method=method, engine=work.engine, trainable=numbers, memory=memory,
            recomputed=self.needed(shape, work, size, recompute=True), total_bytes=memory.total + self.other,
            fits=memory.total + self.other <= self.room, step_s=step_s, train_s=self.train_s(step_s),
            checkpoint_bytes=12 * numbers, stored_bytes=4 * work.adapter or shape.weight_bytes,
            request_s=self.request_s(shape, work), largest=self._largest(shape, work, size),
        )  # fmt: skip

    def request_s(self, shape: Shape, work: Work) -> float:
        """Seconds of a request like these rows in a batch; each of its steps reads all weights and serves all rows."""
        lengths, answers = self.data.train.lengths, self.data.train.trained_counts
        # an answer waits for the longest of its batch
        steps, batch = float(np.quantile(answers, 0.9)), self.config.eval.batch_size
        tokens = float((lengths - answers).mean()) + steps + work.virtual_tokens
        return self.speed.request_s(shape, tokens, steps, batch, unpacks=work.unpacks)

    def _micro_batch_size(self, shape: Shape, work: Work) -> int:
        train = self.config.train
        if train.micro_batch_size != "auto":
            return min(int(train.micro_batch_size), train.batch_size)
        room, cap = self.room - self.other, token_cap(self.device, work, shape)
        return largest_micro_batch(shape, work, train.batch_size, self.data.max_length, room, cap)[0]

    def _largest(self, shape: Shape, work: Work, size: int) -> Largest:
        room, longest, rank = self.room - self.other, self.data.max_length, rank_of(self.config)

        def with_rank(wanted: int) -> int:
            wider = replace(work, rank=wanted, adapter=work.adapter * wanted // rank)
            return self.needed(shape, wider, size).total

        def rows(count: int) -> int:
            return estimate(shape, work, count * longest, longest).total

        return Largest(
            micro_batch_size=_largest(rows, room, self.config.train.batch_size),
            max_length=_largest(lambda length: estimate(shape, work, length, length).total, room, self.context),
            rank=_largest(with_rank, room, _LARGEST_RANK) if work.rank else 0,
        )

    def _changes(self, shape: Shape, work: Work, size: int) -> tuple[MemorySaving, ...]:
        """Each on top of those before it, from the one that costs least to the one that changes the result."""
        tried: list[MemorySaving] = []

        def add(setting: str, needed: MemoryEstimate) -> None:
            total = needed.total + self.other
            if not tried or total < tried[-1].total_bytes:
                tried.append(MemorySaving(setting, total, total <= self.room))

        if size > 1:
            size = 1
            add("train.micro_batch_size=1", self.needed(shape, work, size))
        if not work.recompute:
            work = replace(work, recompute=True)
            add("train.gradient_checkpointing=true", self.needed(shape, work, size))
        if self.config.model.quantization == "none" and not METHODS[work.method].trains_base:
            shape, lora = self.ways["qlora"]
            work = replace(lora if work.method == lora.method else work, unpacks=True, recompute=True)
            add("model.quantization=nf4", self.needed(shape, work, size))
        half = self.data.max_length // 2
        add(f"data.max_length={half}", estimate(shape, work, half, half))
        return tuple(tried[: next((i + 1 for i, one in enumerate(tried) if one.fits), len(tried))])


def _adapted(architecture: Any, config: Config, method: str, dtype: torch.dtype) -> tuple[Config, Any]:
    """(the config as that method has it, the base with its adapter), without weights."""
    adapter = config.adapter.model_copy(update={"init": "default", "method": method})
    config, model = config.model_copy(update={"adapter": adapter}), _without_weights(architecture, config, dtype)
    with torch.device("meta"):
        return config, attach(model, config, targets_of(config, model)[0])


def _rank_settled(config: Config, bare: Any, data: PreparedData) -> Config:
    """The config with the rank that a training on these rows would take for `auto`."""
    if config.adapter.rank != "auto":
        return config
    experts = expert_targets(bare) if config.adapter.experts else []
    return with_rank(config, auto_rank(bare, targets_of(config, bare)[0], experts, data.train.trained_tokens)[0])


def _without_weights(architecture: Any, config: Config, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        model = task_of(config).random_model(architecture, config.model.attention, dtype)
    if not config.train.base_dropout:
        switch_off(model)
    return model.requires_grad_(False)


def _room(memory: str | None, config: Config, device: str, other: int) -> int:
    limit = memory or config.train.max_memory
    if limit:
        return parse_bytes(limit, "--memory" if memory else "train.max_memory")
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return memory_facts().available_bytes + other


def _load(rows: Sequence[int], lengths: np.ndarray, trained: np.ndarray, engine: str) -> MicroBatchSize:
    longest = int(lengths[list(rows)].max())
    tokens = int(lengths[list(rows)].sum()) if engine == "handwritten" else longest * len(rows)
    return MicroBatchSize(tuple(rows), tokens, int(trained[list(rows)].sum()), longest)


def _largest(needed: Callable[[int], int], room: int, most: int) -> int:
    """The largest number up to `most` whose need fits, 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= room else (low, middle - 1)
    return low


def _calibrated(found: Plan, situation: _Situation, reporter: Reporter) -> Plan:
    """With the peak and the seconds of the heaviest and of a middling micro batch of the run itself."""
    settings = situation.config.train.model_copy(update={"micro_batch_size": found.micro_batch_size})
    job = make_single_job(situation.config.model_copy(update={"train": settings}), reporter, ProcessGroup())
    loads = [load for step in situation.loads(found.micro_batch_size, job.engine.name) for load in step]
    by_tokens = sorted(loads, key=lambda load: load.tokens)
    heaviest, middling = by_tokens[-1], by_tokens[len(by_tokens) // 2]
    passes: dict[MicroBatchSize, list[float]] = {heaviest: [], middling: []}
    updates, peak = [], 0
    release(job.device)
    for _ in range(_ROUNDS):
        for load, times in passes.items():
            with measured_peak(job.device) as seen:
                began = time.perf_counter()
                accumulate(job, 0, [list(load.rows)], 1.0, StopRequest())
                synchronize(torch.device(job.device))
                times.append(time.perf_counter() - began)
                began = time.perf_counter()
                torch.nn.utils.clip_grad_norm_(job.parameters.values(), job.config.train.max_grad_norm)
                job.optimizer.step()
                updates.append(time.perf_counter() - began)
            job.optimizer.zero_grad(set_to_none=True)
            peak = max(peak, seen[0])
    # A run goes through the moods of its machine: the median says what a step takes, the least what it could.
    slow, quick = (float(np.median(passes[load][1:])) for load in (heaviest, middling))
    apart = heaviest.tokens - middling.tokens
    # rows of about one length say nothing of how time grows with them
    per_token = (slow - quick) / apart if apart > heaviest.tokens / 4 and slow > quick else quick / middling.tokens
    steps = max(1, min(situation.total, _STEPS))
    step_s = sum(quick + per_token * (load.tokens - middling.tokens) for load in loads) / steps
    step_s += float(np.median(updates[2:]))
    cold = found.forecast
    other = peak - cold.memory.total
    peak += cold.memory.snapshot  # nothing was saved
    mine = replace(
        cold, total_bytes=peak, fits=peak <= found.room_bytes, step_s=step_s, train_s=situation.train_s(step_s)
    )
    ratio = step_s / cold.step_s
    forecasts = tuple(
        mine if one.method == found.wanted else replace(one, step_s=one.step_s * ratio, train_s=one.train_s * ratio)
        for one in found.forecasts
    )
    return replace(
        found, forecasts=forecasts, is_calibrated=True, other_bytes=max(0, other) if found.other_bytes else 0
    )
