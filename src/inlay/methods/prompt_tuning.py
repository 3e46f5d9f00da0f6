"""Prompt tuning: virtual tokens before every sequence, of which only the embeddings are trained.

A hook puts them in front of the decoder's input embeddings, another cuts their positions off its output. Loss, logits and
generation therefore see as many positions as there are real tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from inlay.config import Config
from inlay.errors import AdapterError
from inlay.folder_files import shown
from inlay.methods.adapter_file_checks import PROMPT_TUNING, refuse_settings
from inlay.methods.method import (
    AttachInputs,
    FirstToMove,
    Method,
    PeftSettings,
    SavedActivations,
    plain,
    require_places,
)

NAME: Final = "prompt_embeddings"
"""Name of the trained parameter, and of its tensor in PEFT's files."""
_STATE: Final = "_virtual_tokens"
_CACHES: Final = ("cache", "past_key_values", "cache_params", "state")
"""Arguments by which decoders take a cache: that of transformers 5.24 and later, those before, RWKV's."""


class _State:
    """The virtual tokens of one model."""

    def __init__(self, name: str, settings: PeftSettings) -> None:
        self.name, self.settings, self.is_on, self.was_put = name, settings, True, False
        self.handles: list[Any] = []


class PromptTuning(Method):
    """Embeddings of virtual tokens are trained, and nothing else."""

    name: ClassVar[str] = "prompt"
    title: ClassVar[str] = "prompt tuning"
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    first_to_move: ClassVar[FirstToMove] = FirstToMove(NAME, "sets of virtual tokens", "Raise train.learning_rate.")
    saved_activations_fp32: ClassVar[SavedActivations] = (2, 3, 4, 0)
    saved_activations_16bit: ClassVar[SavedActivations] = (4, 3, 4, 0)

    def summary(self, config: Config) -> str:
        """The number of virtual tokens."""
        return f"{config.adapter.prompt_tokens} virtual tokens before every sequence"

    def learning_rate(self, hidden_size: int, model_type: str) -> tuple[float, str]:
        """The rate of PEFT's examples, whatever the size of the base."""
        return 3e-2, "as PEFT's examples of prompt tuning have it, whatever the size"

    def virtual_tokens(self, config: Config) -> int:
        """`adapter.prompt_tokens`."""
        return config.adapter.prompt_tokens

    def virtual_tokens_on(self, model: Any) -> int:
        """Rows of the embeddings."""
        return len(getattr(model, NAME))

    def owns(self, parameter: str) -> bool:
        """Whether it is the embedding of the virtual tokens."""
        return NAME in parameter

    def attach(self, model: Any, config: Config, inputs: AttachInputs, name: str) -> Any:
        """The model with new virtual tokens, initialized with embeddings of tokens drawn from the vocabulary."""
        settings = _peft_settings(model, config.adapter.prompt_tokens, config.model.base_model)
        weight_VH = model.get_input_embeddings().weight
        count = config.adapter.prompt_tokens
        drawn = torch.randint(len(weight_VH), (count,), device="cpu")
        prompted = _with_virtual_tokens(model, name, settings, weight_VH.detach()[drawn.to(weight_VH.device)])
        if not weight_VH.is_meta:
            self._require_put(prompted, name, count)
        return prompted

    def attach_stored(self, model: Any, settings: PeftSettings, tensors: Mapping[str, Tensor], name: str) -> Any:
        """The model with the stored virtual tokens."""
        width = model.get_input_embeddings().weight.shape[1]
        needed = torch.empty(int(settings["num_virtual_tokens"]), width, device="meta")
        require_places({NAME: needed}, tensors)
        return _with_virtual_tokens(model, name, settings, tensors[NAME]).eval()

    def require_usable(self, folder: Path, settings: PeftSettings, tensors: Mapping[str, Tensor]) -> None:
        """Refuses all but one tensor with as many rows as there are virtual tokens."""
        refuse_settings(folder, settings, PROMPT_TUNING)
        rows = settings.get("num_virtual_tokens")
        if set(tensors) != {NAME} or tensors[NAME].ndim != 2 or tensors[NAME].shape[0] != rows:
            held = ", ".join(f"{shown(name)} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:3])
            raise AdapterError(f"{folder}: needs one tensor {NAME} of {rows} rows, but holds {held}. It is damaged.")

    def names_on(self, model: Any) -> Sequence[str]:
        """The one name, where the model has virtual tokens."""
        return (getattr(model, _STATE).name,) if hasattr(model, _STATE) else ()

    @contextlib.contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """Inside, the virtual tokens are left out."""
        state = getattr(model, _STATE)
        state.is_on = False
        try:
            yield
        finally:
            state.is_on = True

    def only(self, model: Any, name: str) -> contextlib.AbstractContextManager[None]:
        """Nothing to switch: the model has no other adapter."""
        return contextlib.nullcontext()

    def detach(self, model: Any, name: str) -> Any:
        """The base again, frozen, without hooks."""
        for handle in getattr(model, _STATE).handles:
            handle.remove()
        delattr(model, _STATE)
        delattr(model, NAME)
        return model.requires_grad_(False).eval()

    def parameters(self, model: Any, name: str) -> dict[str, nn.Parameter]:
        """The embeddings of the virtual tokens."""
        return {NAME: getattr(model, NAME)}

    def settings(self, model: Any, name: str) -> PeftSettings:
        """PEFT's settings of prompt tuning."""
        return {**plain(getattr(model, _STATE).settings), "inference_mode": True}

    def tensors(self, model: Any, name: str) -> dict[str, Tensor]:
        """The embeddings under PEFT's name."""
        return {NAME: getattr(model, NAME).detach()}

    def _require_put(self, model: Any, name: str, count: int) -> None:
        """Raises: AdapterError where the decoder does not take the virtual tokens, with the model as it was."""
        ids = torch.arange(3, device=model.get_input_embeddings().weight.device)[None]
        was_training, why = model.training, ""
        model.eval()
        try:
            with torch.no_grad():
                length = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.shape[1]
            if not getattr(model, _STATE).was_put or length != 3:
                why = f"it gives {length} positions for 3 tokens and {count} virtual ones"
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        model.train(was_training)
        if why:
            self.detach(model, name)
            raise AdapterError(
                f"adapter.method prompt: a {model.config.model_type} takes no virtual tokens ({why}). Use adapter.method "
                "lora."
            )


def _with_virtual_tokens(model: Any, name: str, settings: PeftSettings, values_NH: Tensor) -> Any:
    """The model with these embeddings of virtual tokens before every sequence; `settings` are PEFT's."""
    state = _State(name, settings)
    embed = model.get_input_embeddings()
    parameter = nn.Parameter(values_NH.to(embed.weight.device, torch.float32, copy=True))
    model.register_parameter(NAME, parameter)
    setattr(model, _STATE, state)

    def before(decoder: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:  # noqa: ARG001
        if not state.is_on:
            return None
        if given:
            named = named | {"input_ids": given[0]}
        mask_BL, positions_BL = named.get("attention_mask"), named.get("position_ids")
        state.was_put = not any(_is_filled(named.get(name)) for name in _CACHES)
        count = len(parameter)
        if mask_BL is not None:
            named = named | {"attention_mask": torch.cat([mask_BL.new_ones(len(mask_BL), count), mask_BL], 1)}
        if positions_BL is not None:
            positions_BL = positions_BL + count
        if state.was_put:
            tokens_BLH = embed(named["input_ids"])
            prompt_BNH = parameter.to(tokens_BLH.dtype).expand(len(tokens_BLH), -1, -1)
            named = named | {"input_ids": None, "inputs_embeds": torch.cat([prompt_BNH, tokens_BLH], 1)}
            if positions_BL is not None:
                first = torch.arange(count, device=positions_BL.device).expand(len(positions_BL), -1)
                positions_BL = torch.cat([first, positions_BL], 1)
        return (), named | {"position_ids": positions_BL}

    def after(decoder: Any, given: Any, output: Any) -> Any:  # noqa: ARG001
        if state.is_on and state.was_put:
            output.last_hidden_state = output.last_hidden_state[:, len(parameter) :]
        return output

    decoder = _decoder(model)
    state.handles = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    ]
    return model


def _is_filled(cache: Any) -> bool:
    """Whether a cache holds states of an earlier forward pass."""
    if cache is None:
        return False
    for ask in ("get_seq_length", "has_previous_state"):  # a cache without attention knows no length, others no state
        with contextlib.suppress(AttributeError, ValueError):
            return bool(getattr(cache, ask)())
    return True  # RWKV's, which is not there before


def _decoder(model: Any) -> Any:
    """The decoder: from token ids to the last hidden states."""
    # that of OPT lies within its base model and is called past it; Llama 4 says that it is its own
    found = (model.get_decoder(), model.base_model, getattr(model, "model", None))
    return next(module for module in found if module is not None and module is not model)


def _peft_settings(model: Any, count: int, base_model: str) -> PeftSettings:
    """Raises: AdapterError for a base that cannot have virtual tokens."""
    from peft import PromptTuningConfig, TaskType

    config = model.config.get_text_config()
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise AdapterError(
            f"adapter.method prompt: each layer of a {model.config.model_type} looks up an embedding of its own for every "
            "token, and virtual tokens have none. Use adapter.method lora or ia3."
        )
    settings: PeftSettings = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=count, num_transformer_submodules=1,
        token_dim=model.get_input_embeddings().weight.shape[1],
        num_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        base_model_name_or_path=base_model,
    ).to_dict()  # fmt: skip
    return settings
