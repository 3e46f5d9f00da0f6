"""Which layers get an adapter, and which adapter folders are let in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay import config as configs
from inlay.config import Config
from inlay.errors import AdapterError, ConfigError
from inlay.methods.adapter import adapter_disabled, attach, detach
from inlay.methods.adapter_state import AdapterState
from inlay.methods.initialization import leading
from inlay.methods.lora import lora_layers
from inlay.methods.target_modules import layers_for_roles, linear_layers, resolve_targets
from inlay.training.setup import targets_of
from parts import NANO

SMALL = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "head_dim": 8, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
DECODERS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "gpt2": (
        "GPT2",
        {
            "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": None,
            "eos_token_id": None,
        },
        {"c_attn", "c_proj", "c_fc"},
    ),
    "llama": ("Llama", SMALL, GATED),
    "qwen2": ("Qwen2", SMALL, GATED),
    "qwen3": ("Qwen3", SMALL, GATED),
    "mistral": ("Mistral", SMALL, GATED),
    "gemma2": ("Gemma2", SMALL, GATED),
    "gemma3_text": ("Gemma3", SMALL, GATED),
    "phi3": ("Phi3", SMALL, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
}  # fmt: skip
HEAD = {"gpt2": "GPT2LMHeadModel"}


def decoder(kind: str, seed: int = 0) -> nn.Module:
    """A tiny random model of that architecture."""
    name, shape, _ = DECODERS[kind]
    config = getattr(transformers, f"{name}TextConfig" if kind == "gemma3_text" else f"{name}Config")(**shape)
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, HEAD.get(kind, f"{name}ForCausalLM"))(config)
    return model.eval()


def settings(**adapter: Any) -> Config:
    preset = adapter.pop("preset", None)
    tree = {"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": {"rank": 2} | adapter}
    return configs.load(tree=tree | ({"preset": preset} if preset else {}))


def wrapped(model: nn.Module, targets: list[str]) -> set[str]:
    """The layers that PEFT really adapts."""
    return {name for name, _ in lora_layers(attach(model, settings(), targets))}


@pytest.mark.parametrize("kind", DECODERS)
def test_auto_adapts_every_linear_layer_but_the_head(kind: str):
    model = decoder(kind)
    targets = resolve_targets(model, "auto")
    assert set(targets) == DECODERS[kind][2]
    layers = set(linear_layers(model))
    assert wrapped(model, targets) == layers
    weights = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lora_" not in n}
    inner = {n.removesuffix(".weight").removesuffix(".base_layer") for n in weights}
    assert inner - layers <= {"lm_head", "transformer.wte", "transformer.wpe"}


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_auto_leaves_out_head_pooler_and_classifier_of_other_shapes(kind: str):
    if kind == "t5":
        shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
        model: nn.Module = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape))
        expected = {"q", "k", "v", "o", "wi", "wo"}
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=64, **shape))
        expected = {"query", "key", "value", "dense"}
    layers = linear_layers(model)
    assert {name.rpartition(".")[2] for name in layers} == expected
    assert not any(part in name for name in layers for part in ("lm_head", "pooler", "classifier"))
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - set(layers) <= {
        "lm_head", "bert.pooler.dense", "classifier",
    }  # fmt: skip
    hit = set(resolve_targets(model, "auto"))
    peft_hits = {n for n, _ in model.named_modules() if any(n == t or n.endswith("." + t) for t in hit)}
    assert peft_hits == set(layers)


class TwoTowers(nn.Module):
    """A vision tower whose layers bear the same names as those of the language model."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
        self.language_model = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "fc": nn.Linear(4, 4)})
        self.lm_head = nn.Linear(4, 4)


@pytest.mark.parametrize("wanted", ["auto", ["q_proj"]], ids=str)
def test_a_vision_tower_of_the_same_names_is_left_alone(wanted: Any):
    targets = resolve_targets(TwoTowers(), wanted)
    assert "language_model.q_proj" in targets
    assert not any(name in ("q_proj", "vision_tower.q_proj", "lm_head") for name in targets)


def test_a_list_that_matches_only_in_part_is_refused_with_the_nearest_name():
    with pytest.raises(AdapterError, match=r"unknown layer 'q_prj'\. Did you mean 'q_proj'"):
        resolve_targets(decoder("llama"), ["v_proj", "q_prj"])


@pytest.mark.parametrize(
    ("kind", "preset", "expected"),
    [
        ("llama", "summarize", {"q_proj", "v_proj"}),
        ("gpt2", "summarize", {"attn.c_attn"}),
        ("gpt2", "instruct", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("phi3", "summarize", {"qkv_proj"}),
        ("phi3", "code", {"qkv_proj", "gate_up_proj"}),
    ],
)
def test_a_preset_finds_its_layers_under_the_names_of_the_architecture(kind: str, preset: str, expected: set[str]):
    model = decoder(kind)
    targets, reason = targets_of(settings(preset=preset), model)
    assert set(targets) == expected
    assert all(any(layer.endswith(t) for t in targets) for layer in wrapped(model, targets))
    assert ("q_proj is in" in reason) == (kind != "llama")


def test_a_list_of_the_users_is_never_translated():
    with pytest.raises(AdapterError, match="unknown layer 'q_proj'"):
        targets_of(settings(target_modules=["q_proj", "v_proj"]), decoder("gpt2"))
    names, reason = layers_for_roles(decoder("gpt2"), ["q_proj", "gate_proj"], "these")
    assert names == ["attn.c_attn"]
    assert "gate_proj has no counterpart" in reason


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(2, 18).view(2, 8)).logits.clone()


def trained(kind: str, **adapter: Any) -> tuple[nn.Module, Any, Tensor]:
    """(untouched twin of the base, PeftModel with random A and B, logits of the base)"""
    model = decoder(kind)
    peft_model = attach(model, settings(**adapter), resolve_targets(model, "auto"))
    for name, parameter in peft_model.named_parameters():
        if "lora_B.default" in name:
            parameter.data.normal_(0.0, 0.1)
    return decoder(kind), peft_model.eval(), logits(decoder(kind))


@pytest.mark.parametrize("kind", DECODERS)
def test_off_is_the_base_and_saved_is_memory_bit_for_bit(kind: str, tmp_path: Path):
    base, peft_model, original = trained(kind)
    memory = logits(peft_model)
    assert not torch.allclose(memory, original, atol=1e-3)
    with adapter_disabled(peft_model):
        assert torch.equal(logits(peft_model), original)
    assert torch.equal(logits(peft_model), memory)
    AdapterState.of(peft_model).write(tmp_path)
    loaded = AdapterState.read(tmp_path).attach_to(base)
    assert torch.equal(logits(loaded), memory)
    assert torch.equal(logits(detach(loaded)), original)


MERGED = 1e-5
"""Largest difference of logits (about 1 in size) between an adapter beside its weight and merged into it, in fp32."""


@pytest.mark.parametrize("adapter", [{}, {"dora": True}, {"init": "olora", "rank": 2}], ids=str)
def test_merged_computes_what_unmerged_computes(adapter: dict[str, Any], capsys: Any):
    base, peft_model, _ = trained("qwen2", **adapter)
    expected = logits(peft_model)
    merged = AdapterState.of(peft_model).exported().attach_to(base).merge_and_unload()
    distance = float((logits(merged) - expected).abs().max())
    with capsys.disabled():
        print(f"\n  merged against unmerged {adapter}: {distance:.1e}", end="")  # noqa: T201
    assert distance <= MERGED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _, peft_model, _ = trained("llama")
    AdapterState.of(peft_model).write(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"base_model": "a", "base_digest": "1" * 64}))
    return tmp_path


def change_settings(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return edit


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def with_another_layer(tensors: dict[str, Tensor]) -> None:
    for half in ("lora_A", "lora_B"):
        name = FIRST.replace("lora_A", half)
        tensors[name.replace("q_proj", "q_proj.r")] = tensors[name] + 0


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "infinite alpha": (lambda f: change_settings(f, lora_alpha=float("inf")), "Infinity is not a JSON number"),
    "absurd alpha": (lambda f: change_settings(f, lora_alpha=1e30), "it must be above 0 and at most 1e6"),
    "no alpha": (lambda f: change_settings(f, lora_alpha=0), "lora_alpha of adapter_config.json is 0"),
    "alpha of one layer": (
        lambda f: change_settings(f, alpha_pattern={"q_proj": 0}),
        "above 0 and at most 1e6 for each name",
    ),
    "another rank": (lambda f: change_settings(f, r=3), "has rank 2, but adapter_config.json says 3"),
    "no rank": (lambda f: change_settings(f, r="2"), "r of adapter_config.json is 2; it must be a whole number"),
    "another method": (lambda f: change_settings(f, peft_type="VERA"), "does not describe an adapter of LORA"),
    "rearranged base": (lambda f: change_settings(f, layer_replication=[[0, 1], [0, 2]]), "uses PEFT's layer_repl"),
    "not finite": (change_tensors(lambda t: t[FIRST].fill_(float("nan"))), "not finite"),
    "missing tensor": (change_tensors(lambda t: t.pop(FIRST)), "q_proj.lora_A.weight is missing from the adapter"),
    "extra tensor": (change_tensors(with_another_layer), "q_proj.r has no place in this model"),
    "other shape": (change_tensors(lambda t: t.update({FIRST: torch.ones(2, 5)})), "has shape (2, 5)"),
    "more targets": (lambda f: change_settings(f, target_modules=["nothing"]), "its target_modules do not name it"),
    "cut short": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"short"), "it is cut off"),
    "not json": (lambda f: (f / "adapter_config.json").write_text("[1"), "is not usable JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[1]"), "holds no object"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_adapter_that_is_not_what_it_should_be_is_refused(damage: str, folder: Path):
    act, said = DAMAGE[damage]
    act(folder)
    base = decoder("llama")
    with pytest.raises(AdapterError) as caught:
        AdapterState.read(folder).attach_to(base)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(base), logits(decoder("llama")))


def test_an_adapter_of_another_base_is_refused(folder: Path):
    with pytest.raises(AdapterError, match="trained on another base"):
        AdapterState.read(folder, "2" * 64)
    AdapterState.read(folder, "1" * 64)


def test_settings_that_cannot_take_effect_are_refused():
    for adapter, said in (
        ({"init": "pissa", "dora": True}, "cannot be combined with dora"),
        ({"init": "eva", "start_from": "x"}, "adapter: init eva has no effect with start_from"),
    ):
        with pytest.raises(ConfigError, match=said):
            settings(**adapter)
    with pytest.raises(AdapterError, match="this base has no such biases"):
        attach(decoder("llama"), settings(bias="all"), ["q_proj"])
    with pytest.raises(AdapterError, match="would round most steps away"):
        attach(decoder("gpt2").to(torch.bfloat16), settings(bias="all"), ["c_attn"])
    with pytest.raises(AdapterError, match=r"adapter\.rank=8 or less"):
        attach(decoder("llama"), settings(init="pissa", rank=10), ["k_proj"])


def test_the_shipped_presets_fit_the_built_in_architecture():
    assert json.loads((NANO / "config.json").read_text())["model_type"] == "llama"
    for name in configs.presets():
        assert targets_of(settings(preset=name), decoder("llama"))[0]


def test_the_randomised_svd_of_a_large_weight_is_nearly_the_exact_one():
    torch.manual_seed(0)
    falling = torch.arange(1, 301, dtype=torch.float32).pow(-0.5)
    weight = torch.linalg.qr(torch.randn(400, 300))[0] * falling @ torch.linalg.qr(torch.randn(300, 300))[0]
    u, s, v = leading(weight, 16)
    best = float(falling[16:].norm())
    assert float((weight - u * s @ v).norm()) <= 1.001 * best


@pytest.mark.parametrize(("alpha", "written"), [("2x", "4"), (9, "9"), (2.5, "2.5")])
def test_alpha_is_written_as_a_whole_number_where_it_is_one(alpha: Any, written: str, tmp_path: Path):
    AdapterState.of(attach(decoder("llama"), settings(alpha=alpha), ["q_proj"])).write(tmp_path)
    assert f'"lora_alpha": {written},' in (tmp_path / "adapter_config.json").read_text()
