"""A merged model computes what base and adapter compute; nothing wrong gets a name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from inlay.adapters.merge import NotInFiles, changes_of, combined, plan_merge, write_merged
from inlay.config import Config
from inlay.errors import AdapterError
from inlay.evaluation.kept_gain import kept_gain
from inlay.methods.adapter import attach, trained_parameters
from inlay.methods.adapter_state import AdapterState
from inlay.methods.target_modules import resolve_targets
from inlay.models.base import BaseRef
from parts import make_base, save_base

IDS = torch.arange(2, 34).view(2, 16)
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"rank": 3},
    "rsLoRA": {"rank": 4, "rslora": True, "alpha": 6},
    "DoRA": {"rank": 2, "dora": True},
    "PiSSA": {"rank": 2, "init": "pissa"},
    "biases": {"rank": 2, "bias": "all"},
    "IA3": {"method": "ia3"},
}


def llama(folder: Path, **overrides: Any) -> Path:
    return make_base(folder, **{"attention_bias": True} | overrides)


def gpt2(folder: Path) -> Path:
    from transformers import AutoTokenizer

    from parts import NANO

    torch.manual_seed(0)
    size = len(AutoTokenizer.from_pretrained(str(NANO)))
    return save_base(
        folder, GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=24, n_layer=2, n_head=2, n_positions=64))
    )


def opened(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def adapted(folder: Path, adapter: dict[str, Any], seed: int = 0) -> tuple[AdapterState, Tensor]:
    """An adapter with random values over the base, and its logits."""
    model = opened(folder)
    config = Config.model_validate({"model": {"base_model": "-"}, "data": {"train": "-"}, "adapter": adapter})
    torch.manual_seed(seed)
    model = attach(model, config, resolve_targets(model, config.adapter.target_modules))
    for parameter in trained_parameters(model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return AdapterState.of(model).exported(), logits(model.eval())


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(input_ids=IDS).logits
    return out


def bare(base: Path) -> Any:
    from transformers import AutoConfig

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(base)))


def merged(base: Path, parts: list[tuple[float, AdapterState]], out: Path, dtype: torch.dtype | None = None) -> Any:
    """(the merged model, opened again, and its rounding)."""
    model = bare(base)
    changes = combined([(weight, changes_of(state, model)) for weight, state in parts])
    plan = plan_merge(BaseRef(str(base), base), model, changes, keeps_ties=False)
    out.mkdir()
    rounding = write_merged(plan, out, dtype, lambda _: None, lambda *_: None)
    settings = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | ({"tie_word_embeddings": False} if plan.untied else {})))
    return opened(out), rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_merged_model_has_the_logits_of_base_and_adapter(kind: str, tied: bool, tmp_path: Path):
    base = llama(tmp_path / "base", tie_word_embeddings=tied)
    state, expected = adapted(base, KINDS[kind])
    model, rounding = merged(base, [(1.0, state)], tmp_path / "out")
    assert (expected - logits(opened(base))).abs().max() > 1e-2, "the adapter does something"
    assert (logits(model) - expected).abs().max() < 1e-5
    assert rounding.relative < 1e-6


@pytest.mark.parametrize(
    "adapter", [{"rank": 3}, {"method": "ia3"}, {"rank": 3, "dora": True}], ids=["lora", "ia3", "dora"]
)
def test_transposed_weights_of_gpt2_are_merged_as_they_lie(adapter: dict[str, Any], tmp_path: Path):
    base = gpt2(tmp_path / "base")
    state, expected = adapted(base, adapter)
    assert (logits(merged(base, [(1.0, state)], tmp_path / "out")[0]) - expected).abs().max() < 1e-5


def test_several_adapters_of_any_method_add_their_weighted_changes(tmp_path: Path):
    base = llama(tmp_path / "base")
    parts = [
        (0.7, adapted(base, KINDS["DoRA"], 1)[0]),
        (-0.4, adapted(base, KINDS["IA3"], 2)[0]),
        (2.0, adapted(base, {"rank": 3}, 3)[0]),
    ]
    model, _ = merged(base, parts, tmp_path / "out")
    own = dict(opened(base).named_parameters())
    alone = [dict(merged(base, [(1.0, s)], tmp_path / f"{n}")[0].named_parameters()) for n, (_, s) in enumerate(parts)]
    for name, parameter in model.named_parameters():
        expected = own[name] + sum(w * (one[name] - own[name]) for (w, _), one in zip(parts, alone, strict=True))
        assert torch.allclose(parameter, expected, atol=1e-6), name


def test_shards_are_merged_as_one_file_is_and_keep_their_index(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, expected = adapted(base, {"rank": 3})
    shards = tmp_path / "shards"
    opened(base).save_pretrained(str(shards), max_shard_size="20KB")
    model, _ = merged(shards, [(1.0, state)], tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len({*index["weight_map"].values()}) > 2
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert (logits(model) - expected).abs().max() < 1e-5


def test_one_shard_with_an_index_keeps_it(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, expected = adapted(base, {"rank": 2})
    names = load_file(base / "model.safetensors").keys()
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (logits(merged(base, [(1.0, state)], tmp_path / "out")[0]) - expected).abs().max() < 1e-5


def test_tensors_of_other_dtypes_are_copied_as_they_are(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, _ = adapted(base, {"rank": 2})
    beside = {
        "a.mask": torch.tensor([True, False, True]),
        "a.count": torch.arange(3),
        "a.tiny": torch.ones(2).to(torch.float8_e4m3fn),
    }
    save_file(load_file(base / "model.safetensors") | beside, base / "model.safetensors", metadata={"format": "pt"})
    merged(base, [(1.0, state)], tmp_path / "out", torch.bfloat16)
    written = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in beside.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name].view(torch.uint8), tensor.view(torch.uint8))


def test_an_adapter_with_an_embedding_of_its_own_is_refused(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, _ = adapted(base, {"rank": 2})
    own = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    place = "base_model.model.model.embed_tokens.weight"
    merged(base, [(1.0, AdapterState(state.settings, state.tensors | {place: own}))], tmp_path / "copy")
    with pytest.raises(AdapterError, match=r"embed_tokens\.weight of its own"):
        merged(base, [(1.0, AdapterState(state.settings, state.tensors | {place: own + 1}))], tmp_path / "out")


def test_an_adapter_of_other_shapes_is_refused_by_its_module(tmp_path: Path):
    base, other = llama(tmp_path / "base"), llama(tmp_path / "other", intermediate_size=56)
    with pytest.raises(AdapterError, match=r"mlp\.\w+ has a change of shape .* does not fit"):
        changes_of(adapted(other, {"rank": 2})[0], bare(base))


def test_a_merged_file_is_the_one_that_safetensors_writes(tmp_path: Path):
    base = llama(tmp_path / "base")
    merged(base, [(1.0, adapted(base, {"rank": 2})[0])], tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    save_file(tensors, tmp_path / "again.safetensors", metadata={"format": "pt"})
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_sixteen_bits_round_away_is_measured_on_the_adapter_itself(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, _ = adapted(base, {"rank": 2})
    model, rounding = merged(base, [(1.0, state)], tmp_path / "out", torch.bfloat16)
    plain, own = (
        dict(merged(base, [(1.0, state)], tmp_path / "exact")[0].named_parameters()),
        dict(opened(base).named_parameters()),
    )
    changed = [name for name in own if not torch.equal(own[name], plain[name])]
    stored = dict(model.named_parameters())
    lost = sum(float((stored[n] - plain[n]).double().square().sum()) for n in changed)
    change = sum(float((plain[n] - own[n]).double().square().sum()) for n in changed)
    assert rounding.relative == pytest.approx((lost / change) ** 0.5, rel=1e-4)
    assert rounding.worst >= rounding.relative > 0
    assert rounding.worst_name in changed


def test_a_value_beyond_float16_is_refused(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, _ = adapted(base, {"rank": 2})
    state.tensors[next(name for name in state.tensors if "lora_B" in name)].fill_(1e6)
    with pytest.raises(AdapterError, match="overflows float16"):
        merged(base, [(1.0, state)], tmp_path / "out", torch.float16)


def test_virtual_tokens_are_no_weights_and_are_refused(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, _ = adapted(base, {"method": "prompt"})
    with pytest.raises(AdapterError, match="virtual tokens"):
        changes_of(state, bare(base))


def test_a_weight_that_the_files_do_not_hold_as_such_is_not_merged_by_its_name(tmp_path: Path):
    base = llama(tmp_path / "base")
    state, _ = adapted(base, {"rank": 2})
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.renamed.weight"] = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotInFiles, match=r"layers\.0\.self_attn\.q_proj"):
        plan_merge(BaseRef(str(base), base), bare(base), changes_of(state, bare(base)), keeps_ties=False)


def test_the_kept_share_of_a_gain_is_that_of_the_summed_losses():
    import numpy as np

    draw = np.random.default_rng(0)
    base, gain = draw.uniform(5, 9, 40), draw.uniform(0.5, 1.5, 40)
    found = kept_gain(base, base - gain, base - 0.9 * gain, np.full(40, 4.0))
    assert found.share == pytest.approx(0.9)
    assert found.low == pytest.approx(0.9) == found.high, "every row keeps nine tenths"
    uneven = kept_gain(base, base - gain, base - gain * draw.uniform(0.5, 1.3, 40), np.full(40, 4.0))
    assert uneven.low is not None
    assert uneven.high is not None
    assert uneven.share is not None
    assert uneven.low < uneven.share < uneven.high


def test_a_gain_of_nothing_has_no_share_and_few_rows_have_no_interval():
    import numpy as np

    base = np.linspace(1, 2, 20)
    assert kept_gain(base, base + 0.1, base, np.ones(20)).share is None
    few = kept_gain(base[:3], base[:3] - 0.5, base[:3] - 0.4, np.ones(3))
    assert few.share == pytest.approx(0.8)
    assert few.low is None
