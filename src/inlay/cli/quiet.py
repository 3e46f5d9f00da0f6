"""Keeps what other libraries say to developers off a user's terminal. INLAY_DEBUG=1 lets it through."""

from __future__ import annotations

import logging
import os
import warnings

_LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "huggingface_hub", "peft", "torch", "transformers")


def quiet_libraries() -> None:
    """Python warnings of the libraries below us, transformers' own log, and torch's native log, before any import.

    Errors are not touched: what they raise, we report.
    """
    if os.environ.get("INLAY_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # on CPUs with 16-bit units it asks for a package of kernels
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for library in _LIBRARIES:
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
