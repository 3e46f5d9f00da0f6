"""Finding and loading a base: what is refused is refused in one line, and what is said of quantisation is measured."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from families import make_family
from inlay import api, file_digests, storage
from inlay import config as configs
from inlay.config.sections.model import ModelConfig
from inlay.errors import ConfigError, ModelError
from inlay.hardware.probe import pick_dtype
from inlay.models import base as bases
from inlay.models import fingerprint
from inlay.models.base import BaseRef, architecture, find_base, load_model, load_tokenizer
from inlay.models.quantization import QUANTIZATIONS, check_gradient, constant_bytes, quantized_summary
from inlay.training.setup import choose_quantization
from parts import NANO, make_base


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    """A base folder that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def only(folder: Path, *names: str) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def half_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shards_without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def a_run(folder: Path) -> None:
    (folder / "config.json").rename(folder / "run.json")


def other_kind(name: str, **shape: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        config = getattr(transformers, f"{name}Config")(**shape)
        (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": None}))

    return save


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json in"),
    "config cut short": (lambda f: (f / "config.json").write_text("{"), "its config.json cannot be used"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no *.safetensors weights in"),
    "a pickle": (only_a_pickle, "pytorch_model.bin, which is a pickle and is not loaded"),
    "truncated": (half_the_weights, "model.safetensors is not a whole safetensors file"),
    "missing shard": (a_missing_shard, "model-00002.safetensors is missing"),
    "missing index": (
        shards_without_index,
        "model.safetensors.index.json is missing, which says what is in model-00001-of",
    ),
    "missing weight": (drop_a_weight, "1 weight is missing or of another shape, first model.layers.1.mlp.up_proj"),
    "other shape": (lambda f: edit_config(f, intermediate_size=32), "missing or of another shape"),
    "an adapter": (an_adapter, "It holds an adapter: give its base with --model"),
    "a run": (a_run, "It is a run: give its base with --model, and the run as adapter.start_from"),
    "unknown architecture": (lambda f: edit_config(f, model_type="nonesuch"), "nonesuch"),
    "no tokenizer": (lambda f: only(f, "config.json", "model.safetensors"), "tokenizer"),
    "t5": (other_kind("T5"), "a t5 is an encoder-decoder (seq2seq)"),
    "bert": (other_kind("Bert"), "a bert does not generate text"),
    "vit": (other_kind("ViT"), "a vit does not generate text"),
    "small vocabulary": (lambda f: make_base(f, vocab_size=4000), "only 4000 rows of embeddings"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_that_cannot_be_trained_is_refused_in_one_line_before_anything_is_written(
    fault: str, copied: Path, config_tree: Callable[..., dict[str, Any]], tmp_path: Path
):
    act, said = FAULTS[fault]
    act(copied)
    tree = config_tree(model={"base_model": str(copied)})
    with pytest.raises(ModelError) as caught:
        api.train(tree)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert str(copied) in message
    assert not (tmp_path / "results").exists()


def test_a_file_or_a_wrong_name_in_place_of_a_folder_is_explained(tmp_path: Path, copied: Path):
    (tmp_path / "model.bin").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"a file\. Give the folder .* or a file that ends in \.gguf"):
        find_base(str(tmp_path / "model.bin"))
    with pytest.raises(ModelError, match=r"no such folder\. Did you mean .*base\?"):
        find_base(str(tmp_path / "bases"))
    with pytest.raises(ModelError, match="has no effect on the local folder"):
        find_base(str(copied), revision="main")


@pytest.mark.parametrize(
    ("switch", "other"), [("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), ("TRANSFORMERS_OFFLINE", "HF_HUB_OFFLINE")]
)
def test_a_hub_id_that_is_not_there_while_offline_names_the_switch_and_both_ways_out(
    switch: str, other: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=f"{switch} is set.*Unset {switch} to download it, or give a local folder"):
        find_base("owner/name")


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_an_attention_that_a_base_does_not_have_names_the_setting_and_what_works(
    attention: str, tmp_path: Path
) -> None:
    base = find_base(str(make_family(tmp_path / "base", "gemma2" if attention == "sdpa" else "llama")))
    settings = ModelConfig(base_model="x", attention=attention)  # type: ignore[arg-type]
    with pytest.raises(
        ModelError, match=rf"model\.attention {attention}: .*model\.attention=eager.*leave it out"
    ) as caught:
        load_model(base, settings, torch.float32, "cpu", "none")
    assert str(caught.value).endswith(".")
    load_model(base, ModelConfig(base_model="x", attention="eager"), torch.float32, "cpu", "none")


def test_a_tokenizer_without_fast_form_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: Slow())
    with pytest.raises(ModelError, match=r"no tokenizer\.json \(fast form\)"):
        load_tokenizer(find_base(str(copied)))


def test_an_unused_added_token_beyond_the_embeddings_is_allowed(copied: Path):
    ref = find_base(str(copied))
    tokenizer = load_tokenizer(ref)
    rows = architecture(ref).vocab_size
    tokenizer.add_tokens(["<image>"])
    assert tokenizer.convert_tokens_to_ids("<image>") >= rows
    bases.require_vocabulary(ref, tokenizer, architecture(ref), used=[rows - 1])
    with pytest.raises(ModelError, match="tokenizer gives ids up to"):
        bases.require_vocabulary(ref, tokenizer, architecture(ref), used=[rows])


def test_the_digest_is_remembered_only_while_the_weights_are_untouched(copied: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_digests, "_QUICK_TO_HASH_BYTES", 0)
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return real(path)

    real, real_sha256 = fingerprint._tensors_of, storage.sha256_of
    monkeypatch.setattr(fingerprint, "_tensors_of", counted)
    weights = copied / "model.safetensors"
    ref = BaseRef("x", copied)
    first = ref.digest()
    assert ref.digest() == first
    assert hashed.count(weights) == 1
    stat, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copying tool may
    other = ref.digest()
    assert other != first
    assert file_digests.known_sha256(weights) == real_sha256(weights)
    for note in storage.cache_folder("digests").iterdir():
        note.write_text("half")
    assert file_digests.known_sha256(weights) == real_sha256(weights)
    assert ref.digest() == other


# --- quantisation --------------------------------------------------------------------------------------------


def model_config(folder: Path, **model: Any) -> Any:
    tree = {"model": {"base_model": str(folder), "device": "cpu", "dtype": "float32"} | model, "data": {"train": "-"}}
    return configs.validate(tree, "test")


def quantised(folder: Path, kind: str, **model: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    return load_model(
        find_base(str(folder)), model_config(folder, quantization=kind, **model).model, torch.float32, "cpu", kind
    )


def test_what_is_said_of_a_quantised_base_is_counted_in_it(tiny_base: Path):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    sizes = {}
    for name, kind, over in (
        ("int8", "int8", {}),
        ("nf4", "nf4", {"double_quantization": False}),
        ("nf4 double", "nf4", {}),
    ):
        model = quantised(tiny_base, kind, **over)
        layers = [m for m in model.modules() if isinstance(m, (Linear4bit, Linear8bitLt))]
        assert len(layers) == 14
        said = quantized_summary(model, kind)
        assert said.startswith("14 linear layers hold 15,360 weights in")
        sizes[name] = float(said.rpartition("(")[2].partition(" bits")[0])
        nested = {bool(getattr(m.weight.quant_state, "nested", False)) for m in layers} if kind == "nf4" else set()
        assert nested in (set(), {name == "nf4 double"})
        assert all(constant_bytes(m) > 0 for m in layers)
    assert 8 <= sizes["int8"] < 10
    assert sizes["nf4"] < sizes["int8"]


def test_a_base_without_quantised_layers_is_never_called_quantised(tiny_base: Path):
    pytest.importorskip("bitsandbytes")
    plain = load_model(find_base(str(tiny_base)), model_config(tiny_base).model, torch.float32, "cpu", "none")
    with pytest.raises(ModelError, match="no layer of this base could be quantised"):
        quantized_summary(plain, "nf4")


def test_products_are_computed_in_the_format_that_was_asked_for(tiny_base: Path):
    model = quantised(tiny_base, "nf4", compute_dtype="bfloat16")
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_gradient_through_a_loaded_quantised_base_is_that_of_its_dequantised_layers(kind: str, tiny_base: Path):
    model = quantised(tiny_base, kind)
    recipe = QUANTIZATIONS[kind]
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        layer = model.model.layers[0].get_submodule(name)
        if kind == "nf4":  # what a CPU with AVX512-BF16 would set by itself, and load_model takes back
            assert layer.support_avx512bf16_for_cpu is False
        dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        dense.weight = torch.nn.Parameter(recipe.dequantise(layer).float(), requires_grad=False)
        x_BI = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
        seen = check_gradient(layer, dense, x_BI, recipe.output_tolerance, recipe.gradient_tolerance)
        assert seen.works, seen.reason


def test_without_bitsandbytes_only_a_permitted_fallback_goes_on(tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else object())
    wish = model_config(tiny_base, quantization="nf4")
    with pytest.raises(ModelError, match=r"pip install 'bitsandbytes.*quantization_fallback=true"):
        choose_quantization(wish, "cpu", "float32")
    allowed = model_config(tiny_base, quantization="nf4", quantization_fallback=True)
    used, why = choose_quantization(allowed, "cpu", "float32")
    assert used == "none"
    assert "nf4 was asked for but does not work here" in why


def test_an_8_bit_optimizer_without_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch):
    from inlay.training.optimizer import make_optimizer

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = configs.validate(
        {"model": {"base_model": "-"}, "data": {"train": "-"}, "train": {"optimizer": "adamw_8bit"}}, "test"
    )
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        make_optimizer(config.train, {"a": torch.nn.Parameter(torch.ones(2))})


def test_a_quantised_run_trains_compares_and_says_what_it_used(
    config_tree: Callable[..., dict[str, Any]], tiny_base: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("bitsandbytes")
    model = {"base_model": str(tiny_base), "device": "cpu", "dtype": "float32", "quantization": "nf4"}
    run = api.train(config_tree(model=model, eval={"max_rows": 4, "max_new_tokens": 4, "resamples": 100}))
    result = run.result.to_json()
    assert run.record.quantization == "nf4"
    assert result["eval_loss"] < result["base_eval_loss"]
    shown = capsys.readouterr()
    assert "14 linear layers hold 15,360 weights in" in shown.out + shown.err
    comparison = api.compare(run)
    assert abs(comparison.metrics["loss"].other - result["eval_loss"]) < 1e-5
    assert abs(comparison.metrics["loss"].base - result["base_eval_loss"]) < 1e-5


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"compute_dtype": "bfloat16"}, "model: compute_dtype has no effect with quantization none"),
        ({"quantization": "int8", "compute_dtype": "bfloat16"}, "compute_dtype has no effect with quantization int8"),
        ({"double_quantization": False}, "double_quantization has no effect with quantization none"),
    ],
)
def test_a_setting_of_quantisation_without_it_is_refused(model: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        model_config(NANO, **model)


def test_a_number_format_whose_probe_fails_is_refused():
    from inlay.hardware.probe import Probe

    def probe(device: str, dtype: str) -> Probe:
        return Probe(dtype != "float16", f"{dtype} on {device}: no kernel", 1.0)

    with pytest.raises(ModelError, match=r"dtype: 'float16' does not work here \(float16 on cpu: no kernel\)"):
        pick_dtype("cpu", "float16", probe)


def test_a_bfloat16_run_answers_as_it_was_scored(config_tree: Callable[..., dict[str, Any]], tiny_base: Path):
    model = {"base_model": str(tiny_base), "device": "cpu", "dtype": "bfloat16"}
    over = {"max_rows": 4, "max_new_tokens": 6, "resamples": 100, "batch_size": 1}
    run = api.train(config_tree(model=model, eval=over, adapter={"rank": 4, "init": "pissa"}))
    assert run.result.eval_loss < run.result.base_eval_loss
    comparison = api.compare(run)
    assert abs(comparison.metrics["loss"].base - run.result.base_eval_loss) < 0.01
    plain = {"temperature": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "max_new_tokens": 6}
    loaded, formats = api.load(run), set[object]()
    loaded.model.get_output_embeddings().register_forward_pre_hook(
        lambda *_: formats.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
    )
    assert [loaded.generate(row.question, **plain) for row in comparison.rows] == [
        row.adapter_answer for row in comparison.rows
    ]
    assert formats == {torch.bfloat16}


def test_a_byte_order_mark_of_a_template_file_is_in_no_prompt(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}")
    tokenizer = load_tokenizer(find_base("builtin:nano"), str(template))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_a_hub_id_that_once_had_no_owner_is_the_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = make_base(tmp_path / "base"), []

    def fetched(name: str, *_: Any) -> Path:
        asked.append(name)
        return base

    monkeypatch.setattr(bases, "from_hub", fetched)
    monkeypatch.chdir(tmp_path)
    assert find_base("distilgpt2").name == "distilbert/distilgpt2"
    assert find_base("gpt2").name == "openai-community/gpt2"
    assert asked == ["distilbert/distilgpt2", "openai-community/gpt2"]
    with pytest.raises(ModelError, match=r"no such folder\. Did you mean openai-community/gpt2-medium\?"):
        find_base("gpt2-mediun")
    (tmp_path / "gpt2").symlink_to(base)
    assert find_base("gpt2").folder == Path("gpt2")


def sentencepiece_base(folder: Path, model: bytes) -> Path:
    """A base whose tokenizer is a `tokenizer.model` alone."""
    base = make_base(folder / "base")
    for path in base.glob("*token*"):
        path.unlink()
    (base / "tokenizer.model").write_bytes(model)
    return base


def test_a_sentencepiece_model_alone_names_what_reads_it_where_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    base = sentencepiece_base(tmp_path, b"\n\x0e\n\x05<unk>")
    with pytest.raises(ModelError, match=r'tokenizer\.model\), which needs .*: pip install "inlay\[sentencepiece\]"$'):
        load_tokenizer(find_base(str(base)))


def sentencepiece_model(**options: Any) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"Question {n}: how many are {n} and {n}?" for n in range(200)]), model_writer=out,
        vocab_size=300, model_type="bpe", byte_fallback=True, minloglevel=2, **options,
    )  # fmt: skip
    return out.getvalue()


def test_a_sentencepiece_model_alone_gives_the_ids_that_sentencepiece_gives(tmp_path: Path) -> None:
    model = sentencepiece_model()
    base = find_base(str(sentencepiece_base(tmp_path, model)))
    if transformers.__version__.startswith("5.23."):  # drops the mark in front of the first word
        with pytest.raises(
            ModelError, match=r"5\.23\.\d makes other ids .* Install transformers 5\.24 or newer, or put"
        ):
            load_tokenizer(base)
        return
    tokenizer, theirs = load_tokenizer(base), sys.modules["sentencepiece"].SentencePieceProcessor(model_proto=model)
    for text in ("Question 7: how many?", "  two  spaces ", "h\u00e9 \u6f22\n"):
        assert tokenizer(text, add_special_tokens=False).input_ids == theirs.encode(text)


def test_a_sentencepiece_model_alone_that_transformers_reads_otherwise_is_refused(tmp_path: Path) -> None:
    base = sentencepiece_base(tmp_path, sentencepiece_model(treat_whitespace_as_suffix=True))
    with pytest.raises(
        ModelError, match=r"makes other ids of its tokenizer\.model than SentencePiece does .* beside it\.$"
    ):
        load_tokenizer(find_base(str(base)))
