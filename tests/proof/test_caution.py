"""A run whose proofs failed is named wherever what it made is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inlay import api
from inlay.evaluation.summary import caveat_text
from inlay.runs.folder import Run


class Noted:
    """A reporter that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Run, dict[str, Any]]:
    from parts import qa_rows, quick_tree, write_rows

    folder = tmp_path_factory.mktemp("caution")
    data = write_rows(folder / "data.jsonl", qa_rows(24))
    few = {"max_rows": 2, "max_new_tokens": 2}
    tree = quick_tree(tiny_base, data, folder / "results", train={"max_steps": 1, "eval_steps": 1}, eval=few)
    return api.train(tree), tree


def fail_a_proof(run: Run, failed: bool) -> None:
    path = run.path / "proofs.json"
    about = json.loads(path.read_text())
    for proof in about["proofs"]:
        proof["passed"] = not (failed and proof["name"] == "mask")
    path.write_text(json.dumps(about))


USES: dict[str, Callable[[Run, dict[str, Any], Noted], Any]] = {
    "compare": lambda run, _, told: told.notes.extend(map(caveat_text, api.compare(run, reporter=told).caveats)),
    "eval": lambda run, _, told: api.evaluate(run, reporter=told),
    "eval of its adapter folder": lambda run, _, told: api.evaluate(run.adapter, reporter=told),
    "eval of a checkpoint": lambda run, _, told: api.evaluate(f"{run.path}@1", reporter=told),
    "generate": lambda run, _, told: api.load(run, reporter=told),
    "train from it": lambda run, tree, told: api.train(
        tree | {"adapter": {"rank": 4, "start_from": str(run.path)}}, fresh=True, reporter=told
    ),
}


@pytest.mark.parametrize("use", USES)
def test_a_run_that_failed_its_proofs_is_named_once_where_it_is_used(
    use: str, trained: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, tree = trained
    tree = tree | {"output": {"folder": str(tmp_path)}}
    for failed in (True, False):
        fail_a_proof(run, failed)
        told = Noted()
        USES[use](run, tree, told)
        said = [note for note in told.notes if "failed its proofs" in note]
        assert said == [run.caution] * failed
        assert run.caution.startswith(f"warning: {run.path}: failed its proofs (mask)") is failed


def test_its_base_alone_is_used_without_a_word(trained: tuple[Run, dict[str, Any]]) -> None:
    run, _ = trained
    fail_a_proof(run, True)
    told = Noted()
    api.evaluate(run, adapter=False, reporter=told)
    assert not any("failed its proofs" in note for note in told.notes)


def test_a_run_without_proofs_is_used_without_a_word(tmp_path: Path) -> None:
    assert Run(tmp_path).caution == ""
    (tmp_path / "proofs.json").write_text("[1")
    assert Run(tmp_path).caution == ""


def test_an_adapter_that_records_no_digest_of_its_base_is_measured_and_that_is_told(
    trained: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, tree = trained
    fail_a_proof(run, False)
    folder = Path(shutil.copytree(run.adapter, tmp_path / "elsewhere"))
    measured = {"data": tree["data"]["train"], "settings": ["eval.max_rows=2", "eval.max_new_tokens=2"]}
    known = [caveat_text(each) for each in api.compare(folder, **measured).caveats]
    (folder / "card.json").unlink()
    now = [caveat_text(each) for each in api.compare(folder, **measured).caveats]
    base = tree["model"]["base_model"]
    assert [text for text in now if text not in known] == [
        f"warning: {folder}: was made on a base of this name ({base}); its digest is not recorded, so it may have been "
        "other weights."
    ]
