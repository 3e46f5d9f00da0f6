"""Conversations, as OpenAI's client asks for them and reads them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.slow
BASE, SUPPORT, CODE = "builtin:nano", "support:1", "code:1"
HELLO: Any = [{"role": "user", "content": "My parcel is late."}]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **({"model": BASE, "messages": HELLO, "max_tokens": 12, "temperature": 0} | fields)
    )


def text(answer: Any, choice: int = 0) -> str:
    return answer.choices[choice].message.content


def test_an_answer_has_every_field_of_the_library(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == BASE
    assert answer.created > 1_600_000_000
    assert answer.choices[0].index == 0
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_greedy_answers_are_the_same_twice(client: openai.OpenAI) -> None:
    assert text(chat(client)) == text(chat(client)) != ""


def test_the_end_of_the_turn_is_stop_and_the_limit_is_length(client: openai.OpenAI) -> None:
    assert chat(client, max_tokens=100).choices[0].finish_reason == "stop"
    cut = chat(client, max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)


def test_max_completion_tokens_is_max_tokens(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model=BASE, messages=HELLO, max_completion_tokens=3, temperature=0)
    assert found.usage is not None
    assert found.usage.completion_tokens == 3


def test_each_adapter_answers_in_its_own_way(client: openai.OpenAI) -> None:
    answers = {name: text(chat(client, model=name)) for name in (BASE, SUPPORT, CODE)}
    assert len(set(answers.values())) == 3


def test_an_answer_reports_the_identity_that_made_it(client: openai.OpenAI) -> None:
    found = {name: chat(client, model=name).model_extra["inlay"] for name in (SUPPORT, CODE)}
    assert [one["adapter"] for one in found.values()] == [SUPPORT, CODE]
    assert len({one["identity"] for one in found.values()}) == 2


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(client: openai.OpenAI) -> None:
    warm = {"temperature": 1.5, "max_tokens": 16}
    one, again = (text(chat(client, seed=7, **warm)) for _ in range(2))
    assert one == again
    assert len({text(chat(client, seed=n, **warm)) for n in range(5)}) > 1


def test_a_seed_that_was_not_given_is_reported_and_repeats_the_answer(client: openai.OpenAI) -> None:
    first = chat(client, temperature=1.5)
    assert text(chat(client, temperature=1.5, seed=first.model_extra["inlay"]["seed"])) == text(first)


def test_n_answers_are_numbered_and_drawn_apart(client: openai.OpenAI) -> None:
    found = chat(client, n=4, temperature=1.5, seed=1, max_tokens=16)
    assert [one.index for one in found.choices] == [0, 1, 2, 3]
    assert len({one.message.content for one in found.choices}) > 1
    assert found.usage.completion_tokens > 16


def test_the_first_of_n_answers_is_the_one_alone(client: openai.OpenAI) -> None:
    assert text(chat(client, n=3, temperature=1.2, seed=4)) == text(chat(client, temperature=1.2, seed=4))


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = text(chat(client, max_tokens=40))
    stop = whole[6:9]
    found = chat(client, max_tokens=40, stop=stop)
    assert (text(found), found.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")


def test_the_earliest_of_several_stop_strings_counts(client: openai.OpenAI) -> None:
    whole = text(chat(client, max_tokens=40))
    assert (
        text(chat(client, max_tokens=40, stop=[whole[9:12], whole[4:7], "never"])) == whole[: whole.index(whole[4:7])]
    )


def test_log_probabilities_are_of_the_tokens_of_the_text(client: openai.OpenAI) -> None:
    found = chat(client, logprobs=True)
    content = found.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in content).decode().strip() == text(found).strip()
    assert all(one.logprob <= 0 for one in content)


def test_top_log_probabilities_are_sorted_and_hold_the_greedy_token(client: openai.OpenAI) -> None:
    content = chat(client, logprobs=True, top_logprobs=4).choices[0].logprobs.content
    for one in content:
        tops = [top.logprob for top in one.top_logprobs]
        assert len(tops) == 4
        assert tops == sorted(tops, reverse=True)
        assert one.token == one.top_logprobs[0].token


def test_a_bias_makes_a_token_certain(client: openai.OpenAI) -> None:
    found = chat(client, logit_bias={"65": 100}, max_tokens=3, logprobs=True)
    assert len({one.token for one in found.choices[0].logprobs.content}) == 1


@pytest.mark.parametrize("field", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}])
def test_penalties_of_openai_are_taken(client: openai.OpenAI, field: dict[str, float]) -> None:
    assert text(chat(client, max_tokens=40, **field))


@pytest.mark.parametrize("field", [{"top_k": 1}, {"min_p": 1.0}, {"repetition_penalty": 1.3}, {"min_tokens": 12}])
def test_fields_of_vllm_are_taken(client: openai.OpenAI, field: dict[str, Any]) -> None:
    assert text(chat(client, extra_body=field))


def test_one_candidate_is_greedy_at_any_temperature(client: openai.OpenAI) -> None:
    assert text(chat(client, temperature=2.0, extra_body={"top_k": 1})) == text(chat(client))


def test_ignore_eos_goes_on_to_the_limit(client: openai.OpenAI) -> None:
    found = chat(client, max_tokens=40, extra_body={"ignore_eos": True})
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (40, "length")


def test_a_system_message_changes_the_prompt_and_developer_is_its_newer_name(client: openai.OpenAI) -> None:
    ways = {
        role: chat(client, messages=[{"role": role, "content": "Be brief."}, *HELLO])
        for role in ("system", "developer")
    }
    assert ways["system"].usage.prompt_tokens > chat(client).usage.prompt_tokens
    assert text(ways["system"]) == text(ways["developer"])


def test_a_conversation_goes_on(client: openai.OpenAI) -> None:
    first = chat(client, max_tokens=30)
    turns = [*HELLO, first.choices[0].message, {"role": "user", "content": "And then?"}]
    assert chat(client, messages=turns).usage.prompt_tokens > first.usage.total_tokens


def test_parts_of_text_are_joined(client: openai.OpenAI) -> None:
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "My parcel"}, {"type": "text", "text": " is late."}]}
    ]
    assert text(chat(client, messages=parts)) == text(chat(client))


def test_fields_about_the_asker_are_taken(client: openai.OpenAI) -> None:
    assert text(chat(client, user="u1", safety_identifier="s1", metadata={"k": "v"})) == text(chat(client))


# ---------------------------------------------------------------- streams


def test_a_stream_has_the_role_first_one_id_and_the_reason_last(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({one.id for one in chunks}) == 1
    assert {one.object for one in chunks} == {"chat.completion.chunk"}
    assert [one.choices[0].finish_reason for one in chunks][-1] in ("stop", "length")
    assert all(one.choices[0].finish_reason is None for one in chunks[:-1])


@pytest.mark.parametrize("model", [BASE, SUPPORT])
def test_a_streamed_text_is_the_whole_text(client: openai.OpenAI, model: str) -> None:
    parts = [one.choices[0].delta.content or "" for one in chat(client, model=model, stream=True, max_tokens=50)]
    assert len(parts) > 5
    assert "".join(parts) == text(chat(client, model=model, max_tokens=50))


def test_usage_of_a_stream_comes_last_and_only_when_it_is_asked_for(client: openai.OpenAI) -> None:
    *others, last = chat(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(one.usage is None for one in others)
    assert all(one.usage is None for one in chat(client, stream=True))


def test_several_answers_are_streamed_beside_each_other(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    for one in chat(client, stream=True, n=2, temperature=1.5, seed=3):
        for choice in one.choices:
            texts[choice.index] += choice.delta.content or ""
    whole = chat(client, n=2, temperature=1.5, seed=3)
    assert texts == {0: text(whole, 0), 1: text(whole, 1)}


def test_a_stop_string_is_never_streamed(client: openai.OpenAI) -> None:
    stop = text(chat(client, max_tokens=40))[8:12]
    parts = [one.choices[0].delta.content or "" for one in chat(client, stream=True, max_tokens=40, stop=stop)]
    assert stop not in "".join(parts)


def test_log_probabilities_are_streamed(client: openai.OpenAI) -> None:
    streamed = [
        token for one in chat(client, stream=True, logprobs=True) for token in getattr(one.choices[0].logprobs, "content", None) or []
    ]  # fmt: skip
    assert [one.token for one in streamed] == [
        one.token for one in chat(client, logprobs=True).choices[0].logprobs.content
    ]


def test_the_stream_helper_of_the_library_builds_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=BASE, messages=HELLO, max_tokens=12, temperature=0) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == text(chat(client))


def test_a_stream_that_is_left_frees_its_place(client: openai.OpenAI, http: Any) -> None:
    with chat(client, stream=True, max_tokens=400, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    for _ in range(100):
        if http.get("/health").json()["running"] == 0:
            break
    assert http.get("/health").json()["running"] == 0


def test_the_raw_response_has_a_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=BASE, messages=HELLO, max_tokens=2)
    assert raw.headers["x-request-id"]
    assert raw.parse().choices


# ---------------------------------------------------------------- async


def test_many_requests_of_several_models_at_once_get_the_answers_that_each_gets_alone(
    client: openai.OpenAI, url: str
) -> None:
    names = [BASE, SUPPORT, CODE] * 6
    alone = {name: text(chat(client, model=name)) for name in set(names)}

    async def together() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asking:
            fields: Any = {"messages": HELLO, "max_tokens": 12, "temperature": 0}
            return await asyncio.gather(*(asking.chat.completions.create(model=name, **fields) for name in names))

    assert [text(one) for one in asyncio.run(together())] == [alone[name] for name in names]


def test_an_async_stream(client: openai.OpenAI, url: str) -> None:
    async def streamed() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as asking:
            fields: Any = {"model": BASE, "messages": HELLO, "max_tokens": 12, "temperature": 0}
            stream = await asking.chat.completions.create(stream=True, **fields)
            return "".join([one.choices[0].delta.content or "" async for one in stream])

    assert asyncio.run(streamed()) == text(chat(client))


# ---------------------------------------------------------------- forms


@pytest.mark.usefixtures("_takes_a_form")
def test_json_mode_gives_json(client: openai.OpenAI) -> None:
    found = chat(client, response_format={"type": "json_object"}, max_tokens=200)
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text(found)), dict)
    else:
        assert text(found).lstrip().startswith("{")


class Reply(BaseModel):
    kind: bool


@pytest.mark.usefixtures("_takes_a_form")
def test_parse_gives_the_object_of_a_model(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model=BASE, messages=HELLO, response_format=Reply, temperature=0, max_tokens=100
    )
    assert isinstance(found.choices[0].message.parsed, Reply)


@pytest.mark.usefixtures("_takes_a_form")
def test_a_json_schema_holds_for_an_adapter_too(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema, "strict": True}}
    found = chat(client, model=SUPPORT, response_format=form, max_tokens=60)
    assert set(json.loads(text(found))) == {"ok"}
