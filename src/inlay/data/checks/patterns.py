"""Secrets and personal data as patterns, and text with all of them masked.

A pattern is looked for only where its gate, a plain substring, stands: most text costs a few substring searches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_MASK: Final = "•"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of text that should not be learned by heart."""

    name: str
    kind: str
    """`key` opens a door, `personal` names a person."""
    gates: tuple[str, ...]
    """Substrings one of which stands in every match; none means that a digit does."""
    find: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda _: True
    keeps: tuple[int, int] = (4, 0)
    """Characters left readable at the start and at the end."""


def luhn(text: str) -> bool:
    """Whether the digits pass the checksum of payment cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if n % 2 == 0 else d * 2 - 9 * (d > 4) for n, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 2 and luhn(digits) and _issued(digits)


def _issued(digits: str) -> bool:
    """Whether a payment network gives out numbers that begin like this, of this length."""
    first2, first4 = int(digits[:2]), int(digits[:4])
    return (
        (digits[0] == "4" and len(digits) in (13, 16, 19))
        or ((51 <= first2 <= 55 or 2221 <= first4 <= 2720) and len(digits) == 16)
        or (first2 in (34, 37) and len(digits) == 15)
        or ((first4 == 6011 or first2 == 65 or 644 <= int(digits[:3]) <= 649) and len(digits) in (16, 19))
        or (3528 <= first4 <= 3589 and len(digits) == 16)
        or (first2 in (36, 38, 39) and len(digits) == 14)
    )


_NO_MAIL: Final = (".png", ".jpg", ".gif", ".svg", ".js", ".css")
_MADE_UP_HOSTS: Final = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid", "localhost")


def _is_mail(text: str) -> bool:
    host = text.rpartition("@")[2].lower()
    return not host.endswith(_NO_MAIL) and not host.endswith(_MADE_UP_HOSTS)


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    # 555 01xx is kept for fiction (North American Numbering Plan)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2 and not re.search(r"555\D?01\d\d", text)


def _is_varied(text: str) -> bool:
    """Not a placeholder such as xxxx, 1234 or EXAMPLE."""
    body = text[-16:].lower()
    return (
        len(set(body)) >= 8
        and any(c.isdigit() for c in text)
        and not re.search(r"example|your|xxxx|1234567|abcdef", text, re.IGNORECASE)
    )


def _pattern(name: str, kind: str, gates: str, find: str, **more: object) -> Pattern:
    return Pattern(name, kind, tuple(gates.split()), re.compile(find), **more)  # type: ignore[arg-type]


PATTERNS: Final = (
    _pattern("private key", "key", "PRIVATE", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[^-]{64,}", keeps=(27, 0)),
    _pattern("AWS access key", "key", "AKIA ASIA", r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b", is_real=_is_varied),
    _pattern("GitHub token", "key", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
             r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,90})\b", is_real=_is_varied),
    _pattern("GitLab token", "key", "glpat-", r"\bglpat-[\w-]{20,}\b", is_real=_is_varied, keeps=(6, 0)),
    _pattern("Slack token", "key", "xoxb- xoxp- xoxa- xoxr- xoxs-", r"\bxox[abprs]-[\w-]{20,}", is_real=_is_varied),
    _pattern("Stripe key", "key", "sk_live_ rk_live_", r"\b[rs]k_live_[A-Za-z0-9]{20,}\b", is_real=_is_varied, keeps=(8, 0)),
    _pattern("API key", "key", "sk-", r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{32,}\b", is_real=_is_varied),
    _pattern("Google API key", "key", "AIza", r"\bAIza[\w-]{35}\b", is_real=_is_varied),
    _pattern("hub token", "key", "hf_", r"\bhf_[A-Za-z0-9]{30,}\b", is_real=_is_varied),
    _pattern("web token (JWT)", "key", "eyJ", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"),
    _pattern("password in an address", "key", "://", r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:[^\s/:@]{6,64}@[\w.-]+",
             is_real=_is_varied),
    _pattern("card number", "personal", "", r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d.-]|,\d)", is_real=_is_card, keeps=(0, 4)),
    _pattern("e-mail address", "personal", "@", r"\b[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b",
             is_real=_is_mail, keeps=(1, 0)),
    _pattern("phone number", "personal", "",
             r"(?<![\w.,+-])(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){1,4}"
             r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-]|[.,]\d)",
             is_real=_is_phone, keeps=(0, 2)),
)  # fmt: skip

_LONG_NUMBER: Final = re.compile(r"\d(?:[ ().-]{0,2}\d){7}")
_RAREST_FIRST: Final = (
    "@_:-JzKSV"  # by a character of each gate that most text lacks: finding one is the quickest search
)
_GATED: Final[dict[str, list[tuple[str, Pattern]]]] = {}
for _of in PATTERNS:
    for _gate in _of.gates:
        _GATED.setdefault(next(c for c in _RAREST_FIRST if c in _gate), []).append((_gate, _of))
_DIGITS: Final = bytes(ord("0") if chr(b).isdigit() else ord("x") for b in range(128)) + bytes(128)
_UNGATED: Final = tuple(pattern for pattern in PATTERNS if not pattern.gates)


def matches(text: str) -> Iterator[tuple[Pattern, int, str]]:
    """(pattern, position, matched text) of everything that looks like a secret or names a person, never overlapping."""
    taken: list[tuple[int, int]] = []
    for pattern in _possible(text):
        for found in pattern.find.finditer(text):
            start, end = found.span()
            if pattern.is_real(found.group()) and all(end <= a or b <= start for a, b in taken):
                taken.append((start, end))
                yield pattern, start, found.group()


def _possible(text: str) -> list[Pattern]:
    """The patterns whose gate stands in the text, in the order of the table."""
    open_ = {p for rare, gated in _GATED.items() if rare in text for gate, p in gated if gate in text}
    if _may_hold_long_number(text) and _LONG_NUMBER.search(text):
        open_.update(_UNGATED)
    return [pattern for pattern in PATTERNS if pattern in open_] if open_ else []


def _may_hold_long_number(text: str) -> bool:
    return not text.isascii() or b"0" * 8 in text.encode().translate(_DIGITS, b" ().-")


def masked(text: str) -> str:
    """The text, as long as it was, with secrets and personal data unreadable."""
    for pattern, start, found in list(matches(text)):
        text = text[:start] + hidden(pattern, found) + text[start + len(found) :]
    return text


def hidden(pattern: Pattern, found: str) -> str:
    """A match as long as it was, readable only where the pattern allows."""
    first, last = pattern.keeps
    if pattern.name == "e-mail address":
        last = len(found) - found.index("@")
    middle = len(found) - first - last
    return found[:first] + _MASK * middle + found[first + middle :]
