"""Memory and computation of a micro batch, from the sizes of the model alone.

What a layer keeps for the backward pass was counted: of the hand-written engine from its code (`docs/engine.md`), of the
autograd engine from the tensors that it saved for Llama, Qwen, Gemma and GPT-2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from torch import nn

from inlay.engine.lm_head import WIDENED_AT_ONCE, rows_at_once
from inlay.methods.table import METHODS, is_adapter_parameter
from inlay.models.dropout import own_dropout
from inlay.models.quantization import constant_bytes

LAYER_NAMES: Final = ("num_hidden_layers", "n_layer", "num_layers")
_OPTIMIZER_BYTES: Final = {"adamw": 8}
_SCORES: Final = 1 << 23
_HOLES: Final = 0.25
"""Share of the autograd engine's activations on a CPU for holes of freed blocks in the heap. Seen were 0.15 to 0.6."""
_KERNELS: Final = 180 << 20
"""Bytes that oneDNN keeps for 16-bit matmuls in many shapes: docs/decisions/cpu-matmuls-and-memory.md."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose, at the largest micro batch."""

    weights: int
    """The base, frozen or not."""
    adapter: int
    """fp32 weights that are trained, without the base's own."""
    gradients: int
    optimizer: int
    activations: int
    """Bytes kept from the forward for the backward pass."""
    logits: int
    workspace: int
    """Bytes that a layer's backward pass needs beside what was kept. They never exist together with the logits."""
    kept_free: int = 0
    """On a CPU: holes of the heap, and kernels that oneDNN keeps."""
    snapshot: int = 0
    """After full fine-tuning the copy that a checkpoint is written from while training goes on; of an adapter's, which
    is small, no account is kept."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        kept = (
            self.weights
            + self.adapter
            + self.gradients
            + self.optimizer
            + self.activations
            + self.kept_free
            + self.snapshot
        )
        return kept + max(self.logits, self.workspace)

    def to_json(self) -> dict[str, int]:
        """Bytes by what holds them."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that decide what training it costs."""

    hidden: int
    layers: int
    inner: int
    """Width of the feed-forward part."""
    queries: int
    """Heads times values of a head."""
    keys: int
    heads: int
    vocabulary: int
    linear: int
    """Parameters of the linear layers, without the head."""
    parameters: int
    weight_bytes: int
    width: int
    """Bytes of an activation."""
    is_gated: bool
    norms_after: bool
    """Norms behind attention and feed-forward too (Gemma)."""
    norms_heads: bool
    scores_kept: bool
    """True where attention keeps all its scores (`eager`)."""
    drops_out: bool = False
    """True where the base's own dropout is on: its masks are kept, and all scores, since torch has no attention
    with dropout on a CPU that keeps none."""

    @staticmethod
    def of(model: Any) -> Shape:
        """The sizes of a base, with or without an adapter on it, on any device, `meta` too."""
        config = model.config.get_text_config()
        hidden, layers = shape_of(config, "hidden_size", "n_embd", "d_model"), shape_of(config, *LAYER_NAMES)
        heads = shape_of(config, "num_attention_heads", "n_head", default=1)
        width = shape_of(config, "head_dim", default=hidden // heads)
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        frozen = {id(p): p for name, p in model.named_parameters() if not is_adapter_parameter(name)}.values()
        head = model.get_output_embeddings()
        linear = sum(_numbers(m) for m in model.modules() if _is_linear(m) and m is not head)
        return Shape(
            hidden=hidden,
            layers=layers,
            inner=shape_of(config, "intermediate_size", "n_inner", "d_ff", "ffn_dim", default=4 * hidden),
            queries=heads * width,
            keys=shape_of(config, "num_key_value_heads", default=heads) * width,
            heads=heads,
            vocabulary=int(config.vocab_size),
            linear=linear,
            parameters=sum(int(p.quant_state.shape.numel()) if getattr(p, "quant_state", None) else p.numel() for p in frozen),
            weight_bytes=sum(p.numel() * p.element_size() for p in frozen) + sum(map(constant_bytes, model.modules())),
            width=next((p.element_size() for p in frozen if p.is_floating_point()), 4),
            is_gated=bool({"gate_proj", "gate_up_proj"} & names),
            norms_after="pre_feedforward_layernorm" in names,
            norms_heads="q_norm" in names,
            scores_kept=getattr(config, "_attn_implementation", None) == "eager",
            drops_out=own_dropout(model) > 0,
        )  # fmt: skip

    def in_nf4(self, double: bool) -> Shape:
        """The same base with its linear layers in 4 bits and the constants of each block of 64."""
        bits = 4.127 if double else 4.5
        return replace(self, weight_bytes=int(self.weight_bytes - self.linear * (self.width - bits / 8)))

    def in_fp32(self) -> Shape:
        """The same base as full fine-tuning holds it."""
        return replace(self, weight_bytes=4 * self.parameters, width=4)

    def in_int8(self) -> Shape:
        """The same base with its linear layers in 8 bits."""
        return replace(self, weight_bytes=self.weight_bytes - self.linear * (self.width - 1))


@dataclass(frozen=True, slots=True)
class Work:
    """The way a micro batch is computed."""

    engine: str
    recompute: bool
    """Gradient checkpointing."""
    adapter: int
    """Parameters of the adapter; 0 trains the base itself."""
    rank: int
    method: str = "lora"
    """`adapter.method`."""
    virtual_tokens: int = 0
    """Virtual tokens that stand before every row."""
    unpacks: bool = False
    """True where the base's weights come out of 4 bits in each pass."""
    optimizer: str = "adamw"
    head_in_chunks: bool = True
    offload: bool = False
    """Activations in the memory of the machine, not in that of the device."""
    leaves_holes: bool = False
    """True where freed blocks stay in a heap (`inlay.engine.memory.tune_allocator`)."""
    makes_kernels: bool = False
    """True where matmuls are 16-bit ones of oneDNN."""
    experts: int = 0
    """Bytes of experts with an adapter: each layer keeps a copy of them with the update added for its backward pass."""
    width: int | None = None
    """Bytes of a hidden value where matmuls have another dtype than the base."""


def estimate(shape: Shape, work: Work, tokens: int, length: int, trained_tokens: int | None = None) -> MemoryEstimate:
    """Bytes of a micro batch of so many tokens, padding included, in rows up to `length`, of which so many are trained.

    Virtual tokens come on top of both.
    """
    trained = tokens if trained_tokens is None else trained_tokens
    tokens, length = tokens + -(-tokens // length) * work.virtual_tokens, length + work.virtual_tokens
    width = work.width or shape.width
    layer = tokens * _kept(shape, work, length, width) * width
    kept = shape.layers * tokens * shape.hidden * width + layer if work.recompute else shape.layers * layer
    full = work.adapter == 0
    numbers = shape.parameters if full else work.adapter
    rows = min(trained, rows_at_once(shape.vocabulary)) if work.head_in_chunks else trained
    fp32, rounded = (
        (8, 4) if work.head_in_chunks else (12, 16)
    )  # all at once: fp32 logits, two copies, and their rounding
    logits = rows * shape.vocabulary * (fp32 if width == 4 else rounded)
    scores = 0 if shape.scores_kept else min(_SCORES, tokens * shape.heads * length)
    widened = 4 * 2 * shape.inner * shape.hidden if work.width else 0  # the largest weights of a layer
    passing = 4 * shape.inner + 4 * shape.hidden + 4 * shape.queries
    return MemoryEstimate(
        weights=shape.weight_bytes,
        adapter=4 * work.adapter,
        gradients=4 * numbers,
        optimizer=numbers * _OPTIMIZER_BYTES.get(work.optimizer, 2),
        activations=0 if work.offload else int(kept) + work.experts // (shape.layers if work.recompute else 1),
        logits=int(
            logits
            + 2 * trained * shape.hidden * width
            + 4 * bool(work.width) * min(WIDENED_AT_ONCE, shape.vocabulary * shape.hidden)
        ),
        workspace=int(tokens * passing * width + 3 * scores * width + widened) + work.experts // shape.layers,
        kept_free=int(_HOLES * kept * (work.leaves_holes and work.engine == "autograd" and not work.recompute))
        + _KERNELS * work.makes_kernels,
        snapshot=shape.weight_bytes + numbers * _OPTIMIZER_BYTES.get(work.optimizer, 2) if full else 0,
    )


def _kept(shape: Shape, work: Work, length: int, width: int) -> float:
    """Values that a layer keeps for each token."""
    hidden, inner, queries, keys = shape.hidden, shape.inner, shape.queries, shape.keys
    if work.engine == "handwritten":
        raw = 2 * hidden if shape.norms_after else 0
        normed = (queries + keys) * shape.norms_heads
        return 2 * hidden + raw + 2 * queries + 2 * keys + normed + 2 * inner + 7 * work.rank
    wide, method = width == 4, METHODS[work.method]
    full = method.trains_base
    of_hidden, of_inner, of_queries, of_keys = method.saved_activations_fp32 if wide else method.saved_activations_16bit
    kept = of_hidden * hidden + of_inner * inner + of_queries * queries + of_keys * keys
    kept += (7 if wide else 10.6) * work.rank
    kept += 0 if shape.is_gated else 4 * hidden
    kept += (2 if wide else 4) * (1 + full) * hidden * shape.norms_after
    kept += (1 if wide else 2) * (1 + full) * (queries + keys) * shape.norms_heads
    kept += (2 * hidden + 3 * shape.heads * length) * shape.drops_out
    return kept + ((2 if wide else 4) * shape.heads * length if shape.scores_kept else length)  # scores, or a mask


def shape_of(config: Any, *names: str, default: int | None = None) -> int:
    """The first of the named sizes that a transformers config has; families name them differently. The largest where each
    layer has its own."""
    found = next((getattr(config, name) for name in names if getattr(config, name, None)), default)
    assert found is not None, f"{type(config).__name__} has none of {names}"
    return max(map(int, found)) if isinstance(found, (list, tuple)) else int(found)


def largest_micro_batch(
    shape: Shape, work: Work, batch_size: int, max_length: int, room_bytes: int, token_cap: int
) -> tuple[int, str]:
    """The largest micro batch whose estimate fits the room and whose tokens stay under the cap, with its reason."""
    size = batch_size
    while size > 1:
        needed = estimate(shape, work, size * max_length, max_length).total
        if needed <= room_bytes and size * max_length <= token_cap:
            break
        size = (size + 1) // 2
    return size, f"at most {token_cap} tokens at once, and its estimate fits {room_bytes / 1e9:.1f} GB"


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _numbers(layer: Any) -> int:
    if hasattr(layer, "in_features"):
        return int(layer.in_features * layer.out_features)
    return int(layer.weight.numel())
