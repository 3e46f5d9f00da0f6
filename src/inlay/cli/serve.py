"""inlay serve."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from inlay import api
from inlay.cli.help import verb
from inlay.cli.options import USE, Json, Library
from inlay.cli.render.outcome import Output
from inlay.errors import ConfigError, count_shown

_EXAMPLES = (
    "inlay serve news",
    "inlay serve Qwen/Qwen2.5-0.5B-Instruct --adapters support:prod,code:2",
    "inlay serve builtin:nano --adapters all --port 0 --json",
    "inlay serve token alice",
    "inlay serve news --host 0.0.0.0 --tokens tokens.txt",
)
_TOKEN = "token"


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=USE)(serve)


def serve(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE|RUN",
            show_default=False,
            help="A base, or a run or library adapter, which is served with its base; `token NAME` makes a token.",
        ),
    ],
    name: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    adapters: Annotated[
        str, typer.Option(metavar="A,B", help="Adapters of the library: support:prod,code:2, all, or none.")
    ] = "none",
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but this machine's own needs --tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    tokens: Annotated[str | None, typer.Option(metavar="FILE", help="Tokens of those who may ask.")] = None,
    admin_tokens: Annotated[
        str | None, typer.Option(metavar="FILE", help="Tokens of those who may change adapters.")
    ] = None,
    max_adapters: Annotated[int | None, typer.Option(help="Different adapters at one time. [default: 32]")] = None,
    max_wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Refuse who would wait longer. [default: 30]")
    ] = None,
    drain: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time for answers to end. [default: 30]")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of serve, e.g. serve.max_rows=16. May be repeated."),
    ] = [],  # noqa: B006
    library: Library = None,
    as_json: Json = False,
) -> Output:
    """Answer requests over HTTP as OpenAI's API does: one base, many adapters.

    Ctrl+C or SIGTERM lets running answers end; a second one ends at once. --json prints {"ready": URL, "models": [...]} as
    its first line.
    """  # fmt: skip
    from inlay.config.load import parse_assignment

    if name is not None:
        return _token(base, name)
    over = dict(map(parse_assignment, settings))
    if others := [key for key in over if not key.startswith("serve.")]:
        raise ConfigError(f"--set {others[0]}: cannot take effect in serve, which has settings of its own: serve.…")
    flags = {"serve.max_adapters": max_adapters, "serve.max_wait_s": max_wait, "serve.drain_s": drain}
    over |= {key: value for key, value in flags.items() if value is not None}

    def on_ready(ready: Any) -> None:
        for note in ready.notes:
            sys.stderr.write(f"note: {note}\n")
        line = f"Ready at {ready.url} with {', '.join(ready.models)}. Ctrl+C ends it."
        out = sys.__stdout__ if as_json else sys.stdout  # of --json, what libraries print goes elsewhere
        assert out is not None
        out.write((json.dumps({"ready": ready.url, "models": ready.models}) if as_json else line) + "\n")
        out.flush()

    def on_progress(text: str) -> None:
        if not as_json:
            sys.stderr.write(f"{text}\n")

    ended = api.serve(
        base, adapters, host=host, port=port, tokens=tokens, admin_tokens=admin_tokens, settings=over, library=library,
        on_ready=on_ready, on_progress=on_progress,
    )  # fmt: skip
    cut = f", {count_shown(ended.cut_off, 'answer')} cut off" if ended.cut_off else ""
    return Output(asdict(ended), f"Ended by {ended.reason} after {count_shown(ended.requests, 'request')}{cut}.")


def _token(word: str, name: str) -> Output:
    """A new token with its line for the tokens file."""
    if word != _TOKEN:
        raise ConfigError(f"serve: takes one name (got {word} and {name}). Adapters are named with --adapters.")
    token, line = api.make_token(name)
    sys.stderr.write(f"The token, which is shown only now: {token}\nIts line for the file of --tokens:\n")
    return Output({"name": name, "token": token, "line": line}, line)
