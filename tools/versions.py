"""Prints the versions that decide how inlay behaves, in one line."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

NAMES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "pydantic", "typer", "bitsandbytes",
         "liger-kernel", "numba", "pyarrow", "datasets")  # fmt: skip


def line() -> str:
    """`Python 3.11.7, torch 2.13.0, …`; what is not installed is left out."""
    found = [f"Python {platform.python_version()}"]
    for name in NAMES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    print(line())
