"""A router of two adapters that were really trained: judged by their losses, refused where it does not help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inlay import api
from inlay.adapters.router import Router
from inlay.data.splits import by_content
from inlay.errors import AdapterError, ConfigError
from inlay.evaluation.score import read_held_out
from inlay.workflows import fit_router
from inlay.workflows.fit_router import Fitted, Side, fitted_router
from parts import make_base, qa_rows, quick_tree, write_rows
from training_runs import Quiet, train

COLOURS = [{"question": f"Which paint goes on wall {n}?", "answer": f"blue {n} blue"} for n in range(80)]
CARE = [row | {"answer": row["answer"][:40]} for row in qa_rows(80)]


def trained(folder: Path, name: str, base: Path, rows: list[dict[str, str]], steps: int = 20) -> None:
    data = write_rows(folder / f"{name}.jsonl", rows)
    output = {"folder": str(folder / "results"), "name": name}
    length = {"max_steps": steps, "eval_steps": steps, "save_steps": steps}
    train(quick_tree(base, data, folder / "results", data={"max_length": 128}, train=length, output=output))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A folder with the runs `paint` and `care`."""
    folder = tmp_path_factory.mktemp("routed")
    for name, rows in (("paint", COLOURS), ("care", CARE)):
        trained(folder, name, tiny_base, rows)
    return folder


@pytest.fixture(autouse=True)
def _no_example_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds, and what they are for is in the numbers of the page."""
    monkeypatch.setattr(fit_router, "example_tasks", dict)


@pytest.fixture(scope="module")
def fitted(runs: Path) -> Fitted:
    return api.fit_router(["paint", "care"], runs / "router.json", reporter=Quiet(), folder=str(runs / "results"))


def test_a_router_beats_the_best_adapter_alone_on_rows_it_has_not_seen(fitted: Fitted, runs: Path) -> None:
    found = fitted.judgement
    assert found.wins
    assert found.oracle <= found.routed < found.losses[found.best]
    assert found.general_stay >= 0.95
    assert found.confusion["paint"]["paint"] > found.confusion["paint"]["care"]
    assert found.confusion["care"]["care"] > found.confusion["care"]["paint"]
    stored = Router.read(runs / "router.json")
    assert stored.arms == ("paint", "care")
    assert stored.judged == found.to_json()
    assert stored.choose("Which paint goes on wall 77?").arm == "paint"
    assert stored.choose("Write a poem about the sea.").arm is None


def test_the_losses_of_a_router_are_those_of_compare_on_the_rows_that_judge(fitted: Fitted, runs: Path) -> None:
    rows = []
    for name in ("paint", "care"):
        held_out = read_held_out(runs / "results" / name / "heldout.jsonl")
        kept, _ = by_content(held_out, 1 / 3)
        rows += [{"messages": [{"role": m.role, "content": m.content} for m in held_out[n].messages]} for n in kept]
    data = str(write_rows(runs / "judging.jsonl", rows))
    models = [str(runs / "results" / name) for name in ("paint", "care")]
    found = api.compare(*models, data=data, metrics=["loss"], reporter=Quiet())
    losses, difference = fitted.judgement.losses, found.metrics["loss"]
    assert (difference.base, difference.other) == pytest.approx((losses["paint"], losses["care"]), abs=1e-6)


def test_a_router_that_does_not_help_is_refused_and_written_only_where_it_is_accepted(runs: Path) -> None:
    names, results = ["paint", "paint@20"], str(runs / "results")
    with pytest.raises(api.RouterRefused, match=r"(worse|not distinguishable) against paint alone"):
        api.fit_router(names, runs / "twins.json", reporter=Quiet(), folder=results)
    assert not (runs / "twins.json").exists()
    api.fit_router(names, runs / "twins.json", accept=True, reporter=Quiet(), folder=results)
    assert Router.read(runs / "twins.json").judged["wins"] is False


def test_without_the_training_file_it_is_fitted_to_a_part_of_the_held_out_rows(runs: Path) -> None:
    moved = runs / "paint.jsonl"
    moved.rename(runs / "moved.jsonl")
    reporter = Quiet()
    try:
        found = api.fit_router(
            ["paint", "care"], runs / "few.json", accept=True, reporter=reporter, folder=str(runs / "results")
        )
    finally:
        (runs / "moved.jsonl").rename(moved)
    assert found.training_rows["paint"] < found.training_rows["care"]
    assert any("for want of training rows" in note for note in reporter.notes)


@pytest.mark.parametrize(("names", "message"), [(["paint"], "at least two"), (["paint", "paint"], "each once")])
def test_one_adapter_needs_no_router(runs: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.fit_router(names, runs / "no.json", reporter=Quiet(), folder=str(runs / "results"))


def prompts(*words: str) -> list[str]:
    return [f"{one} {other} case {n}" for n, one in enumerate(words) for other in words]


def test_probabilities_are_calibrated_and_classes_weigh_the_same_whatever_their_numbers() -> None:
    draw = np.random.default_rng(0)

    def side(label: int, count: int, own: float) -> Side:
        """Prompts of which a share has the word of the class, the others that of another one."""
        return Side(
            label, [f"w{label if draw.random() < own else (label + 1) % 3} t{draw.integers(5)}" for _ in range(count)]
        )

    few = fitted_router(
        ["a", "b"], [side(n, size, 0.8) for n, size in enumerate((200, 200, 20))], [side(n, 60, 0.8) for n in range(3)],
        ["w0 t1"] * 20, "digest",
    )  # fmt: skip
    assert few.probabilities("w2 t1")[2] == pytest.approx(0.8, abs=0.12)
    assert few.probabilities("w1 t2")[1] == pytest.approx(0.8, abs=0.12)
    assert few.choose("zz zz").arm is None


def test_the_threshold_leaves_general_text_with_the_base() -> None:
    general = [f"general text {n}" for n in range(80)]
    sides = [Side(0, general[:3]), Side(1, ["general text, but mine"] * 30 + general), Side(2, prompts("x", "y", "z"))]
    found = fitted_router(["a", "b"], sides, sides, general, "digest")
    assert sum(found.choose(text).arm is None for text in general) >= fit_router.STAY * len(general)


def test_adapters_of_different_bases_have_no_common_router(runs: Path, tmp_path: Path) -> None:
    trained(runs, "elsewhere", make_base(tmp_path / "base", seed=1), CARE, steps=1)
    with pytest.raises(AdapterError, match="is on another base than paint"):
        api.fit_router(["paint", "elsewhere"], runs / "no.json", reporter=Quiet(), folder=str(runs / "results"))
