"""inlay adapters: list, show, add, tag, remove, check, compose, merge, export."""

from __future__ import annotations

from typing import Annotated

import typer

from inlay import api
from inlay.cli import adapter_ranks, render
from inlay.cli.help import group, verb
from inlay.cli.options import USE, Folder, Json, Library
from inlay.cli.render.outcome import Output
from inlay.errors import ConfigError

Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME:VERSION, NAME:TAG, or NAME for its newest version.")]
Yes = Annotated[bool, typer.Option("--yes", help="Remove without asking.")]


def add_to(app: typer.Typer) -> None:
    """Adds the group."""
    adapters = group("The adapter library: keep trained adapters by name and version, find them, check them.")
    verb(adapters, ["inlay adapters list", "inlay adapters list --task support --json"], name="list")(listed)
    verb(adapters, ["inlay adapters show support:prod"])(show)
    verb(adapters, _ADD_EXAMPLES)(add)
    verb(adapters, ["inlay adapters tag support:3 prod", "inlay adapters tag support:3 prod --remove"])(tag)
    verb(adapters, ["inlay adapters remove support:2"])(remove)
    verb(adapters, ["inlay adapters check", "inlay adapters check support:prod"])(check)
    verb(adapters, _COMPOSE_EXAMPLES)(compose)
    verb(
        adapters,
        [
            "inlay adapters merge support:prod --out merged",
            "inlay adapters merge a=0.7 b=0.3 --out both --dtype float32",
        ],
    )(merge)
    verb(adapters, _EXPORT_EXAMPLES)(export)
    adapter_ranks.add_to(adapters)
    app.add_typer(adapters, name="adapters", rich_help_panel=USE)


_ADD_EXAMPLES = (
    "inlay adapters add news",
    "inlay adapters add news --name support --task support --tag prod",
    "inlay adapters add news@120 --name support",
    "inlay adapters add ./legal --base Qwen/Qwen2.5-0.5B-Instruct",
)


_COMPOSE_EXAMPLES = (
    "inlay adapters compose support=0.7 legal=0.3 --name both",
    "inlay adapters compose support:prod=1 news@120=-0.4 --name c --energy 0.99",
    "inlay adapters compose support legal --name both --fit rows.jsonl",
    "inlay adapters compose support legal --name both --fit rows.jsonl --blocks 4",
    "inlay adapters compose support=1 legal=1 --name c --as ties_svd",
)

_EXPORT_EXAMPLES = (
    "inlay adapters export support:prod --to gguf exported",
    "inlay adapters export support:prod --to vllm --check",
    "inlay adapters export news --to peft exported --as-trained",
)


def listed(
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="Only adapters with this task.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="B", help="Only adapters on this base.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", metavar="TAG", help="Only versions with this tag.")] = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """List every adapter and version: tags, task, base, rank, size, and the verdict of its run."""
    rows = api.list_adapters(task=task, base=base, tag=tag, library=library, folder=output)
    is_all = task is base is tag is None
    return Output(rows, render.adapters.list_text(rows, render.terminal.width(), is_all=is_all))


def show(ref: Ref, library: Library = None, output: Folder = "results", as_json: Json = False) -> Output:
    """Show one version: facts, origin, verdict, parents, and its history."""
    found = api.show_adapter(ref, library=library, folder=output)
    return Output(found, render.adapters.show_text(found))


def add(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|FOLDER", help="A run, RUN@STEP, or the folder of an adapter.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name. [default: that of the run or folder]")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="The task it was trained for.")] = None,
    tags: Annotated[list[str], typer.Option("--tag", metavar="TAG", help="Tag the version. May be repeated.")] = [],  # noqa: B006
    licence: Annotated[str | None, typer.Option("--licence", metavar="L", help="Licence of the adapter.")] = None,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="One line to remember it by.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="The base of a folder that does not record the digest of its own."
        ),
    ] = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Add an adapter as a new version of a name. The same adapter added twice is one version."""
    added = api.add_adapter(
        source, name=name, task=task, tags=tags, licence=licence, note=note, base=base,
        reporter=render.progress.reporter(), library=library, folder=output,
    )  # fmt: skip
    return Output(added.to_json(), render.adapters.added_text(added, source))


def tag(
    ref: Ref,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="A name such as prod or canary.")],
    is_removed: Annotated[bool, typer.Option("--remove", help="Take the tag off this version.")] = False,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Give a version a tag, which the version that had it before loses; or take it off."""
    if is_removed:
        row = api.untag_adapter(ref, tag, library=library, folder=output)
        return Output(row, f"{row['name']}:{row['version']} no longer has the tag {tag}")
    row = api.tag_adapter(ref, tag, library=library, folder=output)
    return Output(row, f"{row['name']}:{tag} is version {row['version']}")


def remove(
    ref: Ref, yes: Yes = False, library: Library = None, output: Folder = "results", as_json: Json = False
) -> Output:
    """Remove one version. Asks first; a version with a tag, and one in use, are refused."""
    named = api.removable_adapter(ref, library=library, folder=output)  # its card may be what is damaged
    render.progress.require_yes(f"remove {named}?", yes, as_json)
    gone = api.remove_adapter(named, library=library, folder=output)
    return Output(gone, f"removed {gone['removed']}")


def check(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="One version. [default: all]", show_default=False)
    ] = None,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Prove versions again: files, weights, base, tokenizer, golden answers. Exit code 1 when a proof fails."""
    found = api.check_adapters(ref, reporter=render.progress.reporter(), library=library, folder=output)
    return Output(found, render.adapters.check_text(found), 0 if all(one["passed"] for one in found) else 1)


def compose(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="A=W B=W …",
            show_default=False,
            help="Adapters with weights: library names, runs, RUN@STEP, folders. Names alone with --fit.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Its name in the library.", show_default=False)],
    rank: Annotated[int | None, typer.Option("--rank", metavar="R", help="Cut each module to this rank.")] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="E", help="Keep this share of each module's ‖ΔW‖², such as 0.99."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE", help="Cut to this size, such as 20MB, where it costs least."),
    ] = None,
    lossy: Annotated[
        str | None,
        typer.Option("--as", metavar="MERGE", help="ties_svd or dare_svd in place of the exact sum; they lose a part."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="D", help="Share of entries that --as keeps. [default: 0.2]"),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option("--fit", metavar="ROWS", help="Find the weights on half of these rows; judge them on the others."),
    ] = None,
    blocks: Annotated[
        int, typer.Option("--blocks", metavar="N", help="With --fit: own weights for each of N blocks of layers.")
    ] = 1,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Put the weighted sum of adapters into the library. The weights apply to the changes ΔW, so the sum is exact. PEFT's
    linear, which weighs A and B apart, is off by 85% for two adapters."""
    composed = api.compose_adapters(
        render.adapters.weights_of(parts), name, rank=rank, energy=energy, budget=budget, lossy=lossy, density=density,
        fit=fit, blocks=blocks, reporter=render.progress.reporter(), library=library, folder=output,
    )  # fmt: skip
    return Output(composed.to_json(), render.adapters.composed_text(composed))


def merge(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="A[=W] …",
            show_default=False,
            help="Adapters, with weights other than 1: library names, runs, RUN@STEP, folders.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The new folder.", show_default=False)],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="as-base, bfloat16, float16 or float32.")
    ] = "as-base",
    onto: Annotated[
        str,
        typer.Option(
            "--onto", metavar="WEIGHTS", help="Of a quantized base: those trained over, or the original ones."
        ),
    ] = "trained",
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="FILE", help="Rows of the check. [default: held-out rows of the run]"),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Load no model: for a machine that cannot hold it.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Keep a model that loses more than 5% of the gain.")
    ] = False,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Merge adapters into their base: a complete model in a new folder. Any method but prompt tuning; weights add up. It is
    checked against base and adapter before the folder gets its name."""
    weights = render.adapters.weights_of(parts)
    merged = api.merge_adapters(
        weights, out, dtype=dtype, onto=onto, rows=rows, check=not no_check,
        accept_loss=accept_loss, reporter=render.progress.reporter(), library=library, folder=output,
    )  # fmt: skip
    return Output(merged.to_json(), render.adapters.merged_text(merged, next(iter(weights))))


def export(
    ref: Annotated[
        str,
        typer.Argument(metavar="REF", help="A library name, a run, RUN@STEP, or a folder.", show_default=False),
    ],
    out: Annotated[
        str | None, typer.Argument(metavar="DIR", help="The new folder; none with --check.", show_default=False)
    ] = None,
    to: Annotated[
        str,
        typer.Option("--to", metavar="FORM", help="peft, vllm, gguf, mlx, ollama or folder.", show_default=False),
    ] = "",
    is_check: Annotated[
        bool, typer.Option("--check", help="Say what fits the program's limits and what not; write nothing.")
    ] = False,
    as_trained: Annotated[
        bool, typer.Option("--as-trained", help="peft: keep method, ranks and alphas as they were.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="float32 or float16.")] = "float32",
    with_rows: Annotated[
        bool, typer.Option("--with-rows", help="Add golden answers to held-out prompts, which are rows of your data.")
    ] = False,
    library: Library = None,
    output: Folder = "results",
    as_json: Json = False,
) -> Output:
    """Write an adapter for another program: PEFT, vLLM, llama.cpp (gguf), mlx-lm, Ollama; folder is a merged model. The files
    are read back and compared with the adapter before the folder gets its name. EXPORT.md in it has the command."""
    if is_check == (out is not None):
        raise ConfigError("export: give the folder to write, or --check and no folder.")
    if to == "folder":
        render.adapters.require_plain_merge(is_check, as_trained, dtype, with_rows)
        assert out is not None
        merged = api.merge_adapters(
            {ref: None}, out, reporter=render.progress.reporter(), library=library, folder=output
        )
        return Output(merged.to_json(), render.adapters.merged_text(merged, ref))
    exported = api.export_adapter(
        ref, to, out, as_trained=as_trained, dtype=dtype, with_rows=with_rows, reporter=render.progress.reporter(),
        library=library, folder=output,
    )  # fmt: skip
    return Output(exported.to_json(), render.adapters.exported_text(exported), 0 if exported.fits else 1)
