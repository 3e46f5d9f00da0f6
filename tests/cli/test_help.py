"""The help of every verb: its purpose, few options, and examples that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from inlay.cli import app
from program import Ended
from test_docs import refused

MOST_OPTIONS = 10


def verbs(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, command) of every verb below."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, *path, name)
    if not hasattr(command, "commands"):
        yield path, command


VERBS = dict(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_a_verb_has_a_purpose_few_options_and_examples_that_it_takes(
    path: tuple[str, ...], inlay: Callable[..., Ended]
) -> None:
    ended = inlay(*path, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: inlay {' '.join(path)} ")
    assert re.search(r"\n\n  [A-Z]", ended.out), "one line of purpose"
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    options = [parameter for parameter in VERBS[path].params if parameter.param_type_name == "option"]
    assert len([option for option in options if not {"--help", "--json"} & {*option.opts}]) <= MOST_OPTIONS
    assert all(option.help for option in options)
    examples = [line.strip() for line in re.split(r"\n  Examples?:\n", ended.out)[1].splitlines()]
    for example in examples:
        line = re.sub(r" {2,}\(.*\)$", "", example).rpartition(" | ")[2]
        assert line.startswith(f"inlay {' '.join(path)}")
        assert refused(shlex.split(line)[1:]) is None


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (["train", "data.jsonl", "--methods", "lora,ia3"], "inlay compare-methods DATA|CONFIG --methods A,B."),
        (["eval", "data.jsonl", "--folds", "5"], "inlay cross-validate DATA|CONFIG --folds K."),
        (["eval", "first", "--harness", "arc_easy"], "inlay harness RUN --tasks A,B."),
        (["compare", "--prompt", "Hi"], "--set eval.prompts=[TEXT]."),
    ],
)
def test_an_option_that_became_a_verb_or_a_setting_is_answered_with_it(
    arguments: list[str], new: str, inlay: Callable[..., Ended]
) -> None:
    ended = inlay(*arguments)
    assert ended.code == 2
    assert f"Write: {new}" in ended.err
    assert ended.err.count("\n") == 1
