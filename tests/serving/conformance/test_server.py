"""Models, errors and routes beside the answers, through OpenAI's client and raw HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow
BASE, SUPPORT = "builtin:nano", "support:1"
HELLO: Any = [{"role": "user", "content": "My parcel is late."}]
BODY: dict[str, Any] = {"model": BASE, "messages": HELLO, "max_tokens": 4, "temperature": 0}


def refused(client: openai.OpenAI, **fields: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as found:
        client.chat.completions.create(**(BODY | fields))
    return found.value


def test_models_are_listed(client: openai.OpenAI) -> None:
    found = {one.id: one for one in client.models.list()}
    assert {BASE, SUPPORT, "code:1"} <= set(found)
    assert {one.object for one in found.values()} == {"model"}


@pytest.mark.parametrize("name", [BASE, SUPPORT])
def test_one_model_is_described(client: openai.OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == name


def test_an_unknown_model_is_not_found_and_the_nearest_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        client.models.retrieve("suport:1")
    assert "support:1" in str(found.value)
    error = refused(client, model="suport:1")
    assert isinstance(error, openai.NotFoundError)
    assert error.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 9}, "n"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"store": True}, "store"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
    ],
)
def test_a_field_that_cannot_be_is_a_400_that_names_it(client: openai.OpenAI, fields: Any, param: str) -> None:
    error = refused(client, **fields)
    assert isinstance(error, openai.BadRequestError)
    assert param in str(error.param)


def test_a_prompt_beyond_the_context_has_its_own_code(client: openai.OpenAI) -> None:
    error = refused(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert (error.status_code, error.code) == (400, "context_length_exceeded")


def test_an_error_in_a_stream_has_its_status(client: openai.OpenAI) -> None:
    assert refused(client, model="nobody", stream=True).status_code == 404


def test_every_error_has_the_four_fields(http: httpx.Client) -> None:
    for found in (http.get("/nowhere"), http.post("/v1/chat/completions", json={}), http.put("/v1/models")):
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
        assert 400 <= found.status_code < 500


def test_a_body_that_is_no_json_is_a_400(http: httpx.Client) -> None:
    head = {"Content-Type": "application/json"}
    assert http.post("/v1/chat/completions", content=b"{", headers=head).status_code == 400
    assert http.post("/v1/chat/completions", content=b"\xff", headers=head).status_code == 400
    assert http.post("/v1/chat/completions", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_stream_is_server_sent_events_that_end_with_done(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:])["object"] == "chat.completion.chunk" for line in lines[:-1])


def test_generate_has_the_form_of_the_first_sketch(http: httpx.Client) -> None:
    found = http.post(
        "/generate", json={"prompt": "My parcel is late.", "adapter": SUPPORT, "max_new_tokens": 6, "temperature": 0}
    )
    assert found.status_code == 200
    assert set(found.json()) >= {"response", "adapter", "tokens", "finish"}


def test_generate_answers_as_a_conversation_does(http: httpx.Client) -> None:
    alike = http.post("/generate", json={"prompt": "My parcel is late.", "max_new_tokens": 4, "temperature": 0}).json()
    assert alike["response"] == http.post("/v1/chat/completions", json=BODY).json()["choices"][0]["message"]["content"]


def test_health_readiness_and_description_are_there(http: httpx.Client) -> None:
    assert http.get("/health").json()["status"] == "ready"
    assert http.get("/ready").status_code == 200
    assert {"/v1/chat/completions", "/v1/completions", "/generate"} <= set(http.get("/openapi.json").json()["paths"])


def test_metrics_count_the_tokens(http: httpx.Client) -> None:
    def tokens() -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("inlay:generation_tokens_total"))

    before = tokens()
    used = http.post("/v1/chat/completions", json=BODY).json()["usage"]["completion_tokens"]
    assert tokens() == before + used


def test_the_prefix_of_a_prompt_that_was_seen_is_cached(http: httpx.Client) -> None:
    body = BODY | {"messages": [{"role": "user", "content": "again and again " * 40}]}
    first, second = (http.post("/v1/chat/completions", json=body).json() for _ in range(2))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["choices"][0]["message"] == second["choices"][0]["message"]
