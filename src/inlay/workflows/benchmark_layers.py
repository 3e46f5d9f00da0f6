"""Training speed of this machine for a base of this shape, measured on a stand-in before the base is loaded.

The stand-in has two layers of the base, random weights and next to no vocabulary, and is trained by the engines
themselves on rows as long as the run's: a layer's time holds its matmuls, the adapter's narrow ones, attention, all that
passes through memory, and the cost of calls, with no constant to be fitted. The head, the optimizer, bare matmuls and
copies are measured by themselves.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from inlay.config import Config
from inlay.data.batches import Batch, collate
from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.encoding.token_arrays import pack
from inlay.data.types import Source
from inlay.engine.autograd import AutogradEngine, Engine
from inlay.engine.estimate import LAYER_NAMES, Shape, Work
from inlay.engine.lm_head import Head, nll_and_gradient, rows_at_once
from inlay.engine.memory import release
from inlay.engine.select_engine import select_engine
from inlay.hardware.probe import synchronize
from inlay.methods.adapter import attach, trained_parameters
from inlay.methods.method import TRAINED
from inlay.methods.table import METHODS, adapters_on
from inlay.tasks.task import task_of
from inlay.training.optimizer import make_optimizer
from inlay.training.setup import ready_to_train, targets_of

_LAYERS: Final = 2
_VOCABULARY: Final = 64
_MOST_FLOPS: Final = 4e11
"""Operations of a measured pass: more tokens than that would make planning a large base slow, and not more exact."""
_REPEATED_S: Final = 0.03
"""Seconds for which a thing is measured over and over."""


@dataclass(frozen=True, slots=True)
class MicroBatchSize:
    """Counts of one micro batch."""

    rows: tuple[int, ...]
    tokens: int
    """Tokens that are computed: with padding in the autograd engine."""
    trained: int
    longest: int


@dataclass(frozen=True, slots=True)
class LayerSpeed:
    """Seconds of the parts of a run on this machine."""

    device: str
    layer: dict[tuple[str, str], tuple[float, float]]
    """(method, engine) -> seconds of forward and backward through a layer: for a micro batch however small, and for each
    token more."""
    head_s: float
    """Seconds for each trained token and entry of the vocabulary."""
    optimizer_s: dict[str, float]
    """Method -> seconds of clipping and a step, for each trained parameter."""
    call_s: float
    """Seconds of a layer's forward pass over one token."""
    matmul_flops_per_s: float
    copied_bytes_per_s: float
    unpacked_per_s: float
    """Weights taken out of 4 bits; 0 where bitsandbytes is not here."""

    @staticmethod
    def measured(
        architecture: Any, config: Config, shape: Shape, dtype: torch.dtype, device: str, lengths: Sequence[int],
        works: Sequence[Work],
    ) -> LayerSpeed:  # fmt: skip
        """`lengths` are the tokens of the rows of a middling micro batch, `works` the ways to compute it."""
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            batches = _batches(lengths, shape, device)
            layer, optimizer_s = {}, {}
            for method in dict.fromkeys(work.method for work in works):
                of_it = [work for work in works if work.method == method]
                model = _stand_in(architecture, config, method, dtype, device)
                for engine in _engines(model, config, batches[-1], dtype, device, {work.engine for work in of_it}):
                    points = [(_tokens(batch, engine.name, of_it[0]), _pass_s(engine, batch)) for batch in batches]
                    layer[method, engine.name] = _line(points)
                optimizer_s[method] = _optimizer_s(model, config, device)
                if method == works[0].method:
                    call_s = _call_s(model, device)
                del model
            rows = max(1, min(rows_at_once(shape.vocabulary), sum(lengths), 1024))
            wide = min(shape.vocabulary, 1 << 13)
            # of a model's size: larger ones make probabilities too small for a number, which some CPUs compute slowly
            head = Head((0.02 * torch.randn(wide, shape.hidden, device=device)).to(dtype))
            hidden, targets = torch.randn(rows, shape.hidden, device=device).to(dtype), torch.zeros(rows, device=device)
            head_s = _least_s(lambda: nll_and_gradient(hidden, head, targets.long()), device) / (rows * wide)
            x, weight = (torch.randn(n, shape.hidden, device=device).to(dtype) for n in (1024, max(shape.inner, 256)))
            matmul_s = _least_s(lambda: x @ weight.T, device)
            values = torch.zeros(1 << 22, device=device)
            copy_s = _least_s(lambda: values.add_(1.0), device)
            unpacked = _unpacked_per_s(device, dtype)
        release(device)
        return LayerSpeed(
            device, layer, head_s, optimizer_s, call_s, 2 * 1024 * weight.numel() / matmul_s,
            2 * 4 * len(values) / copy_s, unpacked,
        )  # fmt: skip

    def seconds(self, shape: Shape, work: Work, load: MicroBatchSize) -> float:
        """Seconds of forward and backward over a micro batch."""
        once, per_token = self.layer.get((work.method, work.engine)) or self.layer[work.method, "autograd"]
        layers = float(shape.layers)
        tokens = load.tokens + len(load.rows) * work.virtual_tokens
        if work.engine == "handwritten":  # behind its attention the last layer computes trained tokens only
            entering = shape.hidden * (shape.queries + 2 * shape.keys) * shape.layers
            layers -= (1 - load.trained / load.tokens) * (1 - min(1.0, entering / shape.linear))
        head_s = self.head_s * (1 if work.adapter else 1.5)  # its own weights are the third matmul
        return layers * (once + per_token * tokens) + head_s * load.trained * shape.vocabulary

    def step_s(self, shape: Shape, work: Work) -> float:
        """Seconds of the optimizer."""
        return self.optimizer_s[work.method] * (work.adapter or shape.parameters)

    def request_s(self, shape: Shape, tokens: float, steps: float, batch: int, *, unpacks: bool) -> float:
        """Seconds of one of `batch` requests of so many tokens, the last `steps` of which are generated."""
        matmuls_s = 2 * (shape.linear * tokens + shape.vocabulary * shape.hidden * steps) / self.matmul_flops_per_s
        step_s = shape.weight_bytes / self.copied_bytes_per_s + self.call_s * shape.layers
        if unpacks and self.unpacked_per_s:
            step_s += shape.linear / self.unpacked_per_s
        return matmuls_s + steps * step_s / batch

    def unpacking_s(self, shape: Shape, work: Work) -> float:
        """Weights are unpacked in each pass of a micro batch."""
        return shape.linear * (2 + work.recompute) / self.unpacked_per_s if self.unpacked_per_s else 0.0


def _stand_in(architecture: Any, config: Config, method: str, dtype: torch.dtype, device: str) -> Any:
    """Two layers as the base has them, trained by that method with the config's settings of it."""
    small = copy.deepcopy(architecture)
    text = small.get_text_config()
    if vars(text).get("layer_types"):  # where it is a property, it follows the number of layers
        text.layer_types = list(text.layer_types[:_LAYERS])
    setattr(text, next(name for name in LAYER_NAMES if hasattr(text, name)), _LAYERS)
    text.vocab_size, text.pad_token_id = _VOCABULARY, None
    adapter = config.adapter.model_copy(update={"init": "default", "method": method})
    config = config.model_copy(update={"adapter": adapter})
    held = torch.float32 if METHODS[method].trains_base else dtype
    with torch.device(device):
        model = task_of(config).random_model(small, config.model.attention, held)
        model.requires_grad_(False)
        model = attach(model, config, targets_of(config, model)[0], reopen=lambda: model)
    return ready_to_train(model, config)


def _engines(
    model: Any, config: Config, batch: Batch, dtype: torch.dtype, device: str, names: Collection[str]
) -> list[Engine]:
    """The engines of these names. The hand-written one makes the base's weights its own, and so comes last; where it is
    refused, autograd stands for it."""
    autograd = AutogradEngine(
        model, device, None if adapters_on(model)[TRAINED].trains_base or dtype == torch.float32 else dtype
    )
    if "handwritten" not in names:
        return [autograd]
    recompute = config.train.gradient_checkpointing
    chosen = select_engine("auto", model, batch, device, dtype, "none", recompute).engine
    return [autograd, chosen] if "autograd" in names and chosen.name != autograd.name else [chosen]


def _batches(lengths: Sequence[int], shape: Shape, device: str) -> list[Batch]:
    """Two micro batches of random tokens: rows of these lengths, as many as there is time for, and half of them."""
    per_token = 4 * shape.linear / shape.layers * _LAYERS
    count = max(2, int(np.searchsorted(np.cumsum(lengths), _MOST_FLOPS / per_token)))
    longer = [max(8, length) for length in lengths[:count]]
    shorter = longer[: len(longer) // 2] if len(longer) > 1 else [longer[0] // 2]
    return [_random_batch(rows).to(device) for rows in (longer, shorter)]


def _random_batch(lengths: Sequence[int]) -> Batch:
    random = np.random.default_rng(0)
    rows = [
        TokenizedSequence(random.integers(2, _VOCABULARY, n).astype(np.int32), np.ones(n, np.float32), Source("", 0))
        for n in lengths
    ]
    return collate(pack(enumerate(rows)), range(len(rows)), pad_id=0)


def _tokens(batch: Batch, engine: str, work: Work) -> int:
    if engine == "handwritten":
        return int(batch.attention_mask.sum())
    return batch.input_ids.numel() + len(batch.input_ids) * work.virtual_tokens


def _pass_s(engine: Engine, batch: Batch) -> float:
    return _least_s(lambda: engine.add_gradient(batch, 1e-3), str(batch.input_ids.device))


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(seconds of a layer however few the tokens, seconds for each) through two passes of the stand-in."""
    (many, slow), (few, quick) = points
    per_token = (slow - quick) / (many - few) if many > few and slow > quick else slow / many
    return max(0.0, slow - per_token * many) / _LAYERS, per_token / _LAYERS


def _optimizer_s(model: Any, config: Config, device: str) -> float:
    named = trained_parameters(model)
    optimizer, parameters = make_optimizer(config.train, named), list(named.values())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return _least_s(step, device) / sum(parameter.numel() for parameter in parameters)


def _call_s(model: Any, device: str) -> float:
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    model.eval()
    with torch.inference_mode():
        return _least_s(lambda: model(input_ids=ids, use_cache=False), device) / _LAYERS


def _least_s(compute: Callable[[], object], device: str) -> float:
    compute()
    times: list[float] = []
    until = time.perf_counter() + _REPEATED_S
    while len(times) < 2 or time.perf_counter() < until:
        synchronize(torch.device(device))
        began = time.perf_counter()
        compute()
        synchronize(torch.device(device))
        times.append(time.perf_counter() - began)
    return min(times)


def _unpacked_per_s(device: str, dtype: torch.dtype) -> float:
    try:
        functional = importlib.import_module("bitsandbytes.functional")
        packed, state = functional.quantize_4bit(torch.randn(512, 1024, device=device).to(dtype), quant_type="nf4")
        return 512 * 1024 / _least_s(lambda: functional.dequantize_4bit(packed, state), device)
    except (ImportError, RuntimeError, NotImplementedError):
        return 0.0
