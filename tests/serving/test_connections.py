"""Clients on a socket that are slow, rude, or gone."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest
from fronts import HELLO, on_a_socket
from stub_engine import server

from inlay.serving.limits import Limits
from inlay.serving.server import Server

LIMITS = Limits(header_seconds=0.15, body_seconds=0.15, write_seconds=0.15, comment_seconds=0.05)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Server, int]]:
    one = server(limits=LIMITS)
    with on_a_socket(one) as port:
        yield one, port


@pytest.fixture(autouse=True)
def _back_to_the_start(running: tuple[Server, int]) -> None:
    running[0].engine.__init__()  # type: ignore[misc]


def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """All that the server sends until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause_s)
        found = b""
        while got := connection.recv(65536):
            found += got
        return found


def head(start: str, *lines: str) -> bytes:
    return "\r\n".join([start, "Host: localhost", *lines, "", ""]).encode()


def posted(path: str, body: object, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    return (
        head(f"POST {path} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(data)}", *lines) + data
    )


def error_code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


def until_idle(one: Server) -> None:
    until = time.monotonic() + 5
    while (one.gate.live or one.engine.running) and time.monotonic() < until:  # type: ignore[attr-defined]
        time.sleep(0.005)
    assert (one.gate.live, one.gate.queued_tokens, one.engine.running) == (0, 0, 0)  # type: ignore[attr-defined]


def test_a_request_that_trickles_in_is_ended_in_time(running: tuple[Server, int]) -> None:
    _, port = running
    started = time.monotonic()
    assert error_code(talk(port, b"GET /health HT")) == "timeout"
    assert error_code(talk(port, b"GET /health HTTP/1.1\r\n", *[b"a: b\r\n"] * 9, pause_s=0.03)) == "timeout"
    slow_body = head("POST /generate HTTP/1.1", "Content-Type: application/json", "Content-Length: 9") + b"{"
    assert error_code(talk(port, slow_body)) == "timeout"
    second = head("GET /health HTTP/1.1") + b"GET /hea"
    assert talk(port, second).count(b"HTTP/1.1 ") == 2
    assert talk(port, b"") == b""
    assert time.monotonic() - started < 3


def test_what_is_no_http_gets_an_error_in_the_usual_form(running: tuple[Server, int]) -> None:
    _, port = running
    for bytes_ in (
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"G" * 20_000,
    ):
        assert error_code(talk(port, bytes_)) == "invalid_http"


def test_requests_in_one_packet_are_answered_in_order(running: tuple[Server, int]) -> None:
    _, port = running
    body = {"prompt": "a", "max_new_tokens": 2}
    answer = talk(port, posted("/generate", body) * 3 + head("GET /nowhere HTTP/1.1", "Connection: close"))
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200"] * 3 + [b"404"]


def test_http_1_0_gets_whole_answers_and_streams(running: tuple[Server, int]) -> None:
    _, port = running
    body = {"model": "base", "messages": HELLO, "max_tokens": 3}
    whole = talk(port, posted("/v1/chat/completions", body).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["choices"]
    stream = talk(port, posted("/v1/chat/completions", body | {"stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert stream.endswith(b"data: [DONE]\n\n")
    assert b"chunked" not in stream


def test_a_body_that_is_too_long_or_packed_is_refused(running: tuple[Server, int]) -> None:
    _, port = running
    kind = "Content-Type: application/json"
    long = head("POST /generate HTTP/1.1", kind, "Content-Length: 3000000") + b" " * 3_000_000
    assert error_code(talk(port, long)) == "body_too_large"
    assert error_code(talk(port, head("POST /generate HTTP/1.1", kind, "Content-Length: 99000000"))) == "body_too_large"
    packed = head("POST /generate HTTP/1.1", kind, "Content-Encoding: gzip", "Content-Length: 3", "Connection: close")
    assert error_code(talk(port, packed + b"abc")) == "unsupported_encoding"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_is_computed_for_no_longer(running: tuple[Server, int], is_streamed: bool) -> None:
    one, port = running
    one.engine.seconds_per_token = 0.05  # type: ignore[attr-defined]
    body = {"model": "base", "messages": HELLO, "n": 3, "stream": is_streamed}
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(posted("/v1/chat/completions", body))
        if is_streamed:
            connection.recv(100)
        while one.engine.running < 3:  # type: ignore[attr-defined]
            time.sleep(0.002)
    until_idle(one)
    assert one.engine.cancelled == 3  # type: ignore[attr-defined]


def test_a_client_that_does_not_read_is_cut_off(running: tuple[Server, int]) -> None:
    one, port = running
    body = {"model": "base", "messages": HELLO, "stream": True, "max_tokens": 4000, "ignore_eos": True, "n": 4}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(posted("/v1/chat/completions", body))
        time.sleep(0.1)
        until_idle(one)
    assert one.engine.cancelled == 4  # type: ignore[attr-defined]


def test_a_stream_without_news_has_comments(running: tuple[Server, int]) -> None:
    one, port = running
    one.engine.seconds_per_token = 0.12  # type: ignore[attr-defined]
    body = {"model": "base", "messages": HELLO, "stream": True, "max_tokens": 2}
    answer = talk(port, posted("/v1/chat/completions", body, "Connection: close"))
    assert answer.count(b": still working\n\n") >= 2
    assert b"data: [DONE]\n\n" in answer
