"""The hand-written engine is taken where it is proven equal, and nowhere else."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import adapted, batch, decoder, gradients

from inlay.engine import select_engine as choosing
from inlay.engine.autograd import AutogradEngine
from inlay.engine.handwritten.mlp import Mlp
from inlay.engine.handwritten.model import HandwrittenEngine
from inlay.engine.select_engine import EngineChoice, refusal, select_engine
from inlay.errors import ConfigError
from parts import empty_cache


def chosen(peft_model: Any, wanted: str = "auto", **options: Any) -> EngineChoice:
    return select_engine(wanted, peft_model, batch(), "cpu", torch.float32, "none", False, **options)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", empty_cache(tmp_path))


def test_a_known_decoder_takes_the_hand_written_engine_and_the_proof_is_kept_for_its_shape() -> None:
    peft_model = adapted(decoder("llama"))
    before = {name: value.clone() for name, value in peft_model.state_dict().items()}
    state = torch.random.get_rng_state()
    choice = chosen(peft_model)
    assert (choice.engine.name, choice.refused, choice.is_remembered, choice.speedup) == (
        "handwritten",
        None,
        False,
        None,
    )
    assert choice.error is not None
    assert 0 < choice.error < 1e-4
    assert choice.summary().startswith(f"checked on one micro batch: its gradient is autograd's to {choice.error:.0e}")
    assert all(torch.equal(before[name], value) for name, value in peft_model.state_dict().items())
    assert all(parameter.grad is None for parameter in peft_model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    again = chosen(adapted(decoder("llama", seed=5)))
    assert (again.is_remembered, again.error) == (True, choice.error)
    assert not chosen(adapted(decoder("llama", num_hidden_layers=2))).is_remembered


def test_the_engine_is_that_of_the_adapter_that_is_named() -> None:
    peft_model = adapted(decoder("llama"), adapters=2)
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    choice = chosen(peft_model, "handwritten", adapter="k1")
    assert gradients(peft_model) == gradients(peft_model, "k1") == {}
    choice.engine.add_gradient(batch(), 0.1)
    assert gradients(peft_model) == {}
    assert gradients(peft_model, "k1")
    assert peft_model.active_adapter == "default"
    peft_model.peft_config["k1"].lora_dropout = 0.1
    assert refusal(peft_model, torch.float32, "none", "k1") == "it does not know adapter dropout"
    assert refusal(peft_model, torch.float32, "none") is None


def test_an_adapter_that_starts_at_zero_is_checked_in_all_its_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model = adapted(decoder("llama"), ["down_proj"])
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    right = Mlp.backward
    monkeypatch.setattr(Mlp, "backward", lambda self, dy, *rest: right(self, dy * 1.001, *rest))
    assert chosen(peft_model).engine.name == "autograd"


def test_an_engine_that_differs_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model = adapted(decoder("llama"))
    right = Mlp.backward
    monkeypatch.setattr(Mlp, "backward", lambda self, dy, *rest: right(self, dy * 1.001, *rest))
    choice = chosen(peft_model)
    assert choice.engine.name == "autograd"
    assert choice.error is not None
    assert choice.error > 1e-4
    assert choice.refused == f"its gradient differs from autograd's by {choice.error:.1e}, more than 1e-04"
    with pytest.raises(ConfigError, match=r"train\.engine handwritten: its gradient differs"):
        chosen(peft_model, "handwritten")
    assert [path.name for path in Path(os.environ["INLAY_CACHE"]).iterdir()] == ["loops"]


def test_what_it_does_not_know_falls_back_and_says_so() -> None:
    from peft import LoraConfig, get_peft_model

    def refused(dtype: torch.dtype = torch.float32, quantization: str = "none", **settings: Any) -> str | None:
        lora = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings})
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5 for a name it renamed
            warnings.simplefilter("ignore")
            peft_model: Any = get_peft_model(decoder("llama"), lora)
        peft_model.base_biases = {}  # as `attach` leaves it
        return refusal(peft_model, dtype, quantization)

    assert refused() is None
    assert refused(use_dora=True) == "it does not know DoRA"
    assert refused(lora_dropout=0.1) == "it does not know adapter dropout"
    assert refused(target_modules=["lm_head"]) == "it does not know an adapter on lm_head"
    assert refused(quantization="int8") == "it does not know a base in int8"
    assert refused(quantization="nf4") is None
    assert refused(dtype=torch.float16) == "it does not compute in float16"
    unknown = chosen(adapted(decoder("llama", hidden_act="relu")))
    assert (unknown.engine.name, unknown.error) == ("autograd", None)
    assert unknown.summary() == "not the hand-written engine: it does not know the activation relu"
    dropped = chosen(adapted(decoder("llama", attention_dropout=0.1)))
    assert dropped.refused == "the base's own dropout is on (train.base_dropout)"
    assert chosen(adapted(decoder("llama")), "autograd").summary() == "as set"


class Clock:
    """Seconds that pass only where an engine computes: 5 in the hand-written one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.plain, self.room = 0.0, 0.0, 10
        self.batches: list[int] = []
        handwritten, autograd = HandwrittenEngine.add_gradients, AutogradEngine.add_gradient

        def add_gradients(engine: Any, parts: Any) -> Any:
            self.now += 5.0
            return handwritten(engine, parts)

        def add_gradient(engine: Any, one: Any, *given: Any) -> Any:
            self.batches.append(len(one.rows))
            if len(one.rows) > self.room:
                raise torch.OutOfMemoryError("no room")
            self.now += self.plain
            return autograd(engine, one, *given)

        monkeypatch.setattr(HandwrittenEngine, "add_gradients", add_gradients)
        monkeypatch.setattr(AutogradEngine, "add_gradient", add_gradient)
        monkeypatch.setattr(choosing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(choosing, "_KNOWN_FASTER", ())


def test_where_it_is_not_known_to_be_faster_both_engines_are_timed_and_the_faster_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, peft_model = Clock(monkeypatch), adapted(decoder("llama"))
    clock.plain = 4.0
    slower = chosen(peft_model)
    assert (slower.engine.name, slower.speedup) == ("autograd", 0.8)
    assert slower.summary() == "not the hand-written engine: it is 0.80 times as fast on one micro batch here"
    clock.plain = 6.0
    faster = chosen(peft_model)
    assert (faster.engine.name, faster.speedup, ", 1.20 times as fast" in faster.summary()) == (
        "handwritten",
        1.2,
        True,
    )
    assert all(parameter.grad is None for parameter in peft_model.parameters())
    clock.plain = 4.0
    assert chosen(peft_model, "handwritten").speedup is None  # as set: not timed


def test_they_are_timed_on_a_batch_as_training_has_them_also_where_autograd_has_no_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, peft_model = Clock(monkeypatch), adapted(decoder("llama"))
    clock.room = 5
    heavy = batch((20,) * 6)
    choice = chosen(peft_model, heavy=heavy)
    assert (choice.engine.name, choice.speedup) == ("handwritten", float("inf"))
    assert "and autograd has no room for a micro batch" in choice.summary()
    assert clock.batches == [5, 6, 6, 6, 6]
    assert all(parameter.grad is None for parameter in peft_model.parameters())


def test_where_its_kernels_fail_autograd_is_taken_and_the_failure_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise TypeError("no such kernel\nin this version")

    monkeypatch.setattr(Mlp, "backward", fails)
    peft_model = adapted(decoder("llama"))
    with pytest.raises(TypeError):  # a fault of ours is not passed over
        chosen(peft_model)
    monkeypatch.setattr(choosing, "_KNOWN_FASTER", ())
    failed = chosen(peft_model)
    assert (failed.engine.name, failed.refused) == ("autograd", "the check fails here (TypeError: no such kernel)")
    with pytest.raises(TypeError):
        chosen(peft_model, "handwritten")
    assert all(parameter.grad is None for parameter in peft_model.parameters())
