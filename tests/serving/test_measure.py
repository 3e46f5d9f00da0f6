"""The stopwatch is right: a server with known delays is measured as such, and the numbers are those of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inlay.cli import main
from inlay.errors import ConfigError, InlayError, UserError
from inlay.serving.load_client import Connection, Exchange, Target, server_sent_events
from inlay.serving.measure import ClientCost, closed_loop, measured, open_loop, speed_of
from inlay.serving.server_facts import served_models, server_memory
from inlay.serving.timed_answers import Answer, Dialect, answer_of, ask, understood
from inlay.serving.workloads import WORKLOADS, Prompt, Workload, prompts, workload

PACED = Path(__file__).with_name("paced_server.py")
FREE = ClientCost(0.0, None)
HELLO = Prompt("base", "Hello")


@contextlib.contextmanager
def paced_server(**options: Any) -> Iterator[Target]:
    with subprocess.Popen(
        [sys.executable, str(PACED), json.dumps(options)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        try:
            yield Target.of(f"http://127.0.0.1:{child.stdout.readline().strip()}")
        finally:
            child.kill()


@pytest.fixture(scope="module")
def paced() -> Iterator[Target]:
    """First token after 50 ms, then one each 10 ms."""
    with paced_server() as target:
        yield target


def repeated(prompt: Prompt = HELLO) -> Iterator[Prompt]:
    return itertools.repeat(prompt)


def test_a_server_that_sends_a_token_each_10_ms_measures_as_such(paced: Target) -> None:
    answers = asyncio.run(closed_loop(paced, Dialect(), repeated(), 2, 0.3))
    assert len(answers) >= 4
    for one in answers:
        assert (one.fault, one.tokens, len(one.token_s), one.finish, one.prompt_tokens) == ("", 20, 20, "length", 10)
        moments = [float(word) for word in one.text.split()]  # by the server's clock, which is ours
        assert all(came >= sent - 1e-5 for came, sent in zip(one.token_s, moments, strict=True))
    late_s = [came - float(sent) for one in answers for came, sent in zip(one.token_s, one.text.split(), strict=True)]
    assert statistics.median(late_s) < 0.003
    assert 0.0499 < statistics.median(one.first_token_s for one in answers) < 0.065
    assert statistics.median(gap for one in answers for gap in one.gaps_s) == pytest.approx(0.010, abs=0.001)


def test_in_an_open_loop_the_time_of_a_request_counts_from_its_due_moment_also_where_it_was_sent_late() -> None:
    def held_up() -> Iterator[Prompt]:
        for number in itertools.count():
            if number == 5:
                time.sleep(0.2)
            yield HELLO

    with paced_server(first_s=0.0, gap_s=0.0, tokens=1) as target:
        answers = asyncio.run(open_loop(target, Dialect(), held_up(), 60.0, 0.4))
    assert len(answers) > 10
    waits_s = sorted(one.first_token_s for one in answers)
    assert waits_s[0] < 0.05
    assert waits_s[-1] > 0.2
    assert sum(wait_s > 0.05 for wait_s in waits_s) >= 5  # those that were due meanwhile waited, too


def test_an_answer_that_is_due_long_ago_was_late_when_it_was_sent(paced: Target) -> None:
    async def late() -> Answer:
        connection = Connection(paced)
        due_s = asyncio.get_running_loop().time() - 5.0
        try:
            return await ask(connection, Dialect(), HELLO, due_s)
        finally:
            await connection.close()

    assert asyncio.run(late()).first_token_s > 5.0


def test_more_than_a_server_takes_is_counted_as_refused_and_soon() -> None:
    with paced_server(first_s=0.02, gap_s=0.005, tokens=8, most=2, models=["base"]) as target:
        load = Workload("", overload=10.0)
        speed = asyncio.run(measured(target, Dialect(), load, "base", [], clients=2, seconds=0.6))
    assert speed.refused > speed.answers > 10
    assert speed.failed == 0
    assert speed.refusal_s is not None
    assert speed.refusal_s.p50 < 0.02
    assert 0 < speed.good_share == speed.answers / (speed.answers + speed.refused)
    assert speed.client.lag_s is not None
    assert 0 < speed.client.cpu_share < 1


def events_of(*events: Any) -> bytes:
    return b"".join(b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n\n" for e in events)


def text(content: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content}}]}


def test_the_time_of_an_event_is_that_of_its_last_byte_however_the_network_cuts_it() -> None:
    body = (
        events_of(text("a"), text("b")).replace(b"\n", b"\r\n") + b": still here\n\n" + events_of(text("c"), b"[DONE]")
    )
    whole = [
        json.loads(data)["choices"][0]["delta"]["content"] for _, data in [*server_sent_events([(0.0, body)])][:-1]
    ]
    assert whole == ["a", "b", "c"]
    for cut in range(1, len(body)):
        found = [*server_sent_events([(1.0, body[:cut]), (2.0, body[cut:])])]
        assert [data for _, data in found] == [data for _, data in server_sent_events([(0.0, body)])]
        ends = [2.0 if body[:cut].replace(b"\r\n", b"\n").count(b"\n\n") <= n else 1.0 for n in (0, 1, 3, 4)]
        assert [at_s for at_s, _ in found] == ends


def test_only_pieces_with_text_are_tokens_and_an_error_in_the_stream_is_a_fault() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    usage = {
        "choices": [],
        "usage": {"completion_tokens": 7, "prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
    }
    pieces = ((1.0, events_of(role)), (2.0, events_of(text("x"))), (3.5, events_of(text("y"), usage, b"[DONE]")))
    one = answer_of(Exchange(0.5, 200, pieces, 4.0), "m", 0.5)
    assert (one.token_s, one.tokens, one.text, one.cached_tokens) == ((2.0, 3.5), 7, "xy", 4)
    assert (one.first_token_s, one.gaps_s) == (1.5, [1.5])
    broken = answer_of(
        Exchange(0.0, 200, ((1.0, events_of(text("x"), {"error": {"message": "gone"}})),), 2.0), "m", 0.0
    )
    assert broken.fault == "error in the stream: gone"
    refused = answer_of(Exchange(0.0, 429, ((1.0, b'{"error": {"message": "full"}}'),), 2.0), "m", 0.0)
    assert (refused.status, refused.fault) == (429, "HTTP 429: full")


def test_tokens_count_within_the_time_and_goodput_has_both_limits() -> None:
    soon = Answer("m", 0.0, 1.0, (0.5, 0.6, 0.7, 0.8), 4)
    late = Answer("m", 0.0, 4.0, (2.5, 2.6, 2.7, 2.8), 4)  # first token after 2 s
    slow = Answer("m", 0.0, 4.0, (0.5, 0.8, 1.1, 1.4), 4)  # 300 ms a token
    beyond = Answer("m", 0.5, 9.0, (1.0, 1.1, 6.0, 6.1), 8)  # half of its tokens come after the time
    refused = Answer("m", 0.0, 0.01, status=429, fault="HTTP 429: full")
    gone = Answer("m", 0.0, 0.01, status=0, fault="the connection broke")
    speed = speed_of([soon, late, slow, beyond, refused, gone], 0.0, 5.0, FREE)
    assert speed.tokens_per_s == pytest.approx((4 + 4 + 4 + 4) / 5)
    assert (speed.answers, speed.refused, speed.failed, speed.faults) == (4, 1, 1, ("the connection broke",))
    assert (speed.answers_per_s, speed.goodput_per_s, speed.good_share) == (3 / 5, 1 / 5, 1 / 6)
    assert speed.first_token_s is not None
    assert (speed.first_token_s.p50, speed.first_token_s.most) == (0.5, 2.5)


@pytest.mark.parametrize("framing", ["chunked", "close", "vanish"])
def test_every_way_to_end_a_body_is_read_and_a_closed_connection_is_opened_again(framing: str) -> None:
    async def three(target: Target) -> list[Answer]:
        connection = Connection(target)
        try:
            return [await ask(connection, Dialect(), HELLO) for _ in range(3)]
        finally:
            await connection.close()

    with paced_server(first_s=0.0, gap_s=0.0, tokens=3, framing=framing) as target:
        assert [(one.tokens, one.fault) for one in asyncio.run(three(target))] == [(3, "")] * 3


def test_a_server_that_is_not_there_is_a_fault_of_each_request() -> None:
    gone = Target.of("http://127.0.0.1:9")
    (one, *_) = asyncio.run(closed_loop(gone, Dialect(), repeated(), 1, 0.05))
    assert (one.status, one.fault) == (0, "the connection broke (ConnectionRefusedError)")
    with pytest.raises(InlayError, match="no list of models"):
        asyncio.run(served_models(gone))


def test_a_base_without_a_chat_template_is_asked_by_completions_and_an_unknown_model_is_the_servers_words() -> None:
    with paced_server(completions=True, first_s=0.0, gap_s=0.0, tokens=2) as target:
        found = asyncio.run(understood(target, HELLO, 64))
        assert (found.is_chat, found.new_tokens) == (False, 64)
        with pytest.raises(InlayError, match="no answer to 'c'"):
            asyncio.run(understood(target, Prompt("c", "Hello"), 64))
        assert asyncio.run(served_models(target)) == ("base", ["a", "b"])
        memory = asyncio.run(server_memory(target))
    assert memory.parts == {'inlay:kv_bytes{part="keys"}': 4096.0}
    assert memory.rss_bytes is not None
    assert 5e6 < memory.rss_bytes < 1e9


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://host:0"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"Write it as http://127\.0\.0\.1:8000"):
        Target.of(url)


def test_urls_are_taken_with_and_without_v1() -> None:
    assert Target.of("http://h:81/v1/") == Target.of("http://h:81") == Target("h", 81)
    assert Target.of("https://h/x/v1", "t") == Target("h", 443, "/x", True, "t")


def test_every_server_gets_the_same_prompts_and_no_two_are_alike() -> None:
    names = [f"a{n}" for n in range(64)]
    for name, load in WORKLOADS.items():
        first, again = (list(itertools.islice(prompts(load, "base", names, 3), 300)) for _ in range(2))
        assert first == again, name
        assert len({one.text for one in first}) == 300
        assert {one.model for one in first} <= ({"base"} if not load.adapters else set(names[: load.adapters]))
    turns = [one.model for one in itertools.islice(prompts(workload("adapters-4"), "base", names), 8)]
    assert turns == ["a0", "a1", "a2", "a3"] * 2
    often = Counter(one.model for one in itertools.islice(prompts(workload("zipf"), "base", names), 3000))
    assert often["a0"] > 2 * often["a3"] > 2 * often["a30"]
    a, b = (next(prompts(workload("prefix"), "base", names, seed)).text.split() for seed in (1, 2))
    assert a[:512] == b[:512]
    assert a[512:] != b[512:]
    long = [len(one.text.split()) for one in itertools.islice(prompts(workload("long-prompt"), "base", names), 80)]
    assert Counter(long) == {32: 78, 2000: 2}
    with pytest.raises(ConfigError, match="Did you mean 'zipf'"):
        workload("zifp")


def test_the_verb_measures_a_running_server_and_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    def verb(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", "serve", *arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    with paced_server(first_s=0.02, gap_s=0.005, tokens=4) as quick:
        code, out, err = verb(quick.url, "--workload", "adapters-4", "--clients", "2", "--seconds", "0.2", "--json")
        (row,) = json.loads(out)
        assert (code, row["models"], row["speed"]["failed"], row["speed"]["tokens_per_answer"]) == (0, 2, 0, 4)
        assert "the server has 2 of 4 adapters" in err
        code, out, _ = verb(quick.url, "--workload", "base", "--rate", "30", "--seconds", "0.2")
        assert code == 0
        assert re.search(r"^base +1 .*100% .* 2\d / ", out, re.M)
        assert verb(quick.url, "--workload", "adapters")[0] == 2
        assert verb(quick.url, "--seconds", "0")[::2] == (2, "error: --seconds: must be above 0 (got 0.0).\n")
    with paced_server(models=["base"]) as alone:
        code, _, err = verb(alone.url, "--workload", "zipf")
    assert (code, "serves no adapters" in err) == (2, True)
