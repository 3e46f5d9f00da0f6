"""What the pages promise exists: commands, options, settings, links, row formats, code."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import inlay
from inlay.cli import app
from inlay.config.load import VERB_SECTIONS, load, parse_yaml, presets, section_names, setting_paths, validate_section
from inlay.data import read_examples
from inlay.data.reading.formats import FORMATS
from inlay.errors import DataError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
KNOWN = set(setting_paths())
NOT_SETTINGS = {"jsonl", "json", "yaml", "csv", "tsv", "parquet", "md", "py", "txt", "safetensors"}


def each_page() -> Any:
    return pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return [(m[1], m[2]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `inlay …` in a fenced block or in backticks."""
    fenced = [line for language, body in blocks(text) if language in ("sh", "text", "") for line in body.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    quoted = re.findall(r"`(inlay [^`]+)`", prose)
    for line in [*fenced, *quoted]:
        command = re.sub(r"^\$ ", "", line.strip())
        if command.startswith("inlay "):
            yield shlex.split(command, comments=True)[1:]


def settings_in(text: str) -> set[str]:
    """Every `section.key` in backticks, alone or with a value behind it; files and modules are none."""
    sections = "|".join(name for name in section_names() if name != "preset")
    found = re.findall(rf"`(?:--set )?(({sections})\.(\w+))[`:= ]", text)
    modules = {p.stem for p in Path(inlay.__file__).parent.glob("*/*.py")}
    return {whole for whole, _, key in found if key not in NOT_SETTINGS and (key not in modules or whole in KNOWN)}


def tables(text: str) -> list[list[str]]:
    """The cells of every table row."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


(UsageError,) = typer.BadParameter.__bases__  # of click, or of the copy of it that newer typers carry


def refused(arguments: list[str]) -> str | None:
    """Why the command line would not take these arguments; nothing is run."""
    command: Any = typer.main.get_command(app)
    while (verbs := getattr(command, "commands", None)) is not None:
        if not arguments or arguments[0].isupper():  # `inlay VERB -h` stands for any
            return None
        if arguments[0] not in verbs:
            return f"no verb {arguments[0]!r}"
        command, arguments = verbs[arguments[0]], arguments[1:]
    if {"-h", "--help"} & set(arguments) or not arguments:  # the name alone speaks of the verb
        return None
    try:
        made = command.make_context(command.name, [a for a in arguments if not a.startswith("[")])
    except UsageError as error:
        return str(error.format_message())
    for assignment in made.params.get("settings") or ():
        key, sign, _ = assignment.partition("=")
        if not sign or not {key, f"generation.{key}", key.rpartition(".")[0]} & KNOWN:
            return f"no such setting: --set {assignment}"
    return None


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@each_page()
def test_every_command_is_one_that_the_command_line_takes(page: Path) -> None:
    faults = {" ".join(c): why for c in commands(page.read_text(encoding="utf-8")) if (why := refused(c))}
    assert faults == {}


def test_the_check_of_commands_finds_what_does_not_exist() -> None:
    assert refused(["trian", "data.jsonl"]) == "no verb 'trian'"
    assert "--rank" in str(refused(["train", "data.jsonl", "--rank", "8"]))
    assert refused(["checkpoints", "lst"]) == "no verb 'lst'"
    assert "no such setting" in str(refused(["train", "data.jsonl", "--set", "adapter.rnk=8"]))
    assert refused(["train", "data.jsonl", "--model", "folder", "--set", "adapter.rank=8"]) is None


@each_page()
def test_every_setting_that_is_named_exists(page: Path) -> None:
    assert settings_in(page.read_text(encoding="utf-8")) - KNOWN == set()


def test_the_check_of_settings_sees_them() -> None:
    text = "`train.rank`, `adapter.rnk: 8`, `train.jsonl`, `--set eval.x=1`, `data.train` and `inlay.train`"
    assert settings_in(text) == {"train.rank", "adapter.rnk", "eval.x", "data.train"}


@each_page()
def test_every_config_is_one_that_loads(page: Path) -> None:
    for language, body in blocks(page.read_text(encoding="utf-8")):
        if language == "yaml":
            tree = parse_yaml(body, page.name)
            for name in VERB_SECTIONS.keys() & tree.keys():
                validate_section(VERB_SECTIONS[name], tree.pop(name))
            required = {"model": {"base_model": "x"}, "data": {"train": "x"}}
            load(
                tree={**required, **{k: required.get(k, {}) | v if isinstance(v, dict) else v for k, v in tree.items()}}
            )


def faults_of(code: str) -> list[str]:
    """What a piece of Python needs and does not have: names, modules, and what it calls of inlay with its keywords."""
    nodes = list(ast.walk(ast.parse(code)))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)} | set(dir(builtins))
    faults, values = [], dict[str, Any]()
    for node in nodes:
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            module = node.module if isinstance(node, ast.ImportFrom) else alias.name
            try:
                found = importlib.import_module(str(module))
                name = alias.asname or alias.name.partition(".")[0]
                values[name] = getattr(found, alias.name) if isinstance(node, ast.ImportFrom) else found
            except (ImportError, AttributeError) as error:
                faults.append(str(error))
    used = [node.id for node in nodes if isinstance(node, ast.Name) and node.id not in bound | values.keys()]
    faults += [f"{name} is nowhere defined" for name in dict.fromkeys(used)]
    for node in nodes:
        owner = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id in ("inlay", "api") and owner.id in values:
            if not hasattr(values[owner.id], node.attr):
                faults.append(f"{owner.id} has no {node.attr}")
            values[ast.unparse(node)] = getattr(values[owner.id], node.attr, None)
    for node in nodes:
        if isinstance(node, ast.Call) and inspect.isfunction(function := values.get(ast.unparse(node.func))):
            taken = inspect.signature(function).parameters
            faults += [f"{function.__name__} takes no {k.arg}" for k in node.keywords if k.arg and k.arg not in taken]
    return faults


@each_page()
def test_every_piece_of_python_has_what_it_names(page: Path) -> None:
    for language, body in blocks(page.read_text(encoding="utf-8")):
        if language == "python":
            assert faults_of(body) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("inlay.train('a.yaml')", "inlay is nowhere defined"),
        ("import inlay\ninlay.trian('a.yaml')", "inlay has no trian"),
        ("import inlay\ninlay.train('a.yaml', resum=True)", "train takes no resum"),
        ("from inlay import api\napi.verfy()", "api has no verfy"),
        ("import inlya", "No module named 'inlya'"),
        ("from inlay import trian", "module 'inlay' has no attribute 'trian'"),
        ("import inlay\ndef f(x):\n    return [y for y in x]\nprint(f(inlay.compare('r', settings=['a'])))", None),
    ],
)
def test_the_check_of_python_finds_what_is_not_there(code: str, fault: str | None) -> None:
    assert faults_of(code)[:1] == ([fault] if fault else [])


def options_of_all_verbs() -> set[str]:
    def each(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from parameter.opts
        for verb in getattr(command, "commands", {}).values():
            yield from each(verb)

    return {"--help", "-h", *each(typer.main.get_command(app))}


OF_OTHERS = {"--index-url", "--device"}
"""Of pip and of the benchmarks, whose scripts have options of their own."""


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")]), ids=lambda p: p.name)
def test_every_option_in_backticks_is_one_of_a_verb(page: Path) -> None:
    named = set(re.findall(r"`(--?[a-z][\w-]*)[` =]", page.read_text(encoding="utf-8")))
    assert named - options_of_all_verbs() - OF_OTHERS == set()


@each_page()
def test_every_link_leads_somewhere_inside_the_project(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), target
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_nothing_names_a_place_on_one_machine() -> None:
    places = re.compile(r"(?<![\w.:/~])/(?:work|root|home|mnt|tmp|opt|srv|Users)/|(?:^|[\s`(])\.\./\w+/\.\.")
    pages = [*PAGES, *ROOT.glob("examples/*"), *ROOT.glob(".ci/*"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    found = {p.name: m[0] for p in pages if p.is_file() and (m := places.search(p.read_text(encoding="utf-8")))}
    assert found == {}


def test_the_readme_is_short_and_links_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    pages = [p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")]
    assert [p for p in pages if f"({p})" not in text] == []


def test_the_readme_has_every_verb_and_every_preset() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def leaves(command: Any, path: str) -> Iterator[str]:
        for name, sub in getattr(command, "commands", {}).items():
            yield from leaves(sub, f"{path} {name}")
        if not hasattr(command, "commands"):
            yield path

    shown = {" ".join(["inlay", *c]) for c in commands(text)}
    missing = [
        verb
        for verb in leaves(typer.main.get_command(app), "inlay")
        if not any(command == verb or command.startswith(f"{verb} ") for command in shown)
    ]
    assert missing == []
    assert [name for name in presets() if f"`{name}`" not in text] == []


def test_the_page_on_data_shows_the_example_row_of_every_format() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.split("## Formats\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"### (\w+)\n.*?```json\n(.*?)```", section, re.S))
    assert {name: json.loads(row) for name, row in shown.items()} == {n: f.example for n, f in FORMATS.items()}
    assert list(shown) == list(FORMATS)


BAD_FILES: list[tuple[str, bytes]] = [
    ("a.jsonl", b'{"question": "Caf\xe9?", "answer": "Yes"}'),
    ("a.jsonl", b'{"question": "a", "answer": NaN}'),
    ("a.jsonl", b'{"question": "a", "answer": null}'),
    ("a.jsonl", b'{"question": "a", "answer": ""}'),
    ("a.jsonl", b'{"question": "a", "question": "b", "answer": "c"}'),
    ("a.jsonl", b'{"question": "a", "answer": "b"} {"question": "c", "answer": "d"}'),
    ("a.jsonl", b'{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
    ("a.jsonl", b'{"question": "a", "anwser": "b"}'),
    ("a.jsonl", b'{"question": "a", "answer": "b"}\n{"instruction": "a", "output": "b"}'),
    ("a.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}'),
    ("a.jsonl", b'{"chosen": "b", "rejected": "c"}'),
    ("a.jsonl", b'{"question": "a", "context": "b", "answer": "c"}'),
    ("a.csv", b"question,answer\na,b,c"),
]
"""In the order of the table in docs/data.md."""


def test_the_page_on_data_quotes_what_the_reader_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    quoted = [row[1] for row in tables(text.split("## Strict reading")[1].split("\n## ")[0])][2:]
    for message, (name, content) in zip(quoted, BAD_FILES, strict=True):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as refusal:
            read_examples(str(tmp_path / name))
        for part in filter(None, (part.strip() for part in re.split(r"\(?…\)?", message))):
            assert part in str(refusal.value)


def test_the_page_on_evaluation_has_every_metric_and_signature() -> None:
    from inlay.evaluation.metrics import LOSS_METRICS, METRICS

    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    measured = [row[0] for row in tables(text) if len(row) == 4]
    assert measured[2:] == [f"`{name}`" for name in [*LOSS_METRICS, *METRICS]]
    signed = {row[0].strip("`"): row[1] for row in tables(text) if len(row) == 2}
    assert {name: signed[name] for name in ("exact_match", "token_f1", "rouge_l")} == {
        name: f"`{METRICS[name].signature()}`".replace("|", r"\|") for name in ("exact_match", "token_f1", "rouge_l")
    }


def test_the_quickstart_names_the_lines_of_the_pre_flight_block() -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "src" / "inlay").rglob("*.py")))
    printed = re.findall(r"\(\s*\"([a-z ,]+)\",\s", source)
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    shown = [row[0].strip("`") for row in tables(text)][2:]
    assert shown
    assert [name for name in shown if name not in printed] == []


def test_the_hooks_of_pre_commit_are_tools_of_the_development_extra() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert {hook["entry"].split()[0] for hook in hooks} == {".venv/bin/ruff", ".venv/bin/mypy"}
