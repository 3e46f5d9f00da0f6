"""A config file of another trainer as a config of inlay, with a list of keys that have no counterpart.

Every key of the file is either taken over or listed. A key that is null counts as not set.
"""

from __future__ import annotations

from pathlib import Path

from inlay.config.foreign import axolotl
from inlay.config.foreign.imported import Imported
from inlay.config.foreign.llama_factory import dataset_info, is_dataset_info, training_config
from inlay.config.foreign.read import read_keys
from inlay.config.load import nested, validate
from inlay.errors import ConfigError


def import_config(path: Path, dataset: str | None = None) -> Imported:
    """The settings of a file of another trainer; `dataset` picks an entry of a dataset_info.json.

    Raises: ConfigError when it is no such file, or a value in it is out of range.
    """
    tree = read_keys(path)
    if is_dataset_info(tree):
        found = dataset_info(path, tree, dataset)
    elif dataset is not None:
        raise ConfigError(f"{path}: is no dataset_info.json, so there is no dataset {dataset!r} to pick. Leave it out.")
    elif "model_name_or_path" in tree or "finetuning_type" in tree:
        found = training_config(path, tree)
    elif isinstance(tree.get("datasets"), list):
        found = axolotl.training_config(tree)
    else:
        raise ConfigError(
            f"{path}: neither a dataset_info.json nor a training config of LLaMA-Factory (model_name_or_path), nor an "
            "Axolotl config (datasets: [...]). Give one of these."
        )
    validate(nested(found.values), f"{path}, as an inlay config", partial=True)
    return found
