"""Writes the pages that are generated from the code. `make docs` runs it; a test holds that they are current."""

from __future__ import annotations

from pathlib import Path

import http_fields

from inlay.config.render import markdown
from inlay.data.reading import row_fields, turn_fields

PAGES = {"docs/configuration.md": markdown}
TABLES = {
    "turn": ("docs/data.md", lambda: row_fields.markdown(turn_fields.table(), "turn")),
    "row": ("docs/data.md", lambda: row_fields.markdown(row_fields.table(), "row")),
    **{name: ("docs/http.md", make) for name, make in http_fields.TABLES.items()},
}
"""Tables inside pages, between `<!-- fields of a NAME -->` and `<!-- end -->`."""


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    for name, write in PAGES.items():
        (root / name).write_text(write(), encoding="utf-8")
        print(f"wrote {name}")
    for of, (name, make) in TABLES.items():
        page = (root / name).read_text(encoding="utf-8")
        before, begin, rest = page.partition(f"<!-- fields of a {of} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        (root / name).write_text(f"{before}{begin}\n{make()}\n{end}{after}", encoding="utf-8")
        print(f"wrote the fields of a {of} into {name}")


if __name__ == "__main__":
    main()
