"""Every method of fine-tuning trains what it says, comes back from the disk, and goes on from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from inlay import api
from inlay import config as configs
from inlay.data.batches import collate
from inlay.errors import ConfigError, InlayError
from inlay.generation.generate import cache_argument, cache_for
from inlay.methods.adapter import adapter_disabled, detach, trained_parameters
from inlay.methods.adapter_state import AdapterState
from inlay.training.optimizer import make_optimizer, set_learning_rate
from inlay.training.process_group import ProcessGroup
from inlay.training.setup import make_single_job
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
    job = make_single_job(configs.validate(tree, "test"), Quiet(), ProcessGroup())
    named = trained_parameters(job.model)
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    ours = make_optimizer(job.config.train, named)
    theirs = create_loraplus_optimizer(
        job.model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    ends = []
    for optimizer in (ours, theirs):
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(start[name])
        for _ in range(2):
            optimizer.zero_grad()
            gradients_of(job.model)
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
        rates.append(
            make_single_job(configs.validate(tree, "test"), Quiet(), ProcessGroup()).config.train.learning_rate
        )
    assert rates == [2e-3, 5e-4]


METHODS: dict[str, dict[str, Any]] = {
    "ia3": {"method": "ia3"},
    "full": {"method": "full"},
    "prompt": {"method": "prompt", "prompt_tokens": 5},
}
RATES = {"ia3": 0.1, "full": 1e-3, "prompt": 0.1}
QUANTIZED = [("ia3", "nf4"), ("ia3", "int8"), ("prompt", "nf4"), ("prompt", "int8")]


@pytest.fixture
def method_tree(config_tree: Tree) -> Callable[..., dict[str, Any]]:
    """`config_tree` with this adapter section."""

    def make(adapter: dict[str, Any], **sections: Any) -> dict[str, Any]:
        return config_tree(**sections) | {"adapter": adapter}

    return make


@pytest.mark.parametrize(
    ("method", "kind"),
    [*((m, "none") for m in METHODS), ("ia3", "nf4"), pytest.param("prompt", "int8", marks=pytest.mark.slow)],
)
def test_what_a_method_has_trained_is_judged_asked_and_verified_like_a_lora(
    method: str, kind: str, method_tree: Tree, tmp_path: Path
):
    tree = method_tree(
        METHODS[method],
        model={"quantization": kind},
        train={"learning_rate": RATES[method]},
        output={"folder": str(tmp_path / "results"), "name": method},
    )
    run = train(tree)
    proofs = api.verify(run)
    assert all(proof["passed"] for proof in proofs["proofs"])
    values = api.evaluate(run, reporter=Quiet())["metrics"]
    result = run.result.to_json()
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
        ({"adapter": {"method": "ia3"}, "train": {"engine": "handwritten"}}, "handwritten knows LoRA only"),
        (
            {"adapter": {"method": "full", "target_modules": ["q_proj"]}},
            "target_modules has no effect with method full",
        ),
        ({"adapter": {"method": "full"}, "model": {"dtype": "bfloat16"}}, "bfloat16 would round most steps away"),
        ({"adapter": {"method": "full"}, "model": {"quantization": "nf4"}}, "needs a base without model.quantization"),
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


def test_full_fine_tuning_leaves_the_bases_files_alone_and_writes_a_model_of_its_own(
    method_tree: Tree, tiny_base: Path, tmp_path: Path
):
    before = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
    run = train(method_tree({"method": "full"}, train={"learning_rate": 1e-3}))
    assert {path.name: path.read_bytes() for path in tiny_base.iterdir()} == before
    assert not run.adapter.exists()
    model = AutoModelForCausalLM.from_pretrained(str(run.model)).eval()
    state = AdapterState.read(run.model)
    assert all(torch.equal(tensor, state.tensors[name]) for name, tensor in model.named_parameters())
    original = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32).eval()
    own = original(input_ids=IDS).logits
    put_on = state.attach_to(original)
    assert torch.equal(put_on(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with adapter_disabled(put_on):
        assert torch.equal(put_on(input_ids=IDS).logits, own)
    assert torch.equal(detach(put_on)(input_ids=IDS).logits, own)
    values = api.evaluate(str(run.model), data=str(run.heldout), reporter=Quiet())["metrics"]
    assert values["loss"] == pytest.approx(run.result.eval_loss, rel=1e-5)


def test_full_fine_tuning_has_the_gradient_of_plain_transformers(method_tree: Tree, tiny_base: Path):
    job = make_single_job(configs.validate(method_tree({"method": "full"})), Quiet(), ProcessGroup())
    assert job.base.dtype == torch.float32
    batch = collate(job.train, [0, 3, 5], job.encoder.pad_id)
    job.engine.add_gradient(batch, 1.0)
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
    logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    labels = batch.input_ids[:, 1:].masked_fill(batch.weights[:, 1:] == 0, -100)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    got = {name: parameter.grad for name, parameter in job.model.named_parameters()}
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())), name


def test_prompt_tuning_has_the_loss_gradient_and_answers_of_peft(method_tree: Tree, tiny_base: Path, tmp_path: Path):
    adapter = {"method": "prompt", "prompt_tokens": 5}
    job = make_single_job(configs.validate(method_tree(adapter)), Quiet(), ProcessGroup())
    ours = job.model
    AdapterState.of(ours).write(tmp_path)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(tiny_base)), str(tmp_path))
    theirs.prompt_encoder["default"].embedding.weight.requires_grad_(True)
    batch = collate(job.train, [0, 3, 5], job.encoder.pad_id)
    nll_B = job.engine.add_gradient(batch, 1.0)
    labels = batch.input_ids.masked_fill(batch.weights == 0, -100)
    loss = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    (loss * (labels[:, 1:] != -100).sum()).backward()
    assert nll_B.sum().item() == pytest.approx(loss.item() * int((labels[:, 1:] != -100).sum()), rel=1e-5)
    expected = theirs.prompt_encoder["default"].embedding.weight.grad
    assert torch.allclose(ours.prompt_embeddings.grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    asked = {"input_ids": IDS[:1], "attention_mask": torch.ones_like(IDS[:1])}
    greedy = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PEFT 0.21 puts its virtual tokens on at every cached step of transformers 5.24
        answer = theirs.eval().generate(**asked, **greedy, use_cache=False)
    assert torch.equal(ours.eval().generate(**asked, **greedy), answer)
    cache = cache_for(ours.config, 20 + 10 + 5)
    assert torch.equal(ours.generate(**asked, **greedy, **{cache_argument(): cache}), answer)
    padded = {"input_ids": torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:1, :16]], 1)}
    padded["attention_mask"] = (torch.arange(20) >= 4).long()[None]
    said = ours.generate(**padded, **greedy, return_dict_in_generate=True, output_logits=True)
    whole = ours(input_ids=said.sequences[:, 4:]).logits[:, 15:-1]  # no padding, no cache, positions from 0
    assert torch.allclose(torch.stack(said.logits, 1), whole, atol=1e-6)
    bare = AutoModelForCausalLM.from_pretrained(str(tiny_base)).eval()
    with adapter_disabled(ours):
        assert torch.equal(ours(input_ids=IDS).logits, bare(input_ids=IDS).logits)
    assert torch.equal(detach(ours)(input_ids=IDS).logits, bare(input_ids=IDS).logits)


@pytest.mark.parametrize(("method", "kind"), QUANTIZED)
def test_over_a_quantized_base_a_method_has_the_loss_and_gradient_of_peft_also_after_an_evaluation(
    method: str, kind: str, method_tree: Tree, tiny_base: Path, tmp_path: Path
):
    job = make_single_job(
        configs.validate(method_tree(METHODS[method], model={"quantization": kind})), Quiet(), ProcessGroup()
    )
    ours = job.model
    with torch.no_grad():
        for parameter in trained_parameters(ours).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 10)
    AdapterState.of(ours).write(tmp_path)
    bits = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}}
    held = BitsAndBytesConfig(**bits.get(kind, {"load_in_8bit": True}))
    base = AutoModelForCausalLM.from_pretrained(str(tiny_base), quantization_config=held, device_map={"": "cpu"})
    theirs = PeftModel.from_pretrained(base, str(tmp_path))
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("ia3_l" in name or "prompt_encoder" in name)
    batch = collate(job.train, [0, 3, 5], job.encoder.pad_id)
    labels = batch.input_ids.masked_fill(batch.weights == 0, -100)
    count = int((labels[:, 1:] != -100).sum())
    theirs.train()
    loss = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss * count
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None])
    for _ in range(2):
        assert job.engine.add_gradient(batch, 1.0).sum().item() == pytest.approx(loss.item(), rel=1e-5)
        got = torch.cat([p.grad.flatten() for p in trained_parameters(ours).values()])
        assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())
        ours.zero_grad()
        ours.eval()
        with torch.inference_mode():
            ours(input_ids=IDS)
        ours.train()


def test_lora_plus_over_nf4_is_on_the_handwritten_engine_and_raises_the_rate_of_b_alone(config_tree: Tree):
    tree = config_tree(model={"quantization": "nf4"}, train={"lora_plus_ratio": 4.0, "engine": "handwritten"})
    job = make_single_job(configs.validate(tree), Quiet(), ProcessGroup())
    set_learning_rate(job.optimizer, 1e-2)
    batch = collate(job.train, [0, 3, 5], job.encoder.pad_id)
    named = trained_parameters(job.model)
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    for _ in range(2):
        job.optimizer.zero_grad()
        job.engine.add_gradient(batch, 1.0)
        job.optimizer.step()
    moved = {
        part: max(float((p.detach() - start[n]).abs().max()) for n, p in named.items() if part in n)
        for part in ("_A", "_B")
    }
    assert moved["_B"] > 3 * moved["_A"] > 0


def test_virtual_tokens_count_as_positions_of_the_context(method_tree: Tree):
    tree = method_tree({"method": "prompt", "prompt_tokens": 250}, data={"max_lost_share": 1.0})
    with pytest.raises(InlayError):  # 256 positions leave 6 for a row
        make_single_job(configs.validate(tree), Quiet(), ProcessGroup())
