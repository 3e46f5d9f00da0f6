"""compare, eval, generate, chat, verify: what a run can do now."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inlay.cli.help import verb
from inlay.cli.options import Folder, Json, NoAdapter, RunName, RunOption, Sampling
from inlay.cli.outcome import Output

PANEL = "Use a run"


def add_to(app: typer.Typer) -> None:
    verb(app, PANEL)(compare)
    verb(app, PANEL, "eval")(evaluate)
    verb(app, PANEL)(generate)
    verb(app, PANEL)(chat)
    verb(app, PANEL)(verify)


def verify(run: RunName = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Prove again what a run claims: files, mask, counts, adapter, base, prompts. Exit code 1 when a proof fails."""
    from inlay import api
    from inlay.cli import view

    proved = api.verify(run, folder=output)
    return Output(proved, view.proofs_text(proved), 0 if proved["passed"] else 1)


def compare(
    run: RunName = None,
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", metavar="TEXT", help="An extra prompt to answer side by side. May be repeated."),
    ] = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Base against adapter on the held-out rows: every metric with its interval, and a verdict."""
    from inlay import api
    from inlay.cli import progress, view
    from inlay.run import find

    comparison = api.compare(run, prompts=prompt, reporter=progress.reporter(), folder=output)
    return Output(comparison.to_json(), view.comparison_text(comparison, find(run, output), view.width()))


def evaluate(run: RunName = None, base: NoAdapter = False, output: Folder = "results", as_json: Json = False) -> Output:
    """Score one model on the run's held-out rows."""
    from inlay import api
    from inlay.cli import progress, view

    result = api.evaluate(run, adapter=not base, reporter=progress.reporter(), folder=output)
    return Output(result, view.evaluation_text(result))


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to ask; - or a pipe reads it from stdin.", show_default=False),
    ] = None,
    run: RunOption = None,
    base: NoAdapter = False,
    settings: Sampling = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Answer one prompt."""
    from inlay import api
    from inlay.cli import talk

    sampling = api.sampling_of(settings)
    asked = talk.prompt_text(prompt, sys.stdin)
    answer = api.load(run, adapter=not base, folder=output).generate(asked, **sampling)
    return Output({"prompt": asked, "answer": answer}, answer)


def chat(
    run: RunName = None,
    base: NoAdapter = False,
    settings: Sampling = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Talk to a run. /reset forgets the dialogue, Ctrl+C cuts an answer short, /exit or Ctrl+D ends.

    On a pipe every line of stdin is a turn and every answer goes to stdout. --json gives the dialogue at its end as
    a list of {"role", "content"}.
    """
    from inlay import api
    from inlay.cli import talk

    sampling = api.sampling_of(settings)
    return Output(talk.talk(api.load(run, adapter=not base, folder=output), sampling, quiet=as_json))
