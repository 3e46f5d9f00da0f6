"""Switches of chat templates, such as `enable_thinking`: which ones a template reads, and their values written into it.

A template looks its switches up by name, and a name that it never reads has no effect. The values are put at the head of
the template as defaults: training, generation and every server that reads the saved tokenizer then render alike, and a
server may still switch otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inlay.errors import ConfigError, nearest

GIVEN: Final = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception",
    "strftime_now", "tojson", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
    "mask_token", "additional_special_tokens", "range", "dict", "lipsum", "cycler", "joiner", "namespace",
})  # fmt: skip
"""Names that a renderer, the tokenizer or Jinja itself gives to a template: no switches."""

Switch = bool | int | float | str


class _Generation(loopcontrols):
    """Parses the tag around trained text, which some templates have for masks, as transformers does."""

    tags = {*loopcontrols.tags, "generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        if parser.stream.current.value != "generation":
            return super().parse(parser)
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body, lineno=line)


_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation])


@lru_cache(64)
def switches_of(template: str) -> tuple[str, ...]:
    """The names that the template looks up before it gives them a value, by the alphabet; none where it cannot be
    parsed."""
    try:
        tree = _ENVIRONMENT.parse(template)
        first = _FirstUses(tree)
        return tuple(sorted((meta.find_undeclared_variables(tree) & first.read) - GIVEN))
    except (TemplateError, RecursionError):  # the renderer says what is wrong with it
        return ()


class _FirstUses:
    """The first use of each name, in the order in which a template runs: macros come last."""

    def __init__(self, tree: nodes.Template) -> None:
        self.read: set[str] = set()
        self._written = {macro.name for macro in tree.find_all(nodes.Macro)}
        self._macros: list[nodes.Macro] = []
        self._walk(tree)
        while self._macros:
            macro = self._macros.pop()
            outside = set(self._written)
            for part in (*macro.defaults, *macro.args, *macro.body):
                self._walk(part)
            self._written = outside

    def _walk(self, node: nodes.Node) -> None:
        match node:
            case nodes.Name(ctx="load"):
                if node.name not in self._written:
                    self.read.add(node.name)
            case nodes.Name():
                self._written.add(node.name)
            case nodes.Macro():
                self._macros.append(node)
            case nodes.Assign() | nodes.AssignBlock():
                value = [node.node] if isinstance(node, nodes.Assign) else node.body
                for part in (*value, node.target):
                    self._walk(part)
            case nodes.For():
                tests = [node.test] if node.test is not None else []
                for part in (node.iter, node.target, *tests, *node.body, *node.else_):
                    self._walk(part)
            case _:
                for child in node.iter_child_nodes():
                    self._walk(child)


def with_switches(template: Any, switches: Mapping[str, Switch]) -> Any:
    """The template, or each of a tokenizer's named ones, with these values as defaults of its switches.

    Raises: ConfigError for a switch that it does not read.
    """
    if not switches:
        return template
    read = switches_read(template)
    for name in switches:
        if name not in read:
            guess = nearest(name, read)
            hint = f" Did you mean {guess!r}?" if guess else ""
            reads = f"It reads {', '.join(read)}." if read else "It reads none: leave it out."
            raise ConfigError(
                f"data.template_kwargs.{name}: the chat template reads no switch of that name, so it would have no "
                f"effect.{hint} {reads}"
            )
    head = head_of(sorted(switches.items()))
    if isinstance(template, dict):
        return {name: _headed(one, head) for name, one in template.items()}
    return _headed(template, head)


def switches_read(template: Any) -> list[str]:
    """The names of the switches that the template, or one of a tokenizer's named ones, reads."""
    return sorted({name for one in _each(template) for name in switches_of(one)})


def head_of(switches: Iterable[tuple[str, Switch]]) -> str:
    """Jinja to put before a template, which gives these values to its switches where a caller gives none."""
    return "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in switches
    )


def thinking_switches(template: Any) -> list[str]:
    """The switches of the template that may turn thoughts on, by their names; the usual ones first."""
    named = [name for name in switches_read(template) if "think" in name or "reason" in name]
    return sorted(named, key=lambda name: name not in ("enable_thinking", "thinking"))


def _each(template: Any) -> list[str]:
    return [str(one) for one in (template.values() if isinstance(template, dict) else [template])]


def _headed(template: str, head: str) -> str:
    """The template behind the head, once; the tokenizer of a run has it already."""
    return template if template.startswith(head) else f"{head}{template}"


def _literal(value: Switch) -> str:
    """The value as Jinja writes it."""
    return str(value).lower() if isinstance(value, bool) else ascii(value)
