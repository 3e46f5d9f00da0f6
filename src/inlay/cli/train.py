"""train, demo, and what they print."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay.cli.help import verb
from inlay.cli.options import Folder, Json
from inlay.cli.outcome import Output
from inlay.errors import UserError

PANEL = "Train"
_EPILOG = """\b
Examples:
  inlay train data.jsonl --model builtin:nano
  inlay train data.jsonl --model Qwen/Qwen2.5-0.5B --preset code --name news
  inlay train config.yaml --set adapter.rank=8 --set data.columns.prompt=ask
  inlay train config.yaml --model ./llama   (write a config with: inlay init)
  inlay train data.jsonl --model builtin:nano --methods lora,ia3,full
  inlay train config.yaml --name news --resume   (after Ctrl+C or a crash)"""

Source = Annotated[
    str,
    typer.Argument(
        metavar="DATA|CONFIG",
        help="A data file (.jsonl .json .csv .tsv .parquet .arrow .xlsx .txt, also compressed), a folder or pattern of "
        "them, a hub dataset, or a .yaml config.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The base to fine-tune: a local folder, a hub id, or builtin:nano.",
        rich_help_panel="What to train",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Known settings for a task; inlay config show lists them.", rich_help_panel="What to train"
    ),
]
MaxRows = Annotated[
    int | None,
    typer.Option(
        "--max-rows", metavar="N", min=1, rich_help_panel="What to train",
        help="Use at most so many rows of the data, chosen by their content (data.max_rows).",
    ),
]  # fmt: skip
Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", rich_help_panel="What to train",
        help="Any setting, e.g. adapter.rank=8; wins over the config and the preset. May be repeated. "
        "inlay config explain lists all.",
    ),
]  # fmt: skip
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="RUN", help="Start from the adapter of this run or folder.", rich_help_panel="What to train"
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Name of the run. [default: data and model with a number]", rich_help_panel="The run"
    ),
]
Output_ = Annotated[
    str | None,
    typer.Option(
        "--output", metavar="FOLDER", help="Folder that holds the runs. [default: results]", rich_help_panel="The run"
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.", rich_help_panel="The run")
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Move an earlier run of that name aside and start anew.", rich_help_panel="The run"),
]

Extend = Annotated[
    str | None,
    typer.Option(
        "--extend", metavar="LENGTH", help="Train an earlier run on to this length in all: steps, as 600, or 5epochs.",
        rich_help_panel="The run",
    ),
]  # fmt: skip


Profile = Annotated[
    bool, typer.Option("--profile", help="Say at the end where the time went.", rich_help_panel="The run")
]


Methods = Annotated[
    str | None,
    typer.Option(
        "--methods", metavar="A,B", rich_help_panel="What to train",
        help="Train once a method and compare them: lora, qlora, rslora, dora, lora+, ia3, prompt, full.",
    ),
]  # fmt: skip


def add_to(app: typer.Typer) -> None:
    verb(app, PANEL, epilog=_EPILOG)(train)
    verb(app, PANEL)(demo)


def train(
    source: Source,
    model: Model = None,
    preset: Preset = None,
    max_rows: MaxRows = None,
    settings: Sets = [],  # noqa: B006
    start_from: StartFrom = None,
    name: Name = None,
    output: Output_ = None,
    resume: Resume = False,
    fresh: Fresh = False,
    extend: Extend = None,
    profile: Profile = False,
    methods: Methods = None,
    as_json: Json = False,
) -> Output:
    """Train an adapter on your data, save it, and judge it on held-out rows.

    Finds the format of the data, checks every row, holds some rows out, shows what it is going to do, trains, and
    measures whether the result is better than the base. Everything of a run lies in one folder.
    """
    from inlay import api
    from inlay.cli import progress, view

    given = {
        "model.base_model": model,
        "data.max_rows": max_rows,
        "output.name": name,
        "adapter.start_from": start_from,
        "output.folder": output,
    }
    config = api.config_of(source, settings, preset, given)
    if methods is not None:
        if extend or profile or start_from:
            raise UserError("--methods: --extend, --profile and --from are for one run. Leave them out.")
        names = [name.strip() for name in methods.split(",") if name.strip()]
        found = api.compare_methods(config, names, fresh=fresh, reporter=progress.reporter())
        return Output(found, view.methods_text(found, view.width()))
    run = api.train(
        config,
        resume=resume,
        fresh=fresh,
        extend=extend,
        profile=profile,
        reporter=progress.reporter(),
        confirm=progress.confirm(as_json),
    )
    return Output(run.result.to_json(), view.after_training(run))


def demo(output: Folder = "results", as_json: Json = False) -> Output:
    """Fine-tune the built-in model on customer support and compare it with its base, in about two minutes."""
    from inlay import api
    from inlay.cli import progress, view

    run, comparison = api.demo(folder=output, reporter=progress.reporter())
    value = {"run": run.result.to_json(), "comparison": comparison.to_json()}
    return Output(value, view.comparisons_text(comparison, view.width()) + view.after_demo(run))
