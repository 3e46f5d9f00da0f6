"""inlay: low-rank fine-tuning of a frozen language model, and a proof of what it changed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.api import Loaded, checkpoints, compare, demo, doctor, evaluate, init, load, resume, train

__version__ = "0.1.0"

__all__ = [
    "Loaded",
    "__version__",
    "checkpoints",
    "compare",
    "demo",
    "doctor",
    "evaluate",
    "init",
    "load",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """The verbs of `inlay.api`, imported when first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
    from inlay import api

    return getattr(api, name)
