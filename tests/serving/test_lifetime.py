"""A server lets answers end, however it is ended and whichever of its processes dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inlay.generation.request import Event
from inlay.serving import processes
from serving.stand_in_server import ADMIN, Running, gone, stand_in_server, wait_for


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Iterator[Running]:
    with stand_in_server(tmp_path_factory.mktemp("shared")) as server:
        server.wait_ready()
        yield server


def words(found: list[Any]) -> int:
    texts = [one["choices"][0]["delta"].get("content") or "" for one in found if one != "[DONE]" and one.get("choices")]
    return "".join(texts).count("word")


class Streaming(threading.Thread):
    """A client that reads a stream in a thread of its own."""

    def __init__(self, server: Running, tokens: int) -> None:
        super().__init__(daemon=True)
        self.server, self.tokens = server, tokens
        self.found: list[Any] = []
        self.begun = threading.Event()
        self.start()
        assert self.begun.wait(20)

    def run(self) -> None:
        body = self.server.ask(self.tokens, stream=True)
        url = f"{self.server.http.base_url}/v1/chat/completions"
        with contextlib.suppress(httpx.TransportError), httpx.stream("POST", url, json=body, timeout=30) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.found.append(line[6:] if line[6:] == "[DONE]" else json.loads(line[6:]))
                    self.begun.set()

    def whole(self) -> list[Any]:
        self.join(20)
        assert not self.is_alive()
        return self.found


def test_health_answers_while_the_model_is_loaded_and_requests_wait_for_it_with_503(tmp_path: Path) -> None:
    with stand_in_server(tmp_path, loading_s=5) as server:
        server.wait_until(lambda: server.http.get("/health").json()["why"] == "Loading the weights.")
        assert server.http.get("/health").json()["status"] == "loading"
        assert server.http.get("/ready").status_code == 503
        refused = server.chat(1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        server.send(signal.SIGTERM)
        code, end = server.ended()
        assert (code, end["reason"]) == (0, "SIGTERM")


def test_a_signal_lets_running_answers_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    with stand_in_server(tmp_path) as server:
        server.wait_ready()
        stream = Streaming(server, 60)
        server.send(signal.SIGINT)
        server.wait_until(server.is_draining)
        refused = server.chat(1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.http.get("/ready").status_code == 503
        found = stream.whole()
        assert words(found) == 60
        assert found[-1] == "[DONE]"
        code, end = server.ended()
        assert (code, end["reason"], end["cut_off"]) == (0, "SIGINT", 0)


def test_answers_that_outlast_the_drain_end_with_an_error_and_the_exit_code_is_0(tmp_path: Path) -> None:
    with stand_in_server(tmp_path, drain_s=0.2) as server:
        server.wait_ready()
        stream = Streaming(server, 100_000)
        server.send(signal.SIGTERM)
        found = stream.whole()
        assert "shutting down" in json.dumps(found[-2:])
        assert "error" in json.dumps(found[-2:])
        code, end = server.ended()
        assert (code, end["cut_off"]) == (0, 1)


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    with stand_in_server(tmp_path) as server:
        server.wait_ready()
        Streaming(server, 1000)
        children = list(server.children().values())
        server.send(signal.SIGTERM)
        server.wait_until(server.is_draining)
        server.send(signal.SIGTERM)
        assert server.ended()[0] == 130
        wait_for(gone(children))


def test_a_front_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    with stand_in_server(tmp_path) as server:
        server.wait_ready()
        Streaming(server, 1000)
        children = list(server.children().values())
        assert len(children) == 2
        server.send(signal.SIGKILL)
        server.wait()
        wait_for(gone(children))


def test_a_killed_child_costs_its_requests_an_error_and_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    with stand_in_server(tmp_path) as server:
        server.wait_ready()
        stream = Streaming(server, 100_000)
        server.kill("engine")
        assert "started again" in json.dumps(stream.whole()[-2:])
        server.kill("encoding")
        assert server.chat(2, model="a").json()["choices"][0]["message"]["content"].split() == ["digest-a:1"] * 2
        server.kill("engine")
        server.kill("engine")
        code, end = server.ended()
        assert code == 1
        assert "ended 3 times within 60 s" in end["error"]
        assert "SIGKILL" in end["error"]
        assert "engine.log" in end["error"]


def test_a_base_that_is_refused_ends_the_server_with_the_message_and_exit_code_2(tmp_path: Path) -> None:
    with stand_in_server(tmp_path, "unknown") as server:
        code, end = server.ended()
        assert (code, end["error"]) == (2, "--model unknown: no such folder.")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_leaves_no_answer_behind(shared: Running, stream: bool) -> None:
    for wait_s in (0.0, 0.002, 0.05, 0.05, 0.05):
        with httpx.Client(base_url=shared.http.base_url, timeout=httpx.Timeout(5, read=wait_s or 0.001)) as client:
            leave(client, shared.ask(100_000, stream=stream), wait_s)
    shared.wait_until(lambda: shared.live() == 0)


def leave(client: httpx.Client, body: dict[str, Any], wait_s: float) -> None:
    """Asks, and goes away: before the answer begins, or while it comes."""
    with contextlib.suppress(httpx.ReadTimeout), client.stream("POST", "/v1/chat/completions", json=body):
        time.sleep(wait_s)


def test_a_prompt_that_never_comes_back_is_given_up_in_time(shared: Running) -> None:
    begun = time.monotonic()
    refused = shared.chat(1, text="HANG")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "template_failed")
    assert time.monotonic() - begun < 3.5  # 2.5 on a machine that does nothing else
    assert shared.chat(1).status_code == 200


def test_an_answer_whose_events_nobody_takes_ends_and_keeps_what_it_has() -> None:
    waiting = processes._Answer()
    assert all(waiting.put(Event(0, (n,))) for n in range(processes.MOST_EVENTS))
    assert not waiting.put(Event(0, (0,)))
    assert waiting.has_ended
    assert waiting.put(Event(0, (1,)))
    last = waiting.events[-1]
    assert isinstance(last, Event)
    assert (len(waiting.events), last.finish) == (processes.MOST_EVENTS + 1, "cancelled")


def test_an_admin_loads_replaces_and_removes_adapters_of_the_library_by_name(shared: Running) -> None:
    http = shared.http
    assert http.get("/admin/adapters").status_code in (401, 403)
    put = http.put("/admin/adapters/b", json={"ref": "b:1"}, headers=ADMIN)
    assert (put.status_code, put.json()["ref"], put.json()["replaced"]) == (200, "b:1", None)
    assert shared.chat(1, model="b").json()["choices"][0]["message"]["content"].strip() == "digest-b:1"
    put = http.put("/admin/adapters/b", json={"ref": "b:2"}, headers=ADMIN)
    assert put.json()["replaced"] == "b:1"
    assert shared.chat(1, model="b").json()["inlay"]["identity"] == "identity-b:2"
    shown = http.get("/admin/adapters", headers=ADMIN).json()["adapters"]
    assert [(one["name"], one["ref"]) for one in shown] == [("a", "a:1"), ("b", "b:2")]
    assert http.delete("/admin/adapters/b", headers=ADMIN).status_code == 200
    assert shared.chat(1, model="b").status_code == 404
    assert http.delete("/admin/adapters/b", headers=ADMIN).status_code == 404


@pytest.mark.parametrize("ref", ["../a", "/etc/passwd", "https://host/a", "a:1:2", "", "base"])
def test_an_admin_can_name_no_path_and_no_address(shared: Running, ref: str) -> None:
    assert shared.http.put("/admin/adapters/c", json={"ref": ref}, headers=ADMIN).status_code == 400


def test_an_adapter_that_is_not_in_the_library_leaves_the_names_as_they_were(shared: Running) -> None:
    found = shared.http.put("/admin/adapters/a", json={"ref": "bad:1"}, headers=ADMIN)
    assert (found.status_code, found.json()["error"]["code"]) == (404, "adapter_not_found")
    assert shared.chat(1, model="a").status_code == 200


def test_metrics_count_requests_tokens_and_refusals_without_any_text_of_a_client(shared: Running) -> None:
    shared.chat(3)
    shared.chat(1, model="nobody-knows-this")
    text = shared.http.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['inlay:generation_tokens_total{model_name="base-1"}']) >= 3
    assert float(figures['inlay:refused_total{reason="model_not_found"}']) >= 1
    assert float(figures['inlay:rss_bytes{process="engine"}']) > 1e6
    assert float(figures['inlay:time_to_first_token_seconds_count{model_name="base-1"}']) >= 1
    assert "nobody-knows-this" not in text


def test_an_admin_ends_the_server(shared: Running) -> None:
    """The last test here: the others share this server."""
    assert shared.http.post("/admin/drain", headers=ADMIN).status_code == 202
    code, end = shared.ended()
    assert (code, end["reason"]) == (0, "an admin's request")


@pytest.mark.slow
def test_of_ten_times_as_many_requests_as_fit_each_is_answered_or_refused_and_none_is_left_behind(
    tmp_path: Path,
) -> None:
    async def all_of(server: Running) -> list[int]:
        async def one(http: httpx.AsyncClient) -> int:
            return (await http.post("/v1/chat/completions", json=server.ask(50))).status_code

        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.http.base_url, timeout=60, limits=limits) as http:
            return [done for _ in range(5) for done in await asyncio.gather(*(one(http) for _ in range(80)))]

    with stand_in_server(tmp_path, max_requests=8) as server:
        server.wait_ready()
        found = asyncio.run(all_of(server))
        assert set(found) == {200, 429}
        assert found.count(200) >= 5 * 8 * 0.95
        server.wait_until(lambda: server.live() == 0)
