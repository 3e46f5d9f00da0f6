"""doctor, plan, init, config: before a run."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.help import group, verb
from inlay.cli.options import Folder, Json, Price, Utilisation, Watts
from inlay.cli.outcome import Output
from inlay.cli.train import Model, Preset, Sets, Source

PANEL = "Prepare"


def add_to(app: typer.Typer) -> None:
    verb(app, PANEL)(doctor)
    verb(app, PANEL)(plan)
    verb(app, PANEL)(init)
    config = group("Look settings up: show a whole config, or explain a setting.")
    verb(config)(show)
    verb(config)(explain)
    verb(config, name="import")(import_)
    app.add_typer(config, name="config", rich_help_panel=PANEL)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the slow probes.")] = False,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """What this machine can really do, and the settings that suit it."""
    from inlay import api
    from inlay.cli.doctor_view import lines

    machine = api.doctor(quick=quick, folder=output)
    return Output(machine.to_json(), "\n".join(lines(machine)))


def plan(
    source: Source,
    model: Model = None,
    preset: Preset = None,
    settings: Sets = [],  # noqa: B006
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan with so much, as 8GB. [default: what is free here]")
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

    Names the largest micro batch, length and rank that fit, and what to change when nothing does. Without --calibrate
    no weights are needed, only config and tokenizer of the base. --cost turns time into money and energy.
    """
    from inlay import api
    from inlay.cli import progress
    from inlay.cli.plan_view import plan_text

    config = api.config_of(source, settings, preset, {"model.base_model": model})
    found = api.plan(
        config, memory=memory, calibrate=calibrate, cost=cost, watts=watts, utilisation=utilisation,
        reporter=progress.reporter(),
    )  # fmt: skip
    return Output(found.to_json(), plan_text(found))


def init(
    path: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")] = "inlay.yaml",
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Start from a preset.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> Output:
    """Write a commented config to start from."""
    from inlay import api

    written = api.init(path, preset=preset, force=force)
    return Output({"path": str(written)}, f"wrote {written}. Edit it, then: inlay train {written}")


def show(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|FILE|RUN", help="A preset, a config file, or a run; the presets if left out.",
            show_default=False,
        ),
    ] = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:  # fmt: skip
    """Print a config with every default filled in, or list the presets."""
    from inlay import api

    return Output(*api.show_config(what, folder=output))


def explain(
    setting: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="A setting or a section; all if left out.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> Output:
    """What a setting means, what it may be, and its default."""
    from inlay import api
    from inlay.cli import view

    rows = api.explain_config(setting)
    return Output(rows, view.explanation_text(rows, view.width()))


def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A dataset_info.json or training YAML of LLaMA-Factory, or an Axolotl YAML.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which entry of a dataset_info.json.", show_default=False)
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the config here; printed if left out.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> Output:  # fmt: skip
    """Turn a config of LLaMA-Factory or Axolotl into one of inlay; what has no counterpart is listed."""
    from inlay import api

    found = api.import_config(file, dataset=dataset, to=out)
    if out is None:
        return Output(found, found["text"].rstrip())
    left = [f"no counterpart: {key}  ({why})" for key, why in found["missing"].items()]
    return Output(found, "\n".join([f"wrote {out} from a {found['kind']}", *left]))
