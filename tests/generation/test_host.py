"""One base with many adapters in this process: what each thread gets is what it would get alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import inlay
from inlay.api.serving import Host
from inlay.data.types import Message
from inlay.errors import AdapterError, ConfigError, DataError, RunError
from inlay.generation.generate import answers
from inlay.generation.request import Sampling

PROMPTS = ["Where is my parcel?", "Refunds", "Two teapots, please. " * 3]


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of two adapters."""
    found = []
    for n in range(2):
        torch.manual_seed(n)
        model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)
        settings = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        folder = tmp_path_factory.mktemp(f"adapter-{n}")
        get_peft_model(model, settings).save_pretrained(str(folder))
        found.append(str(folder))
    return found


@pytest.fixture
def host(tiny_base: Path, adapters: list[str]) -> Host:
    """With both adapters, named one and two."""
    found = Host(str(tiny_base))
    for name, folder in zip(("one", "two"), adapters, strict=True):
        assert found.load_adapter(name, folder) == folder
    return found


def expected(base: Path, folder: str | None, host: Host, texts: list[str]) -> list[str]:
    """Greedy answers of the model that PEFT opens."""
    model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval()
    encoder = host._base.encoder
    return answers(model, encoder, [encoder.prompt([Message("user", text)]) for text in texts], Sampling(8))


def test_each_of_many_threads_gets_what_peft_answers_with_its_adapter(
    host: Host, tiny_base: Path, adapters: list[str]
) -> None:
    asked = [(name, text) for text in PROMPTS for name in (None, "one", "two")] * 2
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "max_new_tokens": 8}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda ask: host.generate(ask[1], ask[0], **greedy), asked))
    alone = {
        name: expected(tiny_base, folder, host, PROMPTS)
        for name, folder in {None: None, "one": adapters[0], "two": adapters[1]}.items()
    }
    assert found == [alone[name][PROMPTS.index(text)] for name, text in asked]
    assert len({alone[name][0] for name in alone}) == 3
    assert host._loop.state().running == host._loop.state().waiting == 0


def test_an_adapter_is_switched_to_replaced_and_taken_away(host: Host, adapters: list[str]) -> None:
    base, one, two = (host.generate("Hi", name, seed=3, max_new_tokens=8) for name in (None, "one", "two"))
    assert len({base, one, two}) == 3
    assert host.switch_adapter("one")
    assert not host.switch_adapter("three")
    assert (host.current, host.generate("Hi", seed=3, max_new_tokens=8)) == ("one", one)
    host.load_adapter("one", adapters[1])
    assert host.generate("Hi", seed=3, max_new_tokens=8) == two
    host.unload_adapter("one")
    assert (host.current, host.generate("Hi", seed=3, max_new_tokens=8)) == (None, base)
    with pytest.raises(AdapterError, match=r"unknown adapter 'one'.*Known: two.*load_adapter"):
        host.generate("Hi", "one")
    assert host._bank.bytes > 0
    host.unload_adapter("two")
    assert host._bank.bytes == 0
    assert host.adapters == {}


def test_answers_are_right_while_adapters_come_and_go_beside_them(host: Host, adapters: list[str]) -> None:
    either = {host.generate("Hi", name, seed=1, max_new_tokens=4) for name in ("one", "two")}
    ends = threading.Event()

    def exchange() -> None:
        n = 0
        while not ends.is_set():
            n += 1
            host.load_adapter("moving", adapters[n % 2])

    host.load_adapter("moving", adapters[0])
    beside = threading.Thread(target=exchange)
    beside.start()
    try:
        found = [host.generate("Hi", "moving", seed=1, max_new_tokens=4) for _ in range(12)]
    finally:
        ends.set()
        beside.join()
    assert set(found) <= either


def test_what_a_host_cannot_do_is_said(host: Host, tiny_base: Path) -> None:
    assert inlay.Host is Host
    with pytest.raises(DataError, match="leave no room for an answer in max_length 5"):
        host.generate("Hello there, how are you?", max_length=5)
    with pytest.raises(ConfigError, match="temprature"):
        host.generate("Hi", temprature=1)
    with pytest.raises(AdapterError, match="has no adapter"):
        host.load_adapter("base", str(tiny_base))
    with pytest.raises(RunError, match="no run, adapter or model"):
        Host("nobody/nothing")
