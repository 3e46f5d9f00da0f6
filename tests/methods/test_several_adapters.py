"""Several adapters on one base, each under its name: none of them sees the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from families import family
from inlay.config import Config
from inlay.errors import AdapterError
from inlay.methods.adapter import adapter_disabled, attach, detach, only, trained_parameters
from inlay.methods.adapter_state import AdapterState
from inlay.methods.base_modules import base_modules
from inlay.methods.table import adapters_on
from inlay.methods.target_modules import coverage, linear_layers, resolve_targets
from methods.test_adapter import decoder, logits

A: dict[str, Any] = {"rank": 2, "target_modules": ["q_proj", "down_proj"]}
B: dict[str, Any] = {"rank": 5, "alpha": 7, "target_modules": ["q_proj", "v_proj", "gate_proj"], "init": "gaussian"}
KINDS = {
    "two ranks": (A, B),
    "the same layers": (A, A | {"rank": 4}),
    "DoRA beside rsLoRA": (A | {"dora": True}, B | {"rslora": True}),
    "started from the weights": (A | {"init": "pissa"}, B | {"init": "olora"}),
    "experts": ({"rank": 2, "experts": True}, {"rank": 3, "experts": True, "target_modules": ["q_proj"]}),
    "IA3": ({"method": "ia3"}, {"method": "ia3", "target_modules": ["o_proj", "down_proj"]}),
}
IDS = torch.arange(2, 18).view(2, 8)


def base(kind: str) -> Any:
    """A tiny base for that pair of adapters."""
    return family("mixtral") if kind == "experts" else decoder("llama")


def put(model: Any, adapter: dict[str, Any], name: str) -> Any:
    """The model with that adapter, whose start and values depend on its name only."""
    chosen = Config.model_validate(_tree(adapter))
    targets = resolve_targets(model, chosen.adapter.target_modules)
    torch.manual_seed(len(name))
    model = attach(model, chosen, targets, name=name)
    for parameter in trained_parameters(model, name).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def _tree(adapter: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": adapter}


def gradients(model: Any, name: str) -> dict[str, Tensor]:
    parameters = trained_parameters(model, name)
    for parameter in parameters.values():
        parameter.grad = None
    model(input_ids=IDS, labels=IDS).loss.backward()
    found = {key: parameter.grad for key, parameter in parameters.items()}
    assert all(gradient is not None for gradient in found.values())
    return {key.replace(f".{name}", ""): gradient.clone() for key, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_two_adapters_on_one_base_computes_and_learns_as_if_it_were_alone(kind: str) -> None:
    first, second = KINDS[kind]
    both = put(put(base(kind), first, "first"), second, "second")
    assert list(adapters_on(both)) == ["first", "second"]
    for adapter, name in ((first, "first"), (second, "second")):
        alone = put(base(kind), adapter, name)
        with only(both, name):
            assert torch.equal(logits(both), logits(alone))
            expected = gradients(alone, name)
            assert list(expected) == list(gradients(both, name))
            assert all(torch.equal(gradient, expected[key]) for key, gradient in gradients(both, name).items())
        mine, its = AdapterState.of(both, name), AdapterState.of(alone, name)
        assert mine.settings == its.settings
        assert list(mine.tensors) == list(its.tensors)
        assert all(torch.equal(tensor, its.tensors[key]) for key, tensor in mine.tensors.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", ["first", "second"])
def test_detaching_one_leaves_the_other_as_it_was_and_the_last_leaves_the_base(kind: str, gone: str) -> None:
    first, second = KINDS[kind]
    both = put(put(base(kind), first, "first"), second, "second")
    stays = "second" if gone == "first" else "first"
    with only(both, stays):
        expected = logits(both)
    kept = dict(trained_parameters(both, stays))
    left = detach(both, gone)
    assert list(adapters_on(left)) == [stays]
    assert trained_parameters(left, stays) == kept
    assert not any(f".{gone}." in name for name, _ in left.named_parameters())
    assert torch.equal(logits(left), expected)
    again = put(left, first if gone == "first" else second, gone)
    with only(again, stays):
        assert torch.equal(logits(again), expected)
    bare = detach(detach(again, gone), stays)
    assert torch.equal(logits(bare), logits(base(kind)))
    assert [name for name, _ in bare.named_modules()] == [name for name, _ in base(kind).named_modules()]
    assert not any(parameter.requires_grad for parameter in bare.parameters())


def test_switching_adapters_leaves_what_requires_a_gradient_as_it_was() -> None:
    both = put(put(decoder("llama"), A, "first"), B, "second")
    trained = {**trained_parameters(both, "first"), **trained_parameters(both, "second")}
    assert {name for name, p in both.named_parameters() if p.requires_grad} == set(trained)
    next(iter(trained.values())).requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in both.named_parameters()}
    with only(both, "first"), adapter_disabled(both):
        assert torch.equal(logits(both), logits(decoder("llama")))
    assert {name: parameter.requires_grad for name, parameter in both.named_parameters()} == before
    assert {**trained_parameters(both, "first"), **trained_parameters(both, "second")} == trained


def test_stored_adapters_are_read_onto_one_base_under_names_of_their_own(tmp_path: Path) -> None:
    for name, adapter in (("first", A), ("third", B)):
        (tmp_path / name).mkdir()
        AdapterState.of(put(decoder("llama"), adapter, name), name).write(tmp_path / name)
    model: Any = decoder("llama")
    for name in ("first", "third"):
        model = AdapterState.read(tmp_path / name).attach_to(model, name)
    for name in ("first", "third"):
        with only(model, name):
            assert torch.equal(logits(model), logits(AdapterState.read(tmp_path / name).attach_to(decoder("llama"))))
    zeros = AdapterState.of(model, "first")
    AdapterState(zeros.settings, {k: torch.zeros_like(v) for k, v in zeros.tensors.items()}).load_into(model, "first")
    with only(model, "first"):
        assert torch.equal(logits(model), logits(decoder("llama")))
    with pytest.raises(AdapterError, match="is missing from the adapter"):
        AdapterState.read(tmp_path / "third").load_into(model, "first")


def test_a_stored_adapter_that_does_not_fit_leaves_those_on_the_base_as_they_are(tmp_path: Path) -> None:
    AdapterState.of(put(decoder("llama"), A, "first"), "first").write(tmp_path)
    state = AdapterState.read(tmp_path)
    state.tensors.pop(next(iter(state.tensors)))
    model = put(decoder("llama"), B, "third")
    expected = logits(model)
    with pytest.raises(AdapterError, match="is missing from the adapter"):
        state.attach_to(model, "first")
    assert list(adapters_on(model)) == ["third"]
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("there", "new", "message"),
    [
        (A, A, "has one of that name"),
        (A, {"method": "ia3"}, r"cannot be on one base with first \(lora\).*all be lora or all be ia3"),
        (A, {"method": "prompt"}, r"cannot be on one base with first \(lora\)"),
        ({"method": "prompt"}, {"method": "prompt"}, r"cannot be on one base with first \(prompt\)"),
        ({"method": "full"}, A, r"cannot be on one base with first \(full\)"),
    ],
    ids=str,
)
def test_an_adapter_that_cannot_stand_beside_another_is_refused(
    there: dict[str, Any], new: dict[str, Any], message: str
) -> None:
    base = decoder("llama")
    model = attach(
        base, Config.model_validate(_tree(there)), ["q_proj", "down_proj"], reopen=lambda: base, name="first"
    )
    expected = logits(model.eval())
    name = "first" if "that name" in message else "third"
    with pytest.raises(AdapterError, match=message):
        attach(model, Config.model_validate(_tree(new)), ["q_proj"], reopen=lambda: base, name=name)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("name", ["a.b", "", "lora", "ra"])
def test_a_name_that_peft_would_mistake_for_its_own_is_refused(name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be the name of an adapter"):
        put(decoder("llama"), A, name)


def test_one_that_trains_biases_of_the_base_needs_it_alone() -> None:
    def biased(bias: str) -> Config:
        return Config.model_validate(_tree({"bias": bias}))

    for first, second in (("all", "none"), ("none", "all")):
        model = attach(decoder("gpt2"), biased(first), ["c_attn"], name="first")
        with pytest.raises(AdapterError, match="biases of the base"):
            attach(model, biased(second), ["c_attn"], name="third")
        assert list(adapters_on(model)) == ["first"]


def test_a_base_with_adapters_on_it_names_its_layers_as_it_does_without() -> None:
    bare, model = decoder("llama"), put(put(decoder("llama"), A, "first"), B, "second")
    assert [name for name, _ in base_modules(model)] == [name for name, _ in bare.named_modules()]
    assert linear_layers(model) == linear_layers(bare)
    assert resolve_targets(model, "auto") == resolve_targets(bare, "auto")
    assert coverage(model, ["q_proj"]) == coverage(bare, ["q_proj"])
