"""Answers: the same alone as in a batch, ended where they should end."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicCache

from inlay import api
from inlay.config.sections.generation import GenerationConfig
from inlay.data.encoding.encoder import Encoder
from inlay.data.types import Message
from inlay.errors import DataError, RunError
from inlay.generation import generate
from inlay.generation.generate import answers, cache_argument, cache_for, full_answers, text_streamer
from inlay.generation.request import Sampling


@pytest.fixture(scope="module")
def prompts(encoder: Encoder) -> list[list[int]]:
    asked = ["Hi", "Where is my parcel? " * 3, "One two three", "Refunds, " * 20, "?"]
    return [encoder.prompt([Message("user", text)]) for text in asked]


def by_argmax(model: Any, encoder: Encoder, prompt: list[int], count: int) -> list[int]:
    """Greedy ids, one full forward each, no cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in encoder.stop_ids:
                break
    return ids[len(prompt) :]


def test_greedy_answers_in_a_batch_are_those_given_one_by_one_and_the_uncached_argmax(
    model: Any, encoder: Encoder, prompts: list[list[int]]
) -> None:
    sampling = Sampling(max_new_tokens=12)
    batched = answers(model, encoder, prompts, sampling, batch_size=5)
    alone = [answers(model, encoder, [p], sampling)[0] for p in prompts]
    expected = [
        encoder.text([i for i in by_argmax(model, encoder, p, 12) if i not in encoder.stop_ids]) for p in prompts
    ]
    assert batched == alone == expected
    assert len(set(batched)) > 1


@pytest.mark.parametrize("window", [None, 4])
def test_the_cache_gives_what_that_of_transformers_gives_and_copies_nothing(window: int | None) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=50, num_key_value_heads=2, sliding_window=window, **shape)
    torch.manual_seed(0)
    mistral = MistralForCausalLM(config).eval()
    ids = torch.randint(4, 50, (3, 12))
    ours, theirs = cache_for(config, 12), DynamicCache(config=config)
    assert (ours is None) == (window is not None)
    if ours is None:
        return
    places = set()
    with torch.inference_mode():
        for step in (ids[:, :8], *ids[:, 8:].split(1, 1)):
            logits = [mistral(step, **{cache_argument(): cache}).logits for cache in (ours, theirs)]
            assert torch.equal(*logits)
            places.add(ours.layers[0].keys.data_ptr())
    assert ours.get_seq_length() == 12
    assert len(places) == 1


def test_an_answer_says_how_long_it_is_and_whether_the_model_ended_it(
    model: Any, encoder: Encoder, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    third = by_argmax(model, encoder, prompts[0], 12)[3]
    monkeypatch.setattr(encoder, "stop_ids", frozenset({third, encoder.eos_id}))
    found = full_answers(model, encoder, prompts, Sampling(max_new_tokens=40), batch_size=5)
    assert found[0].stopped
    for prompt, answer in zip(prompts, found, strict=True):
        ids = by_argmax(model, encoder, prompt, 40)
        ended = ids[-1] in encoder.stop_ids
        assert (answer.stopped, answer.tokens) == (ended, len(ids) - ended)
    cut = full_answers(model, encoder, prompts, Sampling(max_new_tokens=2))
    assert [(a.tokens, a.stopped) for a in cut] == [(min(2, a.tokens), a.tokens < 2) for a in found]
    string = found[0].text[2:4]
    (stopped,) = full_answers(model, encoder, prompts[:1], Sampling(max_new_tokens=40, stop=(string,)))
    assert stopped.stopped
    assert string not in stopped.text


def test_an_answer_near_the_end_of_the_context_shortens_no_other(
    model: Any, encoder: Encoder, prompts: list[list[int]]
) -> None:
    long = (prompts[3] * 9)[:250]
    texts = answers(model, encoder, [prompts[0], long], Sampling(max_new_tokens=12), batch_size=2)
    assert texts[0] == answers(model, encoder, [prompts[0]], Sampling(max_new_tokens=12))[0]
    assert texts[1] == encoder.text(by_argmax(model, encoder, long, 6))


@pytest.mark.parametrize(("prompt", "says"), [([5] * 256, "256 tokens fill the context of 256"), ([], "no tokens")])
def test_a_prompt_that_fills_the_context_or_is_empty_is_refused(
    model: Any, encoder: Encoder, prompt: list[int], says: str
) -> None:
    with pytest.raises(DataError, match=f"prompt 2: {says}"):
        answers(model, encoder, [[5], prompt], Sampling())


def test_an_answer_ends_at_a_stop_id_and_at_a_stop_string(
    model: Any, encoder: Encoder, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(max_new_tokens=12)
    ids = by_argmax(model, encoder, prompts[0], 12)
    whole = answers(model, encoder, [prompts[0]], sampling)[0]
    string = encoder.text(ids[4:6])
    cut = answers(model, encoder, [prompts[0]], Sampling(max_new_tokens=12, stop=(string,)))[0]
    assert cut == whole.partition(string)[0].strip()
    assert len(cut) < len(whole)
    monkeypatch.setattr(encoder, "stop_ids", frozenset({ids[3], encoder.eos_id}))
    stopped = answers(model, encoder, [prompts[0]], sampling)[0]
    assert stopped == encoder.text(ids[: ids.index(ids[3])])


def test_max_new_tokens_and_the_report_of_what_is_done(model: Any, encoder: Encoder, prompts: list[list[int]]) -> None:
    done: list[int] = []
    texts = answers(model, encoder, prompts, Sampling(max_new_tokens=1), batch_size=2, on_done=done.append)
    assert texts == [encoder.text(by_argmax(model, encoder, p, 1)) for p in prompts]
    assert done == sorted(set(done))
    assert done[-1] == 5


def test_sampling_is_seeded_and_every_setting_arrives(
    model: Any, encoder: Encoder, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = {"max_new_tokens": 10, "temperature": 5.0}
    one, same, other = (answers(model, encoder, prompts, Sampling(**warm, seed=s)) for s in (1, 1, 2))
    assert one == same != other
    assert answers(model, encoder, prompts, Sampling(**warm, top_k=1)) == answers(
        model, encoder, prompts, Sampling(max_new_tokens=10)
    )
    seen: list[Any] = []
    real = type(model).generate
    monkeypatch.setattr(
        type(model), "generate", lambda self, **kw: (seen.append(kw["generation_config"]), real(self, **kw))[1]
    )
    config = GenerationConfig(max_new_tokens=3, repetition_penalty=1.5, no_repeat_ngram_size=2, top_p=0.5, top_k=7)
    answers(model, encoder, prompts[:1], Sampling.of(config))  # several take the loop
    got = seen[-1]
    assert (got.repetition_penalty, got.no_repeat_ngram_size, got.top_p, got.top_k) == (1.5, 2, 0.5, 7)
    assert (got.do_sample, got.temperature, got.max_new_tokens) == (True, 0.7, 3)


def test_penalties_change_what_greedy_says(model: Any, encoder: Encoder, prompts: list[list[int]]) -> None:
    ids = generate._generate(model, encoder, [prompts[0]], Sampling(no_repeat_ngram_size=1), 12, None)[0]
    assert len({*ids, *prompts[0]}) == len(ids) + len(set(prompts[0]))


def test_habits_that_a_checkpoint_brings_along_do_not_reach_the_answers(
    model: Any, encoder: Encoder, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = answers(model, encoder, prompts, Sampling(max_new_tokens=8))
    first = by_argmax(model, encoder, prompts[0], 1)
    for name, value in {"suppress_tokens": first, "repetition_penalty": 9.0, "do_sample": True, "top_k": 2}.items():
        monkeypatch.setattr(model.generation_config, name, value, raising=False)
    habits = model.generation_config
    assert answers(model, encoder, prompts, Sampling(max_new_tokens=8)) == plain
    assert model.generation_config is habits


def test_transformers_says_nothing_and_greedy_draws_nothing(
    model: Any, encoder: Encoder, prompts: list[list[int]], caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    before = torch.random.get_rng_state()
    answers(model, encoder, prompts, Sampling(max_new_tokens=2))
    assert torch.equal(before, torch.random.get_rng_state())
    answers(model, encoder, prompts, Sampling(max_new_tokens=2, temperature=1.0, stop=("x",)))
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_streamed_answer_comes_in_pieces_that_make_the_whole(
    model: Any, encoder: Encoder, prompts: list[list[int]]
) -> None:
    pieces: list[str] = []
    streamer = text_streamer(encoder.tokenizer, pieces.append)
    whole = answers(model, encoder, [prompts[0]], Sampling(max_new_tokens=12), streamer=streamer)[0]
    assert "".join(pieces).strip() == whole


def test_a_model_without_a_run_is_refused_with_what_works() -> None:
    with pytest.raises(RunError, match=r"builtin:nano: not a run.* `inlay eval MODEL --data FILE`.*--base"):
        api.load("builtin:nano")
