"""compare, eval, generate, chat, verify: what a run can do now."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inlay.cli.help import verb
from inlay.cli.options import (
    Folder,
    Json,
    Measuring,
    NoAdapter,
    Price,
    RunName,
    RunOption,
    Sampling,
    Utilisation,
    Watts,
)
from inlay.cli.outcome import Output
from inlay.errors import UserError

PANEL = "Use a run"

DataOption = Annotated[
    str | None, typer.Option("--data", metavar="FILE", help="Rows to measure on instead of the run's held-out rows.")
]
MetricsOption = Annotated[
    str,
    typer.Option(
        "--metrics",
        metavar="A,B",
        help="Take these metrics instead of what the reference answers call for. FILE.py:FUNCTION is one of your own.",
    ),
]


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
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODELS",
            help="Runs, RUN@STEP, adapter or model folders, base, hub ids. The first is what the others are compared "
            "with; one alone is compared with its base.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    metrics: MetricsOption = "",
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", metavar="TEXT", help="An extra prompt to answer side by side. May be repeated."),
    ] = [],  # noqa: B006
    settings: Measuring = [],  # noqa: B006
    python_tests: Annotated[
        str | None,
        typer.Option(
            "--python-tests",
            metavar="FILE",
            help='Run the Python of the answers against these tests: rows of {"question", "tests"}. Runs what a model '
            "wrote, with limits but with your rights.",
        ),
    ] = None,
    blind: Annotated[
        bool,
        typer.Option("--blind", help="Then judge the answers on a local page that does not say whose they are."),
    ] = False,
    cost: Price = None,
    watts: Watts = None,
    utilisation: Utilisation = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Models on the same held-out rows: every metric with its interval, and a verdict."""
    from inlay import api
    from inlay.cli import progress, view

    comparison = api.compare(
        *(models or ()), data=data, metrics=_names(metrics), prompts=prompt, settings=settings,
        python_tests=python_tests, blind=blind, cost=cost, watts=watts, utilisation=utilisation, reporter=progress.reporter(), folder=output,
    )  # fmt: skip
    return Output(comparison.to_json(), view.comparisons_text(comparison, view.width()))


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="As in compare; the run trained last if left out.", show_default=False),
    ] = None,
    base: NoAdapter = False,
    data: DataOption = None,
    metrics: MetricsOption = "",
    harness: Annotated[
        str,
        typer.Option(
            metavar="TASKS", help="Tasks of lm-evaluation-harness instead, by name or as .yaml files: base and adapter."
        ),
    ] = "",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --harness: so many documents of each task.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cross-validate: MODEL is then a config or data file, as for train. One run a fold.",
            show_default=False,
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="With --folds: the base, as for train.")
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of eval over the run's, e.g. eval.max_rows=50; with --folds any setting, as for train. May be "
            "repeated.",
        ),
    ] = [],  # noqa: B006
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Score one model on held-out rows, or cross-validate a config."""
    from inlay import api
    from inlay.cli import progress, view

    if limit is not None and not harness:
        raise UserError("--limit belongs to --harness. For fewer held-out rows: --set eval.max_rows=N.")
    if harness:
        if folds is not None or base or data or metrics or base_model:
            raise UserError(
                "--harness: its tasks have rows and metrics of their own; leave --data, --metrics, --base, --model out."
            )
        found = api.harness(
            model, _names(harness), limit=limit, settings=settings, reporter=progress.reporter(), folder=output
        )
        return Output(found, view.harness_text(found))
    if folds is not None:
        if model is None or base or data:
            raise UserError("--folds: name a config or data file, as for train; --base and --data have no place here.")
        given = {"model.base_model": base_model, "output.folder": output if output != "results" else None}
        config = api.config_of(model, settings, None, given)
        found = api.cross_validate(config, folds, metrics=_names(metrics), reporter=progress.reporter())
        return Output(found, view.folds_text(found, view.width()))
    if base_model:
        raise UserError("--model belongs to --folds. Name the model to score as the argument.")
    result = api.evaluate(
        model, adapter=not base, data=data, metrics=_names(metrics), settings=settings, reporter=progress.reporter(),
        folder=output,
    )  # fmt: skip
    return Output(result, view.evaluation_text(result))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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
