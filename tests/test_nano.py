"""The base model in the package: its files, its tokenizer, its turns and what it says."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import inlay

NANO = Path(inlay.__file__).parent / "builtin" / "nano"
ROOT = Path(__file__).parents[1]
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}},
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the café?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"what": "café"}}}],
    },
    {"role": "tool", "name": "find", "content": '{"street": "Rue 7"}'},
    {"role": "assistant", "content": "\n  In Rue 7."},
    {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image"}]},
    {"role": "assistant", "content": None},
]
TOKENIZER = AutoTokenizer.from_pretrained(NANO)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_folder_loads_as_a_plain_causal_model_of_at_most_12_megabytes():
    model = AutoModelForCausalLM.from_pretrained(NANO)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(TOKENIZER) == model.config.vocab_size
    assert (NANO / "model.safetensors").stat().st_size <= 12_000_000


def test_the_files_have_the_hashes_of_the_card():
    card = (NANO / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"\| `([\w.]+)` \| \d+ \| `([0-9a-f]{64})` \|", card))
    shipped = {f.name: sha256(f) for f in NANO.iterdir() if f.is_file() and f.name != "README.md"}
    assert listed == shipped


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


@given(st.text())
def test_transformers_gives_the_ids_of_the_tokenizer_file_and_adds_none(text: str):
    raw = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    assert TOKENIZER(text).input_ids == raw.encode(text).ids


def test_special_tokens_are_one_id_each_and_padding_is_distinct():
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<|tool_call|>", "<|image|>"):
        assert len(TOKENIZER(token).input_ids) == 1
    assert TOKENIZER.eos_token == "<|im_end|>"
    assert TOKENIZER.pad_token == "<|pad|>"
    assert TOKENIZER.bos_token is None
    assert TOKENIZER.unk_token is None


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("talk", [TALK, TALK[1:]], ids=["system", "no system"])
def test_fewer_messages_render_to_a_prefix(talk: list[dict], tools: list[dict] | None):
    def text(count: int, prompt: bool = False) -> str:
        return TOKENIZER.apply_chat_template(talk[:count], tools=tools, tokenize=False, add_generation_prompt=prompt)

    whole = text(len(talk))
    for count in range(1, len(talk)):
        assert whole.startswith(text(count))
        if talk[count]["role"] == "assistant":
            assert whole.startswith(text(count, prompt=True))
    assert whole.count("<|im_end|>") == len(talk) + (tools is not None and talk[0]["role"] != "system")


@given(st.text(), st.text())
def test_the_ids_of_a_prompt_begin_the_ids_of_prompt_and_answer(question: str, answer: str):
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = TOKENIZER.apply_chat_template(talk[:1], tokenize=True, return_dict=False, add_generation_prompt=True)
    whole = TOKENIZER.apply_chat_template(talk, tokenize=True, return_dict=False)
    assert whole[: len(prompt)] == prompt


def test_the_pretraining_script_renders_turns_as_the_template_does():
    chat = imported(ROOT / "tools" / "nano_chat.py")
    assert (NANO / "chat_template.jinja").read_text(encoding="utf-8") == chat.CHAT_TEMPLATE
    talk = TALK[:5]
    for tools in (None, TOOLS):
        for part in (talk, talk[1:]):
            assert TOKENIZER.apply_chat_template(part, tools=tools, tokenize=False) == chat.render(part, tools)


def test_greedy_answers_equal_the_golden_file_made_with_these_weights():
    script = imported(ROOT / "tests" / "golden" / "nano_greedy.py")
    golden = json.loads(script.GOLDEN.read_text())
    assert golden["weights_sha256"] == sha256(NANO / "model.safetensors"), "run tests/golden/nano_greedy.py"
    assert script.greedy() == golden["answers"]


def test_an_answer_to_a_greeting_ends_by_itself():
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "Hello!"}], tokenize=False, add_generation_prompt=True
    )
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    ids = model.generate(**TOKENIZER(text, return_tensors="pt"), max_new_tokens=60, do_sample=False)[0].tolist()
    assert ids[-1] == TOKENIZER.eos_token_id


def test_the_five_gram_sums_to_one():
    numpy = pytest.importorskip("numpy")
    ngram = imported(ROOT / "tools" / "ngram.py")
    model = ngram.KneserNey(numpy.random.default_rng(0).integers(0, 7, 400), vocab=9, order=4)
    for context in ([1, 2, 3], [8, 8, 8], [0]):
        total = sum(2 ** -model.bits(numpy.array([*context, w]))[-1] for w in range(9))
        assert total == pytest.approx(1)
