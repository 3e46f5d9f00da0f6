"""Routes under `/admin`: adapters in and out of memory while others are being used, and the end of the server.

A name is given to a version of the *library*: no path, no URL, no upload. They need a token of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from inlay.adapters.library import is_adapter_name, is_library_ref
from inlay.serving.engine import Refusal, ServedAdapter
from inlay.serving.route import ERRORS, StrictRoute
from inlay.serving.server import Server, server_of

Name = Annotated[str, Path(max_length=128, description="The name that requests give as `model`.")]


class AdapterWanted(BaseModel):
    """Body of `PUT /admin/adapters/{name}`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ref: Annotated[str, Field(max_length=256)]
    """An adapter of the library: NAME, NAME:VERSION or NAME:TAG."""


class AdapterShown(BaseModel):
    """An adapter that is served."""

    name: str
    ref: str
    """NAME:VERSION."""
    identity: str
    """Of weights, tokenizer and template."""
    bytes: int
    """Memory that it takes."""
    note: str = ""
    replaced: str | None = None
    """The version that the name led to before. Answers that began with it end with it."""


class AdaptersShown(BaseModel):
    """Answer of `GET /admin/adapters`."""

    adapters: list[AdapterShown]


class Draining(BaseModel):
    """Answer of `POST /admin/drain`."""

    draining: bool = True


def admin_router(drain: Callable[[], None]) -> APIRouter:
    """The routes under `/admin`. `drain` ends the server as SIGTERM does."""
    router = APIRouter(prefix="/admin", route_class=StrictRoute, responses=ERRORS)
    tasks: set[asyncio.Task[None]] = set()
    changing = asyncio.Lock()

    def retire_later(server: Server, adapter: ServedAdapter) -> None:
        task = asyncio.create_task(server.retire(adapter))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    @router.get("/adapters", summary="Adapters in memory")
    async def adapters(request: Request) -> AdaptersShown:
        found = server_of(request).names.adapters()
        return AdaptersShown(adapters=[_shown(name, adapter) for name, adapter in sorted(found.items())])

    @router.put("/adapters/{name}", summary="Load an adapter, or replace the one that has the name")
    async def put(request: Request, name: Name, wanted: AdapterWanted) -> AdapterShown:
        server = server_of(request)
        _require_name(server, name)
        if not (is_adapter_name(wanted.ref) or is_library_ref(wanted.ref)):
            text = f"ref: {wanted.ref[:80]!r} names no adapter of the library. Write NAME, NAME:VERSION or NAME:TAG."
            raise Refusal(400, text, code="invalid_value", param="ref")
        async with changing:
            adapter = await server.engine.load(wanted.ref)
            before = server.names.put(name, adapter)
        if before is not None and before.digest != adapter.digest:
            retire_later(server, before)
        return _shown(name, adapter, before)

    @router.delete("/adapters/{name}", summary="Take an adapter out of memory")
    async def delete(request: Request, name: Name) -> AdapterShown:
        server = server_of(request)
        adapter = server.names.remove(name)
        if adapter is None:
            known = ", ".join(sorted(server.names.adapters())) or "none"
            raise Refusal(404, f"{name[:80]!r}: no adapter has this name. Adapters: {known}.", code="adapter_not_found")
        retire_later(server, adapter)
        return _shown(name, adapter)

    @router.post("/drain", summary="End the server once its answers have ended", status_code=202)
    async def end() -> Draining:
        drain()
        return Draining()

    return router


def _require_name(server: Server, name: str) -> None:
    """Raises: Refusal for a name that an adapter cannot have here."""
    if not (is_adapter_name(name) or is_library_ref(name)) or name in (server.names.base, "base", "auto"):
        raise Refusal(400, f"{name[:80]!r}: no adapter can have this name.", code="invalid_value", param="name")
    if name in server.names.aliases:
        raise Refusal(409, f"{name}: is an alias. Take that away first, or choose another name.", code="name_taken")


def _shown(name: str, adapter: ServedAdapter, before: ServedAdapter | None = None) -> AdapterShown:
    replaced = before.ref if before is not None and before.identity != adapter.identity else None
    return AdapterShown(
        name=name, ref=adapter.ref, identity=adapter.identity, bytes=adapter.bytes, note=adapter.note, replaced=replaced
    )
