"""The files of a path: a file, a pattern, or a folder with the parts of one dataset."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from inlay.errors import DataError

_SPLIT: Final = re.compile(r"(?:^|[._-])(train|training|test|validation|valid|val|dev|eval|heldout)(?=[._-]|$)")
_PART: Final = re.compile(r"(?P<before>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<behind>.*)")
_BESIDE: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_TEXTS_BESIDE: Final = re.compile(r"(readme|licen[cs]e|notice|requirements).*\.txt")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_MOST: Final = 10_000


def is_several(path: str) -> bool:
    """Whether a path is a folder or a pattern."""
    try:
        return bool(path) and (Path(path).is_dir() or (glob.has_magic(path) and not Path(path).exists()))
    except (OSError, ValueError):
        return False


def files_of(path: str, is_data: Callable[[str], bool]) -> tuple[str, ...]:
    """The files of a folder or a pattern, in the order in which they are read.

    Raises: DataError where there are none, or they are not the parts of one dataset.
    """
    found = _of_folder(Path(path), is_data) if Path(path).is_dir() else _of_pattern(path, is_data)
    if len(found) > _MOST:
        raise DataError(f"{path}: {len(found):,} files, more than {_MOST:,}. Join them: cat FILES > all.jsonl.")
    return tuple(found)


def _of_pattern(pattern: str, is_data: Callable[[str], bool]) -> list[str]:
    every = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())  # noqa: PTH207  takes any path
    found = [name for name in every if is_data(name)]
    if not found:
        held = f"the files that match are of no known type ({_few(every)})" if every else "no file matches"
        raise DataError(f"{pattern}: {held}. Give a pattern of data files, such as 'folder/train-*.parquet'.")
    _refuse_several(pattern, found, lambda name: (_split_of(name, Path(pattern)), _endings(name)))
    _refuse_incomplete(found)
    return found


def _of_folder(folder: Path, is_data: Callable[[str], bool]) -> list[str]:
    if (folder / _SAVED_SPLITS).is_file():
        _refuse_saved_splits(folder)
    if (folder / _SAVED).is_file():
        return _saved(folder)
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [str(Path(place) / name) for name in sorted(names) if _belongs(name) and is_data(name)]
    if not found:
        raise DataError(f"{folder}: is a folder. It holds no data file. Give a file, or a folder of data files.")
    _refuse_several(str(folder), found, lambda name: (_split_of(name, folder), str(Path(name).parent), _endings(name)))
    _refuse_incomplete(found)
    return found


def _belongs(name: str) -> bool:
    return not name.startswith(".") and name not in _BESIDE and not _TEXTS_BESIDE.fullmatch(name.lower())


def _saved(folder: Path) -> list[str]:
    """The parts of what datasets' `save_to_disk` wrote."""
    try:
        state = json.loads((folder / _SAVED).read_text(encoding="utf-8"))
        found = [str(folder / one["filename"]) for one in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{folder / _SAVED}: does not name the files of the data set ({error}). Save it again."
        ) from None
    if missing := next((name for name in found if not Path(name).is_file()), None):
        raise DataError(f"{missing}: no such file, but {_SAVED} names it. Save or copy the data set again.")
    return found


def _refuse_saved_splits(folder: Path) -> NoReturn:
    try:
        splits = list(json.loads((folder / _SAVED_SPLITS).read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, LookupError, TypeError):
        splits = sorted(one.name for one in folder.iterdir() if (one / _SAVED).is_file())
    _refuse(str(folder), {name: str(folder / name) for name in splits})


def _split_of(name: str, under: Path) -> str:
    """The split in a file's name, or else in the nearest of the folders below `under`."""
    path = Path(name)
    above = [one.name for one in path.parents if under in one.parents]
    for part in (path.name, *above):
        if found := _SPLIT.search(part.lower()):
            return {"training": "train", "valid": "validation", "val": "validation"}.get(found[1], found[1])
    return ""


def _endings(name: str) -> str:
    return "".join(Path(_PART.sub(r"\g<before>\g<behind>", Path(name).name)).suffixes[-2:]).lower()


def _refuse_several(path: str, files: Sequence[str], kind_of: Callable[[str], tuple[str, ...]]) -> None:
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in files:
        groups[kind_of(name)].append(name)
    if len(groups) > 1:
        named: dict[str, str] = {}
        for kind, some in groups.items():
            pattern = _pattern(some)
            named[pattern if kind[0] in ("", *named) else kind[0]] = pattern
        _refuse(path, named)


def _refuse(path: str, named: dict[str, str]) -> NoReturn:
    """`named`: what to write for each of the data sets that lie there, by its split."""
    shown = ", ".join(map(_quoted, list(named.values())[:8])) + (
        f" and {len(named) - 8} more" if len(named) > 8 else ""
    )
    held = next((named[name] for name in ("validation", "dev", "eval", "heldout", "test") if name in named), None)
    way = (
        f"inlay train {_quoted(named['train'])} --set data.eval={_quoted(held)}"
        if "train" in named and held
        else f"inlay train {_quoted(named.get('train') or next(iter(named.values())))}"
    )
    raise DataError(f"{path}: holds several data sets ({shown}). Give one, for example: {way}")


def _quoted(name: str) -> str:
    return f"'{name}'" if glob.has_magic(name) or " " in name else name


def _pattern(files: Sequence[str]) -> str:
    """A pattern that matches these files and no others."""
    folders = {str(Path(name).parent) for name in files}
    if len(files) == 1 or len(folders) > 1:
        return files[0] if len(files) == 1 else os.path.commonpath(files)
    names, parent = [Path(name).name for name in files], Path(files[0]).parent
    there = [one.name for one in parent.iterdir() if _belongs(one.name)]
    if set(there) == set(names):
        return str(parent)
    before = _common_start(names)
    behind = _common_start([name[len(before) :][::-1] for name in names])[::-1]
    pattern = f"{before}*{behind}"
    return str(parent / pattern) if set(fnmatch.filter(there, pattern)) == set(names) else files[0]


def _common_start(names: Sequence[str]) -> str:
    least, most = min(names), max(names)
    return least[: next((n for n, sign in enumerate(least) if sign != most[n]), len(least))]


def _refuse_incomplete(files: Sequence[str]) -> None:
    """Parts of which the others are not there are half a data set."""
    parts: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for name in files:
        if found := _PART.fullmatch(name):
            parts[found["before"], found["behind"], int(found["count"])].add(int(found["number"]))
    for (before, behind, count), numbers in parts.items():
        first = 0 if 0 in numbers else 1
        missing = [n for n in range(first, first + count) if n not in numbers]
        if missing:
            name = f"{before}-{missing[0]:05}-of-{count:05}{behind}"
            raise DataError(f"{name}: no such file, but it is one of the {count} parts of this data set. Fetch it too.")


def parts_beside(path: str) -> str:
    """A clause on the parts of the same data set that lie beside a file and are not read; empty where there are none."""
    file = Path(path)
    own = _PART.fullmatch(file.name)
    if not own or not file.is_file():
        return ""
    parts = [found for one in file.parent.iterdir() if (found := _PART.fullmatch(one.name))]
    alike = [p for p in parts if p.group("before", "count", "behind") == own.group("before", "count", "behind")]
    if len(alike) < 2:
        return ""
    every = file.parent / f"{own['before']}-*-of-{own['count']}{own['behind']}"
    return f"one of {int(own['count'])} parts is read, and others lie beside it (for all: '{every}')"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
