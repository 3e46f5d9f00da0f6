"""Findings of the checks: severity, places and a way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from inlay.data.checks.patterns import masked
from inlay.data.types import Source
from inlay.typed_json import JsonObject

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""Gravest first. An error refuses training, a warning is likely a mistake, a note is good to know."""

KEPT: Final = 100
"""Places that a finding names; all are counted."""
_AROUND: Final = 4000  # looked at on both sides, so that a secret at the rim of an excerpt is seen whole


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a finding, with an excerpt (secrets masked)."""

    source: Source
    shown: str = ""
    other: Source | None = None
    """The second row of a pair."""
    other_shown: str = ""

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        value: JsonObject = {"file": self.source.file, "line": self.source.line}
        if self.shown:
            value["shown"] = self.shown
        if self.other:
            value["other"] = {"file": self.other.file, "line": self.other.line}
        if self.other_shown:
            value["other_shown"] = self.other_shown
        return value

    @classmethod
    def from_json(cls, value: JsonObject) -> Place:
        """The value that `to_json` gave an object of."""
        other = value.get("other")
        there = Source(other["file"], other["line"]) if other else None
        shown = value.get("shown", ""), value.get("other_shown", "")
        return cls(Source(value["file"], value["line"]), shown[0], there, shown[1])

    @property
    def where(self) -> str:
        """`file:line`, and that of the second row."""
        if self.other is None:
            return str(self.source)
        same = self.other.file == self.source.file
        return f"{self.source} and {self.other.line if same else self.other}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault that a check can find."""

    name: str
    severity: Severity
    title: str
    """The fault, as words before a number."""
    fix: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that was found, with its places."""

    kind: str
    severity: Severity
    title: str
    fix: str
    count: int
    """Places in all."""
    places: tuple[Place, ...]
    """The first `KEPT` of them; at least one."""

    def to_json(self) -> JsonObject:
        """As an object of JSON."""
        value = {name: getattr(self, name) for name in ("kind", "severity", "title", "fix", "count")}
        return value | {"places": [place.to_json() for place in self.places]}

    @classmethod
    def from_json(cls, value: JsonObject) -> Finding:
        """The value that `to_json` gave an object of."""
        return cls(**value | {"places": tuple(Place.from_json(place) for place in value["places"])})


@dataclass(slots=True)
class Tally:
    """Places by kind, gathered row by row."""

    counts: dict[Kind, int] = field(default_factory=dict)
    places: dict[Kind, list[Place]] = field(default_factory=dict)

    def add(
        self,
        kind: Kind,
        source: Source,
        text: str = "",
        at: int = 0,
        *,
        other: Source | None = None,
        other_text: str = "",
        width: int = 80,
    ) -> None:
        """Counts the place, and keeps an excerpt of `text` around character `at` for the first ones."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.places.setdefault(kind, [])
        if len(kept) < KEPT:
            kept.append(Place(source, excerpt(text, at, width), other, excerpt(other_text, 0, width)))

    def count(self, kind: Kind) -> int:
        """Places of one kind so far."""
        return self.counts.get(kind, 0)

    def finding(self, kind: Kind, severity: Severity | None = None) -> Finding:
        """The finding of one kind."""
        places = tuple(self.places[kind])
        return Finding(kind.name, severity or kind.severity, kind.title, kind.fix, self.counts[kind], places)

    def findings(self) -> list[Finding]:
        """A finding for each kind with places."""
        return [self.finding(kind) for kind in self.counts]


def excerpt(text: str, at: int, width: int) -> str:
    """A piece of the text around character `at`, on one line, secrets masked and control characters as �."""
    start = max(0, at - width // 4)
    before = max(0, start - _AROUND)
    piece = masked(text[before : start + width + _AROUND])[start - before :][:width]
    line = " ".join("".join(c if c.isprintable() else " " if c.isspace() else "�" for c in piece).split())
    return ("…" if start else "") + line + ("…" if start + width < len(text) else "")


def by_gravity(findings: list[Finding]) -> list[Finding]:
    """Errors first, then by how many places; otherwise in order."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.count))
