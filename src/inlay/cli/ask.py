"""compare, eval, generate, chat: what a run can do now."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.options import Folder, Json, RunName, emit

NoAdapter = Annotated[bool, typer.Option("--base", help="The base without the adapter.")]


def add_to(app: typer.Typer) -> None:
    app.command()(compare)
    app.command("eval")(evaluate)
    app.command()(generate)
    app.command()(chat)


def compare(
    run: RunName = None,
    prompt: Annotated[list[str], typer.Option("--prompt", help="An extra prompt to answer side by side.")] = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> None:
    """Base against adapter on the held-out rows: every metric with its interval, and a verdict."""
    from inlay import api
    from inlay.cli import view
    from inlay.run import find

    comparison = api.compare(run, prompts=prompt, reporter=view.reporter(), folder=output)
    emit(comparison.to_json(), as_json, view.comparison_text(comparison, find(run, output)))


def evaluate(run: RunName = None, base: NoAdapter = False, output: Folder = "results", as_json: Json = False) -> None:
    """Score one model on the run's held-out rows."""
    from inlay import api
    from inlay.cli import view

    result = api.evaluate(run, adapter=not base, reporter=view.reporter(), folder=output)
    emit(result, as_json, view.evaluation_text(result))


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    run: Annotated[str | None, typer.Option(help="A run's name or folder [the one trained last].")] = None,
    base: NoAdapter = False,
    settings: Annotated[list[str], typer.Option("--set", help="A generation setting, e.g. temperature=0.")] = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> None:
    """Answer one prompt."""
    from inlay import api

    sampling = api.sampling_of(settings)
    answer = api.load(run, adapter=not base, folder=output).generate(prompt, **sampling)
    emit({"prompt": prompt, "answer": answer}, as_json, answer)


def chat(
    run: RunName = None,
    base: NoAdapter = False,
    settings: Annotated[list[str], typer.Option("--set", help="A generation setting, e.g. temperature=0.")] = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> None:
    """Talk to a run. An empty line or Ctrl+D ends it; /reset forgets the dialogue."""
    from inlay import api
    from inlay.cli import view

    dialogue = view.talk(api.load(run, adapter=not base, folder=output), api.sampling_of(settings), quiet=as_json)
    emit(dialogue, as_json)
