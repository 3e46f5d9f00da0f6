"""An answer as HTTP: whole or as a stream, by the form of its route."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from fastapi.responses import Response

from inlay.serving.answering import Answering, Whole, whole_answers
from inlay.serving.door import defect
from inlay.serving.engine import Refusal
from inlay.serving.errors import error_body
from inlay.serving.replies import Reply
from inlay.serving.stream import COMMENT, DONE, Arrived, EventStream, sse


class Form(Protocol):
    """A route's way to write its answers."""

    def opening(self) -> Sequence[Reply]:
        """Chunks before the first token."""
        raise NotImplementedError

    async def pieces(self, arrived: Arrived) -> Sequence[Reply]:
        """Chunks of one event."""
        raise NotImplementedError

    def closing(self) -> Sequence[Reply]:
        """Chunks after the last one of all answers."""
        raise NotImplementedError

    async def whole(self, answers: Sequence[Whole]) -> Reply:
        """The body with all answers."""
        raise NotImplementedError


async def response_of(answering: Answering, form: Form, *, is_streamed: bool) -> Response:
    """The answer over HTTP. Raises: Refusal, where it is not streamed."""
    if is_streamed:
        return EventStream(_chunks(answering, form), answering.headers())
    body = await form.whole(await whole_answers(answering))
    return Response(body.written(), headers=dict(answering.headers()), media_type="application/json")


async def _chunks(answering: Answering, form: Form) -> AsyncGenerator[bytes]:
    """The stream. What goes wrong in it is its last event."""
    limits = answering.server.gate.limits
    try:
        for chunk in form.opening():
            yield sse(chunk.written())
        async with aclosing(answering.answers.arriving(limits.comment_seconds)) as arriving:
            async for arrived in arriving:
                if arrived is None:
                    yield COMMENT
                    continue
                for chunk in await form.pieces(arrived):
                    yield sse(chunk.written())
        for chunk in form.closing():
            yield sse(chunk.written())
        yield DONE
    except Refusal as refusal:
        answering.record.code = refusal.code
        yield sse(json.dumps(error_body(refusal)).encode())
    except Exception:
        answering.record.code = "internal_error"
        yield sse(json.dumps(error_body(defect(answering.record))).encode())
        raise
