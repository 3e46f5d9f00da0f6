"""inlay config: show, explain, import."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import render
from inlay.cli.help import group, verb
from inlay.cli.options import PREPARE, Folder, Json
from inlay.cli.render.outcome import Output


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    config = group("Settings: show a whole config, explain a setting, import a config of another trainer.")
    verb(config, ["inlay config show", "inlay config show support", "inlay config show inlay.yaml"])(show)
    verb(config, ["inlay config explain adapter.rank", "inlay config explain lora_alpha"])(explain)
    verb(config, ["inlay config import train.yaml --out inlay.yaml"], name="import")(import_)
    app.add_typer(config, name="config", rich_help_panel=PREPARE)


def show(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET|FILE|RUN",
            help="A preset, a config file, or a run. [default: the list of presets]",
            show_default=False,
        ),
    ] = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Print a config with every default filled in, or list the presets."""
    return Output(*api.show_config(what, folder=output))


def explain(
    setting: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="A setting or a section. [default: all settings]", show_default=False),
    ] = None,
    as_json: Json = False,
) -> Output:
    """Explain a setting: its meaning, values and default. Names of other trainers are understood."""
    rows = api.explain_config(setting)
    return Output(rows, render.settings.explanation_text(rows, render.terminal.width()))


def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A dataset_info.json or training YAML of LLaMA-Factory, or an Axolotl YAML.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Entry of a dataset_info.json.", show_default=False)
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the config to this file. [default: print it]")
    ] = None,
    as_json: Json = False,
) -> Output:
    """Turn a config of LLaMA-Factory or Axolotl into one of inlay; keys without a counterpart are listed."""
    found = api.import_config(file, dataset=dataset, to=out)
    if out is None:
        return Output(found, found["text"].rstrip())
    left = [f"no counterpart: {key}  ({why})" for key, why in found["missing"].items()]
    return Output(found, "\n".join([f"wrote {out} from a {found['kind']}", *left]))
