"""POST /v1/chat/completions: from its body to asks, and from events to OpenAI's form."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from inlay.generation.request import TokenLogprob
from inlay.serving import replies
from inlay.serving.answering import Answering, TokenTexts, Wanted, Whole, finish_of, start
from inlay.serving.engine import ChatPrompt, EncodedPrompt, Engine
from inlay.serving.errors import invalid
from inlay.serving.forms import response_of
from inlay.serving.grammar import json_grammar
from inlay.serving.replies import Reply
from inlay.serving.route import ERRORS, StrictRoute, streamed
from inlay.serving.schemas import ChatRequest, NamedTool
from inlay.serving.stream import Arrived
from inlay.serving.tools import Call, CallReader, calls_grammar, require_form
from inlay.typed_json import JsonObject

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
    turns = [message.for_template() for message in body.messages]
    limit = body.max_completion_tokens or body.max_tokens
    last = next((message.text for message in reversed(body.messages) if message.role == "user"), "")

    async def encoded(engine: Engine, identity: str | None) -> Sequence[EncodedPrompt]:
        switches = body.chat_template_kwargs or {}
        prompt = await engine.encode_chat(ChatPrompt(turns, _tools(body), switches, identity))
        return [replace(prompt, grammar=await asyncio.to_thread(_grammar, body, prompt))]

    return Wanted(
        "chatcmpl-", body.model, body, encoded, sum(len(message.text) for message in body.messages), limit,
        n=body.n or 1, logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        is_streamed=bool(body.stream), text=last, user=body.user, safety_identifier=body.safety_identifier,
    )  # fmt: skip


def _tools(body: ChatRequest) -> list[JsonObject]:
    """The tools that the model sees."""
    return [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools or ()]


def _grammar(body: ChatRequest, prompt: EncodedPrompt) -> str | None:
    """The grammar that the answer must match. Raises: Refusal."""
    form, tools, choice = body.response_format, _tools(body), body.tool_choice
    has_form = form is not None and form.type != "text"
    if tools:
        calls = require_form(prompt.calls)
        if has_form:
            raise invalid("goes with tools only where tool_choice is none", "response_format")
        if choice is None or (isinstance(choice, str) and choice != "required"):
            return None
        names = {tool["function"]["name"] for tool in tools}
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                raise invalid(f"there is no tool {choice.function.name!r}", "tool_choice")
            names = {choice.function.name}
        return calls_grammar(calls, tools, names)
    if form is None or not has_form:
        return None
    return json_grammar(form.json_schema.schema_ if form.json_schema else None)


class ChatForm:
    """OpenAI's form of the answers to a conversation."""

    def __init__(self, answering: Answering, body: ChatRequest) -> None:
        self._answering, self._body = answering, body
        self._texts = TokenTexts(answering.server.engine, answering.target.identity)
        self._names = [tool["function"]["name"] for tool in _tools(body)]
        self._readers = [self._reader() for _ in range(answering.n)]

    def opening(self) -> Sequence[Reply]:
        """The role of each answer."""
        delta = replies.Delta(role="assistant", content="", refusal=None)
        return [self._chunk([self._choice(number, delta)]) for number in range(self._answering.n)]

    async def pieces(self, arrived: Arrived) -> Sequence[Reply]:
        """Text and log-probabilities, and why the answer ended."""
        event, found = arrived.event, []
        logprobs = await self._logprobs(event.logprobs)
        reader = self._readers[arrived.answer]
        if reader is None:
            deltas = [replies.Delta(content=event.text)] if event.text else []
        else:
            first = reader.count
            pieces = reader.add(event.text) + (reader.end() if event.finish else [])
            deltas = list(_deltas(pieces, first))
        if logprobs and logprobs.content and not deltas:
            deltas = [replies.Delta(content="")]
        for n, delta in enumerate(deltas):
            found.append(self._choice(arrived.answer, delta, logprobs if n == 0 else None))
        if event.finish is not None:
            finish = self._finish(finish_of(event), reader)
            found.append(self._choice(arrived.answer, replies.Delta(), finish=finish))
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
        choices = []
        for number, answer in enumerate(answers):
            reader = self._readers[number]
            message = _message(answer.text, reader)
            logprobs, finish = await self._logprobs(answer.logprobs), self._finish(answer.finish, reader)
            choices.append(replies.ChatChoice(index=number, message=message, logprobs=logprobs, finish_reason=finish))
        return replies.ChatCompletion(
            object="chat.completion", choices=choices, usage=self._answering.usage(), **self._answering.head()
        )

    def _reader(self) -> CallReader | None:
        """Reads the calls out of one answer, where it may have any."""
        form = self._answering.prompts[0].calls
        most = 1 if self._body.parallel_tool_calls is False else None
        return CallReader(form, self._names, most) if form is not None and self._names else None

    def _finish(self, finish: replies.TextFinish, reader: CallReader | None) -> replies.ChatFinish:
        return "tool_calls" if reader is not None and reader.count and finish == "stop" else finish

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


def _deltas(pieces: Sequence[str | Call], first: int) -> Iterator[replies.Delta]:
    """Pieces of a stream: text, and calls numbered from `first` on."""
    number = first
    for piece in pieces:
        if isinstance(piece, str):
            yield replies.Delta(content=piece)
            continue
        function = replies.FunctionDelta(name=piece.name, arguments=piece.arguments)
        call = replies.ToolCallDelta(index=number, id=_call_id(), type="function", function=function)
        yield replies.Delta(tool_calls=[call])
        number += 1


def _message(text: str, reader: CallReader | None) -> replies.ReplyMessage:
    """The turn of a whole answer."""
    pieces = [text] if reader is None else reader.add(text) + reader.end()
    content = "".join(piece for piece in pieces if isinstance(piece, str))
    calls = [
        replies.ToolCallReply(
            id=_call_id(), type="function", function=replies.CallFunction(name=piece.name, arguments=piece.arguments)
        )
        for piece in pieces
        if isinstance(piece, Call)
    ]
    if not calls:
        return replies.ReplyMessage(role="assistant", content=content, refusal=None)
    return replies.ReplyMessage(role="assistant", content=content or None, refusal=None, tool_calls=calls)


def _call_id() -> str:
    return secrets.token_hex(5)[:9]  # some templates refuse any other length
