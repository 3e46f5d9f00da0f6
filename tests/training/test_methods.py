"""Every method of fine-tuning trains what it says, comes back from the disk, and goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from inlay import api
from inlay import config as configs
from inlay.errors import ConfigError
from inlay.training.optimizer import make_optimizer, set_learning_rate
from inlay.training.setup import set_up, trained_parameters
from inlay.training.world import World
from training_runs import Quiet, train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
Tree = Callable[..., dict[str, Any]]
IDS = torch.arange(3, 43).view(2, 20)


def gradients_of(model: Any) -> None:
    model.train()
    out = model(input_ids=IDS).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(out.float(), IDS[:, 1:].flatten()).backward()


def test_lora_plus_steps_as_pefts_own_optimizer_does(config_tree: Tree):
    tree = config_tree(train={"lora_plus_ratio": 16.0, "weight_decay": 0.1})
    setup = set_up(configs.validate(tree, "test"), Quiet(), World())
    named = trained_parameters(setup.model)
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    ours = make_optimizer(setup.config.train, named)
    theirs = create_loraplus_optimizer(
        setup.model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    ends = []
    for optimizer in (ours, theirs):
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(start[name])
        for _ in range(2):
            optimizer.zero_grad()
            gradients_of(setup.model)
            if optimizer is ours:
                set_learning_rate(optimizer, 1e-2)
            optimizer.step()
        ends.append({name: parameter.detach().clone() for name, parameter in named.items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in named)
    moved = {part: max(float((ends[0][n] - start[n]).abs().max()) for n in named if part in n) for part in ("_A", "_B")}
    assert moved["_B"] > 10 * moved["_A"] > 0


def test_lora_plus_lowers_the_rate_of_auto_by_the_root_of_its_ratio(config_tree: Tree):
    rates = []
    for ratio in (1.0, 16.0):
        tree = config_tree(train={"learning_rate": "auto", "lora_plus_ratio": ratio})
        rates.append(set_up(configs.validate(tree, "test"), Quiet(), World()).config.train.learning_rate)
    assert rates == [2e-3, 5e-4]


METHODS: dict[str, dict[str, Any]] = {"ia3": {"method": "ia3"}}


@pytest.fixture
def method_tree(config_tree: Tree) -> Callable[..., dict[str, Any]]:
    """`config_tree` with this adapter section."""

    def make(adapter: dict[str, Any], **sections: Any) -> dict[str, Any]:
        return config_tree(**sections) | {"adapter": adapter}

    return make


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_has_trained_is_judged_asked_and_verified_like_a_lora(method: str, method_tree: Tree, tmp_path):
    tree = method_tree(
        METHODS[method], train={"learning_rate": 0.1}, output={"folder": str(tmp_path / "results"), "name": method}
    )
    run = train(tree)
    proofs = api.verify(run)
    assert all(proof["passed"] for proof in proofs["proofs"])
    values = api.evaluate(run, reporter=Quiet())["metrics"]
    result = run.record["result"]
    assert values["loss"] == pytest.approx(result["eval_loss"], rel=1e-5)
    assert abs(result["eval_loss"] - result["base_eval_loss"]) > 5e-3
    base = api.evaluate(run, adapter=False, reporter=Quiet())["metrics"]
    assert base["loss"] == pytest.approx(result["base_eval_loss"], rel=1e-5)
    loaded = api.load(run)
    asked = ["What about parcels?", "And so?"]
    together = loaded.generate_many(asked, temperature=0.0, max_new_tokens=6)
    assert together == [loaded.generate(prompt, temperature=0.0, max_new_tokens=6) for prompt in asked]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"adapter": {"method": "ia3", "rank": 8}}, "adapter: rank has no effect with method ia3"),
        ({"adapter": {"method": "ia3"}, "train": {"lora_plus_ratio": 4.0}}, "lora_plus_ratio has no effect"),
        ({"adapter": {"method": "ia3"}, "train": {"engine": "direct"}}, "direct knows LoRA only"),
        ({"adapter": {"method": "ia3"}, "model": {"quantization": "nf4"}}, "needs a base without model.quantization"),
    ],
    ids=str,
)
def test_a_setting_that_a_method_does_not_have_is_refused(sections: Any, said: str, method_tree: Tree):
    tree = method_tree(sections["adapter"], **{name: over for name, over in sections.items() if name != "adapter"})
    with pytest.raises(ConfigError, match=said) as caught:
        configs.validate(tree)
    assert "\n" not in str(caught.value)


def test_a_preset_speaks_of_lora_and_leaves_other_methods_alone():
    values = {"model.base_model": "builtin:nano", "data.train": "x.jsonl", "adapter.method": "ia3"}
    config = configs.load(None, values, "code")
    assert config.adapter.target_modules == "auto"
    assert config.eval.prompts
