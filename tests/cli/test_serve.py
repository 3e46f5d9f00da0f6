"""`inlay serve`: what keeps a server from starting is told before anything is loaded, and where tokens come from."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from inlay.errors import ModelError
from inlay.serving.auth import read_tokens
from inlay.serving.memory_needed import MemoryNeeded
from program import Ended


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(inlay: Callable[..., Ended]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = inlay("serve", "builtin:nano", "--port", port)
    assert ended.code == 2
    assert f"--port {port}: cannot be listened on" in ended.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--host", "0.0.0.0", "--port", "0"], "no tokens are set"),
        (["--tokens", "none.txt"], "none.txt"),
        (["--adapters", "a,b,a"], "names a twice"),
        (["--adapters", ","], "names no adapter"),
        (["--set", "train.seed=1"], "cannot take effect in serve"),
        (["--set", "serve.max_rows=0"], "serve.max_rows"),
        (["--max-adapters", "0"], "serve.max_adapters"),
        (["more"], "takes one name"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(
    inlay: Callable[..., Ended], arguments: list[str], part: str
) -> None:
    ended = inlay("serve", "builtin:nano", *arguments)
    assert (ended.code, part in ended.err) == (2, True), ended.err


def test_a_new_token_is_shown_once_with_its_line_that_the_server_reads(
    inlay: Callable[..., Ended], tmp_path: Path
) -> None:
    made = json.loads(inlay("serve", "token", "alice", "--json").out)
    (tmp_path / "tokens.txt").write_text(made["line"])
    (token,) = read_tokens(tmp_path / "tokens.txt")
    assert token.name == "alice"
    assert made["token"] not in made["line"]


def test_a_base_without_room_is_refused_with_what_each_part_takes() -> None:
    needed = MemoryNeeded(weights=2 << 30, of_token=1 << 20, adapters=1 << 20, free=3 << 30)
    needed.require_room(needed.cache_tokens(1, 500))
    with pytest.raises(ModelError, match="not enough memory") as refusal:
        needed.require_room(4000)
    for part in ("2.00 GiB", "1000.0 MiB per 1,000", "3.91 GiB", "1.0 MiB", "3.00 GiB", "serve.cache_tokens"):
        assert part in str(refusal.value)
