"""POST /generate: one prompt, one answer."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from inlay.serving import replies
from inlay.serving.answering import Wanted, start, whole_answers
from inlay.serving.engine import ChatPrompt, EncodedPrompt, Engine, Refusal
from inlay.serving.route import ERRORS, StrictRoute
from inlay.serving.schemas import GenerateRequest

router = APIRouter(route_class=StrictRoute)
DEFAULT_MAX_LENGTH = 200
DEFAULT_TEMPERATURE = 0.7


@router.post("/generate", response_model=replies.Generated, responses=ERRORS)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """One answer to one prompt."""

    async def encoded(engine: Engine, identity: str | None) -> Sequence[EncodedPrompt]:
        if not body.raw:
            try:
                return [
                    await engine.encode_chat(ChatPrompt([{"role": "user", "content": body.prompt}], identity=identity))
                ]
            except Refusal as refusal:
                if refusal.code != "no_chat_template":
                    raise
        return [await engine.encode_text(body.prompt, identity)]

    max_length = None if body.max_new_tokens else body.max_length or DEFAULT_MAX_LENGTH
    wanted = Wanted(
        "gen-", body.adapter or "base", body, encoded, len(body.prompt), body.max_new_tokens, max_length,
        temperature=DEFAULT_TEMPERATURE, text=body.prompt,
    )  # fmt: skip
    answering = await start(request, wanted)
    [answer] = await whole_answers(answering)
    reply = replies.Generated(
        response=(body.prompt if body.return_full_text else "") + answer.text, adapter=answering.target.ref,
        tokens=answering.record.completion_tokens, finish=answer.finish, seed=answering.seed,
    )  # fmt: skip
    return Response(reply.written(), headers=dict(answering.headers()), media_type="application/json")
