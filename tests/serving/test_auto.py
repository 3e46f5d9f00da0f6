"""The model `auto` sends each query to the adapter that its router finds, and the answer says so."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from stub_engine import StubEngine, adapter, server
from test_routes import chat, post

from inlay.adapters.router import FEATURES, Router, features
from inlay.errors import ConfigError
from inlay.serving.router import HEADER, add_router


def router(*words: str, arms: tuple[str, ...] = ("support:3", "code:2")) -> Router:
    """Knows one word of each arm."""
    weights_FA = np.zeros((FEATURES, len(arms)), np.float16)
    for n, word in enumerate(words):
        weights_FA[features(word)[0], n] = 20
    return Router(arms, weights_FA, 1.0, 0.5, "digest")


def asked(text: str) -> httpx.Response:
    one = server(StubEngine())
    add_router(one, router("refund", "python"), "router.json")
    return chat(one, model="auto", messages=[{"role": "user", "content": "python"}, {"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("text", "ref"), [("refund", "support:3"), ("python", "code:2"), ("", None), ("zzz qqq", None)]
)
def test_a_query_goes_to_the_arm_of_its_last_message_or_to_the_base(text: str, ref: str | None) -> None:
    answer = asked(text)
    assert answer.status_code == 200, answer.text
    assert answer.json()["inlay"]["adapter"] == ref
    assert answer.headers[HEADER].startswith(f"{ref or 'base'} p=")
    if ref is not None:
        assert answer.json()["inlay"]["identity"] == adapter(ref).identity


def test_generate_takes_auto_as_its_adapter() -> None:
    one = server(StubEngine())
    add_router(one, router("refund", "python"), "router.json")
    assert post("/generate", {"prompt": "refund", "adapter": "auto"}, one).json()["adapter"] == "support:3"


def test_a_router_to_an_adapter_that_is_not_served_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"router\.json: routes to code:9, not served here"):
        add_router(server(StubEngine()), router("a", "b", arms=("support:3", "code:9")), "router.json")
