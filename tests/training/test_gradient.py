"""The gradient of a step belongs to its rows, however they are shared out."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from inlay.config import load
from inlay.data.batches import micro_batches, step_rows
from inlay.data.encoding.token_arrays import TokenSet, pack
from inlay.engine.autograd import AutogradEngine
from inlay.runs.folder import Run
from inlay.tasks.task import Task
from inlay.training import loop
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop, accumulate, share_of
from inlay.training.process import StopRequest
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from parts import qa_rows, write_rows
from training_runs import Quiet, at_start

Tree = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def setup(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterJob:
    """32 training rows whose answers are 1 to 4 sentences long, every token with a weight of its own."""
    data = write_rows(tmp_path_factory.mktemp("gradient") / "data.jsonl", qa_rows(40))
    tree = {
        "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 4, "init": "gaussian"},
        "data": {"train": str(data), "cache": False},
        "train": {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2},
    }
    made = make_single_job(load(tree=tree), Quiet(), ProcessGroup())
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:  # at zero, A has no gradient
            parameter.data.normal_(0, 0.05)
    return replace(made, data=replace(made.data, train=weighted(made.train)))


def weighted(tokens: TokenSet) -> TokenSet:
    draw, rows = np.random.default_rng(0), [tokens.row(i) for i in range(len(tokens))]
    factors = [draw.uniform(0.1, 3, len(row.weights)).astype(np.float32) for row in rows]
    return pack(enumerate(replace(row, weights=row.weights * f) for row, f in zip(rows, factors, strict=True)))


def job_of(setup: AdapterJob, tmp_path: Any, micro_batch_size: int) -> AdapterJob:
    job = at_start(setup, Run(tmp_path))
    job.micro_batch_size = micro_batch_size
    return job


def gradient(job: AdapterJob, rows: list[int], size: int = 1) -> tuple[torch.Tensor, float]:
    """The step's gradient as one vector and its loss, added up over the shares of `size` ranks."""
    weight, loss = float(job.row_weights[rows].sum()), 0.0
    for rank in range(size):
        shares = share_of(job, rows, job.micro_batch_size, rank, size)
        part, bad = accumulate(job, 1, shares, weight, StopRequest())
        assert not bad
        loss += float(part)
    found = torch.cat([p.grad.reshape(-1).clone() for p in job.parameters.values() if p.grad is not None])
    job.optimizer.zero_grad(set_to_none=True)
    return found, loss


def full_batch(job: AdapterJob, rows: list[int]) -> tuple[torch.Tensor, float]:
    """The gradient of transformers' own logits under a loss written by hand, row by row in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        tokens = job.train.row(row)
        ids = torch.tensor(tokens.input_ids[None].astype(np.int64))
        log_p = job.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        nll = -log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        total = total + (nll * torch.tensor(tokens.weights[1:])).sum()
    loss = total / sum(float(job.train.row(r).weights.sum()) for r in rows)
    loss.backward()
    found = torch.cat([p.grad.reshape(-1).clone() for p in job.parameters.values()])
    job.optimizer.zero_grad(set_to_none=True)
    return found, float(loss.detach())


def heldout_nll(job: AdapterJob) -> tuple[np.ndarray, np.ndarray]:
    return TrainingLoop([job], StopRequest(), Quiet()).heldout_nll(job)


def shared(job: AdapterJob, rank: int, size: int) -> AdapterJob:
    """The job as that rank has it."""
    base = copy(job.base)
    base.group = Share(rank, size)
    return replace(job, base=base)


class Share(ProcessGroup):
    """One rank's own part, not summed with the others."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("micro_batch_size", "ranks"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 3), (3, 2), (8, 4)]
)
def test_the_gradient_and_the_loss_do_not_depend_on_how_the_rows_are_shared_out(
    setup: AdapterJob, tmp_path: Any, micro_batch_size: int, ranks: int
) -> None:
    rows = step_rows(1, 0, len(setup.train), 8)
    job = job_of(setup, tmp_path, micro_batch_size)
    wanted, wanted_loss = full_batch(job, rows)
    found, loss = gradient(job, rows, ranks)
    assert difference(found, wanted) < 1e-6
    assert loss == pytest.approx(wanted_loss, rel=1e-6)


def by_hand(
    job: AdapterJob, row: int, turns: list[dict[str, Any]], roles: dict[str, float]
) -> tuple[list[int], list[float]]:
    """The ids of a dialogue in the template of the base, put together turn by turn, and their weights."""
    tokenizer = AutoTokenizer.from_pretrained(job.config.model.base_model)
    ids: list[int] = []
    weights: list[float] = []
    for turn in turns:
        weight = turn.get("weight", 1.0) * roles.get(turn["role"], 0.0)
        for text, of_it in (
            (f"<|im_start|>{turn['role']}\n", 0.0),
            (f"{turn['content']}<|im_end|>", weight),
            ("\n", 0.0),
        ):
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids, weights = ids + piece, weights + [of_it] * len(piece)
    assert ids == job.train.row(row).input_ids.tolist()
    return ids, weights


def test_the_loss_under_weights_of_turns_roles_and_files_is_that_computed_by_hand_in_float64(
    tiny_base: Any, tmp_path: Path
) -> None:
    draw = np.random.default_rng(3)
    rows = [
        {"messages": [
            {"role": "system", "content": f"Be number {n}."},
            {"role": "user", "content": f"What is {n}?"} | ({"weight": 0.5} if n % 3 == 0 else {}),
            {"role": "assistant", "content": f"It is {n}. " * (1 + n % 4), "weight": float(draw.choice([0.0, 0.3, 1.7]))},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes, sure.", "weight": float(draw.uniform(0.1, 2))},
        ]}
        for n in range(30)
    ]  # fmt: skip
    files = [write_rows(tmp_path / f"{name}.jsonl", part) for name, part in (("a", rows[:15]), ("b", rows[15:]))]
    roles = {"assistant": 0.7, "user": 0.2}
    tree = {
        "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
        "data": {"train": [str(files[0]), {"path": str(files[1]), "weight": 5.0}], "cache": False, "check": "off",
                 "role_weights": roles},
        "train": {"batch_size": 12, "micro_batch_size": 3},
    }  # fmt: skip
    job = job_of(make_single_job(load(tree=tree), Quiet(), ProcessGroup()), tmp_path, 3)
    total, weight = 0.0, 0.0
    drawn = step_rows(1, 0, job.train.shares, 12)
    assert len(set(drawn)) < 12  # some of the second file come twice
    for row in drawn:
        source = job.train.source(row)
        turns = rows[source.line - 1 + 15 * source.file.endswith("b.jsonl")]["messages"]
        ids, weights = by_hand(job, row, turns, roles)
        with torch.no_grad():
            log_p = job.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total += sum(-float(log_p[t - 1, ids[t]]) * weights[t] for t in range(1, len(ids)))
        weight += sum(weights)
    assert gradient(job, drawn)[1] == pytest.approx(total / weight, rel=1e-6)


def test_a_mean_of_means_would_have_been_seen(setup: AdapterJob, tmp_path: Any) -> None:
    rows = step_rows(1, 0, len(setup.train), 8)
    job = job_of(setup, tmp_path, 1)
    wanted, _ = full_batch(job, rows)
    for row in rows:
        accumulate(job, 1, [[row]], float(job.row_weights[row]) * len(rows), StopRequest())
    found = torch.cat([p.grad.reshape(-1).clone() for p in job.parameters.values() if p.grad is not None])
    job.optimizer.zero_grad(set_to_none=True)
    assert difference(found, wanted) > 0.05


def test_padding_may_be_any_token(setup: AdapterJob, tmp_path: Any) -> None:
    rows = step_rows(1, 0, len(setup.train), 8)
    job = job_of(setup, tmp_path, 8)
    wanted, _ = gradient(job, rows)
    job.encoder.pad_id = 17
    assert difference(gradient(job, rows)[0], wanted) < 1e-6


def test_held_out_loss_is_the_same_for_any_number_of_ranks_and_leaves_training_untouched(
    setup: AdapterJob, tmp_path: Any
) -> None:
    job = job_of(setup, tmp_path, 8)
    job.eval_batch_size = 2  # four micro batches
    rows = step_rows(1, 0, len(setup.train), 8)
    before, _ = gradient(job, rows)
    alone = np.stack(heldout_nll(job))
    assert torch.equal(gradient(job, rows)[0], before)
    assert (alone[1] > 0).all()
    for size in (2, 3, 5):
        shares = [np.stack(heldout_nll(shared(job, rank, size))) for rank in range(size)]
        assert sum((share[1] > 0).any() for share in shares) == min(size, 4)
        np.testing.assert_allclose(sum(shares), alone, rtol=1e-12)


def test_dropout_depends_on_the_micro_batch_and_not_on_who_computes_it(setup: AdapterJob, tmp_path: Any) -> None:
    job = job_of(setup, tmp_path, 2)
    job.engine = AutogradEngine(job.model, job.device)  # the hand-written engine is never taken with dropout
    job.has_dropout = True
    rows = step_rows(1, 0, len(setup.train), 8)
    dropouts = [m for name, m in job.model.named_modules() if name.endswith("lora_dropout")]
    before = [dict(d) for d in dropouts]
    for each in dropouts:
        each["default"] = torch.nn.Dropout(0.3).train()
    try:
        one, _ = gradient(job, rows, 1)
        two, _ = gradient(job, rows, 2)
        shares = micro_batches(rows, job.lengths, 2)
        accumulate(job, 2, shares, float(job.row_weights[rows].sum()), StopRequest())
        other_step = torch.cat([p.grad.reshape(-1).clone() for p in job.parameters.values() if p.grad is not None])
    finally:
        job.optimizer.zero_grad(set_to_none=True)
        for each, old in zip(dropouts, before, strict=True):
            each["default"] = old["default"]
    assert difference(two, one) < 1e-6
    assert difference(other_step, one) > 1e-2


def test_the_first_token_of_a_plain_document_counts_in_no_loss(setup: AdapterJob) -> None:
    from inlay.data.types import Example, Message, Source

    document = Example((Message("text", "Tea is served at four.", 1.0),), Source("a", 1))
    tokens = pack(setup.encoder.examples([document]))
    assert tokens.row(0).weights[0] == 0
    assert tokens.trained_counts[0] == tokens.lengths[0] - 1 == tokens.trained_tokens


def test_memory_is_handed_back_before_a_micro_batch_that_is_larger_than_any_before(
    setup: AdapterJob, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, at = job_of(setup, tmp_path, 1), []
    monkeypatch.setattr("inlay.training.loop.trim_allocator", lambda device: at.append((device, job.most_tokens)))
    short, middle, long = (int(row) for row in np.argsort(job.lengths)[[0, len(job.lengths) // 2, -1]])
    accumulate(job, 1, [[middle], [short], [long], [middle], [long]], 1.0, StopRequest())
    assert at == [("cpu", 0), ("cpu", int(job.lengths[middle]))]
    job.optimizer.zero_grad(set_to_none=True)


def test_memory_is_handed_back_between_training_and_an_evaluation_and_behind_it(
    setup: AdapterJob, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, told = job_of(setup, tmp_path, 1), []
    score = Task.score_rows
    monkeypatch.setattr(loop, "trim_allocator", told.append)
    monkeypatch.setattr(Task, "score_rows", lambda *given: told.append("scored") or score(*given))
    heldout_nll(job)
    assert told == ["cpu", "scored", "cpu"]
