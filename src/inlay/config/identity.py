"""The settings that a run cannot be resumed with other values of, as a hash."""

from __future__ import annotations

import hashlib
import json

from inlay.config.renamed import with_first_names
from inlay.config.settings import Config

PLACES = (
    "model.base_model",
    "model.chat_template",
    "data.train",
    "data.eval",
    "adapter.start_from",
    "train.branch_from",
)
"""Settings that name files. Files may move; their contents may not change and have digests of their own."""
_LENGTH = {"epochs", "max_steps", "export", "keep_checkpoints", "keep_every", "save_steps", "log_steps", "max_memory"}
"""Settings of the train section for the length of a run and its checkpoints, which leave each step as it is."""


def settings_hash(config: Config) -> str:
    """Hex digest over the settings that decide the numbers of a run's steps."""
    tree = config.model_dump(mode="json", include={"model", "adapter", "data", "train"})
    tree["train"] = {name: value for name, value in tree["train"].items() if name not in _LENGTH}
    for path in PLACES:
        section, _, name = path.partition(".")
        value = tree[section].pop(name)
        if isinstance(value, list):  # of a mixture, all but where it lies
            parts = [
                {k: v for k, v in file.model_dump(mode="json").items() if k != "path"}
                for file in config.data.train_files
            ]
            tree[section][name] = parts
    return hashlib.sha256(json.dumps(with_first_names(tree), sort_keys=True).encode()).hexdigest()
