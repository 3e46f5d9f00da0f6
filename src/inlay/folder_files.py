"""Files of a folder read as a stranger's: ordinary ones only, no link followed, none larger than expected. No torch here."""

from __future__ import annotations

import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

from inlay.errors import AdapterError

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
LARGEST_JSON: Final = 256 * 1024
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ARCHIVES: Final = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".zst", ".xz", ".bz2")
AGAIN: Final = "Copy or download the folder once more."


def read_bytes(folder: Path, name: str, limit: int = LARGEST_JSON) -> bytes:
    """The content of a file of the folder. Raises: AdapterError where it is missing, no ordinary file, or above the limit."""
    with opened(folder, name) as file:
        require_at_most(folder, name, limit, file)
        return file.read(limit + 1)


def opened(folder: Path, name: str) -> BufferedReader:
    """The open file of that name: a regular one, in the folder itself. Raises: AdapterError."""
    path = folder / name
    if linked := _in_hub_cache(path):
        path = linked
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):  # a FIFO would be waited for
        flags |= getattr(os, flag, 0)
    try:
        if path.is_symlink():
            raise AdapterError(
                f"{folder}: {name} is a link, which may lead out of the folder. Copy the folder with its files "
                "(cp -rL FOLDER COPY), and name the copy."
            )
        if not stat.S_ISREG(path.lstat().st_mode):  # to open a device can already do something
            raise AdapterError(f"{folder}: {name} is not an ordinary file. Copy or download the folder once more.")
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        raise AdapterError(f"{folder}: {_missing(folder, name)}") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder}: {name} cannot be opened ({in_a_line(error)}).") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise AdapterError(f"{folder}: {name} is not an ordinary file. {AGAIN}")
    return file


def _in_hub_cache(path: Path) -> Path | None:
    """The file that an entry of the hub's cache stands for: there each file is a link into `blobs` beside `snapshots`."""
    if path.parent.parent.name != "snapshots" or not path.is_symlink():
        return None
    target = str(path.readlink()).replace(os.sep, "/")
    found = re.fullmatch(r"\.\./\.\./blobs/([0-9a-f]{40,64})", target)
    return path.parent.parent.parent / "blobs" / found[1] if found else None


def _missing(folder: Path, name: str) -> str:
    """Reason and remedy for a file that is not there."""
    try:
        there = sorted(path.name for path in folder.iterdir())[:10_000]
    except OSError as error:
        return f"is not a folder that can be read ({in_a_line(error)})."
    stem = name.rpartition(".")[0]
    if pickle := next((each for each in there if each.startswith(stem) and each.endswith(_PICKLES)), None):
        return (
            f"holds {shown(pickle)}, a pickle, and opening one may run any program. Have it saved again as "
            f"{WEIGHTS}: load it with PEFT where that may happen, then save_pretrained(FOLDER)."
        )
    if archive := next((each for each in there if each.endswith(_ARCHIVES)), None):
        return f"has no {name}, but an archive ({shown(archive)}). Unpack it, and name the folder that holds {name}."
    return f"has no {name}. An adapter folder holds {SETTINGS} and {WEIGHTS}."


def require_at_most(folder: Path, name: str, limit: int, file: BufferedReader) -> None:
    """Raises: AdapterError where the file is larger."""
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise AdapterError(
            f"{folder}: {name} has {size:,} bytes; at most {limit:,} are read. It is no {name} of an adapter."
        )


def shown(value: object) -> str:
    """A value of a stranger's file as an error names it: in one line, and short."""
    text = value if isinstance(value, str) and value.isprintable() and value else ascii(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def in_a_line(error: BaseException) -> str:
    """The text of an error of a library, in one line, and short."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    text = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return shown(text)
