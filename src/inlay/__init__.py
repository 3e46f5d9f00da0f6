"""inlay: low-rank fine-tuning of a frozen language model, and a proof of what it changed.

    run = inlay.train({"model": {"base_model": "builtin:nano"}, "data": {"train": "data.jsonl"}})
    print(inlay.compare(run).verdict)
    print(inlay.load(run).generate("My parcel is late."))

Names are loaded when they are first used; torch only by the verbs that compute.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inlay._version import __version__

if TYPE_CHECKING:
    from inlay.api import Host, Loaded, checkpoints, compare, demo, doctor, evaluate, init, load, resume, sweep, train
    from inlay.config import Config
    from inlay.errors import InlayError, Interrupted, UserError
    from inlay.evaluation.compare import Comparison
    from inlay.runs.folder import Run

__all__ = [
    "Comparison",
    "Config",
    "Host",
    "InlayError",
    "Interrupted",
    "Loaded",
    "Run",
    "UserError",
    "__version__",
    "checkpoints",
    "compare",
    "demo",
    "doctor",
    "evaluate",
    "init",
    "load",
    "resume",
    "sweep",
    "train",
]

_HOME = {
    "Comparison": "inlay.evaluation.compare",
    "Config": "inlay.config",
    "InlayError": "inlay.errors",
    "Interrupted": "inlay.errors",
    "Run": "inlay.runs.folder",
    "UserError": "inlay.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "inlay.api")), name)


def __dir__() -> list[str]:
    return [*__all__]
