"""A base that is only there as a GGUF file: its dequantized weights, its tokenizer, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_files import rotated, write_gguf
from inlay import api
from inlay.errors import ModelError
from inlay.models import gguf as gguf_bases
from inlay.models.base import find_base, load_tokenizer
from inlay.runs.folder import Run
from parts import make_base

Tree = Callable[..., dict[str, Any]]
IDS = torch.arange(20, 60)[None]

_VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
reads_gguf = pytest.mark.skipif(
    not find_spec("gguf") or _VERSION < gguf_bases.READ_SINCE,
    reason="needs the gguf extra and a transformers that reads GGUF",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base", hidden_size=64, intermediate_size=96, tie_word_embeddings=False)


def in_folder(base: Path, folder: Path, kind: str = "F32", name: str = "model", **how: Any) -> str:
    """A folder with a GGUF file that has no tokenizer, and the tokenizer beside it: thousands of tokens take long to read."""
    folder.mkdir(exist_ok=True)
    write_gguf(base, folder / f"{name}.gguf", kind, **({"pre": None} | how))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / file, folder / file)
    return str(folder)


def logits(
    folder: Path | str, change: Callable[[str, np.ndarray], np.ndarray] = lambda _, values: values
) -> torch.Tensor:
    """Of a model folder whose weight matrices are changed first."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(change(name, parameter.numpy())))
        return model(input_ids=IDS).logits.clone()


def test_without_the_package_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_bases, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r'pip install "inlay\[gguf\]"'):
        find_base(str(tmp_path / "a.gguf"))


def test_with_an_older_transformers_the_message_names_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_bases, "find_spec", lambda _: True)
    monkeypatch.setattr(gguf_bases, "READ_SINCE", (99, 1))
    with pytest.raises(ModelError, match=r"need transformers 99\.1 or newer \(got 5\."):
        find_base(str(tmp_path / "a.gguf"))


def test_a_folder_with_several_gguf_files_needs_the_name_of_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"It holds 2 \.gguf files: give one of them, such as .*a\.gguf"):
        find_base(str(tmp_path))


@reads_gguf
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_the_weights_are_those_that_the_gguf_package_dequantizes(kind: str, base: Path, tmp_path: Path) -> None:
    import gguf

    heads = {"q_proj": 4, "k_proj": 2}

    def through(name: str, values: np.ndarray) -> np.ndarray:
        form, own = gguf.GGMLQuantizationType[kind], heads.get(name.split(".")[-2])
        there = rotated(values, own) if own else values
        back = gguf.dequantize(gguf.quantize(there, form), form).astype(np.float32)
        return back.reshape(own, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape) if own else back

    found = find_base(in_folder(base, tmp_path / "own", kind))
    assert torch.equal(logits(found.folder), logits(base, through))
    assert found.gguf is not None
    assert found.gguf.summary().startswith(f"dequantized to float32 from GGUF {kind}")


@reads_gguf
def test_the_same_weights_in_another_file_are_the_same_base_and_a_file_is_converted_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = find_base(in_folder(base, tmp_path / "one", name="one"))
    two = find_base(in_folder(base, tmp_path / "two", name="two", more=lambda w: w.add_author("somebody")))
    assert one.folder != two.folder
    assert one.digest() == two.digest()
    monkeypatch.setattr(gguf_bases, "_opened", None)
    assert find_base(str(tmp_path / "one")) == one


@reads_gguf
def test_one_who_has_only_a_gguf_file_trains_compares_and_generates_on_it(
    base: Path, tmp_path: Path, config_tree: Tree, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(base, tmp_path / "model.gguf", "Q8_0", more=lambda w: w.add_file_type(7))
    run = api.train(config_tree(model={"base_model": str(file)}, train={"max_steps": 2}, output={"name": "a"}))
    assert "(dequantized to float32 from GGUF Q8_0 (Q8_0, F32); 0.6M parameters" in capfd.readouterr().err
    seen = json.loads((run.path / "run.json").read_text(encoding="utf-8"))["base_gguf"]
    assert (seen["file"], seen["quantization"]) == (str(file), "Q8_0 (Q8_0, F32)")
    assert Run(run.path).record.base_gguf == seen
    assert api.verify(run)["passed"]
    assert api.compare(run, str(file)).verdict
    loaded = api.load(run)
    assert isinstance(loaded.generate("hello", max_new_tokens=4), str)
    settings = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    bare = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"], dtype=torch.float32)
    with torch.no_grad():
        opened = PeftModel.from_pretrained(bare, str(run.adapter)).eval()(input_ids=IDS).logits
        assert torch.equal(opened, loaded.model(input_ids=IDS).logits)


@reads_gguf
def test_a_tokenizer_beside_the_file_in_its_folder_goes_before_that_of_the_file(base: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write_gguf(base, tmp_path / "own" / "model.gguf", pre="smollm")
    with pytest.raises(
        ModelError, match=r"splits texts as 'smollm', which transformers does not know.*give that folder"
    ):
        find_base(str(tmp_path / "own"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, tmp_path / "own" / name)
    text = "Parcel 123456\n\nis here. <|im_end|>"
    found = load_tokenizer(find_base(str(tmp_path / "own")))
    assert found(text).input_ids == AutoTokenizer.from_pretrained(str(base))(text).input_ids
    assert found.chat_template == (base / "chat_template.jinja").read_text(encoding="utf-8")
    with pytest.raises(ModelError, match="smollm"):  # a file alone takes nothing from what lies around it
        find_base(str(tmp_path / "own" / "model.gguf"))


@reads_gguf
def test_the_tokenizer_and_template_of_the_file_are_those_of_the_base(base: Path, tmp_path: Path) -> None:
    found = load_tokenizer(find_base(str(write_gguf(base, tmp_path / "model.gguf"))))
    original = AutoTokenizer.from_pretrained(str(base))
    assert found.chat_template == original.chat_template
    text = "<|im_start|>user\nWhere is it?<|im_end|>"
    assert found(text).input_ids == original(text).input_ids
    assert (found.eos_token, found.pad_token) == ("<|im_end|>", "<|pad|>")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tokenizer": ({"pre": None}, r"the file has no tokenizer\. Put the file into a folder with .*tokenizer\.json"),
    "a part": (
        {"more": lambda w: w.add_uint16("split.count", 3)},
        "is one of 3 parts. Join them first: llama-gguf-split",
    ),
    "an adapter": ({"more": lambda w: w.add_type("adapter")}, "holds a GGUF adapter, not a model"),
    "another architecture": (
        {"architecture": "nonesuch"},
        "cannot read this GGUF file of a nonesuch.*safetensors form",
    ),
    "a weight is missing": ({"leave_out": "model.layers.1.mlp.up_proj.weight"}, "no weights for .*up_proj"),
    "scaled positions": (
        {"more": lambda w: w.add_tensor("rope_freqs.weight", np.full(8, 2, np.float32))},
        r"leaves out others, such as rope_freqs\.weight, by which it scales its rotary positions",
    ),
}


@reads_gguf
@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_would_become_another_model_is_refused_with_the_way_out(
    what: str, base: Path, tmp_path: Path
) -> None:
    how, said = REFUSED[what]
    with pytest.raises(ModelError, match=said) as caught:
        find_base(
            str(write_gguf(base, tmp_path / "model.gguf", pre=None))
            if "pre" in how
            else in_folder(base, tmp_path / "own", **how)
        )
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and path.parent.name == "gguf"]


@reads_gguf
def test_a_file_that_is_cut_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    whole = write_gguf(base, tmp_path / "model.gguf", pre=None).read_bytes()
    for length in (0, 3, 4, 30, 1000, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf is not a whole GGUF file"):
            find_base(str(tmp_path / "cut.gguf"))
