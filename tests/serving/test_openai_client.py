"""The real `openai` client, sync and async, against a server on a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from fronts import HELLO, on_a_socket
from stub_engine import BASE, StubEngine, adapter, server

from inlay.serving.auth import Auth, new_token, read_tokens
from inlay.serving.server import Server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, str]]:
    token, line = new_token("alice")
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(line)
    one = server(auth=Auth(read_tokens(file)))
    with on_a_socket(one) as port:
        yield one, f"http://127.0.0.1:{port}/v1", token


@pytest.fixture
def client(running: tuple[Server, str, str]) -> Iterator[openai.OpenAI]:
    running[0].engine.__init__()  # type: ignore[misc]
    with openai.OpenAI(base_url=running[1], api_key=running[2], max_retries=0) as one:
        yield one


def test_a_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="support:prod", messages=HELLO, n=2, seed=1)  # type: ignore[call-overload]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["inlay"]["identity"] == adapter("support:3").identity
    assert answer._request_id
    again = client.chat.completions.create(
        model="support:prod", n=2, seed=1, messages=[*HELLO, answer.choices[0].message, *HELLO]
    )  # type: ignore[call-overload]
    assert again.choices[0].message.content != answer.choices[0].message.content


def test_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=BASE, messages=HELLO, seed=1)  # type: ignore[call-overload]
    stream = client.chat.completions.create(
        model=BASE, messages=HELLO, seed=1, stream=True, stream_options={"include_usage": True}
    )  # type: ignore[call-overload]
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    with client.chat.completions.stream(model=BASE, messages=HELLO, seed=1) as helped:  # type: ignore[arg-type]
        assert helped.get_final_completion().choices[0].message.content == whole.choices[0].message.content


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE, messages=HELLO, logprobs=True, top_logprobs=3)  # type: ignore[call-overload]
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content
    text = client.completions.create(model=BASE, prompt=[104, 105], echo=True, logprobs=2, max_tokens=1)
    assert text.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]


def test_texts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=["a", "b"], max_tokens=3)
    assert [choice.text for choice in answer.choices] == ["ok:", "ok:"]
    chunks = list(client.completions.create(model=BASE, prompt="a", max_tokens=3, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ok:"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [BASE, "code:prod", "support:prod"]
    assert client.models.retrieve("support:prod").owned_by == "inlay"


def test_errors_are_those_of_the_library(client: openai.OpenAI, running: tuple[Server, str, str]) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'support:prod'") as missing:
        client.chat.completions.create(model="suport:prod", messages=HELLO)  # type: ignore[call-overload]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=BASE, messages=HELLO, store=True)  # type: ignore[call-overload]
    assert (refused.value.param, refused.value.code) == ("store", "unsupported_parameter")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="x").models.list()
    running[0].engine.condition = "loading"  # type: ignore[attr-defined]
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=BASE, messages=HELLO)  # type: ignore[call-overload]
    running[0].engine.__init__(fail_at=2)  # type: ignore[misc]
    with pytest.raises(openai.APIError, match="a step failed"):
        list(client.chat.completions.create(model=BASE, messages=HELLO, stream=True))  # type: ignore[call-overload]


def test_many_at_once_from_the_async_client(running: tuple[Server, str, str]) -> None:
    running[0].engine.__init__()  # type: ignore[misc]

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=running[1], api_key=running[2], max_retries=0) as client:

            async def one(number: int) -> None:
                model = ("support:prod", "code:prod", BASE)[number % 3]
                messages = [{"role": "user", "content": str(number)}]
                stream = await client.chat.completions.create(model=model, messages=messages, stream=True, seed=1)  # type: ignore[call-overload]
                chunks = [chunk async for chunk in stream]
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                ref = chunks[0].model_extra["inlay"]["adapter"]
                assert ref == ("support:3", "code:2", None)[number % 3]
                assert (adapter(ref).digest[:6] if ref else "base") in text

            await asyncio.gather(*map(one, range(12)))

    asyncio.run(work())


def test_the_stub_is_an_engine() -> None:
    assert StubEngine().state().condition == "ready"
