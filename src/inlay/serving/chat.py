"""POST /v1/chat/completions: from its body to asks, and from events to OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from inlay.generation.request import TokenLogprob
from inlay.serving import replies
from inlay.serving.answering import Answering, TokenTexts, Wanted, Whole, finish_of, start
from inlay.serving.engine import ChatPrompt, EncodedPrompt, Engine
from inlay.serving.errors import unsupported
from inlay.serving.forms import response_of
from inlay.serving.replies import Reply
from inlay.serving.route import ERRORS, StrictRoute, streamed
from inlay.serving.schemas import ChatRequest
from inlay.serving.stream import Arrived

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/chat/completions",
    response_model=replies.ChatCompletion,
    responses={200: {"content": streamed(replies.ChatChunk)}, **ERRORS},
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answers to a conversation."""
    answering = await start(request, _wanted(body))
    return await response_of(answering, ChatForm(answering, body), is_streamed=bool(body.stream))


def _wanted(body: ChatRequest) -> Wanted:
    """The request as the engine is asked. Raises: Refusal."""
    for name in ("tools", "response_format"):
        value = getattr(body, name)
        if value is not None and getattr(value, "type", None) != "text":
            raise unsupported(name)
    turns = [message.for_template() for message in body.messages]
    limit = body.max_completion_tokens or body.max_tokens
    last = next((message.text for message in reversed(body.messages) if message.role == "user"), "")

    async def encoded(engine: Engine, identity: str | None) -> Sequence[EncodedPrompt]:
        return [
            await engine.encode_chat(ChatPrompt(turns, switches=body.chat_template_kwargs or {}, identity=identity))
        ]

    return Wanted(
        "chatcmpl-", body.model, body, encoded, sum(len(message.text) for message in body.messages), limit,
        n=body.n or 1, logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        is_streamed=bool(body.stream), text=last, user=body.user, safety_identifier=body.safety_identifier,
    )  # fmt: skip


class ChatForm:
    """OpenAI's form of the answers to a conversation."""

    def __init__(self, answering: Answering, body: ChatRequest) -> None:
        self._answering, self._body = answering, body
        self._texts = TokenTexts(answering.server.engine, answering.target.identity)

    def opening(self) -> Sequence[Reply]:
        """The role of each answer."""
        delta = replies.Delta(role="assistant", content="", refusal=None)
        return [self._chunk([self._choice(number, delta)]) for number in range(self._answering.n)]

    async def pieces(self, arrived: Arrived) -> Sequence[Reply]:
        """Text and log-probabilities, and why the answer ended."""
        event, found = arrived.event, []
        logprobs = await self._logprobs(event.logprobs)
        if event.text or (logprobs and logprobs.content):
            found.append(self._choice(arrived.answer, replies.Delta(content=event.text), logprobs))
        if event.finish is not None:
            found.append(self._choice(arrived.answer, replies.Delta(), finish=finish_of(event)))
        return [self._chunk([choice]) for choice in found]

    def closing(self) -> Sequence[Reply]:
        """The counts of tokens, if asked for."""
        if not self._body.includes_usage:
            return []
        chunk = self._chunk([])
        chunk.usage = self._answering.usage()
        return [chunk]

    async def whole(self, answers: Sequence[Whole]) -> Reply:
        """All answers at once."""
        choices = [
            replies.ChatChoice(
                index=number, message=replies.ReplyMessage(role="assistant", content=answer.text, refusal=None),
                logprobs=await self._logprobs(answer.logprobs), finish_reason=answer.finish,
            )
            for number, answer in enumerate(answers)
        ]  # fmt: skip
        return replies.ChatCompletion(
            object="chat.completion", choices=choices, usage=self._answering.usage(), **self._answering.head()
        )

    async def _logprobs(self, tokens: Sequence[TokenLogprob]) -> replies.ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        await self._texts.learn(tokens)

        def likely(id_: int, logprob: float) -> replies.LikelyToken:
            return replies.LikelyToken(
                token=self._texts.text_of(id_), logprob=logprob, bytes=list(self._texts.bytes_of(id_))
            )

        content = [
            replies.ChatToken(**dict(likely(one.id, one.logprob)), top_logprobs=[likely(*top) for top in one.top])
            for one in tokens
        ]
        return replies.ChatLogprobs(content=content, refusal=None)

    def _choice(
        self, number: int, delta: replies.Delta, logprobs: replies.ChatLogprobs | None = None,
        finish: replies.ChatFinish | None = None,
    ) -> replies.ChunkChoice:  # fmt: skip
        return replies.ChunkChoice(index=number, delta=delta, logprobs=logprobs, finish_reason=finish)

    def _chunk(self, choices: Sequence[replies.ChunkChoice]) -> replies.ChatChunk:
        chunk = replies.ChatChunk(object="chat.completion.chunk", choices=list(choices), **self._answering.head())
        if self._body.includes_usage:
            chunk.usage = None
        return chunk
