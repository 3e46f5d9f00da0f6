"""Every kind of adapter trains, leaves the base alone, and lies on the disk as what it was in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from inlay import config as configs
from inlay.engine.loss import autocast
from inlay.errors import AdapterError, ConfigError
from inlay.methods.adapter import adapter_disabled, detach
from inlay.methods.adapter_state import AdapterState
from inlay.runs.folder import Run
from inlay.runs.reporter import PlainReporter
from inlay.training import checkpoint as checkpoints
from inlay.training.job import AdapterJob
from inlay.training.loop import TrainingLoop
from inlay.training.optimizer import restore_state, state_tensors
from inlay.training.process import StopRequest
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
from parts import NANO, make_base, run_record

# plain PEFT, as others will load our adapters, asks transformers 5 for a name it renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Tree = Callable[..., dict[str, Any]]


class Quiet(PlainReporter):
    def stage(self, text: str) -> None: ...
    def progress(self, done: int, values: dict[str, Any]) -> None: ...


@pytest.fixture
def ready(config_tree: Tree, tmp_path: Path, data_file: Path) -> Callable[..., AdapterJob]:
    """A run at step 0 of a config with the given sections."""

    def make(name: str = "run", **sections: dict[str, Any]) -> AdapterJob:
        data = {"max_length": 64, "max_lost_share": 1.0}
        tree = config_tree(**({"data": data, "eval": {"max_rows": 4}} | sections))
        if "method" in tree["adapter"]:
            tree["adapter"].pop("rank")
        tree["data"]["train"] = str(data_file)
        tree["train"] |= {"max_steps": 3, "export": "last"}
        job = make_single_job(configs.validate(tree, "test"), Quiet(), ProcessGroup())
        job.run = Run(tmp_path / name)
        job.run.path.mkdir()
        job.run.write_record(run_record())
        return job

    return make


def train(job: AdapterJob) -> AdapterJob:
    TrainingLoop([job], StopRequest(), Quiet()).run()
    return job


IDS = torch.arange(3, 43).view(2, 20)


def logits(model: Any, dtype: torch.dtype | None = None) -> Tensor:
    model.eval()
    with torch.inference_mode(), autocast("cpu", dtype):
        return model(input_ids=IDS).logits.float().clone()


def bare(job: AdapterJob) -> Any:
    return job.base.opened.load()


@pytest.fixture(scope="module")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with biases everywhere and Conv1D for Linear."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

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
    "ia3": {"method": "ia3"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_adapter_on_the_original_base_gives_the_logits_of_memory(variant: str, ready: Any):
    check_variant(ready(adapter=of_rank_4(VARIANTS[variant])))


def of_rank_4(adapter: dict[str, Any]) -> dict[str, Any]:
    """With the rank of the tests, where the method has one."""
    return adapter if "method" in adapter else {"rank": 4} | adapter


@pytest.mark.parametrize("adapter", [{"bias": "all"}, {"bias": "lora_only"}, {"bias": "all", "init": "pissa"}], ids=str)
def test_trained_biases_are_part_of_the_adapter_and_not_of_the_base(adapter: Any, ready: Any, gpt2_base: Path):
    model = {"base_model": str(gpt2_base), "device": "cpu", "dtype": "float32"}
    job = ready(model=model, adapter={"rank": 4} | adapter)
    check_variant(job)
    biases = [name for name in AdapterState.read(job.run.adapter).tensors if name.endswith("bias")]
    assert any("ln_1" in name for name in biases) == (adapter["bias"] == "all")
    assert biases
    trained = {name: (parameter, original) for name, (parameter, original) in job.model.base_biases.items()}
    assert len(trained) == len(biases)
    assert not any(torch.equal(parameter, original) for parameter, original in trained.values())


def test_ia3_finds_its_layers_in_a_gpt2_and_scales_its_transposed_weights(ready: Any, gpt2_base: Path):
    model = {"base_model": str(gpt2_base), "device": "cpu", "dtype": "float32"}
    job = ready(model=model, adapter={"method": "ia3"})
    check_variant(job)
    vectors = {
        name.rpartition(".ia3_l")[0][-8:]: p.numel() for name, p in job.model.named_parameters() if p.requires_grad
    }
    assert vectors == {"n.c_attn": 96, "p.c_proj": 128}  # the outputs of one, the inputs of the other


def check_variant(job: AdapterJob) -> None:
    original = logits(bare(job))
    start = logits(job.model)
    assert torch.equal(start, original)
    train(job)
    with adapter_disabled(job.model):
        assert torch.equal(logits(job.model), original)
    assert sum(p.requires_grad for p in job.model.parameters()) == len(job.parameters)
    memory = logits(job.model)
    assert not torch.allclose(memory, original, atol=1e-3)
    job.export()
    here = AdapterState.read(job.run.adapter, job.base_digest).attach_to(bare(job))
    elsewhere = PeftModel.from_pretrained(bare(job), str(job.run.adapter)).eval()
    for loaded in (job.model, here, elsewhere):
        assert torch.equal(logits(loaded), memory)
    assert torch.equal(logits(detach(here)), original)
    with adapter_disabled(job.model):
        assert torch.equal(logits(job.model), original)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_from_the_weights_trains_as_in_peft(init: str, ready: Any):
    job = ready(adapter={"rank": 4, "init": init})
    theirs = get_peft_model(
        bare(job), LoraConfig(r=4, lora_alpha=8, target_modules=job.targets, init_lora_weights=init)
    )
    got, expected = gradients(job.model), gradients(theirs)
    got = {name.replace(".change", ".weight"): gradient for name, gradient in got.items()}
    assert set(got) == set(expected)
    for name in got:
        assert torch.allclose(got[name].abs(), expected[name].abs(), rtol=1e-3, atol=1e-5), name


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients of the trainable parameters on fixed ids; a singular vector's sign is free, so compare sizes."""
    model.train()
    model.zero_grad()
    out = model(input_ids=IDS).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(out.float(), IDS[:, 1:].flatten()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_eva_starts_along_the_inputs_of_the_data(ready: Any):
    job = ready(adapter={"rank": 4, "init": "eva"})
    weights = {n: p.detach() for n, p in job.model.named_parameters() if "lora_A" in n}
    for weight in weights.values():
        assert torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-4)
    other = ready("other", adapter={"rank": 4, "init": "eva"}, train={"seed": 5})
    name, weight = next(iter(weights.items()))
    same_span = torch.linalg.svdvals(weight @ dict(other.model.named_parameters())[name].detach().T)
    assert float(same_span.min()) > 0.8  # rows in another order lie along the same directions


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"rank": 4, "init": "pissa", "dropout": 0.1}},
        {"adapter": {"rank": 4, "dora": True}},
        {"train": {"optimizer": "adamw_8bit"}, "adapter": {"rank": 16}},
        {"model": {"quantization": "nf4"}, "adapter": {"rank": 4, "init": "olora"}},
        {"model": {"quantization": "int8"}},
        {"train": {"lora_plus_ratio": 16.0}},
        {"adapter": {"method": "ia3"}},
        {"adapter": {"method": "full"}},
        {"adapter": {"method": "prompt"}},
    ],
    ids=["pissa", "dora", "adamw_8bit", "nf4-olora", "int8", "lora+", "ia3", "full", "prompt"],
)
def test_going_on_from_a_checkpoint_equals_never_having_stopped(sections: Any, ready: Any, tiny_base: Path):
    sections = copy.deepcopy(sections)
    sections["train"] = {"save_steps": 2, "eval_steps": 2, "batch_size": 8} | sections.get("train", {})
    if "model" in sections:
        pytest.importorskip("bitsandbytes")
        sections["model"] |= {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32"}
    unbroken = ready("unbroken", **sections)
    train(unbroken)
    again = ready("again", **sections)
    adapter, tensors, values, progress = checkpoints.load(
        checkpoints.Checkpoint(unbroken.run.checkpoints / "step-000002")
    )
    adapter.load_into(again.model)
    restore_state(again.optimizer, tensors, values)
    again.progress = progress
    assert progress.step == 2
    state, restored = state_tensors(again.optimizer)[0], tensors
    assert all(torch.equal(state[name], restored[name]) and state[name].dtype == restored[name].dtype for name in state)
    train(again)
    expected, got = AdapterState.of(unbroken.model).tensors, AdapterState.of(again.model).tensors
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with adapter_disabled(again.model), adapter_disabled(unbroken.model):
        assert torch.equal(logits(again.model), logits(unbroken.model))


def test_activations_stay_where_they_are_on_a_cpu(ready: Any):
    with pytest.raises(ConfigError, match=r"train\.activation_offload: .* Leave it out on a CPU"):
        ready(train={"activation_offload": True})


def test_8_bit_adamw_really_keeps_8_bits(ready: Any):
    pytest.importorskip("bitsandbytes")
    job = ready(train={"optimizer": "adamw_8bit"}, adapter={"rank": 128})
    train(job)
    kinds = {t.dtype for t in state_tensors(job.optimizer)[0].values()}
    assert torch.uint8 in kinds


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"rank": 8, "alpha": 16}, "has rank 4, this config 8. Set adapter.rank=4"),
        ({"rank": 4, "alpha": "4x"}, "has alpha 8.0, this config 16.0"),
        ({"rank": 4, "rslora": True}, "has rslora False"),
        ({"rank": 4, "target_modules": ["q_proj"]}, "has no place in this model"),
    ],
)
def test_from_refuses_another_shape_in_one_line(over: dict[str, Any], said: str, ready: Any, saved: Path):
    with pytest.raises(AdapterError, match=said) as caught:
        ready("other", adapter=over | {"start_from": str(saved)})
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.fixture
def saved(ready: Any) -> Path:
    """The run folder of a trained adapter of rank 4."""
    job = ready("saved", adapter={"rank": 4})
    train(job).export()
    return job.run.path


def test_from_starts_where_the_other_run_ended(saved: Path, ready: Any, tmp_path: Path):
    job = ready("next", adapter={"rank": 4, "start_from": str(saved)})
    before = AdapterState.read(saved / "adapter")
    assert torch.equal(logits(job.model), logits(before.attach_to(bare(job))))
    train(job)
    moved = AdapterState.of(job.model).tensors
    assert not any(torch.equal(moved[name], tensor) for name, tensor in before.tensors.items() if "lora_B" in name)


def test_from_refuses_an_adapter_of_another_base(saved: Path, ready: Any, tmp_path: Path):
    other = make_base(tmp_path / "other-base", seed=1)
    model = {"base_model": str(other), "device": "cpu", "dtype": "float32"}
    with pytest.raises(AdapterError, match="was trained on another base"):
        ready("next", model=model, adapter={"rank": 4, "start_from": str(saved)})
    with pytest.raises(AdapterError, match="no run with an adapter, no adapter folder, no name in the library"):
        ready("nowhere", adapter={"rank": 4, "start_from": str(tmp_path)})


def test_gradient_checkpointing_changes_no_gradient(ready: Any):
    plain = ready("plain", train={"batch_size": 8})
    saving = ready("saving", train={"batch_size": 8, "gradient_checkpointing": True})
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.model.modules())
    for job in (plain, saving):  # B is zero at first and would hide the gradient of A
        for name, parameter in job.model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.01)
    expected, got = gradients(plain.model), gradients(saving.model)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert float(sum(g.abs().sum() for g in got.values())) > 0
    train(saving)


def test_eager_attention_computes_what_sdpa_computes(ready: Any, tiny_base: Path):
    models = []
    for attention in ("eager", "sdpa"):
        model = {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32", "attention": attention}
        models.append(ready(attention, model=model).model)
    assert models[0].config._attn_implementation == "eager"
    assert torch.allclose(logits(models[0]), logits(models[1]), atol=1e-5)
    expected, got = (gradients(model) for model in models)
    assert all(torch.allclose(expected[name], got[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize(
    ("init", "quantization"), [("default", "none"), ("pissa", "none"), ("olora", "none"), ("pissa", "nf4")]
)
def test_a_bfloat16_base_trains_and_its_adapter_comes_back(init: str, quantization: str, ready: Any, tiny_base: Path):
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    model = {"base_model": str(tiny_base), "device": "cpu", "dtype": "bfloat16", "quantization": quantization}
    job = ready(model=model, adapter={"rank": 4, "init": init})
    assert torch.equal(logits(job.model, torch.bfloat16), logits(bare(job), torch.bfloat16))
    assert {p.dtype for p in job.parameters.values()} == {torch.float32}
    train(job)
    assert job.progress.eval_loss < job.progress.base_eval_loss
    memory = logits(job.model, torch.bfloat16)
    job.export()
    loaded = AdapterState.read(job.run.adapter).attach_to(bare(job))
    assert torch.equal(logits(loaded, torch.bfloat16), memory)
