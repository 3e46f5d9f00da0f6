"""Every error of the server in one form, `{"error": {message, type, param, code}}`, and which status stands for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse

from inlay.errors import nearest
from inlay.serving.engine import Refusal
from inlay.typed_json import JsonObject

TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}
"""`type` of an error by its status; of others `invalid_request_error` below 500 and `server_error` from there on."""

_LONGEST_PLACE: Final = 120


def error_body(refusal: Refusal) -> JsonObject:
    """The object that a client gets."""
    kind = TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.code}}


def error_response(refusal: Refusal) -> JSONResponse:
    """The answer over HTTP, with the headers that its status asks for."""
    headers = {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="inlay"'
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
    if refusal.status in (408, 413) or refusal.code == "draining":
        headers["Connection"] = "close"
    return JSONResponse(error_body(refusal), refusal.status, headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """A refusal of one field's value: status 400."""
    return Refusal(400, f"{param}: {message}" if param else message, code=code, param=param)


def of_status(status: int, detail: str) -> Refusal:
    """The refusal for a status that the router chose: no such path, no such method."""
    codes = {404: "not_found", 405: "method_not_allowed"}
    return Refusal(status, detail or HTTPStatus(status).phrase, code=codes.get(status, f"http_{status}"))


def of_validation(errors: Sequence[Mapping[str, Any]], body: object, fields: Sequence[str] = ()) -> Refusal:
    """The refusal for a body that does not have its schema: names the first field at fault, and a field that is close."""
    unknown = [one for one in errors if one["type"] == "extra_forbidden"]
    found = [one for one in unknown or errors if _place(one, body).startswith(_place(errors[0], body) or "")] or list(
        errors
    )
    first = max(found, key=lambda one: _place(one, body).count(".") + _place(one, body).count("["))
    place = _place(first, body)
    if unknown:
        guess = nearest(str(first["loc"][-1]), fields)
        hint = f" Did you mean {guess!r}?" if guess else ""
        return Refusal(
            400, f"{place}: this field is not supported here.{hint}", code="unsupported_parameter", param=place
        )
    if first["type"] == "missing":
        what = "this field is required" if place else "a JSON object is required as the body"
        return invalid(what, place or None, "missing_required_parameter")
    reasons = dict.fromkeys(str(one["msg"])[:300] for one in errors if _place(one, body) == place)
    return invalid(" or: ".join(list(reasons)[:4]), place or None)


def _place(error: Mapping[str, Any], body: object) -> str:
    """`messages[0].content` for where an error is; names that pydantic gives to the parts of a union are left out."""
    place = ""
    value = body
    source, *parts = error["loc"]
    if source != "body":
        return str(parts[0]) if parts else ""
    for part in parts:
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            place, value = f"{place}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or (error["type"] == "missing" and part == parts[-1])):
            place, value = f"{place}.{part}"[not place :][:_LONGEST_PLACE], value.get(part)
    field = error.get("ctx", {}).get("field") or ("role" if error["type"].startswith("union_tag") else None)
    return ".".join(part for part in (place, field) if part)
