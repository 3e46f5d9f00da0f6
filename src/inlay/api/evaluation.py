"""Scores of one model, comparisons of several, and the proofs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inlay.adapters.names import entry_of
from inlay.adapters.reference import BASE, ModelName, Reference, open_base, reference, require_adapter
from inlay.config.measuring import TAKEN, assigned
from inlay.errors import ConfigError
from inlay.evaluation.blind import serve_trials
from inlay.evaluation.compare import Comparison
from inlay.evaluation.costs import Prices
from inlay.evaluation.custom import MetricSpecs
from inlay.evaluation.python_tests import read_tests
from inlay.evaluation.task_metrics import resolved
from inlay.proof.verify import prove_stored
from inlay.runs.folder import RunLike, find
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.typed_json import JsonObject
from inlay.workflows.adapter_library.check import check
from inlay.workflows.compare import add_judgements, compare_and_report, reports_folder
from inlay.workflows.measure import EvaluationRequest, measure_models


def compare(
    *models: ModelName,
    data: str | None = None,
    metrics: MetricSpecs = (),
    prompts: Sequence[str] = (),
    settings: Sequence[str] = (),
    python_tests: str | Path | None = None,
    blind: bool = False,
    cost: float | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Comparison:
    """The models on the same rows, each against the first; one alone (by default the run trained last) against its base.

    A model is a run, `RUN@STEP`, a library adapter `NAME:TAG`, the folder of an adapter or of a complete model, `base`,
    or a hub id. The rows are the
    held-out set of the first run, or the file `data`. `metrics` replace those that the references call for; one may be
    a function `(prediction, reference) -> float`, or `FILE.py:FUNCTION`. `settings` are `key=value` texts of the section
    eval, such as eval.max_rows=50, that override those of the first run; with `data` also data.format and data.columns,
    which set how the file is read. `python_tests` is a file of {"question", "tests"} rows: the Python in those answers
    is run, in a limited process. Reports go to `reports/` of the first run, without a run to `comparisons/` in `folder`.
    `blind` then opens a local page on which answers are judged without their model's name, and adds the judgements to
    the reports. Any of `cost` (of an hour of this machine), `watts` and `utilisation` (the share of the paid time in
    which it serves) adds the cost of each model.
    Raises: RunError, AdapterError, ModelError, ConfigError for names that mean nothing or cannot be measured.
    """
    reporter, metrics = reporter or PlainReporter(), resolved(metrics)
    over = assigned(settings, "compare", data)
    tests = read_tests(python_tests) if python_tests else {}
    prices = Prices.of(cost, watts, utilisation)
    named = _references(models or (None,), folder, reporter)
    if blind and len(named) > 2:
        raise ConfigError(f"--blind: two models are judged against each other (got {len(named)}). Name two, or one.")
    both = named if len(named) > 1 else [named[0].without_adapter(), *named]
    request = EvaluationRequest(data, metrics, prompts, tests, over, show_answers=blind or prices is not None)
    found = measure_models(both, request, reporter)
    where = reports_folder(found, folder)
    comparison = compare_and_report(found, where, prices)
    if not blind:
        return comparison
    serve_trials(comparison, where, reporter.note)
    return add_judgements(found, comparison, where)


def evaluate(
    model: ModelName = None,
    *,
    adapter: bool = True,
    data: str | None = None,
    metrics: MetricSpecs = (),
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
    folder: str = "results",
) -> JsonObject:
    """{"name", "n", "settings", "metrics": {metric: value}, "speed", "time_s"} of one model.

    Models, rows and `settings` as in `compare`; those that only a comparison needs, such as eval.resamples, are refused.
    """
    metrics, over = resolved(metrics), assigned(settings, "eval", data)
    reporter = reporter or PlainReporter()
    (named,) = _references([model], folder, reporter)
    named = named if adapter else named.without_adapter()
    request = EvaluationRequest(data, metrics, settings=over)
    found = measure_models([named], request, reporter)
    (one,) = found.models
    speed = None if one.score.speed is None else one.score.speed.to_json()
    used = {path: getattr(found.config.eval, path.removeprefix("eval.")) for path in TAKEN["eval"]}
    return {
        "name": one.name, "n": len(found.rows.examples), "settings": used, "metrics": one.totals(), "speed": speed,
        "time_s": round(one.score.time_s, 3),
    }  # fmt: skip


def harness(
    model: ModelName = None,
    tasks: Sequence[str] = (),
    *,
    limit: int | None = None,
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
    folder: str = "results",
) -> JsonObject:
    """Scores on tasks of lm-evaluation-harness, of a base and of the adapter over it.

    `tasks` are names, groups or patterns of the harness, or YAML task files; `limit` is the number of documents of each;
    `settings` are `key=value` texts of eval.batch_size and eval.resamples. Gives
    {"base", "adapter", "scores": [{"task", "metric", "documents", "base", "adapter", "difference"}]}; the difference
    has its paired interval where the metric is a mean over documents. Raises: ConfigError for unknown tasks, or when the
    extra `harness` is not installed.
    """
    from inlay.workflows.harness import measure_on_tasks

    over = assigned(settings, "harness")
    reporter = reporter or PlainReporter()
    found = measure_on_tasks(reference(model, folder, reporter.note), tasks, limit, reporter, over)
    return found.to_json()


def verify(run: RunLike = None, *, reporter: Reporter | None = None, folder: str = "results") -> JsonObject:
    """{"run", "passed", "proofs": [{"name", "passed", "found", "samples"}]} of a run that has an adapter.

    The name of a library adapter gives the proofs of `check_adapters`. `passed` of a proof is None where a file that it
    needs, such as the data, is gone. Raises: RunError.
    """
    reporter = reporter or PlainReporter()
    entry = entry_of(str(run), folder, reporter.note) if isinstance(run, (str, Path)) else None
    if entry is not None:
        name, ((_, proofs),) = entry.ref, check([entry], reporter)
    else:
        found = find(run, folder)
        require_adapter(found)
        name, proofs = str(found.path), prove_stored(found, lambda: open_base(found))
    passed = all(proof.passed is not False for proof in proofs)
    return {"run": name, "passed": passed, "proofs": [proof.to_json() for proof in proofs]}


def _references(names: Sequence[ModelName], folder: str, reporter: Reporter) -> list[Reference]:
    found = [None if name == BASE else reference(name, folder, reporter.note) for name in names]
    owner = next((one for one in found if one is not None), None)
    if owner is None:
        raise ConfigError(f"{BASE}: of which run? Name one with it: inlay compare {BASE} RUN.")
    return [owner.without_adapter() if one is None else one for one in found]
