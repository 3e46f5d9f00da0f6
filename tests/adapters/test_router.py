"""A router reads back as it was written, decides without a model, and leaves what it does not know to the base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.adapters.router import FEATURES, Router, features
from inlay.errors import ConfigError


def router(arms: int = 2, *, threshold: float = 0.5, spread: float = 1.0) -> Router:
    draw = np.random.default_rng(0)
    weights_FA = (spread * draw.standard_normal((FEATURES, arms))).astype(np.float16)
    return Router(tuple(f"arm:{n}" for n in range(1, arms + 1)), weights_FA, 1.5, threshold, "digest", {"rows": 3})


ROUTERS: list[Router] = []
"""One, and the same as it was read from its file."""


@given(st.text(max_size=200))
@settings(max_examples=30, deadline=None)
def test_a_router_read_from_its_file_decides_as_the_one_that_was_written(text: str) -> None:
    assert ROUTERS[1].choose(text) == ROUTERS[0].choose(text)
    assert ROUTERS[0].probabilities(text).sum() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module", autouse=True)
def _written(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("router") / "router.json"
    one = router(spread=20.0)
    one.write(path)
    ROUTERS[:] = [one, Router.read(path)]


def test_a_query_without_a_word_goes_to_the_base_as_does_one_below_the_threshold() -> None:
    assert router(spread=50.0).choose("").arm is None
    text = next(text for text in map(str, range(100)) if router().choose(text).arm)
    assert router(threshold=0.99).choose(text).arm is None


def test_features_are_the_same_in_every_process_and_a_long_query_takes_no_longer() -> None:
    program = "from inlay.adapters.router import features; print(sorted(features('Reset my pässword!')[0].tolist()))"
    shown = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        ).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert shown == {f"{sorted(features('Reset my pässword!')[0].tolist())}\n"}
    assert len(features("word " * 1_000_000)[0]) < 100
    places, values = features("reset my password")
    assert float((values**2).sum()) == pytest.approx(1)
    assert len(set(places.tolist())) == len(places)


def test_a_router_of_eight_adapters_that_has_seen_thousands_of_words_takes_one_megabyte(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights_FA = np.zeros((FEATURES, 8), np.float16)
    seen = draw.choice(FEATURES, 20_000, replace=False)
    weights_FA[seen] = draw.standard_normal((20_000, 8))
    Router(tuple("abcdefgh"), weights_FA, 1.0, 0.5, "digest").write(tmp_path / "router.json")
    assert (tmp_path / "router.json").stat().st_size <= 1 << 20


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": 2}, {"features": 8}, {"arms": []}, {"arms": ["a"]}, {"weights": "????"}, {"weights": ""},
        {"temperature": 0}, {"temperature": "hot"}, {"threshold": 2}, {"arms": None}, {"judged": 3},
    ],
)  # fmt: skip
def test_a_file_that_is_no_router_is_refused_in_one_line(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "router.json"
    router().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ConfigError, match=r"router\.json: is no router that can be used") as refused:
        Router.read(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inlay route fit"):
        Router.read(tmp_path / "router.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match="is no router"):
        Router.read(tmp_path / "list.json")
