"""inlay generate."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inlay import api
from inlay.cli.help import verb
from inlay.cli.options import USE, Folder, Json, NoAdapter, RunOption, Sampling
from inlay.cli.render.outcome import Output
from inlay.cli.stdin import prompt_text

_EXAMPLES = (
    'inlay generate "My parcel is late." --run news',
    'inlay generate "My parcel is late." --base --set temperature=0',
    "cat letter.txt | inlay generate --run news@120 --set max_new_tokens=400",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=USE)(generate)


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; - or a pipe reads it from stdin.", show_default=False),
    ] = None,
    run: RunOption = None,
    base: NoAdapter = False,
    settings: Sampling = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Answer one prompt."""
    sampling = api.sampling_of(settings)
    text = prompt_text(prompt, sys.stdin)
    answer = api.load(run, adapter=not base, folder=output).generate(text, **sampling)
    return Output({"prompt": text, "answer": answer}, answer)
