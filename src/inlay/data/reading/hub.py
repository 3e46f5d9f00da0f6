"""Datasets of the hub: their names, and their rows as they come over the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from inlay.data.reading.columnar import as_written
from inlay.data.types import Hash, Row, Source
from inlay.errors import DataError, nearest
from inlay.storage import path_exists

_NAME = re.compile(
    r"(?P<prefix>hub:)?(?P<name>[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?P<parts>(?::[\w.+-]{1,128}){0,2})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A dataset id, and what stands behind it."""

    name: str
    parts: tuple[str, ...] = ()
    """Nothing, a split or a configuration, or a configuration and a split."""
    has_prefix: bool = True

    def __str__(self) -> str:
        return ":".join(("hub:" + self.name, *self.parts))


def parsed(path: str) -> HubName | None:
    """The dataset that `path` may name; None where it cannot be one. Raises: DataError for what only begins like one."""
    match = _NAME.fullmatch(path)
    if match:
        return HubName(match["name"], tuple(match["parts"].split(":")[1:]), bool(match["prefix"]))
    local = path.removeprefix("hub:")
    if path.startswith("hub:"):
        if local.startswith((".", "/", "~")) or (local and path_exists(Path(local))):
            raise DataError(f"{path}: a path of this machine, not a dataset of the hub. Write it without hub: {local}.")
        raise DataError(
            f"{path}: not a dataset id. Write hub:owner/name, hub:owner/name:SPLIT, hub:owner/name:CONFIGURATION or "
            "hub:owner/name:CONFIGURATION:SPLIT; data.max_rows takes a part of the rows."
        )
    return None


def hub_rows(wanted: HubName, sha: Hash | None) -> Iterator[Row]:
    """The rows of a dataset, streamed. Raises: DataError."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f'{wanted.name}: no such file; to read it as a hub dataset: pip install "inlay[hub]". '
            "Or give the path of a data file."
        ) from None
    try:
        place, stream = _opened(datasets, wanted)
        read = as_written(_features(stream))
        for number, value in enumerate(stream, 1):
            if sha:
                sha.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
            yield Row(read(dict(value), place, number), Source(place, number))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  any of four HTTP stacks may speak here; all mean the same to the user
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{wanted}: the hub dataset cannot be read ({reason}). Check the name, the configuration, the split and "
            "the network, or download it and give the file."
        ) from None


def _opened(datasets: Any, wanted: HubName) -> tuple[str, Any]:
    """(what messages call it, the rows). A single part is a split, or else a configuration."""
    *config, split = wanted.parts or ("train",)
    try:
        stream = datasets.load_dataset(wanted.name, *config, split=split, streaming=True)
        return ":".join(("hub:" + wanted.name, *config, split)), stream
    except Exception:  # of whatever kind: that its configuration has to be named is one of many reasons
        configs = _configurations(datasets, wanted.name)
        if len(wanted.parts) == 1 and split in configs:
            stream = datasets.load_dataset(wanted.name, split, split="train", streaming=True)
            return f"hub:{wanted.name}:{split}:train", stream
        if configs and not (config and config[0] in configs) and (config or len(configs) > 1):
            _refuse(wanted, configs)
        raise


def _refuse(wanted: HubName, configs: list[str]) -> NoReturn:
    *named, split = wanted.parts or ("train",)
    fault = f"has no configuration {named[0]!r}" if named else "has several configurations, and none is named"
    close = nearest(named[0] if named else split, configs)
    tail = f":{split}" if named or (wanted.parts and not close) else ""
    raise DataError(
        f"{wanted}: the dataset {fault}. Write hub:{wanted.name}:{close or configs[0]}{tail}, or another of its "
        f"configurations: {', '.join(configs)}."
    )


def _configurations(datasets: Any, name: str) -> list[str]:
    try:
        return [str(one) for one in datasets.get_dataset_config_names(name)]
    except Exception:  # noqa: BLE001  the first error is reported
        return []


def _features(stream: Any) -> Any:
    features = getattr(stream, "features", None)
    return features.to_dict() if features is not None else {}
