"""vLLM behind the front: requests and answers in its protocol; adapters by digest on one server or several; what it cannot serve."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import ModelError
from inlay.generation.request import Ask, Event, Sampling, TokenLogprob
from inlay.serving import wire
from inlay.serving.backends.vllm import VllmChild
from inlay.serving.backends.vllm_requests import events_of, refusal_of, request_of
from inlay.serving.backends.vllm_server import VllmServer
from inlay.serving.engine import Refusal, ServedAdapter
from inlay.serving.load_client import Connection, Target
from inlay.serving.opening import opened_base
from inlay.serving.started_server import started_server
from inlay.serving.timed_answers import Dialect, ask
from inlay.serving.wire import Start
from inlay.serving.workloads import Prompt
from inlay.tasks.opened_base import OpenedBase
from inlay.typed_json import decode
from parts import make_base
from serving.made_adapters import put_adapters
from serving.vllm_stub import ids_of

DIGEST = "d" * 64


def test_a_request_has_the_prompt_as_ids_the_adapter_by_digest_and_every_setting() -> None:
    sampling = Sampling(
        9, 0.7, 0.9, 5, 1.1, 0, ("END",), 3, 0.1, 0.2, 0.3, ((7, -1.0),), 2, logprobs=4,
    )  # fmt: skip
    body = request_of(Ask((1, 2, 3), sampling, DIGEST, b"\x01\x02", choice=1), {2, 1})
    assert body == {
        "model": DIGEST, "prompt": [1, 2, 3], "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3, "min_tokens": 2, "ignore_eos": False,
        "stop": ["END"], "seed": 1_000_006, "return_token_ids": True, "return_tokens_as_token_ids": True,
        "stop_token_ids": [1, 2], "logit_bias": {"7": -1.0}, "logprobs": 4, "cache_salt": "0102", "stream": True,
    }  # fmt: skip
    plain = request_of(Ask((1,), Sampling(ignore_eos=True)), {2})
    assert (plain["model"], plain["top_k"], plain["stop_token_ids"]) == ("base", -1, [])
    assert not {"logprobs", "cache_salt", "logit_bias", "structured_outputs"} & set(plain)


def test_every_setting_of_sampling_is_sent_or_refused() -> None:
    """A setting that is new here must find its way into the request."""
    known = {
        "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "stop", "seed", "min_p",
        "presence_penalty", "frequency_penalty", "logit_bias", "min_new_tokens", "ignore_eos", "logprobs",
    }  # fmt: skip
    assert set(Sampling.__slots__) == known
    with pytest.raises(Refusal, match="no_repeat_ngram_size: the back end vllm does not compute it") as refused:
        request_of(Ask((1,), Sampling(no_repeat_ngram_size=3)), ())
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")


def test_a_grammar_becomes_a_field_of_vllm_or_is_refused() -> None:
    schema = {"type": "object"}

    def asked(*parts: Any) -> Any:
        return request_of(Ask((1,), grammar=json.dumps({"grammars": list(parts)})), ())["structured_outputs"]

    assert asked({"json_schema": schema}) == {"json": schema}
    assert asked({"lark_grammar": "start: /a/"}) == {"grammar": "start: /a/"}
    with pytest.raises(Refusal, match="grammar of several parts"):
        asked({"json_schema": schema}, {"lark_grammar": "x"})


def chunk(**choice: Any) -> bytes:
    return json.dumps({"choices": [choice]}).encode()


def test_a_chunk_is_an_event_and_the_end_of_the_turn_is_no_token_of_it() -> None:
    logprobs = {
        "tokens": ["token_id:5", "token_id:6"], "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -0.7}, {"token_id:6": -1.0}],
    }  # fmt: skip
    (event,) = events_of(chunk(text="ab", token_ids=[5, 6], logprobs=logprobs), {2})
    assert event == Event(
        0, (5, 6), "ab", (TokenLogprob(5, -0.5, ((5, -0.5), (9, -0.7))), TokenLogprob(6, -1.0, ((6, -1.0),)))
    )
    (ended,) = events_of(chunk(text="", token_ids=[7, 2], finish_reason="stop", stop_reason=2), {2})
    assert (ended.ids, ended.finish) == ((7,), "stop")
    (by_text,) = events_of(chunk(text="x", token_ids=[7, 2], finish_reason="stop", stop_reason="END"), {2})
    assert by_text.ids == (7, 2)
    (cut,) = events_of(chunk(text="x", token_ids=[2], finish_reason="length"), {2})
    assert (cut.ids, cut.finish) == ((2,), "length")
    (aborted,) = events_of(chunk(text="", token_ids=[], finish_reason="abort"), {2})
    assert (aborted.finish, aborted.reason) == ("cancelled", "vLLM ended the answer")


def test_log_probabilities_of_a_prompt_have_none_for_its_first_token() -> None:
    found = [None, {"8": {"logprob": -2.0, "rank": 3}, "9": {"logprob": -0.1, "rank": 1}}]
    (event,) = events_of(chunk(text="", token_ids=[1], prompt_logprobs=found, prompt_token_ids=[4, 8]), ())
    assert event.prompt_logprobs == (None, TokenLogprob(8, -2.0, ((9, -0.1), (8, -2.0))))


def test_a_fault_of_the_request_is_told_as_it_is_and_one_of_vllm_as_the_servers() -> None:
    with pytest.raises(Refusal, match="too long") as ours:
        events_of(b'{"error": {"message": "too long", "code": 400}}', ())
    assert ours.value.status == 400
    theirs = refusal_of({"error": {"message": "boom"}}, 500)
    assert (theirs.status, theirs.code, str(theirs)) == (
        503,
        "backend_failed",
        "vLLM could not answer (HTTP 500): boom",
    )
    assert refusal_of("gone", 0).status == 503


# ---------------------------------------------------------------- the child, before servers that are processes


class FakeFront:
    """The socket to the front, as lists."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}
        self.refused: dict[int, Refusal] = {}
        self.loaded: dict[int, ServedAdapter] = {}

    def send(self, message: Any) -> None:
        for number, event in message.get("events", ()):
            self.events.setdefault(number, []).append(wire.event_from_json(event))
        if "refused" in message:
            self.refused[message["number"]] = wire.refusal_from_json(message["refused"])
        if "loaded" in message:
            self.loaded[message["loaded"]] = decode(ServedAdapter, message["adapter"])

    def text(self, number: int) -> str:
        return "".join(event.text for event in self.events[number])

    async def until(self, is_so: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not is_so():
                await asyncio.sleep(0.005)

    async def ended(self, *numbers: int) -> None:
        await self.until(
            lambda: all(n in self.refused or (n in self.events and self.events[n][-1].finish) for n in numbers)
        )


@contextlib.contextmanager
def stub(**options: Any) -> Iterator[str]:
    """Address of a stub of vLLM."""
    command = [sys.executable, str(Path(__file__).with_name("vllm_stub.py")), json.dumps({"key": "secret"} | options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{child.stdout.readline().strip()}"
        finally:
            child.kill()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Start, OpenedBase]:
    """A base and a library with the adapters a and b, of unequal ranks, c of DoRA, and x of another base."""
    folder = tmp_path_factory.mktemp("shop")
    library, own = folder / "library", str(make_base(folder / "base"))
    put_adapters(library, own, "ab")
    put_adapters(library, own, "c", use_dora=True)
    put_adapters(library, str(make_base(folder / "other", seed=1)), "x")
    start = Start(own, str(folder), str(library))
    return start, opened_base(start)


Work = Callable[[VllmChild, FakeFront, list[VllmServer]], Awaitable[None]]


def run(shop: tuple[Start, OpenedBase], folder: Path, urls: Sequence[str], work: Work) -> None:
    """Runs the work with a child before the servers."""

    async def within() -> None:
        front, servers = FakeFront(), [VllmServer(Target.of(url, "secret")) for url in urls]
        child = VllmChild(front, *shop, servers, folder)
        try:
            await child.look()
            await work(child, front, servers)
        finally:
            await child.close()

    asyncio.run(within())


def add(child: VllmChild, number: int, ask: Ask) -> None:
    child.handle({"add": number, "ask": wire.ask_to_json(ask)})


def expected(who: str, prompt: Sequence[int], tokens: int, seed: int = 0) -> str:
    return who[:12] + "".join(f" {id_}" for id_ in ids_of(who, list(prompt), seed, tokens))


def sha(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


async def facts_of(url: str) -> Any:
    connection = Connection(Target.of(url, "secret"))
    found = await connection.exchange("GET", "/stub")
    await connection.close()
    return json.loads(found.body)


def test_answers_over_two_servers_are_those_of_the_adapter_that_was_asked_for(
    shop: tuple[Start, OpenedBase], tmp_path: Path
) -> None:
    async def work(child: VllmChild, front: FakeFront, servers: list[VllmServer]) -> None:
        assert child.context_length == 256
        names = {"base": (None, "base")}
        for number, name in enumerate("ab"):
            child.handle({"load": number, "ref": name})
            await front.until(lambda number=number: number in front.loaded)
            digest = front.loaded[number].digest
            names[name] = (digest, sha(tmp_path / digest))
        assert len({who for _, who in names.values()}) == 3
        asked = {}
        for number in range(60):
            digest, who = names[("base", "a", "b")[number % 3]]
            asked[number] = expected(who, [number + 20, 5], 6)
            add(child, number, Ask((number + 20, 5), Sampling(6), digest))
        assert abs(servers[0].live - servers[1].live) <= 1 or not any(server.live for server in servers)
        await front.ended(*asked)
        assert {number: front.text(number) for number in asked} == asked
        assert [len(front.events[0]), front.events[0][-1].finish] == [6, "length"]
        counts = [len((await facts_of(url))["asked"]) for url in urls]
        assert sum(counts) == 60
        assert min(counts) >= 20
        assert [(await facts_of(url))["adapters"] for url in urls] == [{d: who for d, who in names.values() if d}] * 2

    with stub() as one, stub() as two:
        urls = (one, two)
        run(shop, tmp_path, urls, work)


def test_an_adapter_that_is_replaced_leaves_the_servers_when_its_last_answer_has_ended(
    shop: tuple[Start, OpenedBase], tmp_path: Path
) -> None:
    async def work(child: VllmChild, front: FakeFront, servers: list[VllmServer]) -> None:
        served = await child.load("a")
        assert served.ref == "a:1"
        add(child, 1, Ask((3,), Sampling(40), served.digest))
        await front.until(lambda: 1 in front.events)
        child.handle({"retire": served.digest})
        await asyncio.sleep(0.05)
        assert list((await facts_of(url))["adapters"]) == [served.digest]
        await front.ended(1)
        assert len(front.events[1]) == 40
        await front.until(lambda: not (tmp_path / served.digest).exists())
        assert (await facts_of(url))["adapters"] == {}
        add(child, 2, Ask((3,), Sampling(4), served.digest))
        await front.ended(2)
        assert front.refused[2].code == "adapter_gone"
        assert (await child.load("a")).digest == served.digest
        add(child, 3, Ask((3,), Sampling(4), served.digest))
        await front.ended(3)
        assert front.text(3) == expected(sha(tmp_path / served.digest), [3], 4)

    with stub(gap_s=0.003) as url:
        run(shop, tmp_path, [url], work)


def test_what_vllm_cannot_hold_is_refused_when_it_is_loaded(shop: tuple[Start, OpenedBase], tmp_path: Path) -> None:
    async def work(child: VllmChild, front: FakeFront, servers: list[VllmServer]) -> None:
        for ref, status, words in (("c", 400, "DoRA"), ("nobody", 404, "nobody"), ("x", 409, "x:1")):
            child.handle({"load": 7, "ref": ref})
            await front.until(lambda: 7 in front.refused)
            refusal = front.refused.pop(7)
            assert (refusal.status, words in str(refusal)) == (status, True), str(refusal)
        assert (await facts_of(url))["adapters"] == {}
        assert list(tmp_path.iterdir()) == []
        add(child, 1, Ask((13,), Sampling(4)))
        add(child, 2, Ask((14, 15), Sampling(3, logprobs=1), prompt_logprobs=True))
        await front.ended(1, 2)
        assert (front.refused[1].status, str(front.refused[1])) == (400, "an unlucky prompt")
        (whole,) = front.events[2]
        assert (whole.text, whole.finish, len(whole.logprobs)) == (expected("base", [14, 15], 3), "length", 3)
        assert whole.prompt_logprobs == (None, TokenLogprob(15, -1.0, ((15, -1.0),)))

    with stub() as url:
        run(shop, tmp_path, [url], work)


def test_a_client_that_goes_away_ends_its_answer_in_vllm(shop: tuple[Start, OpenedBase], tmp_path: Path) -> None:
    async def work(child: VllmChild, front: FakeFront, servers: list[VllmServer]) -> None:
        add(child, 1, Ask((3,), Sampling(200)))
        await front.until(lambda: 1 in front.events)
        child.handle({"cancel": 1})
        async with asyncio.timeout(5):
            while (await facts_of(url))["cancelled"] == 0:
                await asyncio.sleep(0.01)
        assert servers[0].live == 0
        assert len(front.events[1]) < 100

    with stub(gap_s=0.005) as url:
        run(shop, tmp_path, [url], work)


def test_a_server_that_dies_fails_its_answers_alone_and_has_its_adapters_again_when_it_is_back(
    shop: tuple[Start, OpenedBase], tmp_path: Path
) -> None:
    async def work(child: VllmChild, front: FakeFront, servers: list[VllmServer]) -> None:
        digest = (await child.load("a")).digest
        who = sha(tmp_path / digest)
        for number in range(8):
            add(child, number, Ask((number + 20,), Sampling(30), digest))
        await front.ended(*range(8))
        failed = [n for n in range(8) if n in front.refused or front.events[n][-1].finish == "failed"]
        assert len(failed) == 4
        assert all(front.text(n) == expected(who, [n + 20], 30) for n in range(8) if n not in failed)
        assert [server.is_up for server in servers] == [False, True]
        add(child, 9, Ask((50,), Sampling(3), digest))
        await front.ended(9)
        assert front.text(9) == expected(who, [50], 3)
        with stub(port=Target.of(mortal).port) as again:
            await child.look()
            assert [server.is_up for server in servers] == [True, True]
            assert (await facts_of(again))["adapters"] == {digest: who}

    with stub(die_after=30, gap_s=0.002) as mortal, stub(gap_s=0.002) as other:
        run(shop, tmp_path, [mortal, other], work)


def test_a_server_of_another_model_is_refused(shop: tuple[Start, OpenedBase], tmp_path: Path) -> None:
    async def nothing(child: VllmChild, front: FakeFront, servers: list[VllmServer]) -> None:
        raise AssertionError

    with stub(models=["llama"]) as url, pytest.raises(ModelError, match="serves llama, and no 'base'"):
        run(shop, tmp_path, [url], nothing)


@pytest.mark.slow
def test_vllm_itself_gives_the_answers_of_the_own_engine(tmp_path: Path) -> None:
    """INLAY_VLLM_PYTHON is an interpreter with vLLM, or a script that starts one."""
    if not (python := os.environ.get("INLAY_VLLM_PYTHON")):
        pytest.skip("INLAY_VLLM_PYTHON names no interpreter with vLLM")
    shape: Any = {"hidden_size": 256, "intermediate_size": 320, "initializer_range": 0.08, "tie_word_embeddings": False}
    base, library = str(make_base(tmp_path / "base", **shape)), tmp_path / "library"
    put_adapters(library, base, ("a", "b"), size=0.05)
    common = [base, "--adapters", "a,b", "--library", str(library)]
    more = '["--dtype","float32","--enforce-eager","--max-model-len","256"]'
    back_end = [
        "--set",
        "serve.backend=vllm",
        "--set",
        f"serve.vllm_python={python}",
        "--set",
        f"serve.vllm_arguments={more}",
    ]

    async def texts(url: str) -> list[str]:
        connection, found = Connection(Target.of(url)), []
        for model in (base, "a", "b"):
            for question in ("My parcel is late.", "A lamp?"):
                dialect = Dialect(new_tokens=16, more={"ignore_eos": True, "logprobs": True})
                one = await ask(connection, dialect, Prompt(model, question))
                assert (one.fault, one.tokens, one.finish) == ("", 16, "length")
                found.append(one.text)
        await connection.close()
        return found

    with started_server(common) as url:
        expected = asyncio.run(texts(url))
    with started_server([*common, *back_end]) as url:
        assert asyncio.run(texts(url)) == expected
    assert len(set(expected)) == 6
