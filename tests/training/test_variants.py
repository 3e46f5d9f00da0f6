"""Every kind of adapter trains, leaves the base alone, and lies on the disk as what it was in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from inlay import config as configs
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, ModelError
from inlay.events import PlainReporter
from inlay.models.adapter import START, AdapterState, attach, base_view, detach
from inlay.models.base import find_base, load_model
from inlay.run import Run
from inlay.training import checkpoint as checkpoints
from inlay.training import finish
from inlay.training.loop import Job, run_job
from inlay.training.setup import Setup, set_up
from inlay.training.signals import StopRequest
from inlay.training.world import World

# plain PEFT, as others will load our adapters, asks transformers 5 for a name it renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Tree = Callable[..., dict[str, Any]]


class Quiet(PlainReporter):
    def stage(self, text: str) -> None: ...
    def progress(self, done: int, values: dict[str, Any]) -> None: ...


@pytest.fixture
def ready(config_tree: Tree, tmp_path: Path, data_file: Path) -> Callable[..., tuple[Setup, Job]]:
    """A run at step 0 of a config with the given sections."""

    def make(name: str = "run", **sections: dict[str, Any]) -> tuple[Setup, Job]:
        data = {"max_length": 64, "max_lost_share": 1.0}
        tree = config_tree(**({"data": data, "eval": {"max_rows": 4}} | sections))
        tree["data"]["train"] = str(data_file)
        tree["train"] |= {"max_steps": 3, "export": "last"}
        setup = set_up(configs.validate(tree, "test"), Quiet(), World())
        run = Run(tmp_path / name)
        run.path.mkdir()
        run.update(status="running")
        return setup, setup.job(run)

    return make


def train(job: Job) -> Job:
    run_job(job, World(), StopRequest(), Quiet(), [])
    return job


IDS = torch.arange(3, 43).view(2, 20)


def logits(model: Any, dtype: torch.dtype | None = None) -> Tensor:
    model.eval()
    with torch.inference_mode(), autocast("cpu", dtype):
        return model(input_ids=IDS).logits.float().clone()


def bare(setup: Setup) -> Any:
    return load_model(setup.base, setup.config, setup.dtype, setup.device, setup.quantization)


@pytest.fixture(scope="module")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with biases everywhere and Conv1D for Linear."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from tests.conftest import NANO

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(str(NANO))
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(**shape, **ends, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0.0, 0.1)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True, "alpha": "1x"},
    "alpha-number": {"alpha": 7.5, "dropout": 0.1},
    "gaussian": {"init": "gaussian", "alpha": "4x"},
    "pissa": {"init": "pissa"},
    "pissa-rslora-dropout": {"init": "pissa", "rslora": True, "dropout": 0.1},
    "olora": {"init": "olora"},
    "eva": {"init": "eva"},
}
FOLDED = 2e-5
"""Largest difference of logits (about 1 in size) where a frozen start is folded into the exported adapter: sums in
another order. All others are bit for bit."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_adapter_on_the_original_base_gives_the_logits_of_memory(variant: str, ready: Any, capsys: Any):
    check_variant(*ready(adapter={"rank": 4} | VARIANTS[variant]), capsys)


@pytest.mark.parametrize("adapter", [{"bias": "all"}, {"bias": "lora_only"}, {"bias": "all", "init": "pissa"}], ids=str)
def test_trained_biases_are_part_of_the_adapter_and_not_of_the_base(adapter: Any, ready: Any, gpt2_base: Path, capsys):
    model = {"base_model": str(gpt2_base), "device": "cpu", "dtype": "float32"}
    setup, job = ready(model=model, adapter={"rank": 4} | adapter)
    check_variant(setup, job, capsys)
    biases = [name for name in AdapterState.read(job.run.adapter).tensors if name.endswith("bias")]
    assert any("ln_1" in name for name in biases) == (adapter["bias"] == "all")
    assert biases


def check_variant(setup: Setup, job: Job, capsys: Any) -> None:
    original = logits(bare(setup))
    start = logits(job.model)
    folded = START in job.model.peft_config
    assert torch.allclose(start, original, atol=FOLDED if folded else 0, rtol=0)
    train(job)
    with base_view(job.model):
        assert torch.equal(logits(job.model), original)
    assert sum(p.requires_grad for p in job.model.parameters()) == len(job.parameters)
    memory = logits(job.model)
    assert not torch.allclose(memory, original, atol=1e-3)
    finish.export(setup, job)
    here = AdapterState.read(job.run.adapter, setup.base_digest).attach_to(bare(setup))
    elsewhere = PeftModel.from_pretrained(bare(setup), str(job.run.adapter)).eval()
    for loaded in (job.model, here, elsewhere):
        distance = float((logits(loaded) - memory).abs().max())
        assert distance <= (FOLDED if folded else 0.0)
    with capsys.disabled():
        print(f"\n  saved against memory: largest difference of logits {distance:.1e}", end="")
    assert torch.equal(logits(detach(here)), original)
    with base_view(job.model):
        assert torch.equal(logits(job.model), original)
