"""Small random decoders of the families that people fine-tune, by what of their shape matters to an adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from parts import NANO

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8,
}  # fmt: skip
GPT2 = {"n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4}
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 32}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases, llama3 rope, tied": ("llama", {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    }),
    "llama, one key head, yarn": ("llama", {
        "num_key_value_heads": 1, "head_dim": 12, **rope("yarn", factor=4.0, original_max_position_embeddings=64),
    }),
    "llama, dynamic rope": ("llama", {**rope("dynamic", factor=4.0), "max_position_embeddings": 256}),
    "mistral, window": ("mistral", {"sliding_window": 16}),
    "ministral3": ("ministral3", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "gemma": ("gemma", {"head_dim": 12}),
    "gemma2": ("gemma2", {
        "head_dim": 12, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, **SLIDING,
    }),
    "gemma3": ("gemma3_text", {"head_dim": 12, "query_pre_attn_scalar": 16, **SLIDING}),
    "gemma3n": ("gemma3n_text", {
        "head_dim": 8, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1, "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 3, "intermediate_size": [56] * 3, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    }),
    "gemma4": ("gemma4_text", {
        "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, **SLIDING,
    }),
    "phi3, part of rope": ("phi3", rope("default", partial_rotary_factor=0.75)),
    "phi3, longrope": ("phi3", {
        **rope("longrope", short_factor=[1.0] * 4, long_factor=[1.0, 1.5, 3.0, 8.0], factor=4.0, original_max_position_embeddings=64),
        "original_max_position_embeddings": 64,
    }),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "falcon, one key head": ("falcon", {"ffn_hidden_size": 56, "multi_query": True, "parallel_attn": True}),
    "falcon, new": ("falcon", {"ffn_hidden_size": 56, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("falcon", {
        "ffn_hidden_size": 56, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True,
    }),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "gpt2": ("gpt2", GPT2),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 8}),
    "gpt_neo": ("gpt_neo", {
        "num_layers": 2, "num_hidden_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
    }),
    "gpt_bigcode": ("gpt_bigcode", {**GPT2, "multi_query": True}),
    "codegen": ("codegen", {**GPT2, "n_ctx": 256, "rotary_dim": 8}),
    "starcoder2": ("starcoder2", {"sliding_window": 16}),
    "opt": ("opt", {"ffn_dim": 56, "word_embed_proj_dim": 32}),
    "opt, narrow embeddings": ("opt", {"ffn_dim": 56, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"n_layer": 3, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256, "expansion_ratio": 2}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("cohere2", {"logit_scale": 0.25, "head_dim": 8, **SLIDING}),
    "granite": ("granite", {
        "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
    }),
    "granitemoe": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granitemoehybrid": ("granitemoehybrid", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24, "mamba_expand": 2,
        "layer_types": ["mamba", "attention", "mamba"], **MAMBA,
    }),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", SLIDING),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2}),
    "deepseek_v2": ("deepseek_v2", {**ROUTED, **LATENT}),
    "deepseek_v3": ("deepseek_v3", {**ROUTED, **LATENT}),
    "glm4_moe": ("glm4_moe", {**ROUTED, "head_dim": 8}),
    "ernie4_5_moe": ("ernie4_5_moe", {
        "moe_intermediate_size": 24, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    }),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.0, "input_jitter_noise": 0.0,
    }),
    "qwen2_moe": ("qwen2_moe", {**FEW, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**FEW, "head_dim": 8}),
    "qwen3_next": ("qwen3_next", {**FEW, **LINEAR, "shared_expert_intermediate_size": 24}),
    "qwen3_5": ("qwen3_5_text", LINEAR),
    "llama4": ("llama4_text", {
        "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 56, "head_dim": 8,
        "attention_chunk_size": 64, "interleave_moe_layer_step": 1,
    }),
    "gpt_oss": ("gpt_oss", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 16, **rope("default"),
    }),
    "mamba": ("mamba", {"num_hidden_layers": 2, "state_size": 8}),
    "mamba2": ("mamba2", {
        "num_hidden_layers": 2, "state_size": 16, "num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1,
        "chunk_size": 32,
    }),
    "falcon_h1": ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_groups": 1, **MAMBA}),
    "jamba": ("jamba", {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2,
        "use_mamba_kernels": False,
    }),
    "zamba2": ("zamba2", {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_state": 16,
        "mamba_headdim": 16, "mamba_ngroups": 1, "n_mamba_heads": 4, "chunk_size": 32, "num_mem_blocks": 1,
        "use_mem_rope": True, "num_key_value_heads": 4, "use_shared_attention_adapter": False,
    }),
    "nemotron_h": ("nemotron_h", {
        "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 16,
        "ssm_state_size": 16, "n_groups": 1, "chunk_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24, "head_dim": 8, "topk_group": 1,
        "n_group": 1,
    }),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}),
    "recurrent_gemma": ("recurrent_gemma", {
        "lru_width": 32, "attention_window_size": 16, "head_dim": 8, "block_types": ["recurrent", "recurrent", "attention"],
    }),
    "rwkv": ("rwkv", {"num_hidden_layers": 2, "context_length": 256, "attention_hidden_size": 32}),
    "nemotron": ("nemotron", {}),
    "glm4": ("glm4", {"head_dim": 8}),
    "exaone4": ("exaone4", SLIDING),
    "helium": ("helium", {"head_dim": 8}),
    "seed_oss": ("seed_oss", {"head_dim": 8}),
    "ernie4_5": ("ernie4_5", {"head_dim": 8}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 8}),
    "apertus": ("apertus", {}),
    "diffllama": ("diffllama", {}),
    "modernbert-decoder": ("modernbert-decoder", {
        "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 32, "global_attn_every_n_layers": 2,
    }),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 56, "num_layers": 3, "attention_heads": 4}),
    "persimmon": ("persimmon", {}),
    "arcee": ("arcee", {}),
    "minicpm3": ("minicpm3", LATENT),
    "bitnet": ("bitnet", {}),
    "nanochat": ("nanochat", {}),
    "vaultgemma": ("vaultgemma", {"head_dim": 8, "query_pre_attn_scalar": 16, **SLIDING}),
}  # fmt: skip


def family(name: str, vocabulary: int = 64, seed: int = 0) -> Any:
    """A frozen random model of the family, with nothing at the zero or one that it starts from."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, own = FAMILIES[name]
    shape = SHAPE | {"vocab_size": vocabulary} | own
    if "hidden_size_per_layer_input" in own:
        shape["vocab_size_per_layer_input"] = vocabulary
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).float().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 1 and not any(part in name for part in ("A_log", "dt_", "time_", "correction_bias")):
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.dim() > 1 and float(parameter.std()) < 0.05:  # too faint to see anything of
            parameter.mul_(0.2 / max(float(parameter.std()), 1e-3))
    return model


def make_family(folder: Path, name: str) -> Path:
    """Writes such a model with a tokenizer into the folder."""
    from transformers import AutoTokenizer

    model = family(name, len(AutoTokenizer.from_pretrained(str(NANO))))
    model.save_pretrained(str(folder))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / file, folder / file)
    return folder
