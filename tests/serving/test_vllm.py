"""vLLM behind the front: requests and answers in its protocol; adapters by digest on one server or several; what it cannot serve."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inlay.generation.request import Ask, Event, Sampling, TokenLogprob
from inlay.serving.backends.vllm_requests import events_of, refusal_of, request_of
from inlay.serving.engine import Refusal

DIGEST = "d" * 64


def test_a_request_has_the_prompt_as_ids_the_adapter_by_digest_and_every_setting() -> None:
    sampling = Sampling(
        9, 0.7, 0.9, 5, 1.1, 0, ("END",), 3, 0.1, 0.2, 0.3, ((7, -1.0),), 2, logprobs=4,
    )  # fmt: skip
    body = request_of(Ask((1, 2, 3), sampling, DIGEST, b"\x01\x02", choice=1), {2, 1})
    assert body == {
        "model": DIGEST, "prompt": [1, 2, 3], "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "min_tokens": 2, "ignore_eos": False,
        "stop": ["END"], "seed": 1_000_006, "return_token_ids": True, "return_tokens_as_token_ids": True,
        "stop_token_ids": [1, 2], "logit_bias": {"7": -1.0}, "logprobs": 4, "cache_salt": "0102", "stream": True,
    }  # fmt: skip
    plain = request_of(Ask((1,), Sampling(ignore_eos=True)), {2})
    assert (plain["model"], plain["top_k"], plain["stop_token_ids"]) == ("base", -1, [])
    assert not {"logprobs", "cache_salt", "logit_bias", "structured_outputs"} & set(plain)


def test_every_setting_of_sampling_is_sent_or_refused() -> None:
    """A setting that is new here must find its way into the request."""
    known = {
        "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "stop", "seed", "min_p",
        "presence_penalty", "frequency_penalty", "logit_bias", "min_new_tokens", "ignore_eos", "logprobs",
    }  # fmt: skip
    assert set(Sampling.__slots__) == known
    with pytest.raises(Refusal, match="no_repeat_ngram_size: the back end vllm does not compute it") as refused:
        request_of(Ask((1,), Sampling(no_repeat_ngram_size=3)), ())
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")


def test_a_grammar_becomes_a_field_of_vllm_or_is_refused() -> None:
    schema = {"type": "object"}

    def asked(*parts: Any) -> Any:
        return request_of(Ask((1,), grammar=json.dumps({"grammars": list(parts)})), ())["structured_outputs"]

    assert asked({"json_schema": schema}) == {"json": schema}
    assert asked({"lark_grammar": "start: /a/"}) == {"grammar": "start: /a/"}
    with pytest.raises(Refusal, match="grammar of several parts"):
        asked({"json_schema": schema}, {"lark_grammar": "x"})


def chunk(**choice: Any) -> bytes:
    return json.dumps({"choices": [choice]}).encode()


def test_a_chunk_is_an_event_and_the_end_of_the_turn_is_no_token_of_it() -> None:
    logprobs = {
        "tokens": ["token_id:5", "token_id:6"], "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -0.7}, {"token_id:6": -1.0}],
    }  # fmt: skip
    (event,) = events_of(chunk(text="ab", token_ids=[5, 6], logprobs=logprobs), {2})
    assert event == Event(
        0, (5, 6), "ab", (TokenLogprob(5, -0.5, ((5, -0.5), (9, -0.7))), TokenLogprob(6, -1.0, ((6, -1.0),)))
    )
    (ended,) = events_of(chunk(text="", token_ids=[7, 2], finish_reason="stop", stop_reason=2), {2})
    assert (ended.ids, ended.finish) == ((7,), "stop")
    (by_text,) = events_of(chunk(text="x", token_ids=[7, 2], finish_reason="stop", stop_reason="END"), {2})
    assert by_text.ids == (7, 2)
    (cut,) = events_of(chunk(text="x", token_ids=[2], finish_reason="length"), {2})
    assert (cut.ids, cut.finish) == ((2,), "length")
    (aborted,) = events_of(chunk(text="", token_ids=[], finish_reason="abort"), {2})
    assert (aborted.finish, aborted.reason) == ("cancelled", "vLLM ended the answer")


def test_log_probabilities_of_a_prompt_have_none_for_its_first_token() -> None:
    found = [None, {"8": {"logprob": -2.0, "rank": 3}, "9": {"logprob": -0.1, "rank": 1}}]
    (event,) = events_of(chunk(text="", token_ids=[1], prompt_logprobs=found, prompt_token_ids=[4, 8]), ())
    assert event.prompt_logprobs == (None, TokenLogprob(8, -2.0, ((9, -0.1), (8, -2.0))))


def test_a_fault_of_the_request_is_told_as_it_is_and_one_of_vllm_as_the_servers() -> None:
    with pytest.raises(Refusal, match="too long") as ours:
        events_of(b'{"error": {"message": "too long", "code": 400}}', ())
    assert ours.value.status == 400
    theirs = refusal_of({"error": {"message": "boom"}}, 500)
    assert (theirs.status, theirs.code, str(theirs)) == (
        503,
        "backend_failed",
        "vLLM could not answer (HTTP 500): boom",
    )
    assert refusal_of("gone", 0).status == 503
