"""Renderings of chat templates that only place the texts of turns, made once for each order of roles.

A template is a program. Its syntax tree shows whether the text of a turn can reach anything but the output: a comparison,
a filter, a function. Where it cannot, all conversations of the same roles differ only in the text at known places, and one
rendering with marks at these places stands for all of them. Where it could, nothing is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import Final

from jinja2 import TemplateError, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Render = Callable[[list[dict[str, str]], bool], str]
"""(turns, whether an answer is opened) to text."""

# white space around a mark, which no template writes, shows at each place whether the template strips the text
_BEFORE, _AFTER, _OPEN, _CLOSE = "\u2003", "\u2002", "\ue0f1", "\ue0f2"
_MARK = re.compile(f"({_BEFORE}?){_OPEN}(\\d+){_CLOSE}({_AFTER}?)")

Parts = tuple[list[str], list[tuple[int, bool, bool]]]
"""Literal texts with an empty one between each two, and for these (turn, stripped on the left, on the right)."""


class TemplateCache:
    """The text that a template writes around the texts of turns, by their roles; without tools, names and empty turns."""

    def __init__(self, template: str, render: Render) -> None:
        self.provable = not any(c in template for c in (_BEFORE, _AFTER, _OPEN, _CLOSE)) and places_text_unseen(
            template
        )
        self._render = render
        self._parts = lru_cache(1024)(self._find_parts)

    def fill(self, roles: tuple[str, ...], texts: Sequence[str], opens_turn: bool) -> str | None:
        """The rendering of turns that all have text; None where only the template itself can tell."""
        parts = self._parts(roles, opens_turn) if self.provable else None
        if parts is None:
            return None
        written, places = parts
        filled = list(written)
        filled[1::2] = [_stripped(texts[n], left, right) if left or right else texts[n] for n, left, right in places]
        return "".join(filled)

    def _find_parts(self, roles: tuple[str, ...], opens_turn: bool) -> Parts | None:
        turns = [{"role": r, "content": f"{_BEFORE}{_OPEN}{n}{_CLOSE}{_AFTER}"} for n, r in enumerate(roles)]
        try:
            text = self._render(turns, opens_turn)
        except Exception:  # noqa: BLE001  the caller renders the conversation itself then, and reports what is wrong
            return None
        written, places, at = [], [], 0
        for found in _MARK.finditer(text):
            written += [text[at : found.start()], ""]
            places.append((int(found[2]), not found[1], not found[3]))
            at = found.end()
        return [*written, text[at:]], places


def _stripped(text: str, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text


class _Kind(Enum):
    CLEAN = auto()
    """Depends on roles and on the number of turns alone."""
    CONTENT = auto()
    """The text of one turn, stripped or not; or clean."""
    TEXT = auto()
    """Text with the text of a turn somewhere in it."""
    TURN = auto()
    TURNS = auto()


_CLEAN, _CONTENT, _TEXT, _TURN, _TURNS = _Kind
_OF_TYPE: Final = frozenset({
    "defined", "undefined", "none", "string", "iterable", "mapping", "sequence", "number", "boolean",
})  # fmt: skip
"""Tests that ask for the type of a value: the same for every text."""


class _SeenError(Exception):
    """The template may look at the text of a turn."""


@lru_cache(64)
def places_text_unseen(template: str) -> bool:
    """Whether the template only places the texts of non-empty turns, and does nothing that depends on them."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    try:
        _Walk(environment.parse(template))
    except (_SeenError, TemplateError, RecursionError):
        return False
    return True


class _Walk:
    """The kinds of a template's names, whatever way it takes. Raises: _SeenError."""

    def __init__(self, tree: nodes.Template) -> None:
        self._names: dict[str, _Kind] = {"messages": _TURNS}
        self._macros = {node.name: node for node in tree.find_all(nodes.Macro)}
        self._written: dict[str, _Kind] = {}
        self._spaces = {node.name for node in tree.find_all(nodes.NSRef)}
        self._mixed: set[str] = set()
        """Names that may hold something else than the text of a turn, or nothing."""
        if len(self._macros) < len(list(tree.find_all(nodes.Macro))):
            raise _SeenError  # two of one name
        before: object = None
        while before != (self._names, self._written, self._mixed):  # a name may take a kind further down, in a loop
            before = dict(self._names), dict(self._written), set(self._mixed)
            self._all(tree.body)

    def _all(self, statements: Iterable[nodes.Node]) -> _Kind:
        """The kind of what the statements write."""
        written = _CLEAN
        for statement in statements:
            written = _either(written, self._statement(statement))
        return written if written is _CLEAN else _TEXT

    def _statement(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Output():
                return self._joined(node.nodes)
            case nodes.If():
                return self._if(node)
            case nodes.For() if not node.recursive:
                return self._loop(node)
            case nodes.Assign():
                self._assign(node.target, self._kind(node.node))
            case nodes.AssignBlock() if node.filter is None:
                self._assign(node.target, self._all(node.body))
            case nodes.Macro():
                for default in node.defaults:
                    self._clean(default)
                self._written[node.name] = self._all(node.body)
            case nodes.ExprStmt():
                self._clean(node.node)
            case nodes.Continue() | nodes.Break():
                pass
            case _:
                raise _SeenError
        return _CLEAN

    def _if(self, node: nodes.If) -> _Kind:
        written = _CLEAN
        for branch in [node, *node.elif_]:
            self._kind(branch.test)
            truth = self._truth(branch.test)
            if truth is not False:
                written = _either(written, self._all(branch.body))
            if truth is True:
                return written
        return _either(written, self._all(node.else_))

    def _truth(self, node: nodes.Node) -> bool | None:
        """The result of a type test of a turn's text, where it is certain."""
        match node:
            case nodes.Not():
                inner = self._truth(node.node)
                return None if inner is None else not inner
            case nodes.And() | nodes.Or():
                decisive = isinstance(node, nodes.Or)
                both = self._truth(node.left), self._truth(node.right)
                return decisive if decisive in both else None if None in both else not decisive
            case nodes.Test() if node.name in _OF_TYPE and self._is_content(node.node):
                return node.name in ("defined", "string", "iterable", "sequence")
        return None

    def _is_content(self, node: nodes.Node) -> bool:
        """Whether the value is the text of a turn, and never anything else."""
        match node:
            case nodes.Name():
                return node.name not in self._mixed and self._kind(node) is _CONTENT
            case nodes.Getattr() | nodes.Getitem():
                name = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
                return name == "content" and self._kind(node.node) is _TURN
        return False

    def _loop(self, node: nodes.For) -> _Kind:
        over = self._kind(node.iter)
        if over not in (_TURNS, _CLEAN):
            raise _SeenError
        self._assign(node.target, _TURN if over is _TURNS else _CLEAN)
        if node.test is not None:
            self._kind(node.test)
        return self._all([*node.body, *node.else_])

    def _assign(self, target: nodes.Node, kind: _Kind, *, is_content: bool = False) -> None:
        match target:
            case nodes.Name():
                name = target.name
                if not is_content:
                    self._mixed.add(name)
            case nodes.NSRef():
                name = f"{target.name}.{target.attr}"
            case nodes.Tuple() if kind is _CLEAN:
                for item in target.items:
                    self._assign(item, kind)
                return
            case _:
                raise _SeenError
        self._names[name] = _either(self._names.get(name, kind), kind)

    def _kind(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.TemplateData() | nodes.Const():
                return _CLEAN
            case nodes.Name():
                if node.name in self._spaces or node.name == "loop":
                    raise _SeenError  # under another name its attributes could not be followed
                return self._names.get(node.name, _CLEAN)
            case nodes.Getattr():
                return self._member(node.node, node.attr)
            case nodes.Getitem():
                return self._item(node)
            case nodes.Concat():
                return self._joined(node.nodes)
            case nodes.Add():
                return self._joined([node.left, node.right])
            case nodes.And() if self._kind(node.left) in (_TURN, _TURNS):
                return self._kind(node.right)  # or no turns at all
            case nodes.And() | nodes.Or():
                return _either(self._kind(node.left), self._kind(node.right))
            case nodes.Not():
                self._kind(node.node)
            case nodes.CondExpr():
                self._kind(node.test)
                return _either(self._kind(node.expr1), self._kind(node.expr2) if node.expr2 else _CLEAN)
            case nodes.Filter() if node.node is not None:
                return self._filter(node, self._kind(node.node))
            case nodes.Test() if node.name in _OF_TYPE:
                self._kind(node.node)
            case nodes.Call():
                return self._call(node)
            case _:
                for child in node.iter_child_nodes():
                    self._clean(child)
        return _CLEAN

    def _clean(self, node: nodes.Node) -> None:
        if self._kind(node) is not _CLEAN:
            raise _SeenError

    def _joined(self, parts: Sequence[nodes.Node]) -> _Kind:
        kinds = [self._kind(part) for part in parts]
        if _TURN in kinds or _TURNS in kinds:
            raise _SeenError
        return _CLEAN if all(kind is _CLEAN for kind in kinds) else kinds[0] if len(kinds) == 1 else _TEXT

    def _member(self, node: nodes.Node, name: object) -> _Kind:
        if isinstance(node, nodes.Name):
            if node.name in self._spaces:
                return self._names.get(f"{node.name}.{name}", _CLEAN)
            if node.name == "loop":
                return _TURN if name in ("previtem", "nextitem") else _CLEAN
        match self._kind(node):
            case _Kind.TURN if isinstance(name, str) and not hasattr(dict, name):
                return _CONTENT if name == "content" else _CLEAN
            case _Kind.CLEAN:
                return _CLEAN
        raise _SeenError

    def _item(self, node: nodes.Getitem) -> _Kind:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return self._member(node.node, node.arg.value)
        self._clean(node.arg)
        match self._kind(node.node):
            case _Kind.TURNS:
                return _TURNS if isinstance(node.arg, nodes.Slice) else _TURN
            case _Kind.CLEAN:
                return _CLEAN
        raise _SeenError

    def _filter(self, node: nodes.Filter, kind: _Kind) -> _Kind:
        given = [*node.args, *node.kwargs, *(extra for extra in (node.dyn_args, node.dyn_kwargs) if extra)]
        for argument in given:
            self._clean(argument)
        match node.name, kind:
            case _, _Kind.CLEAN:
                return _CLEAN
            case "trim" | "string", _Kind.CONTENT if not given:
                return _CONTENT
            case "length" | "count", _Kind.TURNS:
                return _CLEAN
            case "first" | "last", _Kind.TURNS:
                return _TURN
        raise _SeenError

    def _call(self, node: nodes.Call) -> _Kind:
        if isinstance(node.node, nodes.Name) and node.node.name in self._macros:
            return self._expand(node, self._macros[node.node.name])
        given = [*node.args, *node.kwargs, *(extra for extra in (node.dyn_args, node.dyn_kwargs) if extra)]
        for argument in given:
            self._clean(argument)
        match node.node:
            case nodes.Name():
                self._clean(node.node)
                return _CLEAN
            case nodes.Getattr(attr="strip" | "lstrip" | "rstrip") if not given:
                kind = self._kind(node.node.node)
                if kind in (_CONTENT, _CLEAN):
                    return kind
            case nodes.Getattr(attr="get") if given and isinstance(given[0], nodes.Const):
                return self._member(node.node.node, given[0].value)
            case nodes.Getattr():
                self._clean(node.node)
                return _CLEAN
        raise _SeenError

    def _expand(self, node: nodes.Call, macro: nodes.Macro) -> _Kind:
        if node.dyn_args or node.dyn_kwargs or len(node.args) > len(macro.args):
            raise _SeenError
        given = dict(zip((target.name for target in macro.args), node.args, strict=False))
        given |= {keyword.key: keyword.value for keyword in node.kwargs}
        if not given.keys() <= {target.name for target in macro.args}:
            raise _SeenError  # the macro could read it from its kwargs
        for target in macro.args:
            value = given.get(target.name, nodes.Const(None))
            self._assign(target, self._kind(value), is_content=self._is_content(value))
        return self._written.get(macro.name, _CLEAN)


def _either(a: _Kind, b: _Kind) -> _Kind:
    """The kind of a value that is one or the other."""
    if a is b:
        return a
    kinds = {a, b}
    if kinds <= {_CLEAN, _CONTENT, _TEXT}:
        return _TEXT if _TEXT in kinds else _CONTENT
    raise _SeenError
