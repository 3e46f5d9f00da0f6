"""Draws docs/img/rooms.svg: the rooms, top to bottom, and where one training example and one comparison pass through them.

Everything is taken from docs/architecture.md: the block of rooms, and the modules that the two lists of steps name.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "img" / "rooms.svg"
WAYS = {"The way of one training example": "#2563eb", "The way of one comparison": "#d97706"}
WIDTH, ROW, GAP, MARGIN, DOT = 1040, 52, 6, 12, 9
STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#111827}.room{font-weight:600;font-size:14px}.what{font-size:11px;fill:#4b5563}"
    ".step{font-size:10px;font-weight:600;fill:#fff;text-anchor:middle}rect{fill:#f9fafb;stroke:#d1d5db}"
)


def layers(page: str) -> list[list[tuple[str, str]]]:
    """Rows of (room, what it holds), top to bottom."""
    block = page.split("## Rooms")[1].split("```")[1].strip()
    rows = []
    for line in block.splitlines():
        names, _, what = re.sub(r"\s{2,}", "\t", line, count=1).partition("\t")
        rooms, whats = names.split(" | "), what.split(" | ")
        rows.append([(room.strip(), text.strip()) for room, text in zip(rooms, whats, strict=True)])
    return rows


def steps(page: str, title: str, rooms: set[str]) -> list[list[str]]:
    """Of each numbered step, the rooms of the modules that it names, in order."""
    part = page.split(f"## {title}")[1].split("\n## ")[0]
    found = []
    for step in re.split(r"^\d+\. ", part, flags=re.M)[1:]:
        named = [name.partition(".")[0] for name in re.findall(r"`(\w+\.[\w.]+)`", step)]
        found.append(list(dict.fromkeys(name for name in named if name in rooms)))
    return found


def wrapped(text: str, characters: int) -> list[str]:
    """At most two lines of so many characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > characters and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:2]


def drawing(page: str) -> str:
    """The whole picture as SVG."""
    rows = layers(page)
    legend, top = 30, MARGIN + 30
    height = top + len(rows) * (ROW + GAP) + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="The rooms of inlay and the way through them"><style>{STYLE}</style>'
    ]
    for n, (title, colour) in enumerate(WAYS.items()):
        x = MARGIN + n * 340
        out.append(f'<circle cx="{x + DOT}" cy="{legend - DOT}" r="{DOT}" fill="{colour}"/>')
        out.append(
            f'<text class="what" x="{x + 3 * DOT}" y="{legend - DOT + 4}">{escape(title)}: its numbered steps</text>'
        )
    marks: dict[str, list[tuple[int, str]]] = {}
    names = {room for row in rows for room, _ in row}
    for title, colour in WAYS.items():
        for n, rooms in enumerate(steps(page, title, names), start=1):
            for room in rooms:
                marks.setdefault(room, []).append((n, colour))
    for level, row in enumerate(rows):
        wide = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        y = top + level * (ROW + GAP)
        for n, (room, what) in enumerate(row):
            x = MARGIN + n * (wide + GAP)
            out.append(f'<rect x="{x:.0f}" y="{y}" width="{wide:.0f}" height="{ROW}" rx="6"/>')
            out.append(f'<text class="room" x="{x + 10:.0f}" y="{y + 20}">{escape(room)}</text>')
            for line, text in enumerate(wrapped(what, int(wide / 6))):
                out.append(f'<text class="what" x="{x + 10:.0f}" y="{y + 36 + 13 * line}">{escape(text)}</text>')
            for place, (step, colour) in enumerate(reversed(marks.get(room, []))):
                cx = x + wide - 14 - place * (2 * DOT + 3)
                out.append(f'<circle cx="{cx:.0f}" cy="{y + 15}" r="{DOT}" fill="{colour}"/>')
                out.append(f'<text class="step" x="{cx:.0f}" y="{y + 19}">{step}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawing(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
