"""Several adapters trained over one base end as each would alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.config import Config, load
from inlay.data.batches import step_rows
from inlay.errors import AdapterError, ConfigError, Interrupted
from inlay.methods.adapter_state import AdapterState
from inlay.methods.table import adapters_on
from inlay.runs.folder import Run
from inlay.training import checkpoint as checkpoints
from inlay.training.guards import NonFinite
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop, accumulate
from inlay.training.process import StopRequest
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_job, open_training_base
from parts import qa_rows, run_record, write_rows
from training_runs import Quiet, untimed

Tree = Callable[..., dict[str, Any]]
WAYS = {
    "one": {"adapter": {"rank": 2}, "train": {"learning_rate": 1e-2, "seed": 3, "max_steps": 3}},
    "two": {"adapter": {"rank": 5, "target_modules": ["q_proj", "down_proj"]}, "train": {"learning_rate": 3e-3, "batch_size": 6}},
}  # fmt: skip


@pytest.fixture(params=["handwritten", "autograd"])
def configs(config_tree: Tree, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Config]:
    """Two configs that differ in rank, target modules, learning rate, batch, seed, number of steps, and data."""
    data = write_rows(tmp_path / "other.jsonl", qa_rows(60)[15:])
    found = {}
    for name, sections in WAYS.items():
        tree = config_tree(**sections, data={"train": str(data)} if name == "two" else {})
        tree["train"] |= {"engine": request.param, "save_steps": 1}
        found[name] = load(tree=tree)
    return found


def jobs_of(folder: Path, *configs: Config) -> list[AdapterJob]:
    """The configs on one base, each with a run folder of its own."""
    base = open_training_base(configs[0], ProcessGroup())
    jobs = [make_job(base, config, Quiet()) for config in configs]
    for number, job in enumerate(jobs):
        job.run = Run(folder / f"run-{number}")
        job.run.path.mkdir(parents=True)
        job.run.write_record(run_record())
    return jobs


def trained(folder: Path, *configs: Config) -> list[AdapterJob]:
    jobs = jobs_of(folder, *configs)
    TrainingLoop(jobs, StopRequest(), Quiet()).run()
    return jobs


def kept(job: AdapterJob) -> dict[str, Any]:
    """Everything that a job leaves: metrics, and the weights and optimizer of each checkpoint."""
    found = {
        checkpoint.step: [
            (checkpoint.path / name).read_bytes() for name in (checkpoints.ADAPTER, checkpoints.OPTIMIZER)
        ]
        for checkpoint in checkpoints.listed(job.run.checkpoints)
    }
    return {"metrics": [untimed(line) for line in job.run.metrics], "checkpoints": found}


def test_two_jobs_over_one_base_end_bit_for_bit_as_two_runs(configs: dict[str, Config], tmp_path: Path) -> None:
    together = trained(tmp_path / "together", *configs.values())
    assert together[0].model is together[1].model
    assert [len(job.run.metrics) for job in together] == [4, 5]
    for name, job in zip(configs, together, strict=True):
        (alone,) = trained(tmp_path / name, configs[name])
        assert kept(job) == kept(alone)
        assert len(kept(job)["checkpoints"]) > 1
        ours, theirs = AdapterState.of(job.model, job.name), AdapterState.of(alone.model, alone.name)
        assert ours.settings == theirs.settings
        assert all(torch.equal(ours.tensors[key], tensor) for key, tensor in theirs.tensors.items())


def gradient_of(job: AdapterJob) -> list[torch.Tensor]:
    rows = step_rows(1, 0, len(job.train), 6)
    job.optimizer.zero_grad(set_to_none=True)
    with TrainingLoop([job], StopRequest(), Quiet()).active(job):
        accumulate(job, 1, [rows[:3], rows[3:]], 10.0, StopRequest())
    return [parameter.grad.clone() for parameter in job.parameters.values() if parameter.grad is not None]


def test_a_weight_that_is_not_finite_in_one_job_changes_no_bit_of_the_gradient_of_the_other(
    configs: dict[str, Config], tmp_path: Path
) -> None:
    one, two = jobs_of(tmp_path, *configs.values())
    assert not one.parameters.keys() & two.parameters.keys()
    before = gradient_of(two)
    next(iter(one.parameters.values())).data.view(-1)[0] = math.nan
    rows = step_rows(1, 0, len(one.train), 4)
    with TrainingLoop([one, two], StopRequest(), Quiet()).active(one):
        loss, bad = accumulate(one, 1, [rows], 10.0, StopRequest())
    assert math.isnan(float(loss))
    assert bad
    assert not [name for name, parameter in one.parameters.items() if parameter.grad is not None]
    assert all(torch.equal(now, then) for now, then in zip(gradient_of(two), before, strict=True))


def test_a_job_that_fails_leaves_the_other_to_its_end(configs: dict[str, Config], tmp_path: Path) -> None:
    one, two = jobs_of(tmp_path / "together", *configs.values())
    next(iter(one.parameters.values())).data.view(-1)[0] = math.nan
    with pytest.raises(NonFinite, match=r"step 1: loss is nan"):
        TrainingLoop([one, two], StopRequest(), Quiet()).run()
    (alone,) = trained(tmp_path / "alone", configs["two"])
    assert kept(two) == kept(alone)
    assert not one.run.has_checkpoint()


def test_a_signal_leaves_a_checkpoint_of_each_job_from_which_both_end_as_unbroken(
    configs: dict[str, Config], tmp_path: Path
) -> None:
    whole = [kept(job) for job in trained(tmp_path / "whole", *configs.values())]
    jobs, stop = jobs_of(tmp_path / "broken", *configs.values()), StopRequest()

    def after_step(done: int) -> None:
        stop.signal = 2 if done == 3 else None

    with pytest.raises(Interrupted, match=r"after step 2 of 3 and step 1 of 4"):
        TrainingLoop(jobs, stop, Quiet(after_step)).run()
    again = jobs_of(tmp_path / "other", *configs.values())
    for job, before in zip(again, jobs, strict=True):
        job.run = before.run
        job.restore(checkpoints.listed(before.run.checkpoints)[-1])
    TrainingLoop(again, StopRequest(), Quiet()).run()
    assert [kept(job) for job in again] == whole


def test_only_settings_of_the_base_must_be_shared(configs: dict[str, Config], tmp_path: Path) -> None:
    base = open_training_base(configs["one"], ProcessGroup())
    make_job(base, configs["one"], Quiet())
    other = configs["two"].model_copy(update={"model": configs["two"].model.model_copy(update={"dtype": "bfloat16"})})
    with pytest.raises(ConfigError, match=r"^model.dtype \('bfloat16', the base has 'float32'\): adapters on one base"):
        make_job(base, other, Quiet())
    assert base.names == ["default"]
    make_job(base, configs["two"], Quiet())


def test_a_config_that_is_refused_leaves_the_base_with_the_adapters_that_it_had(
    config_tree: Tree,
) -> None:
    base = open_training_base(load(tree=config_tree()), ProcessGroup())
    make_job(base, load(tree=config_tree()), Quiet())
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"train\.engine"):
        make_job(base, load(tree=config_tree(adapter={"dropout": 0.1}, train={"engine": "handwritten"})), Quiet())
    with pytest.raises(AdapterError, match=r"adapter\.bias"):
        make_job(base, load(tree=config_tree(adapter={"bias": "all"})), Quiet())
    assert (base.names, list(adapters_on(base.model))) == (["default"], ["default"])
    assert before.keys() == base.model.state_dict().keys()
    assert [name for name, value in base.model.state_dict().items() if not torch.equal(value, before[name])] == []
