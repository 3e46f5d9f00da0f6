"""The routes over ASGI, before an engine without a model."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import httpx
import pytest
from stub_engine import BASE, StubEngine, adapter, server

from inlay.serving.app import create_app
from inlay.serving.server import Server

HELLO = [{"role": "user", "content": "hello"}]
Client = httpx.AsyncClient
T = TypeVar("T")


def client_of(one: Server) -> Client:
    return Client(transport=httpx.ASGITransport(create_app(one)), base_url="http://localhost")


def ask(work: Callable[[Client], Awaitable[T]], one: Server | None = None) -> T:
    """What the work gives, with a client of a server."""

    async def run() -> T:
        async with client_of(one or server()) as client:
            return await work(client)

    return anyio.run(run)


def post(path: str, body: Any, one: Server | None = None, **more: Any) -> httpx.Response:
    return ask(lambda client: client.post(path, json=body, **more), one)


def chat(one: Server | None = None, **fields: Any) -> httpx.Response:
    return post("/v1/chat/completions", {"model": "base", "messages": HELLO} | fields, one)


def events_of(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


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


def test_an_unknown_field_is_refused_by_its_name() -> None:
    error = chat(temprature=1).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "temprature")
    assert "'temperature'" in error["message"]
