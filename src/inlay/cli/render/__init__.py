"""The texts that verbs print, one file a subject. A file loads when a verb draws with it: `render.comparison.comparisons_text`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.cli.render import (
        ab,
        adapter_difference,
        adapter_ranks,
        adapters,
        advice,
        checkpoints,
        comparison,
        data_check,
        data_row,
        doctor,
        load_test,
        plan,
        progress,
        route,
        run,
        scores,
        settings,
        sweep,
        terminal,
    )

__all__ = [
    "ab",
    "adapter_difference",
    "adapter_ranks",
    "adapters",
    "advice",
    "checkpoints",
    "comparison",
    "data_check",
    "data_row",
    "doctor",
    "load_test",
    "plan",
    "progress",
    "route",
    "run",
    "scores",
    "settings",
    "sweep",
    "terminal",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
