"""An adapter is put on the layers that are named, in every family, and PEFT alone reads it back the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from families import family, make_family
from inlay import api
from inlay import config as configs
from inlay.config import Config
from inlay.errors import AdapterError, ConfigError
from inlay.methods import called_layers, peft_names
from inlay.methods.adapter import adapter_disabled, attach, detach
from inlay.methods.adapter_state import AdapterState
from inlay.methods.base_modules import base_of
from inlay.methods.called_layers import failed_pass_warning
from inlay.methods.lora import expert_bytes, lora_layers
from inlay.methods.target_modules import coverage, expert_targets, linear_layers, resolve_targets, unsuitable_layers
from inlay.models.named_class import NamedClass
from inlay.runs.pre_flight import AdapterFacts
from inlay.training.setup import targets_of
from training_runs import Quiet

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT alone asks for it
IDS = torch.arange(4, 28)[None]


def settings(**adapter: Any) -> Config:
    preset = adapter.pop("preset", None)
    tree = {"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": {"rank": 2} | adapter}
    if adapter.get("method") in ("ia3", "prompt"):
        tree["adapter"] = adapter
    return configs.load(tree=tree | ({"preset": preset} if preset else {}))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :].clone()


def adapted(name: str, **adapter: Any) -> Any:
    """The family with its adapter, nothing of which is zero."""
    config, model = settings(**adapter), family(name)
    torch.manual_seed(1)
    peft_model = attach(
        model, config, targets_of(config, model)[0], lambda: [{"input_ids": IDS, "attention_mask": IDS > 0}]
    )
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return peft_model.eval()


ODD = [
    "deepseek_v3", "qwen3_next", "ernie4_5_moe", "mixtral", "llama4", "phimoe", "mamba", "jamba", "nemotron_h",
    "zamba2", "gemma3n", "falcon, new", "opt", "rwkv",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_every_layer_that_is_named_learns_and_plain_peft_opens_it(name: str, tmp_path: Path) -> None:
    """In training and not only in evaluation, where Gemma 3n and Mamba compute otherwise."""
    peft_model, original = adapted(name), logits(family(name))
    loss = torch.nn.functional.cross_entropy(peft_model.train()(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
    loss.backward()
    still = [n for n, p in peft_model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still
    memory = logits(peft_model.eval())
    assert float((memory - original).abs().max()) > 1e-2
    AdapterState.of(peft_model).write(tmp_path)
    assert torch.equal(logits(AdapterState.read(tmp_path).attach_to(family(name))), memory)
    assert float((logits(PeftModel.from_pretrained(family(name), str(tmp_path))) - memory).abs().max()) < 1e-4
    with adapter_disabled(peft_model):
        assert torch.equal(logits(peft_model), original)
    made = {layer.rpartition(".")[2] for layer, _ in lora_layers(peft_model)}
    targets = resolve_targets(base_of(peft_model), "auto")
    shown = AdapterFacts(summary="LoRA", trainable=1, targets=targets, coverage="all").words()
    assert set(shown.partition(" on ")[2].partition(": ")[0].rpartition(" layers named ")[2].split(", ")) == made
    assert torch.equal(logits(detach(peft_model)), original)


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "gpt_oss", "llama4"])
def test_experts_learn_beside_the_layers_and_plain_peft_opens_and_merges_them(name: str, tmp_path: Path) -> None:
    peft_model, original = adapted(name, experts=True), logits(family(name))
    names = [n for n in AdapterState.of(peft_model).tensors if ".experts." in n]
    assert (
        len(names) == 4 * sum(n.endswith("experts.lora_A.weight") for n in names) > 0
    )  # A and B of two weights a layer
    peft_model.train()(input_ids=IDS).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in peft_model.parameters() if p.requires_grad)
    memory = logits(peft_model.eval())
    AdapterState.of(peft_model).write(tmp_path)
    assert torch.equal(logits(AdapterState.read(tmp_path).attach_to(family(name))), memory)
    opened = PeftModel.from_pretrained(family(name), str(tmp_path)).eval()
    assert float((logits(opened) - memory).abs().max()) < 1e-4
    assert float((logits(opened.merge_and_unload()) - memory).abs().max()) < 1e-4
    assert torch.equal(logits(detach(peft_model)), original)


def test_the_gradient_of_experts_is_that_of_their_merged_weights() -> None:
    """By the change of the loss along the gradient."""
    peft_model = adapted("mixtral", experts=True)
    trained = [p for n, p in peft_model.named_parameters() if "experts" in n and p.requires_grad]

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(peft_model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])

    loss().backward()
    gradients = [p.grad.clone() for p in trained if p.grad is not None]
    assert len(gradients) == len(trained) > 0
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    values = []
    with torch.no_grad():
        for step in (0.001, -0.002):
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.add_(gradient / length, alpha=step)
            values.append(float(loss()))
    assert (values[0] - values[1]) / 0.002 == pytest.approx(float(length), rel=1e-2)


def test_the_backward_pass_keeps_a_copy_of_adapted_experts() -> None:
    peft_model = adapted("mixtral", experts=True)
    weights = {p.untyped_storage().data_ptr() for p in peft_model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.update({storage.data_ptr(): storage.nbytes()} if storage.data_ptr() not in weights else {})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        peft_model.train()(input_ids=IDS[:, :2])
    experts = sum(p.nbytes for n, p in family("mixtral").named_parameters() if ".experts." in n)
    assert expert_bytes(peft_model) == experts
    assert experts < sum(kept.values()) < 1.5 * experts


SHARES = {
    "llama": "100%", "mixtral": "12.4% of the decoder's weights (its experts, 87%, get none without adapter.experts)",
    "deepseek_v3": "(its experts, ", "jamba": "(its experts, ",
}  # fmt: skip


@pytest.mark.parametrize("name", SHARES)
def test_the_share_of_the_decoder_is_that_of_the_layers_in_memory(name: str) -> None:
    model = family(name)
    targets = resolve_targets(model, "auto")
    assert SHARES[name] in coverage(model, targets)
    size = {n: p.numel() for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n and "head" not in n}
    taken = sum(size[f"{n}.weight"] for n in linear_layers(model))
    assert float(coverage(model, targets).split("%")[0]) == pytest.approx(100 * taken / sum(size.values()), abs=0.06)
    words = targets_of(settings(), model)[1]
    assert ("all linear layers" in words) == (name == "llama")
    if name != "llama":
        assert float(coverage(model, targets, expert_targets(model)).split("%")[0]) > 95


UNFIT = {
    "llama4": ("feed_forward.router", "returns more than the product"),
    "phimoe": ("mlp.router", "returns more than the product"),
    "mamba": ("mixer.dt_proj", "used through its weight"),
    "jamba": ("mamba.dt_proj", "used through its weight"),
    "rwkv": ("attention.output", "used through its weight"),
    "gemma3n": ("altup.correction_coefs", "used through its weight"),
    "zamba2": ("gate_up_proj_adapter_list.0.1", "never called"),
    "mamba2": ("mixer.out_proj", "refused by PEFT"),
    "falcon_h1": ("mamba.out_proj", "refused by PEFT"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_layer_that_is_not_called_as_a_linear_layer_gets_no_adapter_and_is_refused_by_name(name: str) -> None:
    model, (layer, why) = family(name), UNFIT[name]
    left_out = unsuitable_layers(model)
    found = [n for n in left_out if n.endswith(layer)]
    assert found
    assert why in left_out[found[0]]
    assert not set(left_out) & set(linear_layers(model))
    assert why in targets_of(settings(), model)[1]
    with pytest.raises(AdapterError, match=f"{why}.*Name some of"):
        resolve_targets(model, [found[0]])


@pytest.mark.parametrize("name", ["llama", "falcon, new", "gpt2", "gpt_bigcode", "qwen3_5"])
def test_no_layer_is_left_out_where_all_are_called(name: str) -> None:
    assert unsuitable_layers(family(name)) == {}


def test_a_base_whose_layers_cannot_be_seen_in_a_forward_pass_is_told_with_the_reason(
    tmp_path: Path, config_tree: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = family("gpt2")
    assert unsuitable_layers(seen) == {}
    assert failed_pass_warning(seen) == ""
    base, reporter = make_family(tmp_path / "base", "gpt2"), Quiet()
    monkeypatch.setattr(called_layers, "_TOKENS", 257)  # GPT-2 has a position for one less
    api.train(config_tree(model={"base_model": str(base)}, train={"max_steps": 1}), reporter=reporter)
    (told,) = [text for text in reporter.notes if "which shows the linear layers that act" in text]
    assert told.startswith("warning: a forward pass over 257 tokens")
    assert "failed (index out of range" in told
    assert told.endswith("name the layers in adapter.target_modules.")


def test_seeing_which_layers_are_called_changes_nothing_of_the_model_and_draws_nothing() -> None:
    model = family("gpt2").train()
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    linear_layers(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bloom", {"query_key_value", "dense_h_to_4h"}),
        ("falcon, new", {"query_key_value", "dense_h_to_4h"}),
        ("persimmon", {"query_key_value", "dense_h_to_4h"}),
        ("gpt_bigcode", {"attn.c_attn", "mlp.c_fc"}),
        ("codegen", {"qkv_proj", "fc_in"}),
        ("glm4", {"q_proj", "v_proj", "gate_up_proj"}),
        ("mamba", {"mixer.x_proj", "mixer.in_proj"}),
        ("rwkv", {"attention.receptance", "attention.value", "feed_forward.receptance", "feed_forward.key"}),
    ],
)
def test_the_preset_code_and_ia3_find_their_layers_in_every_family(name: str, expected: set[str]) -> None:
    model = family(name)
    assert set(targets_of(settings(preset="code"), model)[0]) == expected
    ia3, _ = targets_of(settings(method="ia3"), model)
    assert len(ia3) >= 1
    peft_model = adapted(name, method="ia3")
    assert not torch.allclose(logits(peft_model), logits(model), atol=1e-3)


def test_a_head_of_its_own_is_adapted_where_it_is_named(tmp_path: Path) -> None:
    peft_model = adapted("qwen3", target_modules=["q_proj", "lm_head"])
    AdapterState.of(peft_model).write(tmp_path)
    assert any("lm_head.lora_B" in name for name in AdapterState.of(peft_model).tensors)
    assert torch.equal(logits(PeftModel.from_pretrained(family("qwen3"), str(tmp_path))), logits(peft_model))


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("qwen2, tied", "lm_head", "has the weights of the embeddings"),
        ("qwen3", "embed_tokens", "is an embedding, and adapters are put on linear layers"),
        ("qwen2, tied", "Q_PROJ", r"'\. Did you mean 'q_proj'"),
        ("qwen2, tied", "head", r"'\. Known: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj\."),
        ("qwen3", "head", r"'\. Did you mean 'lm_head'\? Known: down_proj, gate_proj, k_proj, lm_head, o_proj"),
        ("mixtral", "gate_up_proj", r"is no layer here but a tensor with all experts.*adapter\.experts=true"),
    ],
)
def test_what_cannot_be_a_target_is_refused_with_its_reason(name: str, target: str, why: str) -> None:
    with pytest.raises(AdapterError, match=rf"{target} ?{why}"):
        resolve_targets(family(name), ["q_proj", target])


def test_experts_are_refused_where_there_are_none_or_where_peft_knows_no_such_adapter() -> None:
    with pytest.raises(AdapterError, match=r"adapter\.experts: a llama has no experts"):
        adapted("llama", experts=True)
    for other in ({"dora": True}, {"dropout": 0.1}, {"init": "pissa"}):
        with pytest.raises(ConfigError, match=f"experts cannot be combined with {next(iter(other))}"):
            settings(experts=True, **other)
    with pytest.raises(AdapterError, match=r"adapter\.dora: PEFT reads .*gate_proj.* of a deepseek_v3"):
        adapted("deepseek_v3", dora=True)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
def test_an_adapter_on_other_layers_than_the_named_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PEFT would put it on, left alone."""
    monkeypatch.setattr("inlay.methods.peft_layers.literal_target_names", contextlib.nullcontext)
    with pytest.raises(AdapterError, match=r"PEFT (leaves out|also takes)"):
        adapted("deepseek_v3")


def test_what_peft_rewrites_is_saved_by_its_weights_and_read_as_layers(tmp_path: Path) -> None:
    AdapterState.of(adapted("deepseek_v3", dropout=0.1)).write(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["target_parameters"] == ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]
    assert not {"gate_proj", "up_proj", "down_proj"} & set(stored["target_modules"])
    back = peft_names.with_layer_targets(stored, family("deepseek_v3"))
    assert {"gate_proj", "up_proj", "down_proj", "o_proj"} <= set(back["target_modules"])
    assert not back["target_parameters"]
    assert peft_names.names_peft_rewrites(family("llama"), ["gate_proj", "up_proj"]) == []


def test_an_adapter_for_a_class_with_other_names_finds_experts_and_rewritten_layers_there(tmp_path: Path) -> None:
    """As a vision-language base has them, under a longer prefix."""
    peft_model = adapted("deepseek_v3", experts=True)
    memory = logits(peft_model)
    named = NamedClass("Whole", "Part", {"model.layers": "model.text.layers"})
    AdapterState.of(peft_model).under(named).write(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"module_names": named.prefixes}))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "experts" not in stored["target_modules"]
    assert "experts.gate_up_proj" in stored["target_parameters"]
    assert torch.equal(logits(AdapterState.read(tmp_path).attach_to(family("deepseek_v3"))), memory)


@pytest.mark.parametrize("name", ["opt", "opt, narrow embeddings", "llama4"])
def test_virtual_tokens_learn_where_the_decoder_lies_deeper_in_the_model(name: str, tmp_path: Path) -> None:
    peft_model = adapted(name, method="prompt", prompt_tokens=3)
    peft_model.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().mean().backward()
    assert peft_model.prompt_embeddings.grad.any()
    memory = logits(peft_model.eval())
    assert not torch.allclose(memory, logits(family(name)), atol=1e-3)
    AdapterState.of(peft_model).write(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(family(name), str(tmp_path))), memory)


@pytest.mark.parametrize("name", ["llama", "mamba", "qwen3_next", "rwkv"])
def test_virtual_tokens_are_put_once_into_any_kind_of_cache(name: str) -> None:
    peft_model = adapted(name, method="prompt", prompt_tokens=3)
    ids, seen = IDS[:, :8], []

    def see(_decoder: Any, _given: Any, named: dict[str, Any]) -> None:
        entering = [named.get(argument) for argument in ("input_ids", "inputs_embeds")]
        seen.extend(tokens.shape[1] for tokens in entering if tokens is not None)

    peft_model.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    answer = peft_model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
    )
    assert seen == [3 + 8, 1, 1, 1, 1, 1]
    for _ in range(6):
        with torch.no_grad():
            following = peft_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1:]
        ids = torch.cat([ids, following.argmax(-1)], 1)
    assert torch.equal(answer, ids)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_virtual_tokens_are_refused_where_layers_look_up_embeddings_of_their_own(name: str) -> None:
    with pytest.raises(AdapterError, match=r"adapter\.method prompt: each layer of a gemma.* looks up an embedding"):
        adapted(name, method="prompt")


def test_eva_starts_from_each_row_alone_also_where_a_layer_sees_no_rows() -> None:
    """OPT's feed-forward gets the tokens of all rows in one list."""
    rows = torch.arange(4, 44).view(2, 20)
    present = torch.ones_like(rows)
    present[1, 12:] = 0
    config, found = settings(init="eva"), []
    for batches in (
        [{"input_ids": rows, "attention_mask": present}],
        [
            {"input_ids": rows[:1], "attention_mask": present[:1]},
            {"input_ids": rows[1:, :12], "attention_mask": present[1:, :12]},
        ],
    ):
        model = family("opt")
        torch.manual_seed(0)
        peft_model = attach(model, config, targets_of(config, model)[0], lambda batches=batches: batches)
        found.append(AdapterState.of(peft_model).tensors)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
