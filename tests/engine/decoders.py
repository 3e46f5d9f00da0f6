"""Small random decoders of every family that the hand-written engine knows, with an adapter, and rows for them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch

from inlay.data.batches import Batch, collate
from inlay.data.encoding.encoder import TokenizedSequence
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.data.types import Source
from inlay.models.quantization import QUANTIZATIONS, forbid_cpu_repack

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,
         "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
         "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.2}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama with biases, tied": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama 3, scaled rope": ("LlamaConfig", {"rope_parameters": LLAMA3, "num_key_value_heads": 4}),
    "mistral, window": ("MistralConfig", {"sliding_window": 5}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2, windows": ("Qwen2Config", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 16, **SLIDING}),
    "gemma2, caps": (
        "Gemma2Config",
        {"attn_implementation": "eager", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **SLIDING},
    ),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 16, **SLIDING}),
    "phi3, half rope": (
        "Phi3Config",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
}


def decoder(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A random model of the family; biases, norms and everything else away from 0 and 1."""
    import transformers

    name, own = FAMILIES[family]
    options = dict(SHAPE | own | overrides)
    attention = options.pop("attn_implementation", None)
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def in_nf4(model: Any) -> tuple[Any, Any]:
    """(the model with its decoder's linear layers in 4 bits, one in fp32 with the values that these stand for)"""
    exact = copy.deepcopy(model).float()
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            small = QUANTIZATIONS["nf4"].build(layer.weight.detach(), "cpu", layer.weight.dtype)
            small.bias = layer.bias
            model.model.set_submodule(name, small)
            exact.model.get_submodule(name).weight.data = QUANTIZATIONS["nf4"].dequantise(small).float()
    forbid_cpu_repack(model)
    return model, exact


def adapted(
    model: Any, targets: list[str] | str = "all-linear", adapters: int = 1, layers: list[int] | None = None
) -> Any:
    """A PeftModel with so many adapters, none of whose matrices is zero."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=targets, layers_to_transform=layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, lora, autocast_adapter_dtype=model.dtype != torch.float64)
        for index in range(1, adapters):
            peft_model.add_adapter(
                f"k{index}", LoraConfig(**lora.to_dict() | {"r": 3 + index}), autocast_adapter_dtype=False
            )
    peft_model.base_biases = {}  # as `attach` leaves it
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return peft_model


def rows(lengths: tuple[int, ...] = (17, 16, 9, 3, 12), seed: int = 0) -> TokenSet:
    """Random tokens; about half of them trained, every one with a weight of its own."""
    random = np.random.default_rng(seed)

    def row(k: int, length: int) -> TokenizedSequence:
        weights = random.uniform(0.2, 2, length) * (random.random(length) < 0.5)
        weights[-1] = 1
        ids = random.integers(2, 64, length).astype(np.int32)
        return TokenizedSequence(ids, weights.astype(np.float32), Source("rows", k))

    return pack((k, row(k, length)) for k, length in enumerate(lengths))


def batch(lengths: tuple[int, ...] = (17, 16, 9, 3, 12), seed: int = 0) -> Batch:
    return collate(rows(lengths, seed), range(len(lengths)), pad_id=0)


def gradients(peft_model: Any, adapter: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's gradients, which are cleared."""
    found = {}
    for name, parameter in peft_model.named_parameters():
        if f".{adapter}." in name and parameter.grad is not None:
            found[name], parameter.grad = parameter.grad.clone(), None
    return found
