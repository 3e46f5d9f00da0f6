"""The look of `--help`: verbs and options in groups, lines whole, defaults shown, examples at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDTH = 100


class Verb(TyperCommand):
    """A verb whose options stand under the heading given as their `rich_help_panel`."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override, unused-ignore]
        """Writes arguments and options, those that every verb has last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            fallback = "Options" if parameter.param_type_name == "option" else "Arguments"
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or fallback, []).append(
                (record[0].removesuffix(" <str>"), record[1])
            )
        sections["Options"] = sections.pop("Options", [])
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class Verbs(TyperGroup):
    """A group of verbs under the headings given as their `rich_help_panel`, in order of joining."""

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override, unused-ignore]
        """Writes each verb with the first paragraph of its help."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            first = (command.help or "").partition("\n\n")[0]
            sections.setdefault(panel if isinstance(panel, str) else "Verbs", []).append(
                (name, " ".join(first.split()))
            )
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def verb(app: typer.Typer, examples: Sequence[str], *, panel: str | None = None, name: str | None = None) -> Any:
    """The decorator that adds a verb to the app; the examples are command lines that end its help."""
    title = "Example:" if len(examples) == 1 else "Examples:"
    epilog = "\n".join(["\b", title, *(f"  {line}" for line in examples)])
    return app.command(name, cls=Verb, rich_help_panel=panel, epilog=epilog)


def group(text: str) -> typer.Typer:
    """A verb that has verbs."""
    app = typer.Typer(cls=Verbs, help=text, rich_markup_mode=None)
    app.callback()(lambda: None)  # keeps a verb a subcommand while it is the only one
    return app
