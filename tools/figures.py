"""Prints the figures of the code: sizes, import cycles, loose types, docstrings, tests, and how far a reader travels.

python tools/figures.py            a table: figure, today, goal
python tools/figures.py --list     and behind it every place that counts against a goal

What a reader travels is seen in a run (`tools/walk.py`), which needs inlay to be installed.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
LONG_FILE, LONG_FUNCTION = 450, 60


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    path: Path
    lines: int
    tree: ast.Module

    @property
    def place(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Figure:
    """One line of the table, with the places that count against its goal."""

    name: str
    value: str
    goal: str
    places: list[str]


def modules() -> list[Module]:
    """Every module of the package, in the order of their names."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        found.append(Module(name, path, text.count("\n"), ast.parse(text)))
    return found


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(node: ast.AST, known: set[str]) -> set[str]:
    """Modules of the package that an import statement asks for."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & known
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        parts = {f"{node.module}.{alias.name}" for alias in node.names} & known
        whole = {node.module} & known
        return parts or whole
    return set()


def inside_functions(module: Module, known: set[str]) -> list[str]:
    """Places of imports of our own package inside functions."""
    return [
        f"{module.place}:{node.lineno}"
        for function in functions(module)
        for node in ast.walk(function)
        if imported(node, known)
    ]


def cycles(found: list[Module]) -> list[list[str]]:
    """Groups of modules that import each other, TYPE_CHECKING and imports inside functions counted."""
    known = {m.name for m in found}
    graph = {m.name: set().union(*(imported(node, known) for node in ast.walk(m.tree))) - {m.name} for m in found}
    graph["inlay"] = set()  # the lazy public names
    return [sorted(group) for group in _components(graph) if len(group) > 1]


def _components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components. Source: Tarjan, Depth-first search and linear graph algorithms (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            cut = stack.index(node)
            out.append(stack[cut:])
            del stack[cut:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return out


def loose_types(module: Module) -> list[str]:
    """Places of `dict[str, Any]`."""
    return [
        f"{module.place}:{node.lineno}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Subscript) and ast.unparse(node).lower() in ("dict[str, any]", "mapping[str, any]")
    ]


def public_names(module: Module) -> Iterator[tuple[str, bool]]:
    """(place, whether it has a docstring) of each public class, function, method and module."""
    yield module.place, ast.get_docstring(module.tree) is not None

    def look(body: list[ast.stmt]) -> Iterator[tuple[str, bool]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                yield f"{module.place}:{node.lineno} {node.name}", ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef) and node.name[0] != "_":
                yield from look(node.body)

    yield from look(module.tree.body)


def figures() -> list[Figure]:
    """The table, one figure a line."""
    found = modules()
    known = {m.name for m in found}
    every: Callable[[Callable[[Module], list[str]]], list[str]] = lambda see: [p for m in found for p in see(m)]  # noqa: E731
    long_files = [f"{m.place}: {m.lines} lines" for m in found if m.lines > LONG_FILE]
    sizes = [(m, f, (f.end_lineno or f.lineno) - f.lineno + 1) for m in found for f in functions(m)]
    long_functions = [f"{m.place}:{f.lineno} {f.name}: {size} lines" for m, f, size in sizes if size > LONG_FUNCTION]
    late = every(lambda m: inside_functions(m, known))
    loose = every(loose_types)
    named = [pair for m in found for pair in public_names(m)]
    bare = [place for place, has in named if not has]
    code = sum(m.lines for m in found)
    tests = sum(p.read_text(encoding="utf-8").count("\n") for p in (ROOT / "tests").rglob("*.py"))
    round_trips = [" <-> ".join(group) for group in cycles(found)]
    median = statistics.median(m.lines for m in found)
    return [
        Figure("files, median lines", f"{len(found)}, {median:.0f}", "≤ 250", []),
        Figure(f"files over {LONG_FILE} lines", str(len(long_files)), "0", long_files),
        Figure(f"functions over {LONG_FUNCTION} lines", f"{len(long_functions) / len(sizes):.1%}", "≤ 2%", long_functions),
        Figure("import cycles", str(len(round_trips)), "0", round_trips),
        Figure("imports inside functions", str(len(late)), "≤ 60", late),
        Figure("dict[str, Any]", str(len(loose)), "≤ 60", loose),
        Figure("public names without docstring", f"{len(bare) / len(named):.1%}", "≤ 5%", bare),
        Figure("lines of tests per line of code", f"{tests / code:.2f}", "≥ 0.8", []),
    ]  # fmt: skip


def travelled() -> list[Figure]:
    """Files above the engine that one `train` and one `compare` run code of."""
    from walk import walks

    return [
        Figure(f"files visited by {name}", str(len(walk.story())), "≤ 20", [
            *walk.story(), *(f"up: {lower} -> {higher}" for lower, higher in sorted(walk.upward)),
        ])
        for name, walk in walks().items()
    ]  # fmt: skip


def main() -> None:
    table = figures() + travelled()
    width = max(len(f.name) for f in table)
    for figure in table:
        print(f"{figure.name:<{width}}  {figure.value:>10}   goal {figure.goal}")
    if "--list" in sys.argv[1:]:
        for figure in table:
            print("\n".join(["", figure.name, *(f"  {place}" for place in figure.places)]))


if __name__ == "__main__":
    main()
