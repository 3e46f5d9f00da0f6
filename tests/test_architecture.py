"""What is imported when, and that the page about it says the same."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "module",
    ["inlay", "inlay.api", "inlay.cli", "inlay.config", "inlay.data.reading.formats", "inlay.serving.lifetime"],
)
def test_torch_is_not_imported_before_a_verb_needs_it(module: str) -> None:
    asked = (
        f"import sys, {module}; heavy = {{'torch', 'transformers', 'peft', 'matplotlib'}} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_compiler_of_torch_is_not_imported_where_rows_are_only_tokenized() -> None:
    program = "import sys, inlay.tasks.task; assert not {'torch._dynamo', 'triton', 'peft'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there_when_asked_for() -> None:
    import inlay
    from inlay import api

    assert [name for name in inlay.__all__ if not hasattr(inlay, name)] == []
    assert (inlay.train, inlay.compare, inlay.load) == (api.train, api.compare, api.load)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = inlay.trian


def test_a_file_of_the_api_is_never_taken_for_a_verb() -> None:
    """The import of a submodule binds its name in the package, over a function of that name."""
    from inlay import api

    files = {path.stem for path in (ROOT / "src" / "inlay" / "api").glob("*.py")}
    assert not files & set(api.__all__)


def test_the_page_on_architecture_names_the_rooms_of_the_contract_in_order() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.split("## Rooms")[1].split("```")[1]
    rooms = [re.split(r"\s{2,}", line)[0] for line in block.strip().splitlines()]
    assert rooms == [layer.replace("inlay.", "") for layer in layers]


def test_the_tests_that_the_page_names_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_no_two_modules_import_each_other_not_even_for_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    figures = importlib.import_module("figures")
    assert figures.cycles(figures.modules()) == []


def test_the_search_for_cycles_finds_one_that_only_types_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    figures = importlib.import_module("figures")
    (tmp_path / "a.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\n")
    (tmp_path / "b.py").write_text("def late():\n    import a\n")
    monkeypatch.setattr(figures, "SOURCE", tmp_path)
    assert figures.cycles(figures.modules()) == [["a", "b"]]


def test_the_drawing_of_the_rooms_is_that_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = importlib.import_module("draw_rooms")
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tool.PICTURE.read_text(encoding="utf-8") == tool.drawing(page), "run make docs"
