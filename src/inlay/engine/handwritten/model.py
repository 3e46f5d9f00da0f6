"""A decoder of the Llama family with its adapters: loss and gradient of a batch without autograd.

Shapes: T tokens of all rows, one after another; J of them predict a trained token; H hidden, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from inlay.data.batches import Batch
from inlay.engine import gpu_ops
from inlay.engine.handwritten.attention import Attention, Rows, Softmax, groups
from inlay.engine.handwritten.lora import Projection, Span
from inlay.engine.handwritten.mlp import Mlp
from inlay.engine.handwritten.norm import RmsNorm
from inlay.engine.lm_head import Head, nll_and_gradient
from inlay.engine.profile import timed
from inlay.methods.method import TRAINED

_VECTOR = 32  # 16-bit numbers that a core works on at once: a row of scores that is no multiple of them takes longer


class Part(NamedTuple):
    """A batch for one of the adapters, and by what the gradient of its loss is multiplied."""

    adapter: int
    """Its place among the adapters of the engine."""
    batch: Batch
    factor: float


@dataclass(frozen=True, slots=True)
class Packed:
    """The tokens of some batches, each for an adapter, without padding between rows.

    Where a library makes a kernel for each shape, some tokens of no row follow at the end, and some positions that
    weigh nothing: T and J are then ones of few numbers.
    """

    ids_T: Tensor
    positions_T: Tensor
    spans: list[Span]
    """Tokens of each part."""
    rows: list[Rows]
    bounds: Tensor
    """First token of each row and the end of the last, int32."""
    longest: int
    kept_J: Tensor
    kept_spans: list[Span]
    """The tokens kept of each part."""
    targets_J: Tensor
    weights_J: Tensor
    row_J: Tensor

    @staticmethod
    def of(parts: Sequence[Part], heads: int, few_shapes: bool = False) -> Packed:
        """`row_J` counts rows through all the parts."""
        batches = [part.batch for part in parts]
        lengths = [length for batch in batches for length in batch.attention_mask.sum(1).tolist()]
        ids_T = torch.cat([batch.input_ids[batch.attention_mask.bool()] for batch in batches])
        weights_T = torch.cat([batch.weights[batch.attention_mask.bool()] for batch in batches])
        ends = torch.tensor(lengths).cumsum(0)
        weights_T[ends[:-1].to(ids_T.device)] = 0  # the first token of a row is predicted by nothing
        weights_T[0] = 0
        kept_J = (weights_T > 0).nonzero()[:, 0] - 1
        row_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(ids_T.device)
        positions_T = torch.cat([torch.arange(length) for length in lengths]).to(ids_T.device)
        row_J, row_ends = row_T[kept_J], torch.tensor([len(batch.rows) for batch in batches]).cumsum(0).tolist()
        token_ends = [0, *ends.tolist()]
        kept_ends = [0, *(int((row_J < b).sum()) for b in row_ends)]
        targets_J, weights_J = ids_T[kept_J + 1], weights_T[kept_J + 1]
        if few_shapes:
            tokens, kept = rounded(len(ids_T) + 1), rounded(len(kept_J))
            ids_T, positions_T = (_longer(x_T, tokens) for x_T in (ids_T, positions_T))
            targets_J, weights_J, row_J = (_longer(x_J, kept) for x_J in (targets_J, weights_J, row_J))
            kept_J = _longer(kept_J, kept, tokens - 1)
            token_ends[-1], kept_ends[-1] = tokens, kept
        ends_of_parts = [token_ends[0], *(token_ends[b] for b in row_ends)]
        bounds = F.pad(ends, (1, 0)).to(ids_T.device, torch.int32)
        return Packed(
            ids_T, positions_T, _spans(parts, ends_of_parts), groups(lengths, heads, _VECTOR if few_shapes else 1), bounds, max(lengths),
            kept_J, _spans(parts, kept_ends), targets_J, weights_J, row_J,
        )  # fmt: skip

    def for_gradients_of(self, wanted: Sequence[bool]) -> Packed:
        """The same tokens; parameters get a gradient from the wanted parts only."""
        both = (
            [span._replace(wants_gradient=yes) for span, yes in zip(spans, wanted, strict=True)]
            for spans in (self.spans, self.kept_spans)
        )
        spans, kept_spans = both
        return replace(self, spans=spans, kept_spans=kept_spans)

    def spread(self, x_JH: Tensor) -> Tensor:
        """(T, H) with the kept tokens' values in their places and zero elsewhere."""
        return x_JH.new_zeros(len(self.ids_T), x_JH.shape[1]).index_copy_(0, self.kept_J, x_JH)


def _spans(parts: Sequence[Part], ends: Sequence[int]) -> list[Span]:
    return [Span(part.adapter, slice(a, b)) for part, (a, b) in zip(parts, itertools.pairwise(ends), strict=True)]


def rounded(count: int) -> int:
    """The next count that is 16 or 32 times a power of two, or one of the 15 between two of them."""
    step = max(16, 1 << count.bit_length() >> 5)
    return -(-count // step) * step


def _longer(x: Tensor, count: int, value: int = 0) -> Tensor:
    return F.pad(x, (0, count - len(x)), value=value)


class _Layer:
    def __init__(
        self, module: Any, config: Any, softcap: float | None, adapters: Sequence[str], compute: torch.dtype
    ) -> None:
        attention, mlp = module.self_attn, module.mlp
        offset = 1.0 if config.model_type.startswith("gemma") else 0.0
        width = int(attention.head_dim)

        def norm(holder: Any, name: str) -> RmsNorm | None:
            found = getattr(holder, name, None)
            return None if found is None else RmsNorm(found, offset)

        has_post = hasattr(module, "pre_feedforward_layernorm")
        into_mlp = "pre_feedforward_layernorm" if has_post else "post_attention_layernorm"
        before_attention, before_mlp = norm(module, "input_layernorm"), norm(module, into_mlp)
        assert before_attention is not None
        assert before_mlp is not None
        q_norm, k_norm = norm(attention, "q_norm"), norm(attention, "k_norm")
        fused = hasattr(attention, "qkv_proj")
        self.attention = Attention(
            before_attention,
            [attention.qkv_proj] if fused else [attention.q_proj, attention.k_proj, attention.v_proj],
            attention.o_proj,
            norm(module, "post_attention_layernorm") if has_post else None,
            (config.num_attention_heads, config.num_key_value_heads, width),
            None if q_norm is None or k_norm is None else (q_norm, k_norm),
            Softmax(float(attention.scaling), window_of(attention, config), softcap),
            adapters,
            compute,
        )
        self.mlp = Mlp(
            before_mlp,
            [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj],
            mlp.down_proj,
            norm(module, "post_feedforward_layernorm"),
            activation(config),
            adapters,
            compute,
        )
        self.kind = getattr(attention, "layer_type", None)

    @property
    def projections(self) -> tuple[Projection, ...]:
        return *self.attention.projections, *self.mlp.projections

    def forward(self, x_TH: Tensor, tokens: Packed, rope: tuple[Tensor, Tensor], last: bool) -> tuple[Tensor, Any]:
        x_TH, attention = self.attention.forward(x_TH, tokens, rope, last)
        x_TH, mlp = self.mlp.forward(x_TH, tokens.kept_spans if last else tokens.spans)
        return x_TH, (attention, mlp)

    def backward(
        self, dx_TH: Tensor, saved: Any, tokens: Packed, rope: tuple[Tensor, Tensor], last: bool, wants_dx: bool
    ) -> Tensor | None:
        attention, mlp = saved
        spans = tokens.kept_spans if last else tokens.spans
        goes_on = wants_dx or any(each.is_adapted for each in self.attention.projections)
        d_TH = self.mlp.backward(dx_TH, mlp, spans, goes_on)
        return None if d_TH is None else self.attention.backward(d_TH, attention, tokens, rope, last, wants_dx)


class HandwrittenEngine:
    """K adapters over one base. The adapters' weights stay PEFT's parameters, and gradients are left in them."""

    name = "handwritten"

    def __init__(
        self, peft_model: Any, adapters: Sequence[str] = (TRAINED,), recompute: bool = False,
        compute: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """`recompute` keeps only each layer's input, and computes the layer again in the backward pass. `compute` is
        the dtype of matmuls and hidden values; by default the base's own.

        Checks nothing: see `inlay.engine.select_engine.refusal`.
        """
        model = peft_model.get_base_model()
        config, inner = model.config, model.model
        softcap = config.attn_logit_softcapping if caps_scores(config) else None
        self.compute = compute or model.lm_head.weight.dtype
        self.embed, self.rotary = inner.embed_tokens, inner.rotary_emb
        self.layers = [_Layer(layer, config, softcap, adapters, self.compute) for layer in inner.layers]
        self.norm = RmsNorm(inner.norm, 1.0 if config.model_type.startswith("gemma") else 0.0)
        self.head = Head(model.lm_head.weight, softcap=getattr(config, "final_logit_softcapping", None))
        self.heads, self.recompute = int(config.num_attention_heads), recompute
        adapted = [any(each.is_adapted for each in layer.projections) for layer in self.layers]
        self.lowest = adapted.index(True)

    @timed("forward")
    def add_gradient(self, batch: Batch, factor: float) -> Tensor:
        """See `inlay.engine.autograd.AutogradEngine.add_gradient`."""
        return self.add_gradients([Part(0, batch, factor)])[0]

    @torch.no_grad()
    def add_gradients(self, parts: Sequence[Part]) -> list[Tensor]:
        """Summed weighted nll (B,) of each row of each part. Adds `factor` times the gradient of a part's sum to the
        gradients of its adapter's parameters, unless a loss of the part is not finite: the others have theirs then."""
        tokens = Packed.of(parts, self.heads, self._makes_kernels())
        for layer in self.layers:
            for projection in layer.projections:
                projection.cast()
        x_TH = self.embed(tokens.ids_T).to(self.compute)
        ropes = self._ropes(x_TH, tokens.positions_T)
        saved: list[Any] = []
        for index, layer in enumerate(self.layers):
            entering_TH, last = x_TH, index == len(self.layers) - 1
            x_TH, kept = layer.forward(x_TH, tokens, ropes[layer.kind], last)
            saved.append(None if index < self.lowest else entering_TH if self.recompute else kept)
            del kept, entering_TH  # or one layer more is held until the end
        nll_J, dx_JH = self._head(x_TH, tokens, [part.factor for part in parts])
        rows = [len(part.batch.rows) for part in parts]
        losses = list(nll_J.new_zeros(sum(rows)).index_add_(0, tokens.row_J, nll_J).split(rows))
        finite = [bool(torch.isfinite(nll_B).all()) for nll_B in losses]
        if any(finite):
            self._backward(dx_JH, saved, tokens.for_gradients_of(finite), ropes)
        return losses

    @timed("backward")
    def _backward(self, dx_TH: Tensor, saved: list[Any], tokens: Packed, ropes: dict[Any, Any]) -> None:
        for index in range(len(self.layers) - 1, self.lowest - 1, -1):
            layer, last, kept = self.layers[index], index == len(self.layers) - 1, saved.pop()
            rope = ropes[layer.kind]
            if self.recompute:
                _, kept = layer.forward(kept, tokens, rope, last)
            before = layer.backward(dx_TH, kept, tokens, rope, last, wants_dx=index > self.lowest)
            if before is None:
                return
            dx_TH = before

    def _head(self, x_JH: Tensor, tokens: Packed, factors: Sequence[float]) -> tuple[Tensor, Tensor]:
        """(J,) weighted nll, and its gradient (J, H) by the last layer's output, times each adapter's factor."""
        n_JH, factor_J1 = self.norm.forward(x_JH)
        fused = gpu_ops.takes(n_JH) and n_JH.dtype == self.head.weight_VH.dtype
        compute = gpu_ops.nll_and_gradient if fused else nll_and_gradient
        nll_J, dn_JH = compute(n_JH, self.head, tokens.targets_J)
        scale_J = tokens.weights_J.to(nll_J.dtype)
        nll_J = nll_J * scale_J
        for span, factor in zip(tokens.kept_spans, factors, strict=True):
            dn_JH[span.tokens] *= (scale_J[span.tokens, None] * factor).to(dn_JH.dtype)
        return nll_J, self.norm.backward(dn_JH, x_JH, factor_J1)

    def _makes_kernels(self) -> bool:
        """True where matmuls are oneDNN's: it makes a kernel for each shape, which takes longer than using it once."""
        narrow = self.compute.itemsize < 4 or torch.get_float32_matmul_precision() != "highest"
        return narrow and self.head.weight_VH.device.type == "cpu"

    def _ropes(self, x_TH: Tensor, positions_T: Tensor) -> dict[Any, tuple[Tensor, Tensor]]:
        """(cos, sin) of shape (T, 1, E) for each kind of layer."""
        kinds = {layer.kind for layer in self.layers}
        by_kind = hasattr(self.rotary, "layer_types")
        ropes = {}
        for kind in kinds:
            cos, sin = self.rotary(x_TH, positions_T[None], *([kind] if by_kind else []))
            half = cos.shape[-1] // 2
            ropes[kind] = cos[0, :, None, :half].to(x_TH.dtype), sin[0, :, None, :half].to(x_TH.dtype)
        return ropes


def activation(config: Any) -> str:
    """Name of the activation in the feed-forward layers."""
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def caps_scores(config: Any) -> bool:
    """True where transformers caps attention scores: only Gemma 2 does, and only in its eager attention."""
    capped = config.model_type == "gemma2" and config._attn_implementation == "eager"
    return capped and config.attn_logit_softcapping is not None


def window_of(attention: Any, config: Any) -> int | None:
    """Keys that a query of this layer sees at most, its own among them; None for all."""
    if hasattr(attention, "sliding_window"):
        return None if attention.sliding_window is None else int(attention.sliding_window)
    window = getattr(config, "sliding_window", None) if config.model_type in ("mistral", "phi3") else None
    return None if window is None else int(window)
