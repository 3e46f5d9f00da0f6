"""Which Chromium the tests of pages use. As a program: prints why there is none, or nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


def found(playwright: Any) -> str | None:
    """The program that INLAY_CHROMIUM names, one on the PATH, or the one that Playwright keeps."""
    if named := os.environ.get("INLAY_CHROMIUM"):
        return named if Path(named).is_file() else None
    if there := next(filter(None, map(shutil.which, NAMES)), None):
        return there
    kept = Path(playwright.chromium.executable_path)
    shells = kept.parents[2].glob("chromium_headless_shell-*/*/*headless*shell")
    return next((str(path) for path in (kept, *shells) if path.is_file()), None)


def started(playwright: Any) -> Any:
    """A browser. Raises: AssertionError where there is none, saying how to get one."""
    path = found(playwright)
    assert path, "no Chromium: install one, name it in INLAY_CHROMIUM, or run: playwright install --only-shell chromium"
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


if __name__ == "__main__":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        path = found(running)
    if path is None:
        print("no Chromium here")  # noqa: T201
