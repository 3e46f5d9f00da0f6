"""Steps of the loop for decoders of the Llama family on a CPU, without transformers' modules: few calls for each layer.

Generated tokens attend in a compiled loop, pieces of prompts over blocks of keys; all other operations take a row at a time,
whatever rows are beside it.

Shapes: T tokens of a step, the first D of them generated; H hidden, I inputs and O outputs of linear layers stacked, N query
heads, K key heads, E pairs that RoPE turns, W wanted rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from inlay.engine import cpu_ops, decode_ops
from inlay.engine.batch_invariance import ropes_of
from inlay.engine.decode_ops import Rows
from inlay.engine.handwritten.attention import rope_
from inlay.engine.handwritten.mlp import ACTIVATIONS, gated
from inlay.engine.handwritten.model import activation, caps_scores, window_of
from inlay.engine.handwritten.norm import RmsNorm
from inlay.engine.select_engine import FAMILIES
from inlay.errors import ModelError
from inlay.generation.attention import How, KeyValues, Places, rows_of
from inlay.generation.blocks import BLOCK
from inlay.generation.plain import at_wanted
from inlay.generation.row_floor import counts_of
from inlay.generation.work import Adapters, Work
from inlay.models.base import context_length

_ROWS: Final = 8
"""Weights are packed for a matmul of so many rows; others are as right and a little slower."""
_ANGLES: Final = 1024
"""Positions whose angles are computed at once, so that a position has the same ones in every step."""
_ROPES: Final = ("default", "linear", "llama3", "yarn")
"""Kinds whose angles do not depend on the length of a sequence."""


class _Step(NamedTuple):
    """Values of one step that all layers need."""

    work: Work
    adapters: Adapters | None
    """None where no token has one."""
    sites: frozenset[str]
    decode: Rows | None
    generated: int
    """D"""
    begun: list[int]
    """Blocks that get their first token by generation."""
    prompts: Places | None


class _Packed:
    """Linear layers that read the same input, as one matmul over weights in the order in which oneDNN multiplies them.

    Without oneDNN the weights are stacked as they are.
    """

    def __init__(self, linears: Sequence[Any]) -> None:
        weights = [linear.weight.detach() for linear in linears]
        weight_OI = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [linear.bias for linear in linears]
        self.width, self.dtype = weight_OI.shape[1], weight_OI.dtype
        self.bias_O = None
        if any(bias is not None for bias in biases):
            parts = [w.new_zeros(len(w)) if b is None else b.detach() for w, b in zip(weights, biases, strict=True)]
            self.bias_O = torch.cat(parts)
        self._packs = _packs(self.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _ROWS) if self._packs else weight_OI

    def __call__(self, x_TI: Tensor) -> Tensor:
        """(T, O)"""
        if not self._packs:
            return F.linear(x_TI, self._weight, self.bias_O)
        y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self._weight, self.bias_O, "none", [], "")
        return y_TO


@cache
def _packs(dtype: torch.dtype) -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return known and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class _Linear:
    """Linear layers that read the same input, with their adapters."""

    def __init__(self, linears: Sequence[Any], names: dict[int, str]) -> None:
        self.matmul = _Packed(linears)
        self.sites: list[tuple[str, slice]] = []
        end = 0
        for linear in linears:
            self.sites.append((names[id(linear)], slice(end, end := end + linear.out_features)))

    def forward(self, x_TI: Tensor, step: _Step) -> Tensor:
        """(T, O)"""
        y_TO = self.matmul(x_TI)
        if step.adapters is None:
            return y_TO
        for site, outputs in self.sites:
            if site not in step.sites:
                continue
            scaled_TI = step.adapters.inputs(site, x_TI, step.work)
            if scaled_TI is not x_TI:
                y_TO[:, outputs] = self.matmul(scaled_TI)[:, outputs]
            y_TP = y_TO[:, outputs]
            added_TP = step.adapters.add(site, x_TI, y_TP, step.work)
            if added_TP is not y_TP:
                y_TO[:, outputs] = added_TP
        return y_TO


class _Layer:
    """One layer of the decoder."""

    def __init__(self, index: int, module: Any, config: Any, names: dict[int, str]) -> None:
        attention, mlp = module.self_attn, module.mlp
        offset = 1.0 if config.model_type.startswith("gemma") else 0.0

        def norm(holder: Any, name: str) -> RmsNorm | None:
            found = getattr(holder, name, None)
            return None if found is None else RmsNorm(found, offset)

        def linear(holder: Any, fused: str, *parts: str) -> _Linear:
            found = [getattr(holder, fused)] if hasattr(holder, fused) else [getattr(holder, part) for part in parts]
            return _Linear(found, names)

        has_post = hasattr(module, "pre_feedforward_layernorm")
        self.index, self.kind = index, getattr(attention, "layer_type", None)
        self.heads, self.key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.size = int(attention.head_dim)
        softcap = config.attn_logit_softcapping if caps_scores(config) else None
        self.how = How(float(attention.scaling), window_of(attention, config), softcap)
        self.norm = norm(module, "input_layernorm")
        self.head_norms = norm(attention, "q_norm"), norm(attention, "k_norm")
        self.qkv = linear(attention, "qkv_proj", "q_proj", "k_proj", "v_proj")
        self.o = linear(attention, "o_proj", "o_proj")
        self.post = norm(module, "post_attention_layernorm") if has_post else None
        self.mlp_norm = norm(module, "pre_feedforward_layernorm" if has_post else "post_attention_layernorm")
        self.gate_up = linear(mlp, "gate_up_proj", "gate_proj", "up_proj")
        self.act, self.down = activation(config), linear(mlp, "down_proj", "down_proj")
        self.mlp_post = norm(module, "post_feedforward_layernorm")

    def forward(self, x_TH: Tensor, step: _Step, rope: tuple[Tensor, Tensor], kept: KeyValues) -> Tensor:
        """(T, H), over x."""
        qkv_TO = self.qkv.forward(_normed(self.norm, x_TH), step)
        y_TH = self.o.forward(self._attended(qkv_TO, step, rope, kept), step)
        x_TH.add_(_normed(self.post, y_TH))
        gate_up = self.gate_up.forward(_normed(self.mlp_norm, x_TH), step)
        y_TH = self.down.forward(gated(self.act, gate_up), step)
        return x_TH.add_(_normed(self.mlp_post, y_TH))

    def _attended(self, qkv_TO: Tensor, step: _Step, rope: tuple[Tensor, Tensor], kept: KeyValues) -> Tensor:
        """(T, N·D)"""
        q_TND, k_TKD, v_TKD = torch.split(
            qkv_TO.view(len(qkv_TO), -1, self.size), [self.heads, self.key_heads, self.key_heads], 1
        )
        for part, norm in zip((q_TND, k_TKD), self.head_norms, strict=True):
            if norm is not None:
                part.copy_(norm.forward(part)[0])
        pool = kept.layer(self.index, k_TKD.transpose(0, 1), v_TKD.transpose(0, 1))
        (cos_TE, sin_TE), done = rope, step.generated
        out = qkv_TO.new_zeros(len(qkv_TO), self.heads * self.size)
        if step.decode is not None:
            for part in pool:
                part[step.begun] = 0  # values beyond the last token may get the weight 0, and 0 times NaN is NaN
            angles = cos_TE[:done].float(), sin_TE[:done].float()
            keys, values, how = *pool, self.how
            decode_ops.attend(
                qkv_TO[:done], out, step.decode, keys, values, angles, self.heads, how.scaling, how.window, how.softcap
            )
        if step.prompts is not None:
            q_TND, k_TKD, v_TKD = q_TND[done:], k_TKD[done:], v_TKD[done:]
            for part in (q_TND, k_TKD):
                rope_(part, cos_TE[done:, None], sin_TE[done:, None])
            q_NTD, k_KTD, v_KTD = (part.transpose(0, 1) for part in (q_TND, k_TKD, v_TKD))
            out[done:] = step.prompts.attend(q_NTD, k_KTD, v_KTD, pool, self.how).flatten(1)
        return out


class _Decoder:
    """The weights of one model as they are computed with; forward passes over several pools share them."""

    def __init__(self, model: Any) -> None:
        config, inner = model.config, model.model
        names = {id(module): name for name, module in model.named_modules()}
        self.compute: torch.dtype = model.lm_head.weight.dtype
        self.embed, self.head = inner.embed_tokens, _Packed([model.lm_head])
        self.names = names[id(self.embed)], names[id(model.lm_head)]
        self.layers = [_Layer(n, layer, config, names) for n, layer in enumerate(inner.layers)]
        self.norm = RmsNorm(inner.norm, 1.0 if config.model_type.startswith("gemma") else 0.0)
        self.softcap, self.rotary = getattr(config, "final_logit_softcapping", None), inner.rotary_emb
        self.angles: dict[tuple[Any, int], tuple[Tensor, Tensor]] = {}
        first = self.layers[0]
        matmuls = [each.matmul for each in (first.qkv, first.o, first.gate_up, first.down)]
        with torch.inference_mode():
            self.counts = counts_of(((m, m.width, m.dtype) for m in (*matmuls, self.head)), torch.device("cpu"))
        """Numbers of rows with which a row of a matmul does not depend on the others; any number from the last one on."""
        self.made_of = _present(model)


_decoders: WeakKeyDictionary[Any, _Decoder] = WeakKeyDictionary()


def _present(model: Any) -> tuple[Any, ...]:
    """Changes when a weight is replaced, or written to."""
    threads = torch.get_num_threads(), torch.get_float32_matmul_precision()
    return *threads, *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())


class DirectForward:
    """A `Forward` for decoders of the Llama family."""

    def __init__(self, model: Any, blocks: int, adapters: Adapters | None = None) -> None:
        """Packs the weights, once for a model; its own stay as they are.

        Raises: ModelError, with the reason, for a model that it cannot compute.
        """
        if why := refusal(model):
            raise ModelError(f"this base has no engine of its own for serving: {why}.")
        decoder = _decoders.get(model)
        if decoder is None or decoder.made_of != _present(model):
            decoder = _decoders[model] = _Decoder(model)
        self._decoder, self._adapters, self._kept = decoder, adapters, KeyValues(blocks)
        self._context = context_length(model.config)

    @property
    def blocks(self) -> int:
        """Blocks of the key/value pool."""
        return self._kept.blocks

    @property
    def dtype(self) -> torch.dtype:
        """dtype of weights, hidden values and matmuls."""
        return self._decoder.compute

    @property
    def context_length(self) -> int:
        """Tokens of a sequence, at most."""
        return self._context

    @property
    def vocabulary(self) -> int:
        """Ids are below it."""
        return len(self._decoder.embed.weight)

    @property
    def bytes(self) -> int:
        """Memory of the key/value pool, so far."""
        return self._kept.bytes

    def copy_block(self, source: int, target: int, tokens: int) -> None:
        """The first so many tokens of a block, in all layers, into another block."""
        with torch.inference_mode():
            self._kept.copy(source, target, tokens)

    @torch.inference_mode()
    def logits(self, work: Work) -> Tensor:
        """(W, V) float32; see `Forward`."""
        missing = self._missing(len(work.ids_T))
        ids_T, positions_T = (F.pad(each, (0, missing)) for each in (work.ids_T, work.positions_T))
        step = self._step(work)
        x_TH = self._decoder.embed(ids_T).to(self._decoder.compute)
        site = self._decoder.names[0]
        if step.adapters is not None and site in step.sites:
            x_TH = step.adapters.add(site, ids_T, x_TH, work)
        ropes = {kind: self._rope(kind, positions_T) for kind in {layer.kind for layer in self._decoder.layers}}
        for layer in self._decoder.layers:
            x_TH = layer.forward(x_TH, step, ropes[layer.kind], self._kept)
        return self._logits(x_TH, step)

    def _missing(self, rows: int) -> int:
        """Rows of padding with which a row of a matmul does not depend on the others."""
        return next((count for count in self._decoder.counts if count >= rows), rows) - rows

    def _step(self, work: Work) -> _Step:
        decode = [segment for segment in work.segments if segment.is_decode]
        pieces, done = work.segments[len(decode) :], len(decode)
        assert not any(segment.is_decode for segment in pieces), "generated tokens come first"
        rows, prompts = rows_of(decode) if decode else None, None
        if pieces:
            moved = tuple(piece._replace(start=piece.start - done, stop=piece.stop - done) for piece in pieces)
            prompts = Places(
                Work(work.ids_T[done:], work.positions_T[done:], moved, work.wanted_W), torch.device("cpu")
            )
        begun = [s.blocks[s.position // BLOCK] for s in decode if s.position % BLOCK == 0]
        is_adapted = self._adapters is not None and any(segment.adapter is not None for segment in work.segments)
        adapters = self._adapters if is_adapted else None
        sites = frozenset[str]() if adapters is None else adapters.sites()
        return _Step(work, adapters, sites, rows, done, begun, prompts)

    def _rope(self, kind: Any, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of each token, (T, E)."""
        chunks = positions_T // _ANGLES
        parts = {chunk: self._angles_of(kind, chunk) for chunk in set(chunks.tolist())}
        cos_TE, sin_TE = (part.new_empty(len(positions_T), part.shape[1]) for part in next(iter(parts.values())))
        for chunk, (cos_PE, sin_PE) in parts.items():
            tokens = (chunks == chunk).nonzero()[:, 0]
            places = positions_T[tokens] - chunk * _ANGLES
            cos_TE[tokens], sin_TE[tokens] = cos_PE[places], sin_PE[places]
        return cos_TE, sin_TE

    def _angles_of(self, kind: Any, chunk: int) -> tuple[Tensor, Tensor]:
        angles, rotary = self._decoder.angles, self._decoder.rotary
        if (kind, chunk) not in angles:
            positions_P = torch.arange(chunk * _ANGLES, (chunk + 1) * _ANGLES)
            like = torch.empty(0, dtype=self._decoder.compute)
            cos, sin = rotary(like, positions_P[None], *([kind] if hasattr(rotary, "layer_types") else []))
            half = cos.shape[-1] // 2
            angles[kind, chunk] = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        return angles[kind, chunk]

    def _logits(self, x_TH: Tensor, step: _Step) -> Tensor:
        wanted_W = step.work.wanted_W
        count = len(wanted_W)
        n_WH = _normed(self._decoder.norm, x_TH[F.pad(wanted_W, (0, self._missing(count)))])
        head, site, softcap = self._decoder.head, self._decoder.names[1], self._decoder.softcap
        given_WH, work = n_WH, step.work
        is_adapted = step.adapters is not None and site in step.sites
        if step.adapters is not None and is_adapted:
            work = at_wanted(work)
            given_WH = step.adapters.inputs(site, n_WH, work)
        z_WV = head(given_WH)
        if step.adapters is not None and is_adapted:
            z_WV = step.adapters.add(site, n_WH, z_WV, work)
        z_WV = z_WV[:count].float()
        if softcap is not None:
            for z_V in z_WV:  # a row at a time: the last values of an operation may be rounded otherwise
                z_V.div_(softcap).tanh_().mul_(softcap)
        return z_WV


def _normed(norm: RmsNorm | None, x_TH: Tensor) -> Tensor:
    return x_TH if norm is None else norm.forward(x_TH)[0]


def refusal(model: Any) -> str | None:
    """The reason why `DirectForward` cannot compute this model, None where it can. Waits for the loops' compilation."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"it does not know {config.model_type}"
    if activation(config) not in ACTIVATIONS:
        return f"it does not know the activation {activation(config)}"
    if getattr(config, "use_bidirectional_attention", False):
        return "the base looks ahead"
    if others := sorted({rope.get("rope_type", "default") for rope in ropes_of(config)} - {*_ROPES}):
        return f"its RoPE ({others[0]}) depends on the length of the sequence"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1 or any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return "its weights are not all on the CPU in one dtype"
    linears = [module for module in model.model.layers.modules() if hasattr(module, "in_features")]
    if any(type(linear) is not nn.Linear for linear in linears):
        return "its layers are quantized or have adapters of PEFT"
    dtype = dtypes.pop()
    if why := cpu_ops.reason(dtype) or decode_ops.reason(dtype):
        return f"there are no compiled loops ({why})"
    return None
