"""What stops a run, what is kept of it, and that its result is the adapter it names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay import api
from inlay.cli.render.run import after_training
from inlay.config import load
from inlay.data.batches import micro_batches, step_rows
from inlay.errors import Interrupted, TrainingError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.folder import Run
from inlay.storage import verified
from inlay.training.guards import require_finite_base
from inlay.training.loop import TrainingLoop
from inlay.training.pre_flight import pre_flight
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from parts import make_base, write_rows
from training_runs import Quiet, outcome, stop_after, train

Tree = Callable[..., dict[str, Any]]


def with_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A tiny base whose tensors were changed by hand."""
    make_base(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_base_with_nan_weights_is_refused_before_the_first_step(config_tree: Tree, tmp_path: Path) -> None:
    base = with_weights(tmp_path / "nan", lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")))
    named = r"the base's own held-out loss is nan\. 1 of its weights hold NaN or infinity, first model\.layers\.1\.mlp\.up_proj"
    with pytest.raises(TrainingError, match=rf"before step 1: {named}\.weight\. Get the base again"):
        train(config_tree(model={"base_model": str(base), "dtype": "float32"}))


def test_a_base_whose_loss_is_not_finite_is_told_whether_its_dtype_can_be_at_fault() -> None:
    for dtype, said in ((torch.float16, "try --set model.dtype=float32"), (torch.float32, "get the base again")):
        model = torch.nn.Linear(4, 4, dtype=dtype)
        with pytest.raises(TrainingError, match=rf"(?i){said}"):
            require_finite_base(math.inf, model)
        require_finite_base(1.0, model)


@pytest.mark.parametrize("rate", [1e3, 1e4])
def test_a_learning_rate_that_leaves_no_gradient_is_named_at_its_step(
    config_tree: Tree, tmp_path: Path, rate: float
) -> None:
    tree = config_tree(model={"base_model": "builtin:nano", "dtype": "float32"}, train={"learning_rate": rate})
    with pytest.raises(TrainingError) as caught:
        train(tree)
    text = str(caught.value)
    assert re.match(
        rf"step [2-5]: the loss is 8\.31\d+, above the base's \d\.\d+ \(ln of its 4,096 tokens is 8\.3178\), .* "
        rf"train\.learning_rate {rate:g} is too high\. Set it to auto", text
    ), text  # fmt: skip
    assert "[" not in text


@pytest.mark.parametrize("adapter", [{"rank": 4, "dora": True}, {"method": "full"}])
def test_the_base_has_the_same_loss_after_the_first_step_as_before_it(
    adapter: dict[str, Any], config_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], TrainingLoop.heldout_nll

    def counted(self: TrainingLoop, job: Any, *rest: Any) -> Any:
        made.append(job.progress.step)
        return real(self, job, *rest)

    monkeypatch.setattr(TrainingLoop, "heldout_nll", counted)
    losses = []
    for what, first in (("rollback", 0), ("stop", 1)):  # what may be rolled back to begins with all that is known
        tree = config_tree(train={"max_steps": 1, "on_nonfinite": what}, output={"name": what})
        made.clear()
        losses.append(train(tree | {"adapter": adapter}).metrics[0]["eval_loss"])
        assert made[0] == first
    assert losses[0] == losses[1]


def test_an_adapter_matrix_that_no_gradient_reaches_is_named(config_tree: Tree, tmp_path: Path) -> None:
    base = with_weights(tmp_path / "cut", lambda t: t["model.layers.1.self_attn.o_proj.weight"].zero_())
    with pytest.raises(TrainingError, match=r"after step 1 3 of 14 .* not moved, first .*layers\.1\.self_attn\.q_proj"):
        train(config_tree(model={"base_model": str(base)}))


def test_a_loss_that_is_not_finite_stops_the_run_naming_step_and_rows_and_keeps_the_last_checkpoint(
    config_tree: Tree, tmp_path: Path, data_file: Path
) -> None:
    # the rate grows in a line: the first steps are sane, a later one is not
    absurd = {"learning_rate": 1e25, "schedule": "constant", "max_steps": 4, "eval_steps": 4, "save_steps": 1}
    with pytest.raises(TrainingError) as caught:
        train(config_tree(train=absurd, output={"name": "a"}))
    assert caught.value.exit_code == 1
    text = str(caught.value)
    assert text.startswith("step 2: loss is ")
    assert f"rows {data_file}:" in text or "rows data.jsonl:" in text
    run = Run(tmp_path / "results" / "a")
    assert run.status == "failed"
    assert run.record.error == text
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-000001"]
    verified(run.checkpoints / "step-000001")
    assert all(np.isfinite(line["loss"]) for line in run.metrics if "loss" in line)


@pytest.fixture
def overfitted(config_tree: Tree, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A run whose held-out loss rises: it starts from an adapter that has learned those rows, on other rows."""
    base = {"base_model": str(with_weights(tmp_path / "loud", lambda t: t["lm_head.weight"].mul_(50)))}
    answers = ["Zinc, quartz and jade.", "Foxes jump over hedges.", "Violins hum by dusk.", "Xylophones."]
    held = str(write_rows(tmp_path / "held.jsonl", [{"question": f"What is {a[0]}?", "answer": a} for a in answers]))
    common = {"learning_rate": 0.02, "schedule": "constant"}
    learn = common | {"batch_size": 4, "max_steps": 20, "eval_steps": 20}
    learned = train(config_tree(model=base, train=learn, data={"train": held, "eval": held, "check": "warn"}))

    def make(**settings: Any) -> dict[str, Any]:
        forget = common | {"max_steps": 10, "eval_steps": 2, "keep_checkpoints": 2} | settings
        start = {"start_from": str(learned.path)}
        return config_tree(model=base, adapter=start, train=forget, data={"eval": held})

    return make


def test_the_best_checkpoint_outlives_retention_and_is_exported(overfitted: Tree) -> None:
    run = train(overfitted())
    held = {line["step"]: line["eval_loss"] for line in run.metrics if line["step"] and "eval_loss" in line}
    result = run.result.to_json()
    best = min(held, key=lambda step: held[step])
    assert best < 5, "this run must be worse at its end"
    assert (result["best_step"], result["adapter_step"]) == (best, best)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [f"step-{s:06d}" for s in sorted({best, 8, 10})]
    assert result["eval_loss"] == pytest.approx(held[best], rel=1e-6)
    card = json.loads((run.adapter / "card.json").read_text())
    assert card["step"] == best
    assert card["metrics"]["eval_loss"] == pytest.approx(result["eval_loss"], rel=1e-6)
    assert api.evaluate(run, reporter=Quiet())["metrics"]["loss"] == pytest.approx(result["eval_loss"], rel=1e-5)

    last = train(overfitted(export="last"))
    assert last.result.adapter_step == 10
    assert last.result.eval_loss == pytest.approx(held[10], rel=1e-6)
    assert not same_adapter(run, last)

    reporter = Quiet()
    stopped = train(overfitted(early_stopping_patience=2), reporter=reporter)
    told = f"step {best + 4}: early stop: the held-out loss did not fall below the {held[best]:.4f} of step {best}"
    assert next(note for note in reporter.notes if "early stop" in note).startswith(told)
    assert told in (stopped.path / "log.txt").read_text()
    assert f"of {best + 4}, stopped early, best step {best}" in after_training(stopped)
    assert stopped.result.stopped_early
    assert stopped.result.steps == best + 4
    assert same_adapter(stopped, run)
    assert train(stopped.config.model_copy(update={"output": named(stopped)}), resume=True).record == stopped.record


def test_overfitting_ends_the_run_early_with_its_best_adapter_and_also_after_a_stop(
    overfitted: Tree, tmp_path: Path
) -> None:
    plan = {"max_steps": 30, "eval_steps": 2, "learning_rate": 0.004}
    reporter = Quiet()
    run = train(overfitted(**plan), reporter=reporter)
    result, lines = run.result.to_json(), run.metrics
    assert result["diagnosis"]["kind"] == "overfitting"
    assert result["stopped_early"]
    assert result["best_step"] + 8 <= result["steps"] < 30
    assert result["adapter_step"] == result["best_step"]
    assert [line["step"] for line in lines if line.get("diagnosis") == "overfitting"] == [result["steps"]]
    left = 30 - result["steps"]
    assert f"step {result['steps']}: early stop by train.on_overfitting, {left} steps before the end" in reporter.notes
    assert sum("overfitting: held-out loss rose" in note for note in reporter.notes) == 1

    again = overfitted(**plan) | {"output": {"folder": str(tmp_path), "name": "again"}}
    with pytest.raises(Interrupted):
        train(again, reporter=stop_after(result["steps"] - 3))
    assert outcome(train(again, resume=True)) == outcome(run)

    noted = train(overfitted(**plan, on_overfitting="note"))
    assert noted.result.steps == 30
    assert not noted.result.stopped_early


def named(run: Run) -> Any:
    return run.config.output.model_copy(update={"name": run.name, "folder": str(run.path.parent)})


def same_adapter(a: Run, b: Run) -> bool:
    one, two = (AdapterState.read(r.adapter).tensors for r in (a, b))
    return all((one[name] == two[name]).all() for name in one)


def test_the_pre_flight_block_says_what_was_held_out_and_what_was_lost(config_tree: Tree, tmp_path: Path) -> None:
    def said(long: int, **settings: Any) -> str:
        rows = [{"question": f"Number {n}?", "answer": "word " * (150 if n < long else 3)} for n in range(20)]
        evaluated = {"eval": str(write_rows(tmp_path / "eval.jsonl", rows)), "max_length": 128}
        tree = config_tree(data=evaluated | settings.pop("data", {}), **settings)
        return dict(pre_flight(make_single_job(load(tree=tree), Quiet(), ProcessGroup())).block())["held out"]

    assert said(0) == "20 of 20 rows"
    assert said(2) == "18 of 20 rows; 2 dropped, 0 cut"
    assert said(2, data={"overlong": "cut"}, eval={"max_rows": 5}) == "5 of 20 rows (drawn by seed); 0 dropped, 2 cut"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 8, "micro_batch_size": 4}, "8 = 4 × 2"),
        ({"batch_size": 10, "micro_batch_size": 4}, "10, in 3 micro batches of at most 4"),
        (
            {"batch_size": 512, "micro_batch_size": 64},
            "32 = 32 × 1 (train.batch_size 512 is larger than the 32 rows of an epoch, so each epoch is one step; a smaller "
            "one takes more steps)",
        ),
    ],
)
def test_the_pre_flight_block_says_how_the_rows_of_a_step_are_computed(
    settings: dict[str, int], said: str, config_tree: Tree
) -> None:
    job = make_single_job(load(tree=config_tree(train=settings)), Quiet(), ProcessGroup())
    assert dict(pre_flight(job).block())["batch"] == said
    groups = micro_batches(
        step_rows(1, 0, job.train.shares, settings["batch_size"]), job.lengths, settings["micro_batch_size"]
    )
    assert said.startswith(f"{sum(map(len, groups))}")


def test_the_figures_of_a_run_count_what_they_say(config_tree: Tree, tmp_path: Path) -> None:
    run = train(config_tree(train={"batch_size": 10, "max_steps": 5, "eval_steps": 5}, eval={"max_rows": 3}))
    result, lines = run.result.to_json(), [line for line in run.metrics if "loss" in line]
    # 32 training rows, ten at a time: the fourth step holds two
    assert [line["epoch"] for line in lines] == [0.3125, 0.625, 0.9375, 1.0, 1.3125]
    assert 0 < result["trained_tokens_seen"] < result["tokens_seen"]
    assert run.record.heldout_available == 8
    assert len(run.heldout.read_text().splitlines()) == 3
    assert result["train_loss"] == lines[-1]["loss"]
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss", "best"} <= lines[-1].keys()
    assert (run.reports / "curves.png").read_bytes()[:4] == b"\x89PNG"
