"""Steps of the loop by transformers' own modules: any causal base whose attention can be handed over.

All tokens of a step go through the model as one row. Our attention, registered with transformers, keeps the answers apart.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from inlay.engine.batch_invariance import ropes_of
from inlay.engine.loss import autocast
from inlay.errors import ModelError
from inlay.generation.attention import How, KeyValues, Places
from inlay.generation.blocks import BLOCK, blocks_for
from inlay.generation.row_floor import row_floor
from inlay.generation.work import Adapters, Segment, Work
from inlay.methods.adapter import virtual_tokens
from inlay.models.base import context_length

_NAME: Final = "inlay_blocks"
_UNDERSTOOD: Final = {
    "attention_mask", "cache", "cache_position", "dropout", "output_attentions", "output_hidden_states", "past_key_values",
    "position_ids", "return_dict", "scaling", "sliding_window", "softcap", "use_cache",
}  # fmt: skip
"""What a layer may hand to attention; anything else that is not None changes what attention computes."""
_PROOF = BLOCK + 22
"""Tokens of the prompt that a base is tried with: more than a block."""
_REGISTERS = 32
"""Values that elementwise operations take at once; those of a rest are rounded otherwise."""
_NEAR: Final = {False: 1e-3, True: 5e-2}
"""Largest relative distance from the model's own logits, by whether matmuls are rounded to 16 bits."""


class _Step(threading.local):
    """The step that attention works on in this thread."""

    layers: Callable[[Any, Tensor, Tensor, Tensor, How], Tensor] | None = None


_step = _Step()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, is_causal: bool = True, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it: (1, heads, T, D) to (1, T, heads, D)."""
    unknown = sorted(
        name for name, given in more.items() if given is not None and given is not False and name not in _UNDERSTOOD
    )
    if attention_mask is not None:
        unknown.append("attention_mask")
    if not is_causal or not getattr(module, "is_causal", True):
        unknown.append("is_causal=False")
    if unknown:
        raise _Refused(f"its attention takes {', '.join(unknown)}")
    assert _step.layers is not None
    how = How(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return _step.layers(module, query[0], key[0], value[0], how)[None], None


def _ambient(device: torch.device) -> torch.dtype | None:
    """Dtype of the autocast that a caller has begun."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


class _Refused(Exception):
    """Why a base cannot be computed so."""


class Facts(NamedTuple):
    """Outcome of the trial of a base."""

    row_floor: int
    """Rows that a matmul has at least, so that a row does not depend on the others."""
    is_exact: bool
    """Whether an answer among others has the bits that it has alone; else it is equal within rounding."""
    has_loops: bool
    """Whether generated tokens take the compiled loop of attention."""


_known: WeakKeyDictionary[Any, dict[str, Facts]] = WeakKeyDictionary()


class PlainForward:
    """A `Forward` by the modules of a transformers model, which may have PEFT's layers on it."""

    def __init__(
        self, model: Any, blocks: int, adapters: Adapters | None = None, *, autocast_dtype: torch.dtype | None = None
    ) -> None:
        """`autocast_dtype` as in `Precision`. Raises: ModelError, with the reason, for a model that it cannot compute."""
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        if why := _refusal(model, self._model):
            raise ModelError(f"this base cannot share a step among answers: {why}.")
        self._device, self._dtype = self._model.get_input_embeddings().weight.device, autocast_dtype
        self._configs = _attention_configs(self._model)
        text = self._model.config.get_text_config(decoder=True)
        self._head_size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        self._adapters: Adapters | None = None
        self._hooks: dict[str, tuple[Any, Any]] = {}
        self._work: Work | None = None
        self._windows: dict[int, int | None] = {}
        self._head_work: Work | None = None
        self._head = self._model.get_output_embeddings()
        self.facts = self._found()
        """What a trial of this base has shown."""
        self._kept, self._adapters = KeyValues(blocks), adapters

    def _found(self) -> Facts:
        known = _known.setdefault(self._model, {})
        key = f"{self._dtype} {torch.get_float32_matmul_precision()} {torch.get_num_threads()} {self._device} {_ambient(self._device)}"
        if key not in known:
            floor = row_floor(self._model, self._device, self._dtype)
            self.facts = Facts(floor, False, has_loops=False)
            try:
                self._kept = KeyValues(1)
                self._tried(torch.zeros(2, dtype=torch.long), [(0, 2, 0)])  # shows dtype and sizes of keys and values
                self.facts = self.facts._replace(has_loops=self._kept.fits_loops())
                is_exact = self._is_proved()
            except _Refused as error:
                raise ModelError(f"this base cannot share a step among answers: {error}.") from None
            known[key] = self.facts._replace(is_exact=is_exact)
        return known[key]

    @property
    def blocks(self) -> int:
        """Blocks of the key/value pool."""
        return self._kept.blocks

    @property
    def context_length(self) -> int:
        """Tokens of a sequence, at most."""
        return context_length(self._model.config)

    @property
    def vocabulary(self) -> int:
        """Ids are below it."""
        return len(self._model.get_input_embeddings().weight)

    @property
    def bytes(self) -> int:
        """Memory of the key/value pool, so far."""
        return self._kept.bytes

    def logits(self, work: Work) -> Tensor:
        """(W, V) float32; see `Forward`."""
        missing = self._missing(len(work.ids_T))
        ids, positions = (nn.functional.pad(t.to(self._device), (0, missing)) for t in (work.ids_T, work.positions_T))
        wanted = work.wanted_W.to(self._device)
        if count := len(wanted):
            wanted = nn.functional.pad(wanted, (0, max(0, self.facts.row_floor - count)))
        places = Places(work, self._device, has_loops=self.facts.has_loops)

        def layer(module: Any, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
            with torch.autocast(self._device.type, enabled=False):
                self._windows[module.layer_idx] = how.window
                return places.attend(query, key, value, self._kept.layer(module.layer_idx, key, value), how)

        self._sync_hooks()
        with (
            torch.inference_mode(),
            autocast(str(self._device), self._dtype),
            self._attending(layer),
            self._adapting(work),
        ):
            out = self._model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
            ).logits
        logits: Tensor = out[0, :count].float()
        return logits

    def _missing(self, rows: int) -> int:
        """Rows of padding: up to the floor, and so that the last values of a head fill the registers."""
        step = _REGISTERS // math.gcd(_REGISTERS, self._head_size)
        return max(self.facts.row_floor, -(-rows // step) * step) - rows

    def copy_block(self, source: int, target: int, tokens: int) -> None:
        """The first so many tokens of a block, in all layers, into another block."""
        with torch.inference_mode():
            self._kept.copy(source, target, tokens)

    @contextlib.contextmanager
    def _attending(self, layer: Callable[[Any, Tensor, Tensor, Tensor, How], Tensor]) -> Iterator[None]:
        before = [config._attn_implementation for config in self._configs]
        _step.layers = layer
        try:
            for config in self._configs:
                config._attn_implementation_internal = _NAME
            yield
        finally:
            _step.layers = None
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name

    # ------------------------------------------------------------ adapters

    def _sync_hooks(self) -> None:
        wanted = self._adapters.sites() if self._adapters is not None else frozenset()
        for name in self._hooks.keys() - wanted:
            for hook in self._hooks.pop(name):
                hook.remove()
        for name in wanted - self._hooks.keys():
            module = self._model.get_submodule(name)
            before, after = self._hooks_of(name)
            self._hooks[name] = module.register_forward_pre_hook(before), module.register_forward_hook(after)

    def _hooks_of(self, site: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The hooks before and after a module that adapters change; they do nothing outside a step with adapters."""
        given: list[Tensor] = []

        def before(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if (work := self._work_of(module)) is None or self._adapters is None:
                return None
            given[:] = [inputs[0][0]]
            return self._adapters.inputs(site, given[0], work)[None], *inputs[1:]

        def after(module: Any, _inputs: Any, output: Tensor) -> Tensor | None:
            if (work := self._work_of(module)) is None or self._adapters is None:
                return None
            return self._adapters.add(site, given.pop(), output[0], work)[None]

        return before, after

    def _work_of(self, module: Any) -> Work | None:
        return self._head_work if module is self._head else self._work

    @contextlib.contextmanager
    def _adapting(self, work: Work) -> Iterator[None]:
        if self._adapters is not None and any(segment.adapter is not None for segment in work.segments):
            self._work = work
            self._head_work = at_wanted(work)
        try:
            yield
        finally:
            self._work = self._head_work = None

    # ------------------------------------------------------------ trial

    def _is_proved(self) -> bool:
        """Whether tokens among others have the bits that they have alone.

        Raises: ModelError where a prompt in pieces and a token after it do not get the model's own logits.
        """
        length = min(_PROOF, self.context_length)
        ids_T = torch.randint(self.vocabulary, (length,), generator=torch.Generator().manual_seed(0))
        self._kept = KeyValues(2 * blocks_for(length))
        cuts = sorted({0, length * 2 // 3, length - 1, length})
        alone = [self._tried(ids_T, [(start, stop, 0)]) for start, stop in pairwise(cuts)]
        among = self._tried(ids_T, [(length - 1, length, 0), (0, length - 1, 1)])
        self._require_windows()
        with torch.inference_mode(), autocast(str(self._device), self._dtype):
            seen = torch.cat([_ends(start, stop) for start, stop in pairwise(cuts)]).to(self._device)
            ids = ids_T[None].to(self._device)
            own_WV = self._model(input_ids=ids, use_cache=False, logits_to_keep=seen).logits[0].float()
        found_WV = torch.cat(alone)
        dtypes = {p.dtype for p in self._model.parameters()}
        is_coarse = dtypes != {torch.float32} or torch.get_float32_matmul_precision() != "highest"
        distance = relative_distance(found_WV, own_WV)
        if not distance <= _NEAR[is_coarse]:
            raise ModelError(
                f"this base cannot share a step among answers: its logits are {distance:.1e} from those of the whole prompt."
            )
        return torch.equal(among, torch.cat([alone[-1], alone[-2]])) if len(alone) > 1 else True

    def _tried(self, ids_T: Tensor, parts: Sequence[tuple[int, int, int]]) -> Tensor:
        """The logits of the last tokens of each (start, stop, number of the sequence) in one step."""
        segments, at = [], 0
        count = blocks_for(len(ids_T))
        for start, stop, number in parts:
            blocks = range(number * count, (number + 1) * count)
            segments.append(Segment(at, at + stop - start, start, blocks, None, stop == len(ids_T) > 1))
            at += stop - start
        places_T = torch.cat([torch.arange(start, stop) for start, stop, _ in parts])
        wanted = torch.cat([_ends(segment.start, segment.stop) for segment in segments])
        return self.logits(Work(ids_T[places_T], places_T, tuple(segments), wanted))

    def _require_windows(self) -> None:
        """Raises: ModelError where a layer with a sliding window did not say so to attention: a short prompt does not show it."""
        text = self._model.config.get_text_config(decoder=True)
        window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None) or ()
        for layer, found in self._windows.items():
            if layer < len(kinds) and found != (window if kinds[layer] == "sliding_attention" else None):
                raise ModelError(
                    f"this base cannot share a step among answers: layer {layer} has {kinds[layer]} and asks for a window of {found}."
                )


def relative_distance(found_WV: Tensor, own_WV: Tensor) -> float:
    """Distance of logits from the model's own, relative to their size."""
    return float((found_WV - own_WV).norm() / own_WV.norm().clamp_min(1e-30))


def _ends(start: int, stop: int) -> Tensor:
    """The last places, which see all that was computed before them."""
    return torch.arange(max(start, stop - 4), stop)


def at_wanted(work: Work) -> Work:
    """The work as the head sees it: its rows are the wanted ones."""
    wanted = work.wanted_W.tolist()
    segments, at = [], 0
    for segment in work.segments:
        start = at
        while at < len(wanted) and wanted[at] < segment.stop:
            at += 1
        if at > start:
            segments.append(
                segment._replace(start=start, stop=at, position=segment.position + wanted[start] - segment.start)
            )
    return Work(work.ids_T[work.wanted_W], work.positions_T[work.wanted_W], tuple(segments), torch.arange(len(wanted)))


def _refusal(model: Any, base: Any) -> str:
    """The reason against it that the config alone shows; empty without one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)  # no mask is registered under that name, so none is made
    config = base.config
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        return "it has an encoder"
    if virtual_tokens(model):
        return "its adapter puts virtual tokens before every prompt"
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if any(rope.get("rope_type") == "longrope" for rope in ropes_of(text)):
        return "its RoPE has frequencies of their own for long prompts (longrope)"
    takes = inspect.signature(base.forward).parameters
    missing = [name for name in ("position_ids", "logits_to_keep") if name not in takes]
    return f"its forward takes no {missing[0]}" if missing else ""


def _attention_configs(model: Any) -> list[Any]:
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]
