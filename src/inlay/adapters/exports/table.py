"""The forms that an adapter can be exported in."""

from __future__ import annotations

from typing import Final

from inlay.adapters.exports.form import Form
from inlay.adapters.exports.gguf import GGUF
from inlay.adapters.exports.mlx import MLX
from inlay.adapters.exports.ollama import OLLAMA
from inlay.adapters.exports.peft import PEFT
from inlay.adapters.exports.vllm import VLLM

EXPORTS: Final[dict[str, Form]] = {"peft": PEFT, "vllm": VLLM, "gguf": GGUF, "mlx": MLX, "ollama": OLLAMA}
