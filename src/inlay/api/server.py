"""The HTTP server."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.names import library_at
from inlay.adapters.router import Router
from inlay.config.load import validate_section
from inlay.config.sections.base import Assignments
from inlay.config.sections.serve import ServeConfig
from inlay.errors import ConfigError
from inlay.serving import wire
from inlay.serving.auth import Auth, new_token, read_tokens

if TYPE_CHECKING:
    from inlay.serving.lifetime import Ended
    from inlay.serving.processes import Processes


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that answers."""

    url: str
    models: list[str]
    """Names that requests may give."""
    notes: list[str]
    """What was said of adapters while they were loaded."""


def serve(
    base: str, adapters: str = "none", *, host: str = "127.0.0.1", port: int = 8000, tokens: str | None = None,
    admin_tokens: str | None = None, settings: Assignments | None = None, library: str | None = None,
    folder: str = "results", on_ready: Callable[[Ready], None] = lambda ready: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Ended:  # fmt: skip
    """Serves a base, with the adapter of BASE if that is a run, until SIGTERM, Ctrl+C or an admin ends it.

    `adapters` are names of the library, separated by commas, or `all` or `none`. `settings` are those of the section serve
    by their dotted names. Raises: InlayError for whatever keeps it from starting, and where a process of it ends for good.
    """
    if os.name == "nt":
        raise ConfigError(
            "serve: its processes share sockets in a way that Windows lacks. Use WSL, or inlay.Host in Python."
        )
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'serve: {error.name} is not installed: pip install "inlay[serve]".') from None
    from inlay.serving.aliases import read_aliases
    from inlay.serving.feedback import LiveTests
    from inlay.serving.lifetime import listening, run_server
    from inlay.serving.processes import ENGINE, VLLM, Processes

    given = {name.removeprefix("serve."): value for name, value in (settings or {}).items()}
    config = validate_section(ServeConfig, given, given=set(settings or {}))
    auth = Auth(
        read_tokens(Path(tokens)) if tokens else (),
        read_tokens(Path(admin_tokens), admin=True) if admin_tokens else (),
        host=host,
    )
    start = wire.Start(
        base, str(Path(folder).absolute()), str(library_at(library, folder).path.absolute()), config.model_dump(),
        wanted(adapters),
    )  # fmt: skip
    aliases = read_aliases(Path(config.aliases)) if config.aliases else {}
    tests = LiveTests(Path(start.library), aliases) if aliases else None
    router = Router.read(Path(config.router)) if config.router else None
    more = [*aliases, *(["auto"] if router else [])]
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logs = Path(tempfile.mkdtemp(prefix="inlay-serve-"))

        async def run() -> Ended:
            processes = Processes(start, logs, config.max_requests, engine=VLLM if config.backend == "vllm" else ENGINE)
            return await run_server(
                processes, config, auth, listener, lambda: on_ready(_ready(url, processes, more)), on_progress,
                tests=tests, router=router,
            )  # fmt: skip

        ended = asyncio.run(run())
        shutil.rmtree(logs, ignore_errors=True)  # an error names it, and leaves it
        return ended


def _ready(url: str, processes: Processes, more: list[str]) -> Ready:
    named = processes.named
    return Ready(
        url, [processes.base, *named, *more], [f"{name}: {one.note}" for name, one in named.items() if one.note]
    )


def wanted(adapters: str) -> Mapping[str, str] | None:
    """References by the names that are served, of the text of `--adapters`; None for all. Raises: ConfigError."""
    if adapters.strip() == "all":
        return None
    if adapters.strip() == "none":
        return {}
    names = [name.strip() for name in adapters.split(",") if name.strip()]
    if not names:
        raise ConfigError(
            "--adapters: names no adapter. Give names of the library (support:prod,code:2), all, or none."
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--adapters: names {twice} twice. Name it once.")
    return {name: name for name in names}


def make_token(name: str) -> tuple[str, str]:
    """(a new token, its line for the file of `--tokens`). Raises: ConfigError for a name that cannot be used."""
    return new_token(name)
