"""The table of fine-tuning methods."""

from __future__ import annotations

from typing import Any, Final

from inlay.config import Config
from inlay.methods.full import FullFineTuning
from inlay.methods.ia3 import Ia3
from inlay.methods.lora import Lora
from inlay.methods.method import Method
from inlay.methods.prompt_tuning import PromptTuning

METHODS: Final[dict[str, Method]] = {
    "lora": Lora(),
    "ia3": Ia3(),
    "prompt": PromptTuning(),
    "full": FullFineTuning(),
}
"""`adapter.method` -> what it does. A new method is a class in a file of its own, a line here, and a line in
`METHOD_SETTINGS` (`inlay.config.sections.adapter`), which names the settings it reads."""


def method_of(config: Config) -> Method:
    """The method that a config trains."""
    return METHODS[config.adapter.method]


def method_of_type(peft_type: Any) -> Method | None:
    """The method whose files have this `peft_type`; None for one that inlay does not know."""
    return next((method for method in METHODS.values() if method.peft_type == peft_type), None)


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter and not to the base under it."""
    return any(method.owns(name) for method in METHODS.values())


def adapters_on(model: Any) -> dict[str, Method]:
    """Name -> method of each adapter on the model; after full fine-tuning its weights count as one."""
    return {name: method for method in METHODS.values() for name in method.names_on(model)}
