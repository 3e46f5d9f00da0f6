"""Metrics of the user's own: any function `(prediction, reference) -> float`, given as it is or in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from inlay.errors import ConfigError, DataError, unknown_name
from inlay.evaluation.metrics import Array, TextMetric, ratio

MetricFunction = Callable[[str, str], float]
MetricSpecs = Sequence[str | MetricFunction | TextMetric]
"""Metrics by name, as functions, or in a file: `FILE.py` or `FILE.py:FUNCTION`. A complete TextMetric comes on top."""


def custom_metric(score: MetricFunction) -> TextMetric:
    """The mean of a function over the rows, under the function's name.

    It is taken as better when higher unless the function has an attribute `higher_is_better` that is False.
    """
    name = getattr(score, "__name__", type(score).__name__)
    about = (inspect.getdoc(score) or "of the user").splitlines()[0].rstrip(".")

    def statistics(prediction: str, reference: str) -> Array:
        try:
            value = float(score(prediction, reference))
        except Exception as error:
            raise DataError(
                f"metric {name}: {type(error).__name__}: {error}, for the answer {prediction[:80]!r} to be "
                f"{reference[:80]!r}. It is called with two texts and gives a number."
            ) from error
        if not math.isfinite(value):
            raise DataError(f"metric {name}: gave {value} for the answer {prediction[:80]!r}. Give a finite number.")
        return np.array([value, 1.0])

    return TextMetric(
        name=name, higher_is_better=bool(getattr(score, "higher_is_better", True)), description=f"{about}; mean",
        size=2, value=ratio, statistics=statistics, signature=lambda: f"custom:{name}|mean",
    )  # fmt: skip


def is_file(name: str) -> bool:
    """True for a metric's name that means a Python file."""
    return name.partition(".py:")[1] != "" or name.endswith(".py")


def from_file(named: str) -> MetricFunction:
    """The function of `FILE.py:FUNCTION`, or the only one that `FILE.py` defines. Runs the file.

    Raises: ConfigError for a file that cannot be run, or does not name one of several functions.
    """
    path, _, function = named.partition(".py:")
    file = Path(path.removesuffix(".py") + ".py")
    module = _run(file)
    found = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if function:
        if function not in found:
            raise ConfigError(f"--metrics {file}: {unknown_name('function', function, found)}")
        return found[function]
    if len(found) != 1:
        has = f"defines {', '.join(found)}" if found else "defines no function"
        raise ConfigError(f"--metrics {file}: {has}. Say which one to take: {file}:NAME.")
    return next(iter(found.values()))


def _run(file: Path) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"--metrics {file}: no such file.")
    spec = importlib.util.spec_from_file_location(f"metric_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--metrics {file}: cannot be run: {type(error).__name__}: {error}") from error
    return module
