"""Writes a file as two: the rows that `train` would train on and hold out."""

from __future__ import annotations

import json
import re
from pathlib import Path

from inlay.config.sections.data import DataConfig
from inlay.data.reading import sources
from inlay.data.reading.read import read_examples
from inlay.data.splits import as_keys, by_content, least, prompt_key
from inlay.data.types import Row
from inlay.errors import DataError, count_shown
from inlay.storage import path_exists, write_file
from inlay.typed_json import JsonObject


def write_split(path: str, folder: Path, config: DataConfig) -> JsonObject:
    """Writes NAME_train.jsonl and NAME_heldout.jsonl with the fields of the file; returns paths and row counts.

    They are the same split as in training, row for row, in the order of the file.

    Raises: DataError for a row that cannot be used, a file that is already there, or rows that cannot be split.
    """
    read = read_examples(path, config.format, config.columns, config.weights_of_roles)
    used = least(as_keys(map(prompt_key, read.examples)), config.max_rows).tolist()
    train, held_out = (
        [used[n] for n in part] for part in by_content((read.examples[n] for n in used), config.eval_fraction)
    )
    if not train or not held_out:
        raise DataError(
            f"{path}: {count_shown(len(used), 'row')} cannot be split into training and held-out rows "
            f"(data.eval_fraction {config.eval_fraction}). Add rows with other prompts."
        )
    kind, packed = sources.kind_of(path)
    ending = len(Path(path).name) - len(kind) - len(packed)
    name = re.sub(r"[^\w.-]+", "-", Path(path).name[:ending]).strip("-.") or "data"
    parts = {"train": train, "heldout": held_out}
    places = {part: folder / f"{name}_{part}.jsonl" for part in parts}
    for place in places.values():
        if path_exists(place):
            raise DataError(f"{place}: is already there. Choose another folder with --to.")
    lines = [_line(row) for row in sources.rows(path)]
    for part, numbers in parts.items():
        write_file(places[part], "".join(lines[n] for n in numbers))
    return {part: {"path": str(places[part]), "rows": len(numbers)} for part, numbers in parts.items()}


def _line(row: Row) -> str:
    try:
        return json.dumps(row.value, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"{row.source}: a value that JSON cannot hold ({error}). Take the column out.") from None
