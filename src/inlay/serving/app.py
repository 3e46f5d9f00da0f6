"""The server as an ASGI application. It imports no torch."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from inlay._version import __version__
from inlay.serving import chat, completions, models, replies, simple
from inlay.serving.door import Door
from inlay.serving.engine import Refusal
from inlay.serving.errors import error_response, of_status
from inlay.serving.route import with_chunks
from inlay.serving.server import Server, record_of


def create_app(server: Server, *routers: APIRouter) -> FastAPI:
    """The application of one server; `routers` add routes to those of OpenAI's API, POST /generate, and health."""
    app = _App(title="inlay", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.server = server
    for router in (models.router, chat.router, completions.router, simple.router, *routers):
        app.include_router(router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _status)
    app.add_middleware(Door, server=server)
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The description of all routes."""
        return with_chunks(super().openapi(), replies.ChatChunk)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    record_of(request).code = error.code
    return error_response(error)


async def _status(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = await _refused(request, of_status(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response
