"""The common part of every route: a body that is read strictly, and the errors that its description names."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from inlay.serving.door import StrictRequest
from inlay.serving.errors import of_validation
from inlay.serving.replies import ErrorReply, Reply

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorReply, "description": "The request cannot be answered as it is; `code` says why."},
    "5XX": {"model": ErrorReply, "description": "The server cannot answer now, or has a defect."},
}
"""For `responses` of a route."""


_COMPONENTS: Final = "#/components/schemas/{model}"


def streamed(chunk: type[Reply]) -> dict[str, Any]:
    """The description of a stream of these chunks, for `content` of a route's response."""
    either = [{"$ref": _COMPONENTS.format(model=one.__name__)} for one in (chunk, ErrorReply)]
    body = {"contentMediaType": "application/json", "contentSchema": {"anyOf": either}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, body]}
    return {"text/event-stream": {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": data}}}}


def with_chunks(description: dict[str, Any], *chunks: type[Reply]) -> dict[str, Any]:
    """The description of an application with the schemas that only streams use."""
    for chunk in chunks:
        schema = chunk.model_json_schema(ref_template=_COMPONENTS, mode="serialization")
        for name, part in {**schema.pop("$defs", {}), chunk.__name__: schema}.items():
            description["components"]["schemas"].setdefault(name, part)
    return description


class StrictRoute(APIRoute):
    """A route whose body is JSON without NaN, keys twice or fields that it does not know."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, over a strict request. Its errors are ours."""
        handler = super().get_route_handler()
        names = list(getattr(self.body_field.field_info.annotation, "model_fields", ())) if self.body_field else []

        async def strict(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            if await request.body():
                await request.json()
            try:
                return await handler(request)
            except RequestValidationError as error:
                raise of_validation(error.errors(), error.body, names) from None

        return strict
