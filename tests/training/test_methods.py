"""Every method of fine-tuning trains what it says, comes back from the disk, and goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from inlay import config as configs
from inlay.training.optimizer import make_optimizer, set_learning_rate
from inlay.training.setup import set_up, trained_parameters
from inlay.training.world import World
from training_runs import Quiet

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
