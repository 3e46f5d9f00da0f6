"""Names, docstrings and pages use the field's terms, and a docstring begins with what the caller gets."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from test_docs import PAGES, ROOT

SOURCES = sorted((ROOT / "src" / "inlay").rglob("*.py"))
FIELD_TERMS = {
    "dialogue": "conversation",
    "control token": "special token",
    "shortage": "out-of-memory event",
    "number format": "dtype",
    "plain path": "autograd engine",
    "direct path": "hand-written engine",
    "skeleton": "template cache",
    "whole checkpoint": "complete checkpoint",
    "way on": "resume hint",
    "base view": "adapter disabled",
    "take off": "detach",
    "told": "summary, message",
    "said": "text, summary",
}
IN_PAGES = [word for word in FIELD_TERMS if word not in ("told", "said", "take off", "way on", "skeleton")]
"""Ordinary English in a sentence, though not as a name."""
NO_SUBJECT = ("What", "Which", "Those", "How", "Of", "Whatever")


def words_of(name: str) -> str:
    """A name in snake case or camel case as its words in lower case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name).strip().lower()


def names_in(tree: ast.Module) -> Iterator[str]:
    """What the module itself names: functions, classes, arguments, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def docstrings_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield ast.get_docstring(node) or ""


def banned_in(text: str, words: list[str] | dict[str, str]) -> list[str]:
    return [word for word in words if re.search(rf"\b{word}s?\b", text, re.I)]


def test_names_are_terms_of_the_field() -> None:
    found = {
        f"{source.relative_to(ROOT)}: {name}": banned
        for source in SOURCES
        for name in {source.stem, *names_in(ast.parse(source.read_text(encoding="utf-8")))}
        if (banned := banned_in(words_of(name), FIELD_TERMS))
    }
    assert found == {}


def test_docstrings_and_pages_are_in_terms_of_the_field() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES if "numbers" not in page.parts}
    for source in SOURCES:
        texts[source] = "\n".join(docstrings_in(ast.parse(source.read_text(encoding="utf-8"))))
    found = {
        str(Path(p).relative_to(ROOT)): banned for p, text in texts.items() if (banned := banned_in(text, IN_PAGES))
    }
    assert found == {}


def test_a_docstring_begins_with_what_the_caller_gets() -> None:
    found = [
        f"{source.relative_to(ROOT)}: {text.splitlines()[0]}"
        for source in SOURCES
        for text in docstrings_in(ast.parse(source.read_text(encoding="utf-8")))
        if text and text.split()[0] in NO_SUBJECT
    ]
    assert found == []


def test_the_search_for_words_finds_them_in_names_and_sentences() -> None:
    assert banned_in(words_of("ControlTokens"), FIELD_TERMS) == ["control token"]
    assert banned_in(words_of("_base_view"), FIELD_TERMS) == ["base view"]
    assert banned_in("The direct path computes it.", IN_PAGES) == ["direct path"]
    assert banned_in(words_of("unsaid_goldfish"), FIELD_TERMS) == []
