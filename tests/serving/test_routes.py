"""The routes over ASGI, before an engine without a model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fronts import HELLO, ask, chat, complete, events_of, post
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_engine import BASE, StubEngine, adapter, server

from inlay.serving.engine import ChatPrompt, EncodedPrompt


def test_an_answer_names_adapter_identity_and_seed() -> None:
    body = chat(model="support:prod", seed=7).json()
    assert body["inlay"] == {"adapter": "support:3", "identity": adapter("support:3").identity, "seed": 7}
    assert body["model"] == "support:prod"
    assert body["system_fingerprint"] == f"inlay-{adapter('support:3').identity[:16]}"
    assert adapter("support:3").digest[:6] in body["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("name", "ref"), [("support", "support:3"), ("support:3", "support:3"), (BASE, None), ("base", None)]
)
def test_a_model_is_asked_for_by_name_version_tag_or_id_of_the_base(name: str, ref: str | None) -> None:
    assert chat(model=name).json()["inlay"]["adapter"] == ref


def test_a_drawn_seed_is_reported_and_repeats_the_answer() -> None:
    first = chat(temperature=1).json()
    again = chat(temperature=1, seed=first["inlay"]["seed"]).json()
    assert again["choices"] == first["choices"]


def test_a_name_that_is_not_served_is_404_with_the_nearest() -> None:
    response = chat(model="suport:prod")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "Did you mean 'support:prod'?" in response.json()["error"]["message"]


def test_a_stream_has_role_text_finish_usage_and_its_end_in_order() -> None:
    *chunks, done = events_of(chat(stream=True, stream_options={"include_usage": True}, seed=1))
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]].count("stop") == 1
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert (chunks[-1]["choices"], chunks[0]["usage"]) == ([], None)
    assert chunks[-1]["usage"] == chat(seed=1).json()["usage"]


def test_what_fails_in_a_stream_is_its_last_event() -> None:
    *chunks, last = events_of(chat(server(StubEngine(fail_at=3)), stream=True))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["code"] == "failed"


def test_what_fails_before_the_first_token_has_a_status_also_in_a_stream() -> None:
    response = chat(server(StubEngine(fail_at=0)), stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "failed")


def test_generate_answers_in_its_own_form() -> None:
    body = post("/generate", {"prompt": "hello", "adapter": "code:prod"}).json()
    assert (body["adapter"], body["finish"], body["tokens"] > 0) == ("code:2", "stop", True)
    assert "hello" not in body["response"]


def test_generate_counts_prompt_and_answer_in_max_length_and_can_repeat_the_prompt() -> None:
    engine = StubEngine()
    body = {"prompt": "hello", "raw": True, "max_length": 8, "return_full_text": True}
    answer = post("/generate", body, server(engine)).json()
    assert (answer["response"], answer["tokens"], answer["finish"]) == ("hellook:", 3, "length")
    assert engine.asks[0].prompt == tuple(b"hello")
    error = post("/generate", body | {"max_length": 5}).json()["error"]
    assert (error["param"], "has 5" in error["message"]) == ("max_length", True)


@pytest.mark.parametrize("has_template", [True, False])
def test_generate_takes_the_prompt_as_a_turn_where_there_is_a_template(has_template: bool) -> None:
    engine = StubEngine(has_chat_template=has_template)
    assert post("/generate", {"prompt": "hello"}, server(engine)).status_code == 200
    assert engine.asks[0].prompt == tuple(b"<user>hello<assistant>" if has_template else b"hello")
    assert chat(server(engine)).status_code == (200 if has_template else 400)


CHAT_FIELDS: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "seed": -3, "stop": ["a", "b"], "presence_penalty": 1,
    "frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": {"5": 2.5}, "min_tokens": 2, "ignore_eos": True,
    "stream": False, "n": 2, "user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "max_tokens": 9,
    "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 2, "chat_template_kwargs": {"enable_thinking": False},
}  # fmt: skip


def test_every_field_reaches_the_engine() -> None:
    engine = StubEngine()
    assert chat(server(engine), **CHAT_FIELDS).status_code == 200
    first, second = engine.asks
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.5, 7, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.1)
    assert (sampling.stop, sampling.logit_bias, sampling.logprobs) == (("a", "b"), ((5, 2.5),), 2)
    assert (sampling.max_new_tokens, sampling.min_new_tokens, sampling.ignore_eos) == (9, 2, True)
    assert sampling.seed == second.sampling.seed == -3 % 2**64
    assert (first.choice, second.choice) == (0, 1)


def test_null_is_the_default_of_every_field() -> None:
    engine, plain = StubEngine(), StubEngine()
    chat(server(engine), **(dict.fromkeys(CHAT_FIELDS) | {"seed": 1}))
    chat(server(plain), seed=1)
    assert [ask.sampling for ask in engine.asks] == [ask.sampling for ask in plain.asks]
    assert (plain.asks[0].sampling.temperature, plain.asks[0].sampling.max_new_tokens) == (1.0, 1024)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1), ("temperature", "1"), ("temperature", True), ("top_p", 0), ("min_p", 1.1), ("top_k", 1.5),
        ("seed", 2**63), ("n", 9), ("n", 0), ("stop", ""), ("stop", ["a"] * 17), ("stop", "a" * 257), ("max_tokens", 0),
        ("presence_penalty", -2.1), ("repetition_penalty", 0), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}),
        ("logit_bias", {str(n): 1 for n in range(1025)}), ("logit_bias", {"256": 1}), ("top_logprobs", 21), ("top_logprobs", 1),
        ("messages", []), ("messages", [HELLO[0]] * 2001), ("model", ""), ("stream", 1), ("stream_options", {}),
        ("max_completion_tokens", 5000), ("user", "a" * 513), ("chat_template_kwargs", {"x": "y"}), ("metadata", {"a": 1}),
        ("tool_choice", "required"), ("response_format", {"type": "xml"}),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_refused_by_its_field(field: str, value: object) -> None:
    response = chat(**{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"].split(".")[0].split("[")[0] in (field, "max_tokens")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "clown", "content": "a"}, "messages[0].role"), ({"content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"), ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "assistant"}, "messages[0].content"), ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "a", "name": "b"}, "messages[0].name"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "x", "text": "a"}]}, "messages[0].content[1].type"),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_taken_is_refused_by_its_place(message: object, param: str) -> None:
    assert chat(messages=[message]).json()["error"]["param"] == param


def test_parts_of_text_are_joined_and_developer_is_system() -> None:
    engine = StubEngine()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat(server(engine), messages=[{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])
    assert bytes(engine.asks[0].prompt) == b"<system>x<user>ab<assistant>"


def test_an_answer_of_a_client_library_can_go_back_as_a_message() -> None:
    message = {
        "role": "assistant", "content": "a", "refusal": None, "audio": None, "function_call": None, "tool_calls": None,
        "annotations": [],
    }  # fmt: skip
    assert chat(messages=[*HELLO, message, *HELLO]).status_code == 200


@pytest.mark.parametrize(
    "field", ["store", "best_of", "service_tier", "reasoning_effort", "chat_template", "no_such_field"]
)
def test_a_field_without_effect_is_refused_not_ignored(field: str) -> None:
    error = chat(**{field: True}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", field)


def test_a_misspelt_field_is_refused_with_the_nearest() -> None:
    assert "'temperature'" in chat(temprature=1).json()["error"]["message"]


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers() -> None:
    small = StubEngine(context_length=20)
    error = chat(server(small)).json()["error"]
    assert (error["code"], "22 tokens" in error["message"], "context of 20" in error["message"]) == (
        "context_length_exceeded", True, True,
    )  # fmt: skip
    assert chat(server(StubEngine(context_length=30))).json()["usage"]["completion_tokens"] == 8
    assert chat(server(StubEngine(context_length=30)), max_tokens=9).json()["error"]["param"] == "max_tokens"


def test_prompts_are_texts_or_ids_one_or_several() -> None:
    for prompt, count in (("a", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2], [3]], 3)):
        choices = complete(prompt=prompt, n=2).json()["choices"]
        assert [choice["index"] for choice in choices] == list(range(2 * count))
    assert complete(prompt=[300]).json()["error"]["param"] == "prompt"
    assert complete(prompt="").json()["error"]["param"] == "prompt"
    assert complete(prompt=["a"] * 128, n=2).json()["error"]["param"] == "n"


def test_echo_with_log_probabilities_measures_a_prompt_without_an_answer() -> None:
    engine = StubEngine()
    body = complete(server(engine), prompt=[[104, 195, 169], [97, 98]], echo=True, logprobs=1, max_tokens=0).json()
    one, two = body["choices"]
    assert (one["text"], two["text"], body["usage"]["completion_tokens"]) == ("hé", "ab", 0)
    assert one["logprobs"] == {
        "tokens": ["h", "bytes:\\xc3", "bytes:\\xa9"], "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}], "text_offset": [0, 1, 1],
    }  # fmt: skip
    assert all(ask.prompt_logprobs and ask.sampling.max_new_tokens == 1 for ask in engine.asks)


def test_log_probabilities_of_a_conversation_have_bytes_and_the_most_likely() -> None:
    choice = chat(logprobs=True, top_logprobs=2, max_tokens=6).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert bytes(byte for token in tokens for byte in token["bytes"]) == "ok: hé".encode()[:6]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * 6


def joined(events: list[Any], form: str) -> list[dict[str, Any]]:
    """The choices of a stream's chunks put together."""
    found: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            one = found.setdefault(choice["index"], {"text": "", "tokens": [], "finish": None})
            one["text"] += choice["delta"].get("content", "") if form == "chat" else choice["text"]
            one["finish"] = choice["finish_reason"] or one["finish"]
            if choice["logprobs"]:
                lists = choice["logprobs"]
                one["tokens"] += lists["content"] if form == "chat" else list(zip(*lists.values(), strict=True))
    return [found[number] for number in sorted(found)]


@given(
    words=st.text(min_size=1, max_size=30), n=st.integers(1, 3), most=st.integers(1, 40), stop=st.sampled_from([None, "o", "él", "base"]),
    logprobs=st.booleans(), form=st.sampled_from(["chat", "text"]), echo=st.booleans(),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_a_stream_has_the_content_of_the_whole_answer(
    words: str, n: int, most: int, stop: str | None, logprobs: bool, form: str, echo: bool
) -> None:
    fields: dict[str, Any] = {"n": n, "max_tokens": most, "stop": stop, "seed": 5}
    if form == "chat":
        fields["logprobs"] = logprobs
    else:
        fields |= {"logprobs": 1 if logprobs else None, "echo": echo}
    send = chat if form == "chat" else complete
    whole = send(server(StubEngine(words=words)), **fields).json()["choices"]
    pieces = joined(events_of(send(server(StubEngine(words=words)), stream=True, **fields)), form)
    for one, piece in zip(whole, pieces, strict=True):
        assert piece["text"] == (one["message"]["content"] if form == "chat" else one["text"])
        assert piece["finish"] == one["finish_reason"]
        if logprobs:
            lists = one["logprobs"]
            assert piece["tokens"] == (lists["content"] if form == "chat" else list(zip(*lists.values(), strict=True)))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"a": "\xff"}', b"{", b"", b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70, b"1" * 5000,
    ],
)  # fmt: skip
def test_a_body_that_is_not_strict_json_is_refused(body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = ask(lambda client: client.post("/v1/chat/completions", content=body, headers=headers))
    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "invalid_json" if body else "missing_required_parameter",
    )


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/nowhere", {}, b"", 404), ("GET", "/v1/completions", {}, b"", 405), ("OPTIONS", "/generate", {}, b"", 405),
        ("POST", "/generate", {"content-type": "text/plain"}, b"{}", 415), ("POST", "/generate", {}, b"{}", 415),
        ("POST", "/generate", {"content-type": "application/json", "content-encoding": "gzip"}, b"{}", 415),
        ("POST", "/generate", {"content-type": "application/json"}, b" " * (2**20 + 1), 413),
        ("GET", "/health", {"x": "a" * 17_000}, b"", 431), ("GET", "/health", {"host": "evil.example"}, b"", 403),
    ],
)  # fmt: skip
def test_every_error_has_one_form(method: str, path: str, headers: dict[str, str], content: bytes, status: int) -> None:
    response = ask(lambda client: client.request(method, path, headers=headers, content=content))
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]


class Broken(StubEngine):
    async def encode_chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        raise RuntimeError("secret prompt")


def test_a_defect_is_500_with_an_id_and_neither_client_nor_log_see_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "inlay.serving")
    response = chat(server(Broken()), messages=[{"role": "user", "content": "secret prompt"}])
    assert response.status_code == 500
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert response.headers["x-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text + response.text


def test_the_log_has_a_line_for_each_request_without_texts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "inlay.serving")
    chat(model="support:prod", messages=[{"role": "user", "content": "secret"}], user="secret")
    post("/v1/secret?secret=1", {})
    first, second = (json.loads(record.message) for record in caplog.records)
    assert (first["route"], first["status"], first["model"], first["finish"]) == (
        "/v1/chat/completions", 200, "support:prod", ["stop"],
    )  # fmt: skip
    assert (second["route"], second["status"]) == ("", 404)
    assert "secret" not in caplog.text


@pytest.mark.parametrize("condition", ["loading", "draining", "failed"])
def test_what_cannot_answer_says_so_with_503_and_health_goes_on(condition: str) -> None:
    one = server(StubEngine(condition))
    response = chat(one)
    assert (response.status_code, response.json()["error"]["code"]) == (503, condition)
    assert int(response.headers["retry-after"]) > 0
    assert chat(one, model="not loaded yet").status_code == 503
    assert ask(lambda client: client.get("/ready"), one).status_code == 503
    health = ask(lambda client: client.get("/health"), one)
    assert (health.status_code, health.json()["status"]) == (200, condition)


def test_models_are_listed_and_found_by_name() -> None:
    body = ask(lambda client: client.get("/v1/models")).json()
    assert [model["id"] for model in body["data"]] == [BASE, "code:prod", "support:prod"]
    one = ask(lambda client: client.get("/v1/models/support:prod")).json()
    assert one["inlay"]["identity"] == adapter("support:3").identity
    slashed = server()
    slashed.names.base = "org/model"
    assert ask(lambda client: client.get("/v1/models/org/model"), slashed).json()["id"] == "org/model"
