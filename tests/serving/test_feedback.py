"""Aliases in a server: users keep their arm, scores count once, and a restart loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from stub_engine import StubEngine, server

from inlay.errors import ConfigError
from inlay.serving.aliases import AliasConfig, read_aliases
from inlay.serving.app import create_app
from inlay.serving.auth import Auth, Token
from inlay.serving.engine import Refusal
from inlay.serving.feedback import LiveTests, add_tests, feedback_router
from inlay.serving.live_test import NO_SCORES, LiveReport, stored_tests
from inlay.serving.names import Asker
from inlay.serving.server import Record, Server
from inlay.serving.shared_log import SharedLog
from inlay.storage import one_at_a_time
from serving.stand_in_server import ADMIN, stand_in_server

ARMS = {"support:3": 50.0, "code:2": 50.0}


def alias(arms: Mapping[str, float] = ARMS, **more: Any) -> AliasConfig:
    return AliasConfig.model_validate({"arms": dict(arms)} | more)


def running(folder: Path, config: AliasConfig | None = None) -> LiveTests:
    tests = LiveTests(folder, {"help": config or alias()})
    tests.begin()
    return tests


def answered(
    tests: LiveTests, user: str | None, id_: str, *, status: int = 200, by: str = "local", ttft_s: float = 0.1
) -> str:
    """The arm of one request that was answered."""
    arm = tests.choose("help", Asker(id_, by, user))
    tests.ended(Record("r", answer_id=id_, status=status, started=0.0, first_token=ttft_s))
    return arm


def shares(report: LiveReport) -> dict[str, float]:
    return {arm.name: arm.share for arm in report.arms}


def test_a_user_keeps_the_arm_and_without_a_key_each_request_is_a_user(tmp_path: Path) -> None:
    tests = running(tmp_path)
    assert len({answered(tests, "ann", f"a{n}") for n in range(10)}) == 1
    assert {answered(tests, f"user {n}", f"b{n}") for n in range(20)} == set(ARMS)
    assert {answered(tests, None, f"c{n}") for n in range(20)} == set(ARMS)
    arms = [(tests.choose("help", Asker("", by, "ann"))) for by in map(str, range(20))]
    assert set(arms) == set(ARMS)  # "ann" of another token is another user


def test_a_request_without_the_key_that_an_alias_requires_is_refused(tmp_path: Path) -> None:
    tests = running(tmp_path, alias(key="header:X-Team", key_required=True))
    assert tests.choose("help", Asker("a", "local", headers={"x-team": "blue"})) in ARMS
    with pytest.raises(Refusal, match="header:X-Team") as refused:
        tests.choose("help", Asker("a", "local", "ann"))
    assert refused.value.status == 400


def test_the_first_score_of_a_user_counts_and_an_answer_is_scored_once_by_whom_it_was_given_to(tmp_path: Path) -> None:
    tests = running(tmp_path)
    for id_, user in (("a1", "ann"), ("a2", "ann"), ("b1", "bob")):
        answered(tests, user, id_)
    assert tests.score("a1", 1, "local") is True
    assert tests.score("a2", 0, "local") is False
    assert tests.score("b1", 0.5, "local") is True
    for id_, by, status in (("a1", "local", 409), ("nobody", "local", 404)):
        with pytest.raises(Refusal) as refused:
            tests.score(id_, 1, by)
        assert refused.value.status == status
    answered(tests, "eve", "e1")
    with pytest.raises(Refusal) as refused:
        tests.score("e1", 1, "another token")
    assert refused.value.status == 404
    report = tests.report("help")
    assert sum(arm.scores for arm in report.arms) == 2
    assert sum(arm.answers for arm in report.arms) == 4


def played(tests: LiveTests, users: range, good: Mapping[str, float]) -> None:
    """Each user asks once and scores the answer by its arm."""
    for n in users:
        arm = answered(tests, f"user {n}", f"id {n}")
        tests.score(f"id {n}", good[arm], "local")


def test_a_restart_keeps_arms_scores_and_outcome_and_takes_scores_of_earlier_answers(tmp_path: Path) -> None:
    tests = running(tmp_path)
    played(tests, range(60), {"support:3": 0.0, "code:2": 1.0})
    arms = [answered(tests, f"user {n}", f"late {n}") for n in range(60, 70)]
    before = tests.report("help")
    assert before.arms[1].outcome == "better"
    for name in ("ab.jsonl", "ab-answers.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"event": "score", "alias": "he')  # a kill came in the middle of a line
    again = running(tmp_path)
    assert again.report("help") == before
    assert [again.choose("help", Asker("", "local", f"user {n}")) for n in range(60, 70)] == arms
    assert again.score("late 65", 1, "local") is True
    assert sum(arm.scores for arm in again.report("help").arms) == 61
    with pytest.raises(Refusal, match="already"):
        again.score("id 3", 1, "local")
    assert running(tmp_path).report("help") == again.report("help")


def test_servers_of_one_library_give_a_user_the_same_arm_and_take_each_others_scores(tmp_path: Path) -> None:
    one, other = running(tmp_path), running(tmp_path)
    arms = [answered(one, f"user {n}", f"id {n}") for n in range(20)]
    assert [answered(other, f"user {n}", f"other {n}") for n in range(20)] == arms
    assert other.score("id 7", 1, "local") is True
    assert one.score("other 7", 1, "local") is False  # the same user
    assert one.report("help") == other.report("help")


def test_other_weights_in_the_file_move_users_and_go_on_with_the_test_and_another_rule_begins_one(
    tmp_path: Path,
) -> None:
    played(running(tmp_path), range(10), {"support:3": 0.0, "code:2": 1.0})
    wider = running(tmp_path, alias({"support:3": 10.0, "code:2": 90.0})).report("help")
    assert shares(wider) == pytest.approx({"support:3": 0.1, "code:2": 0.9})
    assert sum(arm.scores for arm in wider.arms) == 10
    fresh = running(tmp_path, alias({"support:3": 10.0, "code:2": 90.0}, margin=0.1)).report("help")
    assert sum(arm.scores for arm in fresh.arms) == 0
    assert fresh.note == NO_SCORES


def test_an_arm_that_fails_too_often_gets_no_more_users_and_the_first_one_stays(tmp_path: Path) -> None:
    config = alias(guards={"error_rate": 0.02})
    tests = running(tmp_path, config)
    for n in range(200):
        answered(tests, f"user {n}", f"id {n}", status=500)
    report = tests.report("help")
    assert shares(report) == {"support:3": 1.0, "code:2": 0.0}
    assert "error_rate above 0.02" in report.arms[1].guard
    lines = [json.loads(line) for line in (tmp_path / "ab.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "guard", "weights"]
    assert running(tmp_path, config).report("help") == report


def test_an_arm_that_is_slow_too_often_gets_no_more_users_and_refusals_are_nobodys_fault(tmp_path: Path) -> None:
    tests = running(tmp_path, alias(guards={"p95_ttft_s": 1.5, "error_rate": 0.02}))
    for n in range(100):
        answered(tests, f"user {n}", f"id {n}", status=429)
        answered(tests, f"user {n}", f"id {n}", status=503)
    assert sum(arm.answers for arm in tests.report("help").arms) == 0
    for n in range(100):
        answered(tests, f"user {n}", f"id {n}", ttft_s=2)
    assert "p95_ttft_s" in tests.report("help").arms[1].guard


def test_answers_of_a_file_that_has_grown_large_are_counted_and_can_still_be_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inlay.serving.feedback._LARGEST_ANSWERS", 2_000)
    tests = running(tmp_path)
    for n in range(20):
        answered(tests, f"user {n}", f"id {n}")
    assert (tmp_path / "ab-answers.old.jsonl").is_file()
    again = running(tmp_path)
    assert again.report("help") == tests.report("help")
    assert sum(arm.answers for arm in again.report("help").arms) == 20
    assert again.score("id 12", 1, "local") is True


@pytest.fixture
def admin(tmp_path: Path) -> tuple[Server, LiveTests]:
    token = Token("root", sha256(b"admin").digest(), frozenset({"admin"}))
    one = server(StubEngine(), auth=Auth((), [token]))
    tests = running(tmp_path)
    add_tests(one, tests, "serve.yaml")
    return one, tests


def test_over_http_an_alias_answers_takes_a_score_and_its_test_is_shown_widened_and_stopped(
    admin: tuple[Server, LiveTests],
) -> None:
    one, tests = admin
    root = {"Authorization": "Bearer admin"}
    ask = {"model": "help", "messages": [{"role": "user", "content": "hi"}], "user": "ann"}

    async def story() -> None:
        transport = httpx.ASGITransport(create_app(one, feedback_router(tests)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            models = (await client.get("/v1/models")).json()["data"]
            assert "help" in [model["id"] for model in models]
            answer = (await client.post("/v1/chat/completions", json=ask)).json()
            assert answer["inlay"]["adapter"] in ARMS
            taken = await client.post("/v1/feedback", json={"id": answer["id"], "score": 1})
            assert (taken.status_code, taken.json()) == (200, {"id": answer["id"], "counted": True})
            assert (await client.post("/v1/feedback", json={"id": answer["id"], "score": 1})).status_code == 409
            assert (await client.post("/v1/feedback", json={"id": "no", "score": 1})).status_code == 404
            for bad in (1.5, -0.1, "1", True, None):
                assert (await client.post("/v1/feedback", json={"id": "no", "score": bad})).status_code == 400
            assert (await client.get("/admin/aliases")).status_code in (401, 403)
            shown = (await client.get("/admin/aliases/help", headers=root)).json()
            assert sum(arm["scores"] for arm in shown["arms"]) == 1
            assert "secret" not in json.dumps(shown)
            for path, body, status in (
                ("start", {}, 409),
                ("start", {"weights": {"support:3": 90}}, 400),
                ("start", {"weights": {"support:3": 1e308, "code:2": 1e308}}, 400),
                ("start", {"weights": {"support:3": 90, "code:2": 10}}, 200),
                ("stop", {"keep": "cod:2"}, 400),
                ("stop", {"keep": "code:2"}, 200),
                ("stop", {}, 409),
            ):
                found = await client.post(f"/admin/aliases/help/{path}", json=body, headers=root)
                assert found.status_code == status, found.text
            shown = (await client.get("/admin/aliases", headers=root)).json()["aliases"][0]
            assert (shown["state"], shown["arms"][1]["share"]) == ("stopped", 1.0)
            assert (await client.get("/admin/aliases/hepl", headers=root)).status_code == 404

    anyio.run(story)


def test_an_alias_whose_arm_is_not_served_or_that_has_the_name_of_an_adapter_is_refused(tmp_path: Path) -> None:
    tests = LiveTests(tmp_path, {"help": alias({"support:3": 50, "cod:2": 50}), "code": alias()})
    with pytest.raises(ConfigError) as refused:
        add_tests(server(StubEngine()), tests, "serve.yaml")
    first, second = str(refused.value).splitlines()
    assert first.startswith("serve.yaml: aliases.help.arms: unknown model 'cod:2'. Did you mean 'code:2'?")
    assert second.startswith("serve.yaml: aliases.code: is the name of a model here.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "declares no alias"),
        ("aliases: [a]", "declares no alias"),
        ("aliases: {help: {arms: {a: 90, b: 9}}}", "aliases.help.arms: the weights sum to 99. They are percentages"),
        ("aliases: {help: {arms: {a: 110, b: -10}}}", "aliases.help.arms: a weight is a percentage from 0 to 100"),
        ("aliases: {help: {arms: {a: 1e308, b: 1e308}}}", "aliases.help.arms: a weight is a percentage from 0 to 100"),
        ("aliases: {help: {arms: {}}}", "aliases.help.arms: must be"),
        ("aliases: {help: {arms: {a: many}}}", "aliases.help.arms.a: must be a percentage (got 'many')"),
        ("aliases: {help: {}}", "aliases.help.arms: missing"),
        ("aliases: {help: 3}", "aliases.help: an alias has settings (got 3)"),
        ("aliases: {auto: {arms: {a: 100}}}", "aliases.auto: alias 'auto': is reserved"),
        ("aliases: {'a b': {arms: {a: 100}}}", "aliases.a b: alias 'a b': cannot be used"),
        ("aliases: {help: {arms: {a: 100}, margn: 1}}", "aliases.help: unknown setting 'margn'. Did you mean 'margin'?"),
        ("aliases: {help: {arms: {a: 100}, margin: 2}}", "aliases.help.margin: must be a number above 0 and below 1"),
        ("aliases: {help: {arms: {a: 100}, key: cookie}}", "aliases.help.key: must be user, safety_identifier or header:NAME"),
        ("aliases: {help: {arms: {a: 100}, guards: {errors: 1}}}", "aliases.help.guards: unknown setting 'errors'"),
        ("aliases: {help: {arms: {a: 100}, guards: {error_rate: 2}}}", "aliases.help.guards.error_rate: must be"),
        ("aliases: {help: {arms: {a: 100}, guards: 3}}", "aliases.help.guards: holds settings"),
        ("aliases: {help: {arms: {a: 100}}}\nalias: {}", "unknown section 'alias'. Did you mean 'aliases'?"),
        ("aliases: {help: {arms: {a: 100}}", "not valid YAML"),
    ],
)  # fmt: skip
def test_each_mistake_in_a_file_of_aliases_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_aliases(path)
    (line,) = str(refused.value).splitlines()
    assert message in line
    assert line.startswith(str(path))


def test_all_mistakes_of_a_file_are_told_together_and_a_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("aliases:\n  one: {arms: {a: 1}, margin: 2, horizon: 0}\n  two: {arms: {b: 1}}\n")
    with pytest.raises(ConfigError) as refused:
        read_aliases(path)
    assert [line.split(": ")[1] for line in str(refused.value).splitlines()] == [
        "aliases.one.margin", "aliases.one.horizon", "aliases.two.arms",
    ]  # fmt: skip
    path.write_text(
        "aliases:\n  help:\n    arms: {support:3: 90, support:4: 10}\n    guards: {error_rate: 0.02, p95_ttft_s: 1.5}\n"
    )
    assert read_aliases(path)["help"].arms == {"support:3": 90, "support:4": 10}
    with pytest.raises(ConfigError, match="cannot be read"):
        read_aliases(tmp_path / "none.yaml")


def test_lines_of_many_writers_are_whole_and_in_one_order_for_all_readers(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    logs = [SharedLog(path) for _ in range(4)]
    seen: list[list[Any]] = [[] for _ in logs]

    def write(n: int) -> None:
        for k in range(15):
            if k == 7:
                with one_at_a_time(path.with_suffix(".lock")), path.open("a") as file:
                    file.write('{"torn": ')  # as a process that is killed leaves it
            seen[n] += logs[n].append({"writer": n, "k": k})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for n, log in enumerate(logs):
        seen[n] += log.new_lines()
    assert all(lines == seen[0] for lines in seen)
    assert sorted((line["writer"], line["k"]) for line in seen[0]) == [(n, k) for n in range(4) for k in range(15)]
    assert SharedLog(path).new_lines() == seen[0]


def test_a_running_server_answers_under_an_alias_and_keeps_its_scores(
    tmp_path: Path,
) -> None:
    (tmp_path / "serve.yaml").write_text("aliases: {help: {arms: {a: 50, base: 50}}}")
    with stand_in_server(tmp_path / "logs", aliases=str(tmp_path / "serve.yaml")) as one:
        one.wait_ready()
        found = [one.chat(2, model="help").json() for _ in range(12)]
        assert {answer["inlay"]["adapter"] for answer in found} == {"a:1", None}
        taken = one.http.post("/v1/feedback", json={"id": found[0]["id"], "score": 1})
        assert taken.json() == {"id": found[0]["id"], "counted": True}
        shown = one.http.get("/admin/aliases/help", headers=ADMIN).json()
        assert sum(arm["answers"] for arm in shown["arms"]) == 12
    assert sum(arm.scores for arm in stored_tests(tmp_path / "logs")["help"].report().arms) == 1
