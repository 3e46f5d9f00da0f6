"""The section model: the frozen base, where and how it computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inlay.config.sections.base import Auto, DtypeName, Settings


class ModelConfig(Settings):
    """The base model and how it is loaded."""

    base_model: Annotated[str, Field(min_length=1)]
    """The frozen base model: a local folder, a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`, a `.gguf`
    file (needs the `gguf` extra), or `builtin:nano`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """Device to compute on: `auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Auto | DtypeName = "auto"
    """Dtype of the base weights. `auto` takes the fastest one that passes a real forward and backward pass here."""
    matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto"
    """Precision of float32 matmuls, as in `torch.set_float32_matmul_precision`. On a CPU `medium` uses oneDNN, and `auto`
    chooses it where a test finds it as exact and much faster. On a GPU `auto` is `highest`; `high` allows TF32."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Load the base in 4 bits (`nf4`, QLoRA) or 8 bits (`int8`). Needs the `quant` extra."""
    double_quantization: bool = True
    """With `nf4`: quantize the quantization constants too, which saves about 0.4 bits per weight."""
    compute_dtype: Auto | DtypeName = "auto"
    """With `nf4`: the dtype of matmuls."""
    quantization_fallback: bool = False
    """Continue unquantized when quantization does not work on this machine. Otherwise that is an error."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's own chat template."""

    @model_validator(mode="after")
    def _quantization_settings_take_effect(self) -> ModelConfig:
        if self.quantization != "nf4":
            for name, idle in (("compute_dtype", "auto"), ("double_quantization", True)):
                if getattr(self, name) != idle:
                    raise ValueError(
                        f"{name} has no effect with quantization {self.quantization}, only with nf4; leave it out"
                    )
        if self.quantization == "none" and self.quantization_fallback:
            raise ValueError("quantization_fallback has no effect with quantization none; leave it out")
        return self
