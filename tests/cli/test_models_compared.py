"""compare and eval take models by any name, and what they write lets every number be computed again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from inlay import api
from inlay.errors import ConfigError, RunError
from inlay.evaluation.kinds import metrics_for
from inlay.evaluation.metrics import LOSS_METRICS
from inlay.events import PlainReporter
from parts import qa_rows, write_rows

QUIET = PlainReporter()


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "other.jsonl", qa_rows(12)))


def test_every_kind_of_name_is_measured_on_the_same_rows_and_every_number_can_be_computed_again(
    with_run: Path, tiny_base: Path, tmp_path: Path, rows: str
) -> None:
    step = api.checkpoints("first")[-1]["step"]
    shutil.copytree("results/first/adapter", tmp_path / "adapter")
    names = ["base", "first", f"first@{step}", str(tmp_path / "adapter"), str(tiny_base)]
    found = api.compare(*names, data=rows, reporter=QUIET)
    every = [found, *found.also]
    assert [one.adapter for one in every] == names[1:]
    assert all(one.n == 12 for one in every)
    trained, checkpoint, adapter, whole = (one.metrics["loss"].other for one in every)
    assert trained == adapter != whole  # a copy of the adapter folder computes the same
    assert whole == found.metrics["loss"].base  # the base by its folder is the base by its run
    assert checkpoint != whole
    assert any("the best of them looks better" in note for note in found.notes)

    folder = Path(found.reports)
    document = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / document["rows_file"]).read_text(encoding="utf-8").splitlines()]
    metrics = {**LOSS_METRICS, **metrics_for([line["reference"] for line in lines])}
    for n, model in enumerate(document["models"]):
        for name, metric in metrics.items():
            kept = np.array([line["models"][n]["statistics"][name] for line in lines])
            assert float(metric.value(kept.sum(0))) == model["totals"][name], name
    assert [c["metrics"]["loss"]["adapter"] for c in document["comparisons"]] == pytest.approx(
        [model["totals"]["loss"] for model in document["models"][1:]]
    )


def test_a_model_against_itself_differs_by_exactly_nothing_whatever_it_is_called(with_run: Path, rows: str) -> None:
    found = api.compare("first", "results/first/adapter", data=rows, metrics=["chrf"], reporter=QUIET)
    assert list(found.metrics) == [*LOSS_METRICS, "chrf"]
    assert all((d.difference, d.low, d.high) == (0, 0, 0) for d in found.metrics.values())
    assert found.verdict == "not distinguishable"


def test_a_model_of_no_run_is_measured_on_a_file(tiny_base: Path, tmp_path: Path, rows: str) -> None:
    found = api.evaluate(str(tiny_base), data=rows, metrics=["token_f1"], reporter=QUIET, folder=str(tmp_path))
    assert found["n"] == 12
    assert set(found["metrics"]) == {*LOSS_METRICS, "token_f1"}
    with pytest.raises(ConfigError, match=r"no run is named.*--data FILE"):
        api.evaluate(str(tiny_base), reporter=QUIET)


def test_a_name_that_means_nothing_is_refused(with_run: Path) -> None:
    with pytest.raises(RunError, match=r"first: no checkpoint of step 999\. There are \d"):
        api.compare("first@999")
    for name, says in (("rogue_l", "Did you mean 'rouge_l'"), ("mine.py:score", "mine.py: no such file")):
        with pytest.raises(ConfigError, match=says):  # before any model is loaded
            api.compare("first", metrics=[name], reporter=None)
    with pytest.raises(ConfigError, match="base: of which run"):
        api.compare("base")
    with pytest.raises(RunError, match="Did you mean"):
        api.compare("first", "frist")
