"""inlay bench serve."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import group, verb
from inlay.cli.options import USE, Json, names_in
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay bench serve http://127.0.0.1:8000",
    "inlay bench serve http://127.0.0.1:8000 --workload overload",
    "inlay bench serve Qwen/Qwen2.5-0.5B-Instruct --adapters all --rate 4",
)


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    bench = group("Measure speed and memory.")
    verb(bench, _EXAMPLES, name="serve")(serve)
    app.add_typer(bench, name="bench", rich_help_panel=USE)


def serve(
    server: Annotated[
        str,
        typer.Argument(
            metavar="URL|BASE", show_default=False,
            help="A running server of OpenAI's API, or a base or run, for which inlay serve is started.",
        ),
    ],
    workloads: Annotated[
        list[str],
        typer.Option(
            "--workload", metavar="NAME",
            help="base, adapters-1 … -32, zipf, prefix, long-prompt or overload. May be repeated. "
            "[default: base and adapters-8]",
        ),
    ] = [],  # noqa: B006
    adapters: Annotated[
        str | None,
        typer.Option("--adapters", metavar="A,B", help="Adapters that take turns. [default: all that are served]"),
    ] = None,
    clients: Annotated[int, typer.Option("--clients", metavar="N", help="Clients that each wait for their answer.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="Time of each workload.")] = 20.0,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", help="Send R requests a second at random moments, whatever the answers."),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", metavar="N", help="Length of the answers.")] = 64,
    token: Annotated[str | None, typer.Option("--token", metavar="TOKEN", envvar="INLAY_TOKEN", help="Of a server that demands one.")] = None,
    as_json: Json = False,
) -> Output:  # fmt: skip
    """Measure a server under load: time to first token, time between tokens, tokens per second, goodput, memory.

    Goodput counts the answers whose first token came within 2 s and whose further tokens took at most 200 ms each in the
    mean. With --rate times count from the moment at which a request was due.
    """
    found = api.bench_serve(
        server, workloads=workloads or ("base", "adapters-8"), adapters=None if adapters is None else names_in(adapters),
        clients=clients, seconds=seconds, rate=rate, new_tokens=new_tokens, token=token,
        reporter=render.progress.reporter(),
    )  # fmt: skip
    return Output([one.to_json() for one in found], render.load_test.results_text(found))
