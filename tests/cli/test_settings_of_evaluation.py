"""Settings of evaluation given to what measures: they take effect, are recorded, or are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay import api
from inlay.config import load
from inlay.config.load import setting_paths
from inlay.config.measuring import TAKEN, assigned, changed, overrides_text
from inlay.errors import ConfigError, DataError
from inlay.evaluation.caveats import ChangedSettings
from inlay.runs.reporter import PlainReporter
from inlay.storage import write_json
from parts import qa_rows, write_rows
from program import Ended

QUIET = PlainReporter()


def test_settings_of_a_comparison_take_effect_and_are_recorded(with_run: Path) -> None:
    given = ["eval.max_rows=3", "eval.max_new_tokens=2", "eval.batch_size=2", "eval.metric=chrf", "eval.resamples=150"]
    found = api.compare("first", settings=[*given, "eval.prompts=[Where is it]"], reporter=QUIET)
    assert (found.n, found.primary) == (3, "chrf")
    assert [prompt for prompt, *_ in found.prompts] == ["Where is it"]
    (changes,) = [one.changes for one in found.caveats if isinstance(one, ChangedSettings)]
    assert changes[:2] == ("eval.max_rows 3 (in its config 200)", "eval.max_new_tokens 2 (in its config 4)")
    document = json.loads((Path(found.reports) / "evaluation.json").read_text(encoding="utf-8"))
    assert document["settings"] == {
        "max_rows": 3, "batch_size": 2, "max_new_tokens": 2, "metric": "chrf", "resamples": 150, "retention_rows": 0,
        "seed": 0, "greedy": True,
    }  # fmt: skip


def test_settings_of_a_score_take_effect_and_are_recorded(with_run: Path, inlay: Callable[..., Ended]) -> None:
    given = ["--set", "eval.max_rows=2", "--set", "eval.max_new_tokens=3", "--set", "eval.batch_size=1"]
    found = json.loads(inlay("eval", "first", "--base", *given, "--json").out)
    assert found["settings"] == {"eval.max_rows": 2, "eval.max_new_tokens": 3, "eval.batch_size": 1}
    assert (found["n"], found["speed"]["batch_size"]) == (2, 1)
    assert found["speed"]["tokens_per_answer"] <= 3


def test_a_file_is_read_by_the_columns_of_the_run_where_it_has_them_or_by_those_that_are_set(
    with_run: Path, tmp_path: Path
) -> None:
    shutil.copytree("results/first", tmp_path / "renamed", symlinks=True)
    config = tmp_path / "renamed" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("  columns: {}", "  columns: {question: ask}"), encoding="utf-8")
    other = [{"ask": row["question"], "answer": row["answer"]} for row in qa_rows(4)]
    theirs, plain = write_rows(tmp_path / "theirs.jsonl", other), write_rows(tmp_path / "plain.jsonl", qa_rows(4))
    few = ["eval.max_new_tokens=1"]
    scores = [
        api.evaluate(run, data=str(data), settings=[*few, *settings], metrics=["chrf"], reporter=QUIET)["metrics"]
        for run, data, settings in [
            ("first", plain, []),
            (tmp_path / "renamed", plain, []),
            (tmp_path / "renamed", theirs, []),
            ("first", theirs, ["data.columns.question=ask", "data.format=question_answer"]),
        ]
    ]
    assert scores[1:] == scores[:1] * 3
    with pytest.raises(DataError, match="no format fits the fields ask, answer"):
        api.evaluate("first", data=str(theirs), reporter=QUIET)


def test_more_rows_than_a_run_kept_are_refused(with_run: Path, tmp_path: Path) -> None:
    shutil.copytree("results/first", tmp_path / "many", symlinks=True)
    record = json.loads((tmp_path / "many" / "run.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "many" / "run.json", record | {"heldout_available": 1000})
    with pytest.raises(ConfigError, match=r"eval.max_rows 500: many kept \d+ of its 1,000 held-out rows.*--data FILE"):
        api.compare(tmp_path / "many", settings=["eval.max_rows=500"], reporter=QUIET)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "first", "--set", "train.epochs=3"], "cannot take effect in compare: what it measures is trained"),
        (["compare", "first", "--set", "generation.temperature=0"], "its answers are greedy"),
        (["compare", "first", "--set", "data.format=alpaca"], "none is given with --data. Settings that can: eval.max_rows"),
        (["compare", "first", "--set", "eval.max_row=3"], "Did you mean 'eval.max_rows'?"),
        (["compare", "first", "--set", "eval.max_rows=0"], "eval.max_rows: must be a whole number of at least 1 (got 0)"),
        (["compare", "first", "--set", "eval.metric=chfr"], "Did you mean 'chrf'?"),
        (["eval", "first", "--set", "eval.metric=chrf"], "cannot take effect in eval: no second model is compared"),
        (["eval", "first", "--data", "a", "--set", "eval.prompts=[a]"], "eval.max_new_tokens, data.format, data.columns."),
        (["harness", "first", "--tasks", "a", "--set", "eval.max_rows=3"], "Settings that can: eval.batch_size, eval.resam"),
        (["eval", "first", "--limit", "3"], "No such option: --limit. Write: inlay harness RUN --tasks A,B --limit N."),
        (["advise", "--run", "first", "--set", "preset=code"], "cannot take effect in advise --run"),
        (["advise", "--run", "first", "--set", "eval.retention_rows=3"], "cannot take effect in advise --run"),
        (["advise", "--run", "first", "--model", "builtin:nano"], "leave --model out"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_take_effect_is_refused_with_those_that_can(
    with_run: Path, inlay: Callable[..., Ended], arguments: list[str], says: str
) -> None:
    ended = inlay(*arguments)
    assert (ended.code, says in ended.err) == (2, True), ended.err


def test_every_setting_of_evaluation_is_taken_by_compare_and_what_is_taken_exists() -> None:
    assert set(TAKEN["compare"]) == {path for path in setting_paths() if path.startswith("eval.")}
    assert all(set(taken) <= set(TAKEN["compare"]) for taken in TAKEN.values())
    config = load(tree={"model": {"base_model": "m"}, "data": {"train": "d", "columns": {"prompt": "a"}}})
    assert changed(config, {}) is config
    over = assigned(["data.columns.question=b", "eval.max_rows=7", "eval.resamples=10000"], "compare", "file")
    assert changed(config, over).data.columns == {"question": "b"}
    assert overrides_text(config, over) == ["eval.max_rows 7 (in its config 200)"]
