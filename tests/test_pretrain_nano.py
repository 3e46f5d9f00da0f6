"""The script that made `builtin:nano`, on a tiny network and random rows."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import inlay

NANO = Path(inlay.__file__).parent / "builtin" / "nano"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    threads = torch.get_num_threads()
    yield importlib.import_module("pretrain_nano")
    torch.set_num_threads(threads)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(NANO / "tokenizer.json"))


def settings(run: Path, script) -> Namespace:
    """Four steps, a checkpoint after each, over five random rows of 16 tokens per source."""
    (run / "tokens").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in script.SOURCES:
        rows = rng.integers(4, 4096, (5, 16)).astype(np.uint16)
        np.save(run / "tokens" / f"{name}.train.npy", rows)
    return Namespace(
        run=run,
        seed=0,
        width=16,
        layers=1,
        heads=1,
        inner=16,
        optimizer="muon",
        muon_lr=0.02,
        adam_lr=0.004,
        steps=4,
        decay_steps=2,
        minutes=0,
        decay_minutes=0,
        rows=4,
        threads=2,
        eval_every=1000,
        checkpoint_s=0.0,
    )


def weights(run: Path, script) -> bytes:
    return (script.latest(run) / "model.safetensors").read_bytes()


def test_a_killed_and_resumed_run_equals_an_unbroken_one(tmp_path, script, tokenizer, monkeypatch):
    script.train(settings(tmp_path / "whole", script), tokenizer)

    broken, plain, calls = settings(tmp_path / "broken", script), script.gradient, []

    def killed_in_the_third_step(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(script, "gradient", killed_in_the_third_step)
    with pytest.raises(KeyboardInterrupt):
        script.train(broken, tokenizer)
    assert script.latest(broken.run).name == "checkpoint-2"
    (broken.run / "checkpoint.partial").mkdir()  # as if killed while writing
    script.train(broken, tokenizer)

    assert weights(broken.run, script) == weights(tmp_path / "whole", script)
    lines = [json.loads(line) for line in (broken.run / "log.jsonl").read_text().splitlines()]
    assert [line["factor"] for line in lines][-2:] == [0.075, 0.05]


def test_rows_hold_every_token_of_every_document_once(script):
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 4096, n).tolist() for n in (3, 700, 512, 40, 1500, 90, 513)]
    packed = script.pack(documents, newline={7}, pad=3)
    assert packed.shape[1] == script.CONTEXT
    assert sorted(packed[packed != 3].tolist()) == sorted(i for d in documents for i in d)


def test_no_held_out_story_is_trained_on_in_another_dress(script, tmp_path):
    corpus = importlib.import_module("nano_corpus")
    text = next(f"A tale {i}" for i in range(1000) if corpus.held_out(f"A tale {i}"))
    row = {"text": text, "source": "x/aesop_fables/y"}
    (tmp_path / "books.json").write_text(json.dumps([row]))
    assert list(corpus.stories([tmp_path / "books.json"], None)) == []


def test_the_network_equals_the_one_of_transformers(script):
    model_module = importlib.import_module("nano_model")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = model_module.Nano(vocab=32, width=16, layers=2, heads=2, inner=24)
    for p in ours.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        rms_norm_eps=model_module.NORM_EPS,
        tie_word_embeddings=True,
    )
    theirs = transformers.LlamaForCausalLM(config)
    theirs.model.load_state_dict(ours.state_dict())
    ids = torch.randint(32, (2, 9))
    torch.testing.assert_close(ours(ids), theirs(ids).logits)
