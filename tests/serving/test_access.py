"""Who may ask for what: tokens, scopes, models, hosts, rates."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fronts import HELLO, ask, chat, client_of
from stub_engine import BASE, StubEngine, adapter, server

from inlay.errors import ConfigError
from inlay.serving.app import create_app
from inlay.serving.auth import Auth, Principal, Token, new_token, read_tokens
from inlay.serving.engine import Refusal
from inlay.serving.limits import Allowance, Limits
from inlay.serving.names import Asker, Choice, Names
from inlay.serving.server import Server

USER, USER_LINE = new_token("alice", ("answer", "feedback"), ("support",))
ADMIN, ADMIN_LINE = new_token("root", ("admin",))
EVERYTHING = Principal("all", frozenset({"answer"}))


def token(value: str, name: str = "alice", *models: str, scopes: tuple[str, ...] = ("answer",)) -> Token:
    return Token(name, hashlib.sha256(value.encode()).digest(), frozenset(scopes), models)


def guarded(*models: str, limits: Limits | None = None) -> Server:
    auth = Auth([token("a", "alice", *models), token("b", "bob")], [token("root", "root", scopes=("admin",))])
    return server(auth=auth, limits=limits)


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def paths_of(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """(path, method) of every route, also of those in routers that a newer FastAPI keeps whole."""
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from paths_of(router.routes) if router else ((route.path, method) for method in route.methods)


def test_every_route_without_a_token_is_401_but_health() -> None:
    one = guarded()
    app = create_app(one)
    routes = list(paths_of(app.routes))
    assert {path for path, _ in routes} >= {"/openapi.json", "/generate", "/v1/models", "/v1/chat/completions"}

    async def walk() -> dict[str, int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            made = [
                *routes,
                ("/nowhere", "GET"),
                ("/admin/adapters", "GET"),
                ("/metrics", "GET"),
                ("/v1/feedback", "POST"),
            ]
            return {
                f"{method} {path}": (await client.request(method, path, json={})).status_code for path, method in made
            }

    found = anyio.run(walk)
    assert {name: status for name, status in found.items() if status != 401} == {"GET /health": 200}


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer x", "Basic a", "a", "Bearer a b"])
def test_a_wrong_token_is_401_with_the_way_to_give_one(header: str) -> None:
    response = ask(lambda client: client.get("/v1/models", headers={"Authorization": header}), guarded())
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    twice = [("Authorization", "Bearer a"), ("Authorization", "Bearer a")]
    assert ask(lambda client: client.get("/v1/models", headers=twice), guarded()).status_code == 401


def test_a_token_sees_its_models_only_and_is_not_told_of_others() -> None:
    one = guarded("support")
    listed = ask(lambda client: client.get("/v1/models", headers=bearer("a")), one).json()["data"]
    assert [model["id"] for model in listed] == ["support:prod"]
    body = {"model": "cod:prod", "messages": HELLO}
    alice = ask(lambda client: client.post("/v1/chat/completions", json=body, headers=bearer("a")), one)
    bob = ask(lambda client: client.post("/v1/chat/completions", json=body, headers=bearer("b")), one)
    assert (alice.status_code, bob.status_code) == (404, 404)
    assert "code" not in alice.json()["error"]["message"]
    assert "'code:prod'" in bob.json()["error"]["message"]
    for model in ("code:prod", "code", "code:2", "base", BASE):
        with pytest.raises(Refusal) as refused:
            one.names.resolve(model, Principal("alice", frozenset(), ("support",)))
        assert refused.value.code == "model_not_found"


def test_tokens_of_users_and_admins_are_apart() -> None:
    one = guarded()
    assert ask(lambda client: client.get("/admin/adapters", headers=bearer("a")), one).status_code == 403
    assert ask(lambda client: client.get("/v1/models", headers=bearer("root")), one).status_code == 403
    assert ask(lambda client: client.get("/metrics", headers=bearer("a")), one).status_code == 403
    assert ask(lambda client: client.get("/admin/adapters", headers=bearer("root")), one).status_code == 404
    assert ask(lambda client: client.get("/admin/adapters")).json()["error"]["code"] == "no_admin_tokens"


def test_guessing_tokens_from_one_address_ends_in_429_but_for_those_who_have_one() -> None:
    async def guess() -> list[int]:
        async with client_of(guarded()) as client:
            values = [*(str(n) for n in range(61)), "a"]
            return [(await client.get("/v1/models", headers=bearer(value))).status_code for value in values]

    assert anyio.run(guess) == [401] * 60 + [429, 200]


def test_prefixes_are_shared_within_a_principal_only() -> None:
    def salts(auth: Auth) -> list[bytes]:
        found = [auth.admit("/v1/models", {b"authorization": [f"Bearer {value}".encode()]}, "") for value in "aab"]
        return [principal.salt for principal in found if principal]

    tokens = [token("a", "alice"), token("b", "bob")]
    first, again, other = salts(Auth(tokens))
    assert first == again != other
    assert salts(Auth(tokens)) != [first, again, other]  # of another server
    assert salts(Auth(tokens, share_prefixes=True)) == [b""] * 3
    engine = StubEngine()
    chat(server(engine))
    assert len(engine.asks[0].salt) == 32


def test_a_host_that_others_reach_needs_tokens() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="no tokens are set"):
            Auth(host=host)
    assert Auth([token("a")], host="0.0.0.0").is_local is False
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert Auth(host=host).is_local


@pytest.mark.parametrize(("host", "status"), [
    ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403),
    ("localhost@evil.example", 403), ("", 403), ("[", 403),
])  # fmt: skip
def test_a_server_on_this_machine_answers_to_its_own_names_only(host: str, status: int) -> None:
    assert ask(lambda client: client.get("/health", headers={"Host": host})).status_code == status


def test_a_web_page_may_ask_where_its_origin_is_allowed() -> None:
    one = guarded()
    one.origins = frozenset({"https://a.example"})

    def asked(method: str, origin: str, **headers: str) -> httpx.Response:
        return ask(lambda client: client.request(method, "/v1/models", headers={"Origin": origin, **headers}), one)

    preflight = asked("OPTIONS", "https://a.example")
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (
        204,
        "Authorization, Content-Type",
    )
    assert asked("GET", "https://a.example").status_code == 401
    answer = asked("GET", "https://a.example", **bearer("a"))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
    other = asked("OPTIONS", "https://b.example")
    assert other.status_code == 401
    assert "access-control-allow-origin" not in {
        **other.headers,
        **asked("GET", "https://b.example", **bearer("a")).headers,
    }


def test_a_tokens_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# made today\n\n{USER_LINE}\n")
    [found] = read_tokens(file)
    assert (found.name, found.models, found.sha256) == ("alice", ("support",), hashlib.sha256(USER.encode()).digest())
    assert USER not in USER_LINE
    file.write_text(ADMIN_LINE)
    assert read_tokens(file, admin=True)[0].scopes == {"admin"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"), ("alice", "1 fields"), ("alice secret answer", "SHA-256"), (f"al/ice {'0' * 64} answer", "cannot name"),
        (f"alice {'0' * 64} anser", "'answer'"), (ADMIN_LINE, "unknown scope 'admin'"), (f"{USER_LINE}\n{USER_LINE}", "twice"),
        (f"alice {'0' * 64} answer a b", "5 fields"),
    ],
    ids=["empty", "name", "not a digest", "slash", "scope", "scope of admins", "twice", "fields"],  # tokens are drawn
)  # fmt: skip
def test_a_line_that_is_no_token_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_tokens(tmp_path / "tokens")


def test_a_tokens_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inlay serve token NAME"):
        read_tokens(tmp_path / "none")


def test_a_bare_name_leads_nowhere_while_two_versions_are_served() -> None:
    names = Names(BASE)
    names.put("support:prod", adapter("support:3"))
    assert names.resolve("support", EVERYTHING).ref == "support:3"
    names.put("support:canary", adapter("support:4"))
    with pytest.raises(Refusal) as refused:
        names.resolve("support", EVERYTHING)
    assert refused.value.status == 404
    names.put("support", adapter("support:4"))
    assert names.resolve("support", EVERYTHING).ref == "support:4"


def test_a_name_that_moves_leaves_requests_on_what_they_began_with() -> None:
    engine = StubEngine(seconds_per_token=0.002)
    one = server(engine)
    old, new = adapter("support:3"), adapter("support:4")

    async def replace() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(one) as client:
            body = {"model": "support:prod", "messages": HELLO}
            long = body | {"ignore_eos": True, "max_tokens": 200}
            running = asyncio.create_task(client.post("/v1/chat/completions", json=long))
            while not engine.running:
                await asyncio.sleep(0.001)
            assert one.names.put("support:prod", new) == old
            retiring = asyncio.create_task(one.retire(old))
            after = await client.post("/v1/chat/completions", json=body)
            await asyncio.sleep(0.05)
            assert (running.done(), engine.retired) == (False, [])
            before = await running
            await retiring
            return before, after

    before, after = anyio.run(replace)
    for response, one_adapter in ((before, old), (after, new)):
        assert response.json()["inlay"]["identity"] == one_adapter.identity
        assert one_adapter.digest[:6] in response.json()["choices"][0]["message"]["content"]
    assert engine.retired == [old.digest]


def test_an_adapter_that_another_name_leads_to_is_not_retired() -> None:
    one = server()
    one.names.put("second", adapter("support:3"))
    one.names.remove("support:prod")
    anyio.run(one.retire, adapter("support:3"))
    assert one.engine.retired == []  # type: ignore[attr-defined]


class Halves:
    def choose(self, asker: Asker) -> Choice:
        return Choice("code:2" if asker.user == "u2" else "support:3", {"X-Inlay-Route": asker.principal})

    def summary(self) -> str:
        return "support:3 or code:2"


def test_an_alias_chooses_for_each_request() -> None:
    one = server()
    one.names.aliases["ab"] = Halves()
    assert chat(one, model="ab", user="u1").json()["inlay"]["adapter"] == "support:3"
    response = chat(one, model="ab", user="u2")
    assert (response.json()["model"], response.headers["x-inlay-route"]) == ("code:2", "local")
    listed = ask(lambda client: client.get("/v1/models/ab"), one).json()
    assert (listed["inlay"]["kind"], listed["inlay"]["note"]) == ("alias", "support:3 or code:2")


def statuses(one: Server, count: int, headers: dict[str, str] | None = None) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        async with client_of(one, headers=headers) as client:
            body = {"model": "base", "messages": HELLO, "max_tokens": 50}
            return list(await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(count))))

    return anyio.run(send)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(requests_per_minute=2), "rate_limit_exceeded"), (Limits(live_requests=2), "too_many_live_requests"),
        (Limits(live_in_all=2), "overloaded"),
    ],
)  # fmt: skip
def test_a_token_that_asks_for_more_than_its_limit_gets_429_and_another_is_served(limits: Limits, code: str) -> None:
    one = guarded(limits=limits)
    one.engine.seconds_per_token = 0.002  # type: ignore[attr-defined]
    found = statuses(one, 4, bearer("a"))
    assert sorted(response.status_code for response in found) == [200, 200, 429, 429]
    refused = next(response for response in found if response.status_code == 429)
    assert (refused.json()["error"]["code"], int(refused.headers["retry-after"]) >= 1) == (code, True)
    assert statuses(one, 1, bearer("b"))[0].status_code == 200


def test_tokens_per_minute_count_what_was_used() -> None:
    one = guarded(limits=Limits(tokens_per_minute=40))
    assert [statuses(one, 1, bearer("a"))[0].status_code for _ in range(3)] == [200, 429, 429]


def test_an_allowance_fills_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    allowance = Allowance(60)
    allowance.take(90)
    assert allowance.wait_s() == pytest.approx(31)
    now += 31
    assert allowance.wait_s() == 0


def test_a_request_that_would_wait_too_long_is_refused_before_it_is_encoded() -> None:
    engine = StubEngine(tokens_per_second=10, queued_tokens=400)
    response = chat(server(engine))
    assert (response.status_code, response.headers["retry-after"]) == (429, "40")
    assert response.json()["error"]["code"] == "overloaded"
    assert (engine.asks, engine.encoded) == ([], 0)
    assert chat(server(StubEngine(tokens_per_second=10, queued_tokens=290))).status_code == 200


def test_requests_that_came_in_since_the_last_step_count_as_queued() -> None:
    one = server(StubEngine(tokens_per_second=10, seconds_per_token=0.005))
    found = statuses(one, 40)
    assert 0 < [response.status_code for response in found].count(200) <= 8
    assert (one.gate.live, one.gate.queued_tokens) == (0, 0)
