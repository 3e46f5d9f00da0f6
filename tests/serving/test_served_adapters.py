"""A real server on a tiny base: its answers are those of `inlay compare`, whatever is loaded and replaced meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai
import psutil
import pydantic
import pytest

from inlay import api
from inlay.adapters.identity import read_entry
from inlay.adapters.library import Library
from inlay.data.types import Message
from inlay.errors import AdapterError
from inlay.generation.generate import full_answers
from inlay.generation.request import Sampling
from inlay.tasks.opened_base import OpenedBase
from parts import make_base
from program import environment
from serving.harmful import make_harmful_base
from serving.random_adapters import opened, put_random, random_state

QUESTIONS = ("Where is my parcel?", "How do I reset my password?", "Hello")
NEW_TOKENS = 6


@dataclass
class Served:
    """The server, and what it should answer."""

    http: httpx.Client
    process: subprocess.Popen[str]
    library: Library
    base: OpenedBase
    admin: dict[str, str]
    solo: dict[tuple[str | None, str], str]
    """The greedy answer by identity and question, of each model alone."""

    def ask(self, model: str, question: str, http: httpx.Client | None = None) -> httpx.Response:
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "max_tokens": NEW_TOKENS, "temperature": 0}
        return (http or self.http).post("/v1/chat/completions", json=body)

    def put(self, name: str, ref: str) -> httpx.Response:
        return self.http.put(f"/admin/adapters/{name}", json={"ref": ref}, headers=self.admin)

    def is_solo(self, answer: httpx.Response, question: str) -> bool:
        """Whether an answer is that of the identity which it reports, alone."""
        found = answer.json()
        text = found["choices"][0]["message"]["content"]
        return bool(text.strip() == self.solo[found["inlay"]["identity"], question])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    base = opened(make_harmful_base(folder / "base"))
    library = Library(folder / "library")
    entries = [put_random(library, name, base, seed) for seed, name in enumerate(("a", "a", "b", "c"))]
    solo: dict[tuple[str | None, str], str] = {}
    prompts = [base.encoder.prompt([Message("user", question)]) for question in QUESTIONS]
    for entry in [None, *entries]:
        model = base.with_adapter(read_entry(entry) if entry else None)
        found = full_answers(model, base.encoder, prompts, Sampling(NEW_TOKENS))
        solo |= {
            (entry and entry.card.identity, question): one.text for question, one in zip(QUESTIONS, found, strict=True)
        }
    token, line = api.make_token("admin")
    (folder / "admin.txt").write_text(line.replace("answer,feedback", "admin"))
    command = [
        sys.executable, "-m", "inlay", "serve", str(folder / "base"), "--library", str(library.path), "--adapters", "a:1,b",
        "--admin-tokens", str(folder / "admin.txt"), "--port", "0", "--json",
    ]  # fmt: skip
    env = environment(INLAY_CACHE=str(session_cache))
    with (
        (folder / "err.txt").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=env) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith('{"ready'), (folder / "err.txt").read_text()
            ready = json.loads(line)
            assert ready.get("models") == [str(folder / "base"), "a:1", "b"], (folder / "err.txt").read_text()
            with httpx.Client(base_url=ready["ready"], timeout=60) as http:
                yield Served(http, process, library, base, {"Authorization": f"Bearer {token}"}, solo)
            process.send_signal(signal.SIGTERM)
            end = json.loads(process.stdout.read())
            assert (process.wait(30), end["reason"], end["cut_off"]) == (0, "SIGTERM", 0)
        finally:
            process.kill()


@pytest.mark.parametrize("model", ["base", "a:1", "a", "b", "b:1"])
def test_a_served_greedy_answer_is_that_of_the_model_alone(served: Served, model: str) -> None:
    for question in QUESTIONS:
        answer = served.ask(model, question)
        assert answer.status_code == 200, answer.text
        assert served.is_solo(answer, question)
    assert (answer.json()["inlay"]["identity"] is None) == (model == "base")


class Ball(pydantic.BaseModel):
    color: Literal["red", "green"]
    sizes: Annotated[list[bool], pydantic.Field(max_length=2)]


def test_an_answer_is_parsed_into_a_model_of_pydantic_and_a_hostile_schema_is_refused(served: Served) -> None:
    with openai.OpenAI(base_url=str(served.http.base_url.join("/v1")), api_key="none", max_retries=0) as client:
        for model in ("base", "b"):
            answer = client.chat.completions.parse(
                model=model, messages=[{"role": "user", "content": "Hi"}], response_format=Ball, max_tokens=200, seed=1
            )
            assert isinstance(answer.choices[0].message.parsed, Ball), answer
            assert answer.choices[0].finish_reason == "stop"
        called = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": "Hi"}], max_tokens=120, tool_choice="required",
            tools=[{"type": "function", "function": {"name": "kick", "parameters": {"enum": [{"hard": True}]}}}],
        ).choices[0]  # fmt: skip
        assert called.finish_reason == "tool_calls", called
        assert json.loads(called.message.tool_calls[0].function.arguments) == {"hard": True}  # type: ignore[union-attr,index]
        with pytest.raises(openai.BadRequestError, match="keyword 'not'") as refused:
            client.chat.completions.create(
                model="base", messages=[{"role": "user", "content": "Hi"}],
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}},
            )  # fmt: skip
        assert refused.value.param == "response_format"


@pytest.mark.parametrize(
    "requests",
    [
        240,
        pytest.param(10_000, marks=pytest.mark.slow),
        pytest.param(
            100_000,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif("INLAY_LONG_TESTS" not in os.environ, reason="an hour; set INLAY_LONG_TESTS"),
            ],
        ),
    ],
)
def test_no_answer_crosses_to_another_adapter_while_names_are_replaced_and_removed(
    served: Served, requests: int
) -> None:
    crossed: list[Any] = []
    statuses: dict[int, int] = {}
    done = threading.Event()

    def ask(which: int) -> None:
        with httpx.Client(base_url=served.http.base_url, timeout=60) as http:
            for n in range(requests // 4):
                name, question = ("x", "y", "b", "base")[(n + which) % 4], QUESTIONS[n % 3]
                answer = served.ask(name, question, http)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                if answer.status_code == 200 and not served.is_solo(answer, question):
                    crossed.append((name, question, answer.json()))

    def change() -> None:
        refs = ("a:1", "a:2", "c:1", "b:1")
        n = 0
        while not done.is_set():
            assert served.put("x", refs[n % 4]).status_code == 200
            assert served.put("y", refs[(n + 1) % 4]).status_code == 200
            if n % 3 == 2:
                assert served.http.delete("/admin/adapters/x", headers=served.admin).status_code == 200
            n += 1
            time.sleep(0.05)

    changing = threading.Thread(target=change)
    changing.start()
    asking = [threading.Thread(target=ask, args=(which,)) for which in range(4)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    done.set()
    changing.join()
    assert crossed == []
    assert statuses.keys() <= {200, 404}
    assert statuses[200] > requests / 2
    for name in ("x", "y"):
        served.http.delete(f"/admin/adapters/{name}", headers=served.admin)
    served_ones = [one["name"] for one in served.http.get("/admin/adapters", headers=served.admin).json()["adapters"]]
    assert served_ones == ["a:1", "b"]


def figures(served: Served) -> dict[str, float]:
    return dict(served.http.get("/health").json()["figures"])


def wait_for(holds: Any) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_version_in_memory_cannot_be_removed_from_the_library_until_it_is_let_go(served: Served) -> None:
    entry = put_random(served.library, "d", served.base, 9)
    assert served.put("d", entry.ref).status_code == 200
    with pytest.raises(AdapterError, match="in use by a running process"):
        served.library.remove(entry.ref)
    served.http.delete("/admin/adapters/d", headers=served.admin)
    wait_for(lambda: figures(served)["adapters"] == 2)
    assert served.library.remove(entry.ref) == entry.ref


def test_an_adapter_that_answers_otherwise_than_when_it_was_stored_is_refused(served: Served) -> None:
    entry = put_random(served.library, "e", served.base, 11)
    goldens = entry.folder / "goldens.jsonl"
    lines = [json.loads(line) for line in goldens.read_text().splitlines()]
    goldens.write_text(
        "".join(
            json.dumps(line | {"ids": [line["ids"][0] ^ 1, *line["ids"][1:]], "margins": [9.0] * len(line["ids"])})
            + "\n"
            for line in lines
        )
    )
    answer = served.put("e", entry.ref)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "adapter_refused"), answer.text
    assert "does not answer as it did" in answer.json()["error"]["message"]
    assert served.ask("e", "Hello").status_code == 404


def test_an_adapter_of_another_base_and_an_unknown_one_are_refused(served: Served, tmp_path: Path) -> None:
    other = opened(make_base(tmp_path / "other", seed=5))
    assert random_state(other, 0).tensors
    put_random(served.library, "f", other, 1)
    answer = served.put("f", "f")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "another_base"), answer.text
    answer = served.put("g", "g:4")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found"), answer.text


@pytest.mark.parametrize("word", ["HEAP", pytest.param("SPIN", marks=pytest.mark.slow)])
def test_a_template_that_does_harm_is_stopped_and_the_server_answers_on(served: Served, word: str) -> None:
    begun = time.monotonic()
    answer = served.ask("a:1", word)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "template_failed"), answer.text
    assert time.monotonic() - begun < 4  # 2.5 on a machine that does nothing else
    assert served.is_solo(served.ask("a:1", "Hello"), "Hello")


@pytest.mark.slow
def test_what_is_killed_comes_back_with_the_adapters_that_were_loaded(served: Served) -> None:
    children = psutil.Process(served.process.pid).children()
    (engine,) = [one for one in children if "engine_child" in " ".join(one.cmdline())]
    os.kill(engine.pid, signal.SIGKILL)
    wait_for(lambda: served.http.get("/ready").status_code == 503)
    wait_for(lambda: served.http.get("/ready").status_code == 200)
    for model in ("base", "a:1", "b"):
        assert served.is_solo(served.ask(model, "Hello"), "Hello")
