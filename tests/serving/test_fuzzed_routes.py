"""Requests made from the server's own description, right ones and wrong ones: no answer is a defect, and each has its schema."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi import FastAPI
from fronts import HELLO
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from stub_engine import StubEngine, server

from inlay.serving.app import create_app
from inlay.serving.replies import ChatCompletion, Completion, ErrorReply, Generated
from inlay.serving.schemas import ChatRequest, CompletionRequest, GenerateRequest

Fuzzed = tuple[FastAPI, asyncio.Runner, httpx.AsyncClient]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    app = create_app(server(StubEngine(context_length=2**20)))
    with asyncio.Runner() as runner:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        yield app, runner, client
        runner.run(client.aclose())


def cases_of(app: FastAPI) -> st.SearchStrategy[schemathesis.Case]:
    """Requests to the routes of an application; those with a model name ask mostly for one that is there."""
    description = copy.deepcopy(app.openapi())
    for name, field in (("ChatRequest", "model"), ("CompletionRequest", "model"), ("GenerateRequest", "adapter")):
        description["components"]["schemas"][name]["properties"][field] = {"enum": ["base", "support:3", "nowhere"]}
    fields = description["components"]["schemas"]["ChatRequest"]["properties"]
    del fields["messages"]["items"]["discriminator"]  # system and developer lead to one schema: taken for an error
    del fields["messages"]["maxItems"]  # one too many of 2,000 takes seconds to draw
    fields["response_format"] = {
        "enum": [None, {"type": "text"}, {"type": "json_object"}]
    }  # a schema is compiled apart
    operations = [found.ok() for found in schemathesis.openapi.from_dict(description).get_all_operations()]
    kinds = [
        operation.as_strategy(generation_mode=mode)
        for operation in operations
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if operation.label.startswith("POST") or "{" in operation.label
    ]
    return st.one_of(kinds)


async def send(client: httpx.AsyncClient, request: dict[str, Any]) -> httpx.Response:
    if "data" in request:
        request["content"] = request.pop("data")
    return await client.request(**request)


def tried(fuzzed: Fuzzed, examples: int) -> Counter[int]:
    """How many answers had which status."""
    app, runner, client = fuzzed
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases_of(app))
    def holds(case: schemathesis.Case) -> None:
        request = case.as_transport_kwargs(base_url="http://localhost")
        request.pop("cookies", None)
        response = runner.run(send(client, request))
        statuses[response.status_code] += 1
        assert response.status_code < 500, response.text[:1000]
        # Relations between fields are refused, too, and a schema has none of them.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    holds()
    return statuses


def test_no_request_makes_a_defect_and_every_answer_has_its_schema(fuzzed: Fuzzed) -> None:
    assert tried(fuzzed, 12).total() >= 12


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(-3, 3) | st.sampled_from([2**63, 1e300, "", "a", "user", "é" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "role", "1", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
BODIES = {
    "/v1/chat/completions": (ChatRequest, ChatCompletion, {"model": "base", "messages": HELLO}),
    "/v1/completions": (CompletionRequest, Completion, {"model": "base", "prompt": "a"}),
    "/generate": (GenerateRequest, Generated, {"prompt": "a"}),
}


@given(st.sampled_from(sorted(BODIES)), st.data())
@settings(max_examples=100, deadline=None)
def test_values_of_any_kind_in_any_field_make_no_defect(fuzzed: Fuzzed, path: str, data: st.DataObject) -> None:
    asked, answered, plain = BODIES[path]
    names = st.sampled_from([*asked.model_fields, "other"])
    body = plain | data.draw(st.dictionaries(names, VALUES, max_size=2))
    _, runner, client = fuzzed
    response = runner.run(client.post(path, json=body))
    if response.status_code == 200 and response.headers["content-type"] == "application/json":
        answered.model_validate_json(response.content)
    elif response.status_code != 200:
        assert response.status_code in (400, 404), (body, response.text)
        ErrorReply.model_validate_json(response.content)


@pytest.mark.slow
def test_no_request_of_thousands_makes_a_defect(fuzzed: Fuzzed) -> None:
    assert {200, 400, 404} <= set(tried(fuzzed, 2500))
