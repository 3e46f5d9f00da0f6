"""Silences warnings and logs of other libraries that are meant for developers. INLAY_DEBUG=1 shows them."""

from __future__ import annotations

import logging
import os
import sys
import warnings

_OURS = r"(?:inlay|metric_)"
"""Modules whose warnings are shown: this package, and a user's own metric."""
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def quiet_libraries() -> None:
    """Python warnings of the libraries below us, transformers' own log, and torch's native log, before any import.

    A library may give its deprecation in the name of its caller, which is this package; it is silenced too, as nothing
    here gives one itself. PYTHONWARNINGS=error and -W error show what is left, and do not end a run.
    Errors are not touched: what they raise, we report.
    """
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")
    if os.environ.get("INLAY_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # on CPUs with 16-bit units it asks for a package of kernels
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for category in _FOR_DEVELOPERS:
        warnings.filterwarnings("ignore", category=category, module=r"inlay(\.|$)")
    warnings.filterwarnings("ignore", module=rf"(?!{_OURS})")
