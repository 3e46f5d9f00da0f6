"""Writes a tiny base as the GGUF file that llama.cpp's converter makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def rotated(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order in which llama.cpp turns them."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    base: Path, path: Path, kind: str = "F32", pre: str | None = "llama-bpe", more: Callable[[Any], None] = lambda _: None,
    leave_out: str = "-", architecture: str = "llama",
) -> Path:  # fmt: skip
    """`more` gets the writer before the tensors are added; `pre` None leaves out the tokenizer."""
    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    shape, writer = model.config, gguf.GGUFWriter(str(path), architecture)
    writer.add_name(path.stem)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_freq_base(shape.rope_parameters["rope_theta"])
    writer.add_vocab_size(shape.vocab_size)
    if pre is not None:
        _add_tokenizer(writer, base, pre)
    more(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        if name == leave_out:
            continue
        values, heads = parameter.numpy(), {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
        if (layer := name.split(".")[-2]) in heads:
            values = rotated(values, heads[layer])
        form = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(
            f"{names.get_name(name.removesuffix('.weight'))}.weight", gguf.quantize(values, form), raw_dtype=form
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, base: Path, pre: str) -> None:
    saved = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in saved["added_tokens"]}
    tokens = sorted({**saved["model"]["vocab"], **special}.items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if token in special else 1 for token, _ in tokens])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in saved["model"]["merges"]])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_pad_token_id(special["<|pad|>"])
    writer.add_chat_template((base / "chat_template.jinja").read_text(encoding="utf-8"))
