"""inlay doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import verb
from inlay.cli.options import PREPARE, Folder, Json
from inlay.cli.render.outcome import Output


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    verb(app, ["inlay doctor", "inlay doctor --quick"], panel=PREPARE)(doctor)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the slow probes.")] = False,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Probe this machine: devices, dtypes, quantization, speed, and the settings that suit it."""
    machine = api.doctor(quick=quick, folder=output)
    return Output(machine.to_json(), "\n".join(render.doctor.doctor_lines(machine)))
