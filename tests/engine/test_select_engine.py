"""The direct path is taken where it is proven equal, and nowhere else."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import adapted, batch, decoder

from inlay.engine import select_engine as choosing
from inlay.engine.autograd import PlainModel
from inlay.engine.direct.mlp import Mlp
from inlay.engine.direct.model import DirectModel
from inlay.engine.select_engine import choose, refusal
from inlay.errors import ConfigError


def chosen(peft_model: Any, wanted: str = "auto", dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    engine, reason = choose(wanted, peft_model, batch(), "cpu", dtype, "none", False)
    return engine.name, reason


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path))


def test_a_known_decoder_takes_the_direct_path_and_the_proof_is_kept_for_its_shape() -> None:
    peft_model = adapted(decoder("llama"))
    before = {name: value.clone() for name, value in peft_model.state_dict().items()}
    state = torch.random.get_rng_state()
    name, reason = chosen(peft_model)
    assert (name, "checked on one micro batch" in reason) == ("direct", True)
    assert all(torch.equal(before[name], value) for name, value in peft_model.state_dict().items())
    assert all(parameter.grad is None for parameter in peft_model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "checked before" in chosen(adapted(decoder("llama", seed=5)))[1]
    assert "checked on one micro batch" in chosen(adapted(decoder("llama", num_hidden_layers=2)))[1]


def test_an_adapter_that_starts_at_zero_is_checked_in_all_its_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model = adapted(decoder("llama"), ["down_proj"])
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    right = Mlp.backward
    monkeypatch.setattr(Mlp, "backward", lambda self, dy, *rest: right(self, dy * 1.001, *rest))
    assert chosen(peft_model)[0] == "plain"


def test_a_path_that_differs_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model = adapted(decoder("llama"))
    right = Mlp.backward
    monkeypatch.setattr(Mlp, "backward", lambda self, dy, *rest: right(self, dy * 1.001, *rest))
    name, reason = chosen(peft_model)
    assert name == "plain"
    assert "differs from the plain one's by" in reason
    with pytest.raises(ConfigError, match=r"train\.engine direct: its gradient differs"):
        chosen(peft_model, "direct")
    assert not list(Path(os.environ["INLAY_CACHE"]).iterdir())


def test_what_it_does_not_know_falls_back_and_says_so() -> None:
    from peft import LoraConfig, get_peft_model

    def refused(dtype: torch.dtype = torch.float32, quantization: str = "none", **settings: Any) -> str | None:
        lora = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings})
        with warnings.catch_warnings():  # peft 0.21 asks transformers 5 for a name it renamed
            warnings.simplefilter("ignore")
            return refusal(get_peft_model(decoder("llama"), lora), dtype, quantization)

    assert refused() is None
    assert refused(use_dora=True) == "it does not know DoRA"
    assert refused(lora_dropout=0.1) == "it does not know adapter dropout"
    assert refused(target_modules=["lm_head"]) == "it does not know an adapter on lm_head"
    assert refused(quantization="int8") == "it does not know a base in int8"
    assert refused(quantization="nf4") is None
    assert refused(dtype=torch.float16) == "it does not compute in float16"
    assert chosen(adapted(decoder("llama", hidden_act="relu"))) == (
        "plain",
        "not the direct one: it does not know the activation relu",
    )
    assert chosen(adapted(decoder("llama", attention_dropout=0.1)))[1].endswith(
        "the base's own dropout is on (train.base_dropout)"
    )


class Clock:
    """Seconds that pass only where a path computes: 5 on the direct one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.plain, self.room = 0.0, 0.0, 10
        self.batches: list[int] = []
        direct, plain = DirectModel.add_gradients, PlainModel.add_gradient

        def add_gradients(engine: Any, batches: Any, *given: Any) -> Any:
            self.now += 5.0
            return direct(engine, batches, *given)

        def add_gradient(engine: Any, one: Any, *given: Any) -> Any:
            self.batches.append(len(one.rows))
            if len(one.rows) > self.room:
                raise torch.OutOfMemoryError("no room")
            self.now += self.plain
            return plain(engine, one, *given)

        monkeypatch.setattr(DirectModel, "add_gradients", add_gradients)
        monkeypatch.setattr(PlainModel, "add_gradient", add_gradient)
        monkeypatch.setattr(choosing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(choosing, "_KNOWN_FASTER", ())


def test_where_it_is_not_known_to_be_faster_both_paths_are_timed_and_the_faster_one_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, peft_model = Clock(monkeypatch), adapted(decoder("llama"))
    clock.plain = 4.0
    assert chosen(peft_model) == ("plain", "not the direct one: it is 0.80 times as fast on one micro batch here")
    clock.plain = 6.0
    name, reason = chosen(peft_model)
    assert (name, ", 1.20 times as fast" in reason) == ("direct", True)
    assert all(parameter.grad is None for parameter in peft_model.parameters())
    clock.plain = 4.0
    assert chosen(peft_model, "direct")[0] == "direct"  # as asked for: not timed


def test_they_are_timed_on_a_batch_as_training_has_them_also_where_the_plain_path_has_no_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, peft_model = Clock(monkeypatch), adapted(decoder("llama"))
    clock.room = 5
    heavy = batch((20,) * 6)
    engine, reason = choose("auto", peft_model, batch(), "cpu", torch.float32, "none", False, heavy=heavy)
    assert (engine.name, "the plain one has no room for a micro batch" in reason) == ("direct", True)
    assert clock.batches == [5, 6, 6, 6, 6]
    assert all(parameter.grad is None for parameter in peft_model.parameters())


def test_where_its_kernels_fail_the_plain_path_is_taken_and_the_failure_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise TypeError("no such kernel\nin this version")

    monkeypatch.setattr(Mlp, "backward", fails)
    peft_model = adapted(decoder("llama"))
    with pytest.raises(TypeError):  # a fault of ours is not passed over
        chosen(peft_model)
    monkeypatch.setattr(choosing, "_KNOWN_FASTER", ())
    assert chosen(peft_model) == ("plain", "not the direct one: the check fails here (TypeError: no such kernel)")
    with pytest.raises(TypeError):
        chosen(peft_model, "direct")
    assert all(parameter.grad is None for parameter in peft_model.parameters())
