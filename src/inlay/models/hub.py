"""Bases from the hub: downloaded once, then read from its cache."""

from __future__ import annotations

import os
from pathlib import Path

from inlay.errors import ModelError


def from_hub(name: str, revision: str | None, weights: bool) -> Path:
    """The folder of a base in the hub's cache, downloaded if it is not there. Raises: ModelError with the way out."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = ["*.json", "*.model", "*.txt", "*.jinja", *(["*.safetensors"] if weights else [])]
    copies = ["consolidated*", "*/*"]  # the same weights again, for other programs
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=copies))
    except HFValidationError:
        raise ModelError(f"--model {name}: no such folder here, and not a hub id (owner/name).") from None
    except RevisionNotFoundError:
        raise ModelError(f"model.revision {revision}: {name} has no such branch, tag or commit.") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"--model {name}: no such folder here and no such model on the hub (or it is gated: set HF_TOKEN)."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if offline := _offline_switch():
            raise ModelError(
                f"--model {name}: no such folder here, and the hub is not asked: {offline} is set, and the hub's cache has "
                f"no complete copy{f' of {revision}' if revision else ''}. Unset {offline} to download it, or give a local "
                "folder or builtin:nano."
            ) from None
        raise ModelError(
            f"--model {name}: no such folder here, and the hub cannot be reached ({type(error).__name__}). "
            "Give a local folder or builtin:nano."
        ) from None


def _offline_switch() -> str:
    """The variable of the environment that keeps huggingface_hub offline; empty where it is online."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in switches if os.environ.get(name)), switches[0]) if HF_HUB_OFFLINE else ""
