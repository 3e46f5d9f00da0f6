"""Runs that version 0.1.0 wrote open, answer, are proven, and go on, under today's names of settings and values.

`runs-0.1.0.zip` holds what that version left of 24 rows, one adapted layer of the built-in base and two steps: a
finished run, and one that was interrupted after step 2 of 4. Its own version ends that one with `RESUMED`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from inlay import api
from inlay.config.identity import settings_hash
from inlay.config.load import load
from inlay.config.renamed import with_current_names, with_first_names
from inlay.errors import ConfigError
from inlay.runs.folder import Run
from training_runs import Quiet

STORED = Path(__file__).with_name("runs-0.1.0.zip")
RESUMED = {
    "steps": 4,
    "train_loss": 4.603501796722412,
    "eval_loss": 4.03286244917889,
    "base_eval_loss": 4.072307197415099,
}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """The stored runs in a folder of their own, with the data that they name."""
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return {name: Run(Path("results") / name) for name in ("finished", "unfinished")}


def test_records_and_settings_are_read_under_the_names_of_today(stored: dict[str, Run]) -> None:
    finished, unfinished = stored["finished"], stored["unfinished"]
    assert (finished.record.versions["inlay"], finished.record.dtype) == ("0.1.0", "float32")
    assert (finished.status, finished.result.steps, finished.result.best_step) == ("finished", 2, 2)
    assert (unfinished.status, unfinished.record.result) == ("interrupted", None)
    written = (finished.path / "config.yaml").read_text()
    assert "control_tokens: escape" in written
    assert "engine: plain" in written
    for run in stored.values():
        assert (run.config.data.special_tokens, run.config.train.engine) == ("escape", "autograd")
        assert settings_hash(run.config) == run.record.settings_hash


def test_the_earlier_name_of_a_setting_is_none_in_a_config_of_a_user() -> None:
    tree = {"model": {"base_model": "m"}, "data": {"train": "d.jsonl", "control_tokens": "escape"}}
    with pytest.raises(ConfigError, match=r"unknown setting 'data.control_tokens'. Did you mean 'data.special_tokens'"):
        load(tree=tree)


@pytest.mark.parametrize(("earlier", "today"), [("plain", "autograd"), ("direct", "handwritten")])
def test_the_earlier_name_of_a_value_is_an_error_that_names_the_one_of_today(earlier: str, today: str) -> None:
    tree = {"model": {"base_model": "m"}, "data": {"train": "d.jsonl"}, "train": {"engine": earlier}}
    with pytest.raises(
        ConfigError, match=rf"train.engine: must be .* \(got '{earlier}'\). Its name today is '{today}'"
    ):
        load(tree=tree)
    assert with_current_names(tree)["train"] == {"engine": today}
    assert with_first_names(with_current_names(tree)) == tree


def test_a_stored_run_is_proven_compared_and_answers(stored: dict[str, Run]) -> None:
    run = stored["finished"]
    proofs = api.verify(run)["proofs"]
    assert {proof["name"]: proof["found"] for proof in proofs if not proof["passed"]} == {}
    comparison = api.compare("base", run, f"{run.path}@2", reporter=Quiet())
    for one in (comparison, *comparison.also):
        assert one.metrics["loss"].base == pytest.approx(run.result.base_eval_loss, rel=1e-5)
        assert one.metrics["loss"].other == pytest.approx(run.result.eval_loss, rel=1e-5)
    assert api.load(run).generate("Can I return a lamp?", max_new_tokens=8)


@pytest.mark.parametrize(("name", "extend"), [("unfinished", None), ("finished", "4")])
def test_a_stored_run_goes_on_as_its_own_version_would(stored: dict[str, Run], name: str, extend: str | None) -> None:
    reporter = Quiet()
    run = api.resume(stored[name], extend=extend, reporter=reporter)
    found = {key: getattr(run.result, key) for key in RESUMED}
    assert found == pytest.approx(RESUMED, rel=1e-5)
    assert any("going on after step 2 of 4" in note for note in reporter.notes)
