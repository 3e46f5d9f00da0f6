"""Completions of texts and ids, as OpenAI's client and lm-evaluation-harness ask for them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.slow
BASE, SUPPORT = "builtin:nano", "support:1"


def complete(client: openai.OpenAI, prompt: Any = "My parcel", **fields: Any) -> Any:
    return client.completions.create(**({"model": BASE, "prompt": prompt, "max_tokens": 8, "temperature": 0} | fields))


def test_a_text_goes_on(client: openai.OpenAI) -> None:
    found = complete(client)
    assert found.object == "text_completion"
    assert found.id.startswith("cmpl-")
    assert found.choices[0].text
    assert found.usage.completion_tokens <= 8


def test_adapters_go_on_otherwise(client: openai.OpenAI) -> None:
    assert complete(client).choices[0].text != complete(client, model=SUPPORT).choices[0].text


def test_several_prompts_have_their_answers_in_order(client: openai.OpenAI) -> None:
    prompts = ["My parcel", "The shop", "A lamp"]
    found = complete(client, prompts)
    assert [one.index for one in found.choices] == [0, 1, 2]
    assert [one.text for one in found.choices] == [complete(client, one).choices[0].text for one in prompts]


def test_ids_are_a_prompt(client: openai.OpenAI) -> None:
    found = complete(client, [40, 41, 42], echo=True, logprobs=0)
    assert found.usage.prompt_tokens == 3
    assert len(found.choices[0].logprobs.tokens) == 3 + found.usage.completion_tokens


def test_lists_of_ids_are_prompts(client: openai.OpenAI) -> None:
    found = complete(client, [[40, 41], [42, 43, 44]])
    assert (len(found.choices), found.usage.prompt_tokens) == (2, 5)


def test_echo_gives_the_prompt_first(client: openai.OpenAI) -> None:
    assert complete(client, echo=True).choices[0].text == "My parcel" + complete(client).choices[0].text


def test_the_log_probabilities_of_a_prompt_are_read_without_an_answer(client: openai.OpenAI) -> None:
    found = complete(client, "My parcel is late", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert found.text == "My parcel is late"
    assert found.logprobs.token_logprobs[0] is None
    assert all(one <= 0 for one in found.logprobs.token_logprobs[1:])
    assert len(found.logprobs.tokens) == len(found.logprobs.token_logprobs) == len(found.logprobs.top_logprobs)


def test_offsets_are_places_in_the_text(client: openai.OpenAI) -> None:
    found = complete(client, "My parcel is late", echo=True, logprobs=1, max_tokens=1).choices[0]
    assert found.logprobs.text_offset[0] == 0
    assert found.logprobs.text_offset == sorted(found.logprobs.text_offset)


def test_n_texts_for_each_prompt(client: openai.OpenAI) -> None:
    found = complete(client, ["A", "B"], n=2, temperature=1.5, seed=1)
    assert [one.index for one in found.choices] == [0, 1, 2, 3]


def test_a_text_is_streamed(client: openai.OpenAI) -> None:
    streamed = "".join(one.choices[0].text for one in complete(client, stream=True) if one.choices)
    assert streamed == complete(client).choices[0].text


def test_usage_of_a_streamed_text(client: openai.OpenAI) -> None:
    *_, last = complete(client, stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens == complete(client).usage.completion_tokens


@pytest.mark.parametrize("field", [{"suffix": "end"}, {"best_of": 3}])
def test_what_is_not_done_is_refused_by_name(client: openai.OpenAI, field: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, **field)
    assert refused.value.param == next(iter(field))
