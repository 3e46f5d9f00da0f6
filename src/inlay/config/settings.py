"""All settings of a run: the sections, and the rules between them."""

from __future__ import annotations

from pydantic import model_validator

from inlay.config.sections.adapter import AdapterConfig
from inlay.config.sections.base import Settings
from inlay.config.sections.data import DataConfig
from inlay.config.sections.evaluation import EvalConfig
from inlay.config.sections.generation import GenerationConfig
from inlay.config.sections.model import ModelConfig
from inlay.config.sections.output import OutputConfig
from inlay.config.sections.track import TrackConfig
from inlay.config.sections.train import TrainConfig


class Config(Settings):
    """Every setting of one run."""

    preset: str | None = None
    """Start from this preset; values you set yourself override it."""
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    generation: GenerationConfig = GenerationConfig()
    track: TrackConfig = TrackConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        method = self.adapter.method
        if method != "lora" and self.train.lora_plus_ratio != 1:
            raise ValueError(f"train.lora_plus_ratio has no effect with adapter.method {method}; leave one out")
        if method != "lora" and self.train.engine == "handwritten":
            raise ValueError(f"train.engine handwritten knows LoRA only, not adapter.method {method}; leave it at auto")
        if method == "full" and self.model.dtype not in ("auto", "float32"):
            raise ValueError(
                f"adapter.method full trains the base's own weights, and {self.model.dtype} would round most steps away; "
                "leave model.dtype at auto, which is float32 then"
            )
        if method == "full" and self.model.quantization != "none":
            raise ValueError(
                "adapter.method full needs a base without model.quantization; leave one out, or train lora"
            )
        return self
