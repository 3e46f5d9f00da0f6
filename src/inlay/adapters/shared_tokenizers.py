"""The tokenizers of a library: each lies there once for all adapters that use it, and goes with the last of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from inlay.adapters.cards import is_tokenizer_key
from inlay.errors import StorageError
from inlay.storage import explained, one_at_a_time, removed_at_once, replace_folder, sweep_staging, verified


class SharedTokenizers:
    """The folders `tokenizers/KEY` of the library in `library`."""

    def __init__(self, library: Path) -> None:
        self._path = library / "tokenizers"

    @contextlib.contextmanager
    def present(self, key: str, fill: Callable[[Path], None]) -> Iterator[None]:
        """Inside, `tokenizers/KEY` is there, with what `fill` writes where it was not, and nobody removes it.

        The card that names it must be on the disk by the end.
        """
        folder = self._path / key
        with self._held():
            try:
                verified(folder)
            except StorageError:  # missing or damaged
                replace_folder(folder, fill, {"tokenizer": key})
            yield

    def keep(self, used: Callable[[], Collection[str] | None]) -> None:
        """Removes the tokenizers that are not among the keys that `used` gives; none where it gives None."""
        if not self._path.is_dir():
            return
        with self._held():
            keys = used()
            with explained(self._path):
                found = [folder for folder in self._path.iterdir() if is_tokenizer_key(folder.name)]
            for folder in found:
                if keys is not None and folder.name not in keys:
                    removed_at_once(folder)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with one_at_a_time(self._path / ".lock"):
            if self._path.is_dir():
                sweep_staging(self._path)
            yield
