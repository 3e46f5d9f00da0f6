"""inlay plan."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import PREPARE, Json, Model, Preset, Price, Sets, Source, Utilisation, Watts
from inlay.cli.render.outcome import Output

_EXAMPLES = (
    "inlay plan data.jsonl --model Qwen/Qwen2.5-0.5B-Instruct",
    "inlay plan config.yaml --memory 8GB --cost 1.20",
    "inlay plan config.yaml --calibrate",
)


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, _EXAMPLES, panel=PREPARE)(plan)


def plan(
    source: Source,
    model: Model = None,
    preset: Preset = None,
    settings: Sets = [],  # noqa: B006
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory limit, e.g. 8GB. [default: what is free here]")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the base and compute two micro batches of the run.")
    ] = False,
    cost: Price = None,
    watts: Watts = None,
    utilisation: Utilisation = None,
    as_json: Json = False,
) -> Output:
    """Predict memory and time of a run for LoRA, QLoRA and full fine-tuning, before anything runs.

    Prints the largest micro batch, length and rank that fit, and what to change when nothing fits. Without --calibrate
    no weights are needed, only config and tokenizer of the base. --cost adds money and energy.
    """
    config = api.config_of(source, settings, preset, {"model.base_model": model})
    found = api.plan(
        config,
        memory=memory,
        calibrate=calibrate,
        cost=cost,
        watts=watts,
        utilisation=utilisation,
        reporter=render.progress.reporter(),
    )
    return Output(found.to_json(), render.plan.plan_text(found))
