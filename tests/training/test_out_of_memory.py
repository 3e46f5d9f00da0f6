"""Out of memory: the same rows again in smaller batches, and the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from inlay.config import load
from inlay.engine import loss as engine_loss
from inlay.engine.handwritten.model import HandwrittenEngine
from inlay.engine.memory import held_bytes, release
from inlay.errors import ConfigError, Interrupted, TrainingError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.folder import Run
from inlay.training import setup as setups
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop
from inlay.training.process import StopRequest
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from parts import qa_rows, run_record, write_rows
from training_runs import Quiet, at_start, outcome, stop_after, train

Tree = Callable[..., dict[str, Any]]
ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total of"),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 1 GB on private pool."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    lambda: MemoryError(),
]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Any], None]]:
    """What is asked before each forward pass, with its batch; it may raise as an allocator does."""
    asked: list[Callable[[Any], None]] = []

    def guarded(whole: Callable[..., Any], place: int) -> Callable[..., Any]:
        def forward(*arguments: Any, **options: Any) -> Any:
            for ask in asked:
                ask(arguments[place])
            return whole(*arguments, **options)

        return forward

    # evaluation, and the autograd engine
    monkeypatch.setattr(engine_loss, "_trained_tokens", guarded(engine_loss._trained_tokens, 1))
    monkeypatch.setattr(HandwrittenEngine, "add_gradient", guarded(HandwrittenEngine.add_gradient, 1))
    return asked


@pytest.fixture(scope="module", params=["autograd", "handwritten"])
def setup(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AdapterJob:
    data = write_rows(tmp_path_factory.mktemp("shortage") / "data.jsonl", qa_rows(24))
    tree = {
        "model": {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"},
        "adapter": {"rank": 2},
        "data": {"train": str(data), "cache": False},
        "train": {
            "batch_size": 8,
            "micro_batch_size": 8,
            "max_steps": 2,
            "eval_steps": 2,
            "learning_rate": 1e-2,
            "engine": request.param,
        },
        "eval": {"batch_size": 4},
    }
    return make_single_job(load(tree=tree), Quiet(), ProcessGroup())


@pytest.fixture(scope="module")
def trained(setup: AdapterJob, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Run, AdapterState]]:
    """The run and final adapter from the same start, with that micro batch size."""
    start = AdapterState.of(setup.model)

    def run(micro_batch_size: int) -> tuple[Run, AdapterState]:
        start.load_into(setup.model)
        setup.model.train()
        made = Run(tmp_path_factory.mktemp("run"))
        made.write_record(run_record())
        job = at_start(setup, made)
        job.micro_batch_size = micro_batch_size
        TrainingLoop([job], StopRequest(), Quiet()).run()
        return made, AdapterState.of(setup.model)

    return run


@pytest.fixture(scope="module")
def small(trained: Callable[[int], tuple[Run, AdapterState]]) -> Callable[[int], tuple[Run, AdapterState]]:
    """Runs that began with that micro batch, each made once."""
    return cache(trained)


FORWARDS = 10  # a run has about as many


@settings(
    max_examples=5, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(at=st.sets(st.integers(0, FORWARDS), min_size=1, max_size=2), kind=st.sampled_from(ERRORS))
@example(at={2, 4}, kind=ERRORS[0])  # the second time with the gradient of half the rows already there
def test_a_run_that_ran_out_of_memory_anywhere_ends_as_one_that_began_with_the_smaller_batch(
    trained: Any, small: Any, engine: list[Any], at: set[int], kind: Callable[[], Exception]
) -> None:
    calm, wanted = small(1)
    count = iter(range(10_000))

    def fail(batch: Any) -> None:
        if next(count) in at:
            raise kind()

    engine[:] = [fail]
    run, adapter = trained(8)
    engine.clear()
    same(run, calm)
    for name, tensor in wanted.tensors.items():
        torch.testing.assert_close(adapter.tensors[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("room", [1, 3, 5])
def test_with_room_for_so_many_rows_a_batch_is_halved_until_it_fits_and_stays_so(
    trained: Any, small: Any, engine: list[Any], room: int
) -> None:
    calm, wanted = small(1)
    seen = []

    def limited(batch: Any) -> None:
        if len(batch.rows) > room:
            raise ERRORS[0]()
        seen.append(len(batch.rows))

    engine[:] = [limited]
    run, adapter = trained(8)
    engine.clear()
    same(run, calm)
    fits = {1: 1, 3: 2, 5: 4}[room]
    assert max(seen) == fits
    assert {line["micro_batch_size"] for line in run.metrics if "loss" in line} == {fits}
    halvings = [(met.phase, met.step, met.batch_size) for met in run.record.out_of_memory]
    training = [("training", 1, n) for n in (4, 2, 1) if n >= fits]
    assert halvings == training + [("evaluation", 1, n) for n in (2, 1) if n >= fits]
    for name, tensor in wanted.tensors.items():
        torch.testing.assert_close(adapter.tensors[name], tensor, rtol=1e-3, atol=2e-5)


def same(run: Run, calm: Run) -> None:
    """The same steps over the same rows with the same losses."""
    assert [line["step"] for line in run.metrics] == [line["step"] for line in calm.metrics]
    for line, other in zip(run.metrics, calm.metrics, strict=True):
        for key in ("epoch", "learning_rate"):
            assert line.get(key) == other.get(key)
        for key in ("loss", "eval_loss", "grad_norm"):
            assert line.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-4)


def long_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of which eight at once take 80 MB and more on the tiny base, and one about 10 MB."""
    rows = [{"question": f"Number {n}?", "answer": f"{n} " + "word " * 180} for n in range(24)]
    return str(write_rows(tmp_path_factory.mktemp("long") / "data.jsonl", rows))


def test_training_and_evaluation_beyond_a_planned_limit_are_computed_again_in_smaller_batches(
    config_tree: Tree, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"batch_size": 8, "micro_batch_size": 8, "max_steps": 2, "eval_steps": 2, "engine": "autograd"}
    data = {"train": long_rows(tmp_path_factory), "check": "off"}
    calm = train(config_tree(train=plan | {"micro_batch_size": 1}, data=data, eval={"batch_size": 1}))
    limits: list[int] = []

    def modest(*given: Any) -> AdapterJob:  # the estimate would have cut the batches before
        job = make(*given)
        release("cpu")
        job.base.max_memory_bytes = held_bytes("cpu") + 20_000_000
        limits.append(job.base.max_memory_bytes)
        return job

    make = setups.make_job
    monkeypatch.setattr(setups, "make_job", modest)
    run = train(config_tree(train=plan, data=data, eval={"batch_size": 8}))
    found = run.record.out_of_memory
    assert {one.phase for one in found} == {"training", "evaluation"}
    assert all("were held, train.max_memory allows" in one.error for one in found)
    assert all(line["memory_bytes"] < 1.1 * limits[0] for line in run.metrics if "loss" in line)
    same(run, calm)


def test_a_limit_is_planned_with_before_anything_is_trained(
    config_tree: Tree, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = {"train": long_rows(tmp_path_factory), "check": "off"}

    def planned(room: int | str) -> AdapterJob:
        release("cpu")
        limit = room if isinstance(room, str) else f"{held_bytes('cpu') + room}"
        tree = config_tree(data=data, train={"batch_size": 8, "micro_batch_size": "auto", "max_memory": limit})
        return make_single_job(load(tree=tree), Quiet(), ProcessGroup())

    roomy, close = planned("900GB"), planned(20_000_000)
    assert (roomy.config.train.micro_batch_size, roomy.eval_batch_size) == (8, 16)
    assert 1 <= close.config.train.micro_batch_size < 8
    assert 1 <= close.eval_batch_size < 16
    with pytest.raises(ConfigError, match=r"50MB leave 0 B beside what Python and the libraries hold. Lower"):
        planned("50MB")


def test_a_shortage_is_remembered_by_a_run_that_is_stopped_and_resumed(
    config_tree: Tree, engine: list[Any], tmp_path: Path
) -> None:
    plan = {"max_steps": 6, "save_steps": 4, "eval_steps": 6, "keep_checkpoints": 1}
    trees = {name: config_tree(train=plan, output={"name": name}) for name in ("whole", "broken")}
    steps: list[int] = []

    def once(batch: Any) -> None:
        if steps and steps[-1] == 2 and len(batch.rows) > 2:
            raise ERRORS[0]()

    engine[:] = [once]
    whole = train(trees["whole"], reporter=Quiet(steps.append))
    assert [line["micro_batch_size"] for line in whole.metrics if "loss" in line] == [4, 4, 2, 2, 2, 2]
    assert whole.result.out_of_memory == 1
    (short,) = [line for line in whole.metrics if "out_of_memory" in line]
    assert (short["step"], short["out_of_memory"]) == (3, [asdict(one) for one in whole.record.out_of_memory])
    assert "| 3 | out of memory | in training: CUDA out of memory" in (whole.reports / "report.md").read_text()
    steps.clear()

    class Watched(Quiet):
        def progress(self, done: int, values: dict[str, Any]) -> None:
            steps.append(done)
            stop.progress(done, values)

    stop = stop_after(5)
    with pytest.raises(Interrupted):
        train(trees["broken"], reporter=Watched())
    engine.clear()  # there is room again, yet steps 3 and 5 must be computed as they were
    for folder in (tmp_path / "results" / "broken" / "checkpoints").glob("step-000005"):
        (folder / "state.json").unlink()  # so that it resumes before the shortage's later steps
    broken = train(trees["broken"], resume=True)
    assert outcome(broken) == outcome(whole)


def test_a_single_row_that_does_not_fit_is_one_line_with_the_way_out(config_tree: Tree, engine: list[Any]) -> None:
    def full(batch: Any) -> None:
        raise ERRORS[0]()

    engine[:] = [full]
    with pytest.raises(TrainingError, match=r"^out of memory \(CUDA out of memory.*gradient_checkpointing"):
        train(config_tree())


def test_any_other_error_of_the_engine_passes_through(trained: Any, engine: list[Any]) -> None:
    def broken(batch: Any) -> None:
        raise RuntimeError("shapes differ")

    engine[:] = [broken]
    with pytest.raises(RuntimeError, match="shapes differ"):
        trained(8)
