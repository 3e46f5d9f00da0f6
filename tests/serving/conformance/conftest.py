"""One real server for all checks: `inlay serve builtin:nano` with two adapters, asked by real clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from inlay.serving.started_server import started_server
from serving.made_adapters import put_adapters

BASE = "builtin:nano"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """A library with two adapters."""
    library = tmp_path_factory.mktemp("conformance") / "library"
    put_adapters(library, BASE, ("support", "code"))
    return library


@pytest.fixture(scope="session")
def url(library: Path) -> Iterator[str]:
    """Address of the server."""
    with started_server([BASE, "--adapters", "support:1,code:1", "--library", str(library)]) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def _takes_a_form(client: openai.OpenAI) -> None:
    """Skips where the server has no llguidance."""
    try:
        client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "x"}],
            max_tokens=1,
            response_format={"type": "json_object"},
        )
    except openai.BadRequestError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
