"""Writes the pages that are generated from the code. `make docs` runs it; a test holds that they are current."""

from __future__ import annotations

from pathlib import Path

from inlay.config.render import markdown

PAGES = {"docs/configuration.md": markdown}


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    for name, write in PAGES.items():
        (root / name).write_text(write(), encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
