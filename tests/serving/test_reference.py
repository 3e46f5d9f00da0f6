"""The page about HTTP says what the server does."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from stub_engine import server

from inlay.serving.app import create_app
from inlay.serving.auth import USER_SCOPES
from inlay.serving.schemas import ChatRequest, CompletionRequest, GenerateRequest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")


def test_the_tables_of_the_page_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tables = importlib.import_module("http_fields").TABLES
    for name, make in tables.items():
        inside = PAGE.partition(f"<!-- fields of a {name} -->\n")[2].partition("<!-- end -->")[0]
        assert inside.strip() == make().strip(), "run: make docs"


def test_every_field_and_route_and_scope_is_on_the_page() -> None:
    named = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    for body in (ChatRequest, CompletionRequest, GenerateRequest):
        assert set(body.model_fields) <= named
    assert set(USER_SCOPES) <= named
    for path in create_app(server()).openapi()["paths"]:
        assert path.replace("{model}", "NAME") in PAGE
