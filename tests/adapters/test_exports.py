"""An export holds the changes of its adapter, whatever their ranks and scales; what a program cannot hold is refused."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from inlay.adapters.exports import gguf, ollama
from inlay.adapters.exports.form import LARGEST_ERROR, ExportSource, Limit
from inlay.adapters.exports.table import EXPORTS
from inlay.adapters.lowrank import Factors, lowrank_of
from inlay.config.sections.data import DataConfig
from inlay.config.sections.generation import GenerationConfig
from inlay.data.encoding.encoder import Encoder
from inlay.errors import AdapterError
from inlay.methods.adapter_state import AdapterState
from inlay.models.base import BaseRef
from parts import make_base

LORA_FORMS = ("peft", "vllm", "gguf", "mlx", "ollama")
SIZES = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48),
}  # fmt: skip
"""(outputs, inputs) of the linear layers of the tiny base."""
Change = dict[str, Tensor]


def random_lora(seed: int, **fixed: Any) -> tuple[AdapterState, Change]:
    """A LoRA of random targets, ranks, alphas and scale rule on the tiny base, and ΔW of each module by PEFT's formula."""
    draw = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    rank, alpha, rslora = pick(1, 9), pick(1, 40), fixed.get("use_rslora", bool(pick(0, 1)))
    layers = [f"model.layers.{n}.{name}" for n in range(2) for name in SIZES]
    targets = fixed.get("targets") or [module for module in layers if pick(0, 2)] or layers[:1]
    ranks = {module: pick(1, 12) for module in targets if not pick(0, 2)}
    alphas = {module: pick(1, 30) for module in targets if not pick(0, 2)}
    tensors, change = {}, {}
    for module in targets:
        r, (outputs, inputs) = ranks.get(module, rank), SIZES[module.split(".", 3)[3]]
        a, b = torch.randn(r, inputs, generator=draw), torch.randn(outputs, r, generator=draw) * 0.1
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        change[module] = alphas.get(module, alpha) / (math.sqrt(r) if rslora else r) * b.double() @ a.double()
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "use_rslora": rslora,
        "rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": sorted(targets), "bias": "none",
        "init_lora_weights": True, "inference_mode": True, "fan_in_fan_out": False,
    }  # fmt: skip
    return AdapterState(peft, tensors), change


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose answers a random adapter changes."""
    return make_base(tmp_path_factory.mktemp("base"), initializer_range=0.2)


def source_of(base: Path, state: AdapterState, **more: Any) -> ExportSource:
    adapter, fault = None, ""
    try:
        adapter = lowrank_of(state, "a" * 64)
    except AdapterError as error:
        fault = str(error)
    return ExportSource(
        "support",
        state,
        adapter,
        fault,
        BaseRef(str(base), base),
        *_architecture_and_encoder(base),
        GenerationConfig(),
        **more,
    )


@functools.cache
def _architecture_and_encoder(base: Path) -> tuple[Any, Encoder]:
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    return AutoConfig.from_pretrained(str(base)), Encoder.of(tokenizer, DataConfig(train="-"))


def dense_of(to: str, folder: Path, source: ExportSource) -> Change:
    """ΔW of each module as the files have it, read here by hand and not by what wrote them."""
    if to in ("peft", "vllm"):
        config, tensors = (
            json.loads((folder / "adapter_config.json").read_text()),
            load_file(folder / "adapter_model.safetensors"),
        )
        assert not any(config[key] for key in ("rank_pattern", "alpha_pattern", "use_rslora")), (
            "a server may not know them"
        )
        assert isinstance(config["lora_alpha"], int)
        scale = config["lora_alpha"] / config["r"]
        names = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors}
        halves = {m: [tensors[f"base_model.model.{m}.lora_{half}.weight"].double() for half in "AB"] for m in names}
        return {module: scale * b @ a for module, (a, b) in halves.items()}
    if to == "mlx":
        found, tensors = (
            json.loads((folder / "adapter_config.json").read_text()),
            load_file(folder / "adapters.safetensors"),
        )
        layers, lora = found["num_layers"], found["lora_parameters"]
        modules = [f"model.layers.{n}.{key}" for n in range(layers) for key in lora["keys"]]
        a = {m: tensors[f"{m}.lora_a"].double() for m in modules if f"{m}.lora_a" in tensors}
        assert 2 * len(a) == len(tensors), "each tensor belongs to a key"
        assert {each.shape[1] for each in a.values()} == {lora["rank"]}
        return {m: (a[m] @ tensors[f"{m}.lora_b"].double() * lora["scale"]).T for m in a}
    package = pytest.importorskip("gguf")
    reader = package.GGUFReader(str(folder / "support.gguf"))
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    tensors = {each.name: torch.from_numpy(each.data.copy()).double() for each in reader.tensors}
    short = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    change = {}
    for name in {each.removesuffix(".lora_a").removesuffix(".lora_b") for each in tensors}:
        _, layer, kind, _ = name.split(".")
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        delta = alpha / b.shape[1] * b @ a
        if heads := {"attn_q": 4, "attn_k": 2}.get(
            kind
        ):  # row 2i of a head is row i of its first half, 2i+1 of its second
            rows, half = len(delta), len(delta) // heads // 2
            order = [h * 2 * half + 2 * (i % half) + i // half for h in range(heads) for i in range(2 * half)]
            assert sorted(order) == list(range(rows))
            delta = delta[order]
        change[f"model.layers.{layer}.{short[kind]}"] = delta
    return change


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), to=st.sampled_from(LORA_FORMS))
def test_the_files_of_every_form_hold_the_change_of_every_module(
    seed: int, to: str, base: Path, tmp_path_factory: pytest.TempPathFactory
):
    state, change = random_lora(seed)
    source, folder = source_of(base, state), tmp_path_factory.mktemp("export")
    EXPORTS[to].write(source, folder)
    found = dense_of(to, folder, source)
    assert set(found) == set(change)
    for module, delta in change.items():
        assert float((found[module] - delta).norm() / delta.norm()) < 1e-6
    back = EXPORTS[to].read_back(source, folder)
    assert back.modules == len(change)
    assert back.error < LARGEST_ERROR["float32"]


@pytest.mark.parametrize("to", LORA_FORMS)
def test_float16_is_within_the_rounding_that_is_stated(to: str, base: Path, tmp_path: Path):
    state, change = random_lora(3)
    source = source_of(base, state, dtype="float16")
    EXPORTS[to].write(source, tmp_path)
    found = dense_of(to, tmp_path, source)
    errors = [float((found[m] - delta).norm() / delta.norm()) for m, delta in change.items()]
    assert 1e-5 < max(errors) < LARGEST_ERROR["float16"]
    assert EXPORTS[to].read_back(source, tmp_path).error == pytest.approx(max(errors), rel=1e-3)


def test_peft_loads_what_it_was_trained_as_and_the_flat_form_with_equal_logits(base: Path, tmp_path: Path):
    state, _ = random_lora(5, use_rslora=True)
    ids = torch.tensor([[5, 9, 70, 33, 8]])
    logits = []
    for name, as_trained in (("flat", False), ("trained", True)):
        source = source_of(base, state, as_trained=as_trained)
        (tmp_path / name).mkdir()
        EXPORTS["peft"].write(source, tmp_path / name)
        assert EXPORTS["peft"].read_back(source, tmp_path / name).error < 1e-6
        model = AutoModelForCausalLM.from_pretrained(str(base))
        logits.append(model(ids).logits)
        logits.append(PeftModel.from_pretrained(model, str(tmp_path / name)).eval()(ids).logits)
    bare, flat, _, trained = logits
    assert torch.allclose(flat, trained, atol=1e-5)
    assert not torch.allclose(flat, bare, atol=0.1)


def break_write(to: str, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Makes what writes, and not what reads, do one thing wrong."""
    if how == "rows not turned":
        monkeypatch.setattr(gguf, "turned", lambda b_OR, heads: b_OR)
    elif how == "scale forgotten":
        whole = ExportSource.factors
        monkeypatch.setattr(
            ExportSource, "factors", lambda one: {m: Factors(f.A_RI, f.B_OR * one.rank) for m, f in whole(one).items()}
        )
    else:  # A and B in the place of each other
        whole = ExportSource.factors
        monkeypatch.setattr(
            ExportSource, "factors",
            lambda one: {m: Factors(f.B_OR.T.contiguous(), f.A_RI.T.contiguous()) for m, f in whole(one).items()},
        )  # fmt: skip


@pytest.mark.parametrize(("to", "how"), [
    ("gguf", "rows not turned"), ("gguf", "scale forgotten"), ("gguf", "transposed"), ("mlx", "scale forgotten"),
    ("mlx", "transposed"), ("ollama", "rows not turned"),
])  # fmt: skip
def test_reading_back_finds_every_change_that_was_written_wrongly(
    to: str, how: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state, _ = random_lora(7, targets=["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"])
    source = source_of(base, state)
    break_write(to, monkeypatch, how)
    EXPORTS[to].write(source, tmp_path)
    assert EXPORTS[to].read_back(source, tmp_path).error > 0.1


def test_a_module_that_was_not_written_is_named(base: Path, tmp_path: Path):
    state, change = random_lora(7)
    EXPORTS["gguf"].write(source_of(base, state), tmp_path)
    other = "model.layers.1.mlp.down_proj"
    more, _ = random_lora(8, targets=[*change, other] if other not in change else [m for m in change if m != other])
    with pytest.raises(AdapterError, match=rf"{re.escape(other)} is (missing|no module)"):
        EXPORTS["gguf"].read_back(source_of(base, more), tmp_path)


def broken(to: str, source: ExportSource) -> str:
    """The first limit that is broken, with what was found."""
    return next((f"{limit.name}: {limit.found}" for limit in EXPORTS[to].limits(source) if limit.passed is False), "")


def adapter_on(modules: dict[str, tuple[int, int]], rank: int = 4, **settings: Any) -> AdapterState:
    tensors = {}
    for module, (outputs, inputs) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.ones(rank, inputs)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.ones(outputs, rank)
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": sorted(modules),
    }  # fmt: skip
    return AdapterState(peft | settings, tensors)


Q = {"model.layers.0.self_attn.q_proj": (32, 32)}


@pytest.mark.parametrize("to", LORA_FORMS)
def test_dora_is_refused_with_the_way_out(to: str, base: Path):
    state = adapter_on(Q, use_dora=True)
    state.tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(32)
    assert re.search(r"DoRA .* full rank.*inlay adapters merge", broken(to, source_of(base, state)))
    assert broken("peft", source_of(base, state, as_trained=True)) == ""


@pytest.mark.parametrize("to", LORA_FORMS)
@pytest.mark.parametrize(("kind", "way_out"), [("IA3", "inlay adapters merge"), ("PROMPT_TUNING", "Use it alone")])
def test_methods_that_are_no_sum_of_factors_are_refused_with_the_way_out(kind: str, way_out: str, to: str, base: Path):
    state = AdapterState({"peft_type": kind, "task_type": "CAUSAL_LM"}, {"x": torch.ones(1)})
    assert way_out in broken(to, source_of(base, state))
    assert broken("peft", source_of(base, state, as_trained=True)) == ""


def test_trained_biases_are_refused_but_by_peft(base: Path):
    source = source_of(base, adapter_on(Q))
    adapter = replace(source.lowrank, biases={"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    for to in LORA_FORMS:
        assert ("trains biases" in broken(to, replace(source, adapter=adapter))) == (to != "peft")


@pytest.mark.parametrize(("to", "family", "module", "message"), [
    ("gguf", "mamba", "model.layers.0.self_attn.q_proj", "not among those compared .*llama.*inlay adapters merge"),
    ("mlx", "mamba", "model.layers.0.self_attn.q_proj", "not among those compared .*llama"),
    ("vllm", "gpt2", "model.layers.0.self_attn.q_proj", "takes no adapters"),
    ("vllm", "qwen2", "lm_head", "lm_head of qwen2 cannot be adapted"),
    ("vllm", "qwen3", "lm_head", ""),
    ("gguf", "llama", "lm_head", ""),
])  # fmt: skip
def test_families_and_modules_that_a_program_does_not_take_are_refused(
    to: str, family: str, module: str, message: str, base: Path
):
    source = source_of(base, adapter_on({module: (32, 32)}))
    found = broken(to, replace(source, architecture=SimpleNamespace(model_type=family)))
    assert re.search(message, found) if message else found == ""


@pytest.mark.parametrize("to", ["gguf", "mlx"])
def test_a_head_that_is_tied_to_the_embedding_is_refused(to: str, base: Path):
    source = source_of(base, adapter_on({"lm_head": (64, 32)}))
    tied = SimpleNamespace(model_type="llama", tie_word_embeddings=True)
    assert "lm_head is adapted" in broken(to, replace(source, architecture=tied))


def test_rope_settings_of_the_base_that_mlx_would_not_find_are_named(base: Path, tmp_path: Path):
    found: dict[bool, Limit] = {}
    for is_on_top in (False, True):
        config = {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}} | (
            {"rope_theta": 1e5} if is_on_top else {}
        )
        (tmp_path / "config.json").write_text(json.dumps(config))
        source = replace(source_of(base, adapter_on(Q)), base=BaseRef("b", tmp_path))
        found[is_on_top] = next(limit for limit in EXPORTS["mlx"].limits(source) if limit.name == "rope")
    assert found[True].passed
    assert found[False].passed is None
    assert 'add "rope_theta": 100000.0' in found[False].found


def test_the_rank_that_vllm_is_started_with_holds_the_adapter(base: Path):
    for rank, served in ((1, 8), (16, 16), (65, 128), (300, 320), (330, 512)):
        commands = EXPORTS["vllm"].commands(source_of(base, adapter_on(Q, rank)), base)
        assert f"--max-lora-rank {served} " in commands[0]
    assert "rank: 576 is above 512" in broken("vllm", source_of(base, adapter_on(Q, 520)))


def test_a_missing_gguf_package_is_named_with_its_extra(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    assert 'pip install "inlay[gguf]"' in broken("gguf", source_of(base, adapter_on(Q)))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.mark.parametrize(("template", "name", "system", "takes_system"), [
    (CHATML, "ChatML", "", True),
    ("{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}" + CHATML,
     "ChatML", "Help.", True),
    (GEMMA, "Gemma", "", False),
    (CHATML.replace("assistant", "helper"), None, "", False),
    (CHATML.replace("m['content']", "m['content'] | upper"), None, "", False),
    (None, None, "", False),
])  # fmt: skip
def test_a_template_is_written_for_ollama_only_where_it_renders_the_same_text(
    template: str | None, name: str | None, system: str, takes_system: bool, base: Path
):
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.chat_template = template
    found = ollama.proven_template(tokenizer)
    if name is None:
        assert found is None
    else:
        assert found is not None
        assert (found.turns.name, found.system, found.takes_system) == (name, system, takes_system)


def test_a_template_that_opens_with_the_token_of_the_beginning_is_known_all_the_same(base: Path):
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.chat_template, tokenizer.bos_token = CHATML, "<|im_start|>"
    assert ollama.proven_template(tokenizer) is not None
    tokenizer.chat_template, tokenizer.bos_token = GEMMA, "<|pad|>"
    assert ollama.proven_template(tokenizer) is not None


def test_a_modelfile_has_the_sampling_and_the_stop_strings_of_the_run(base: Path):
    sampling = GenerationConfig(temperature=0.3, top_k=7, stop=["###", 'say "x"'], no_repeat_ngram_size=3)
    text = ollama.modelfile(replace(source_of(base, adapter_on(Q)), generation=sampling))
    lines = text.splitlines()
    assert f"FROM {base}" in lines
    assert "ADAPTER ./support.gguf" in lines
    assert {
        "PARAMETER temperature 0.3",
        "PARAMETER top_k 7",
        'PARAMETER stop "###"',
        'PARAMETER stop "<|im_end|>"',
    } <= {*lines}
    assert "# A Modelfile cannot quote the stop string 'say \"x\"'." in lines
    assert "no_repeat_ngram_size (3) has no counterpart" in text
    assert (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
        in text
    )
