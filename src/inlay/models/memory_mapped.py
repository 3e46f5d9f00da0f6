"""Returns host memory of memory-mapped weight files, whose pages stay resident once they have been read.

Linux only; elsewhere nothing happens. Values are safe: a page that is needed again is read from the file again.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MADV_PAGEOUT: Final = 21  # Linux 5.4; older kernels say no, and nothing happens
_EVERY_S: Final = 0.25


def page_out(address: int, size: int) -> None:
    """Returns the pages of weights that are not read any more, although their file stays mapped."""
    if sys.platform != "linux":
        return
    page = mmap.PAGESIZE
    start = -(-address // page) * page
    length = (address + size - start) // page * page
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_PAGEOUT)


@contextlib.contextmanager
def paged_out(folder: Path) -> Iterator[None]:
    """Inside, pages of the folder's mapped files are returned four times a second, and once more at the end.

    For a load that converts the weights that it reads, as quantization does.
    """
    over = threading.Event()

    def again() -> None:
        while not over.wait(_EVERY_S):
            _page_out_files(folder)

    beside = threading.Thread(target=again, daemon=True)
    beside.start()
    try:
        yield
    finally:
        over.set()
        beside.join()
        _page_out_files(folder)


def _page_out_files(folder: Path) -> None:
    files = {str(file.resolve()) for file in folder.glob("*.safetensors")}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            where, _, name = line.partition("/")
            if f"/{name}" in files:
                start, end = (int(address, 16) for address in where.split(" ")[0].split("-"))
                page_out(start, end - start)
