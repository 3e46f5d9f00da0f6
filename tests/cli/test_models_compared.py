"""compare and eval take models by any name, and what they write lets every number be computed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inlay import api
from inlay.adapters.reference import reference
from inlay.cli.render.comparison import comparisons_text
from inlay.data.example_tasks import find_example_task
from inlay.errors import AdapterError, ConfigError, DataError, RunError
from inlay.evaluation.caveats import NoAnswers, RowsLeftOut, SelectedCheckpoint, SeveralModels
from inlay.evaluation.metrics import LOSS_METRICS
from inlay.evaluation.summary import style_relevance_text
from inlay.evaluation.task_metrics import metrics_for
from inlay.runs import folder as runs
from inlay.runs.reporter import PlainReporter
from inlay.tasks.task import TASKS
from parts import qa_rows, write_rows
from program import Ended

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
    assert SeveralModels(4) in found.caveats

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


def test_style_and_relevance_are_shown_only_where_they_separate_and_cost_where_a_price_is_given(
    with_run: Path, tmp_path: Path
) -> None:
    there = find_example_task("customer_support").heldout.read_text(encoding="utf-8").splitlines()
    data = tmp_path / "support.jsonl"
    data.write_text("\n".join(sorted(there, key=len)[:26]))
    found = api.compare("first", data=str(data), metrics=["chrf"], cost=2.0, reporter=QUIET)
    style, relevance = found.style_relevance
    assert style.separates
    assert 24 <= found.behaviour["style"].n == found.n
    for one in (style, relevance):
        assert one.separates == (one.metric.name in found.behaviour)
        for text in (comparisons_text(found, 200), (Path(found.reports) / "report.md").read_text(encoding="utf-8")):
            assert style_relevance_text(one) in text
    assert found.to_json()["likeness"]["relevance"]["auc"] == relevance.auc
    assert not set(found.behaviour) & set(found.adjusted_p)  # no say in the verdict

    base, adapter = found.bills
    assert base.once is None
    assert adapter.once == pytest.approx(runs.find("first", "results").result.train_time_s / 1800)
    assert found.speed[0] is not None
    assert base.per_1000 == pytest.approx(found.speed[0].time_s / found.speed[0].answers * 1000 * 2 / 3600 / 0.5)
    assert base.stored_bytes > adapter.stored_bytes > 0
    for name in ("report.md", "report.html"):
        assert "Costs" in (Path(found.reports) / name).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="price: must be 0 or more"):
        api.compare("first", cost=-1.0, reporter=QUIET)


def test_by_the_loss_alone_no_answer_is_generated_and_the_loss_is_the_same(
    with_run: Path, rows: str, monkeypatch: pytest.MonkeyPatch, inlay: Callable[..., Ended]
) -> None:
    usual = api.compare("first", data=rows, metrics=["loss", "chrf"], reporter=QUIET)
    generated: list[int] = []
    counted = replace(TASKS["causal"], answers=lambda *given: generated.append(len(given[2])) or [])
    monkeypatch.setitem(TASKS, "causal", counted)
    found = api.compare("first", data=rows, metrics=["loss"], reporter=QUIET)
    scored = api.evaluate("first", data=rows, metrics=["loss"], reporter=QUIET)
    ended = inlay("compare", "first", "--data", rows, "--metrics", "loss")
    assert sum(generated) == 0
    assert found.metrics == {name: usual.metrics[name] for name in LOSS_METRICS}
    assert NoAnswers() in found.caveats
    assert scored["metrics"]["loss"] == found.metrics["loss"].other
    assert scored["speed"] is None
    assert "note: No answers were generated: none of the metrics needs them." in ended.out
    assert found.to_json()["speed"] == {"base": None, "adapter": None}
    for name in ("report.html", "report.md", "evaluation.json"):
        assert (Path(found.reports) / name).stat().st_size > 0


def test_rows_of_a_file_that_are_too_long_are_left_out_and_counted(with_run: Path, tmp_path: Path) -> None:
    long = [{"question": f"Why {n}?", "answer": "Because it is so. " * 100} for n in range(2)]
    mixed, none = tmp_path / "mixed.jsonl", tmp_path / "none.jsonl"
    write_rows(mixed, [*long, *qa_rows(9)])
    write_rows(none, long)
    found = api.compare("first", data=str(mixed), metrics=["chrf"], reporter=QUIET)
    assert (found.n, found.available) == (9, 11)
    assert found.rows[0].question == qa_rows(1)[0]["question"]
    assert RowsLeftOut(2) in found.caveats
    with pytest.raises(DataError, match=r"none.jsonl: 2 rows are longer than \d+ tokens"):
        api.compare("first", data=str(none), reporter=QUIET)


def test_a_model_of_no_run_is_measured_on_a_file(tiny_base: Path, tmp_path: Path, rows: str) -> None:
    found = api.evaluate(str(tiny_base), data=rows, metrics=["token_f1"], reporter=QUIET, folder=str(tmp_path))
    assert found["n"] == 12
    assert set(found["metrics"]) == {*LOSS_METRICS, "token_f1"}
    with pytest.raises(ConfigError, match=r"no run is named.*--data FILE"):
        api.evaluate(str(tiny_base), reporter=QUIET)


def test_an_adapter_that_cannot_be_used_is_refused_before_any_model_is_measured(
    with_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = shutil.copytree("results/first/adapter", tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "olora"}))
    stages: list[str] = []
    monkeypatch.setattr(QUIET, "stage", stages.append)
    with pytest.raises(AdapterError, match="was started with olora"):
        api.compare("first", str(adapter), reporter=QUIET)
    assert not any("loss on" in stage for stage in stages)


def test_a_bare_name_of_a_run_and_of_a_folder_here_is_refused_and_each_has_a_name_of_its_own(
    with_run: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(with_run / "results")
    (tmp_path / "first").symlink_to(tiny_base)
    with pytest.raises(RunError, match=r"first: is a run in results and the folder of a model here\. Say which: "):
        reference("first", "results")
    assert [reference(name, "results").kind for name in ("results/first", "./first")] == ["run", "model"]


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


def test_the_selected_checkpoint_is_flattered_by_the_rows_it_was_selected_on_by_whatever_name(
    with_run: Path, tmp_path: Path
) -> None:
    run = runs.find("first")
    best = run.result.best_step
    others = [f"first@{one['step']}" for one in api.checkpoints("first") if one["step"] != best]
    names = ["first", f"first@{best}", "results/first/adapter", others[0]]

    def flattered(data: str | None) -> list[bool]:
        found = api.compare("base", *names, data=data, metrics=["loss"], reporter=QUIET)
        return [any(isinstance(one, SelectedCheckpoint) for one in c.caveats) for c in (found, *found.also)]

    expected = [True, True, True, False]
    assert flattered(None) == expected
    copied = shutil.copy(run.heldout, tmp_path / "copy.jsonl")
    assert flattered(str(copied)) == expected
    assert flattered(str(write_rows(tmp_path / "new.jsonl", qa_rows(3)))) == [False] * 4
