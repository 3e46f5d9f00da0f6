"""POST /v1/completions: texts that go on from prompts; with `echo` and `logprobs` it measures a prompt, too."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from inlay.generation.request import TokenLogprob
from inlay.serving import replies
from inlay.serving.answering import Answering, TokenTexts, Wanted, Whole, finish_of, start
from inlay.serving.engine import EncodedPrompt, Engine
from inlay.serving.forms import response_of
from inlay.serving.replies import Reply
from inlay.serving.route import ERRORS, StrictRoute, streamed
from inlay.serving.schemas import CompletionRequest
from inlay.serving.stream import Arrived

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/completions",
    response_model=replies.Completion,
    responses={200: {"content": streamed(replies.Completion)}, **ERRORS},
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Texts that go on from prompts."""
    answering = await start(request, _wanted(body))
    form = CompletionForm(answering, body)
    await form.prepare()
    return await response_of(answering, form, is_streamed=bool(body.stream))


def _wanted(body: CompletionRequest) -> Wanted:
    """The request as the engine is asked."""

    async def encoded(engine: Engine, identity: str | None) -> Sequence[EncodedPrompt]:
        return [
            await engine.encode_text(prompt, identity) if isinstance(prompt, str) else EncodedPrompt(tuple(prompt))
            for prompt in body.prompts
        ]

    first = body.prompts[0]
    return Wanted(
        "cmpl-", body.model, body, encoded, sum(map(len, body.prompts)), body.max_tokens, n=body.n or 1,
        logprobs=body.logprobs, prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        is_streamed=bool(body.stream), text=first if isinstance(first, str) else "", user=body.user,
        safety_identifier=body.safety_identifier,
    )  # fmt: skip


class CompletionForm:
    """OpenAI's form of texts. Choice `number` belongs to prompt `number // n`."""

    def __init__(self, answering: Answering, body: CompletionRequest) -> None:
        self._answering, self._body = answering, body
        self._texts = TokenTexts(answering.server.engine, answering.target.identity)
        count = len(answering.prompts) * answering.n
        self._echoes = [""] * count
        self._offsets = [Offsets() for _ in range(count)]
        self._begun = [False] * count

    async def prepare(self) -> None:
        """Finds the texts of the prompts that are to be echoed."""
        if not self._body.echo:
            return
        for number, (given, prompt) in enumerate(zip(self._body.prompts, self._answering.prompts, strict=True)):
            await self._texts.learn((), prompt.ids)
            if isinstance(given, str):
                text = given
            else:
                text = b"".join(map(self._texts.bytes_of, prompt.ids)).decode("utf-8", "replace")
            for choice in range(self._answering.n):
                self._echoes[number * self._answering.n + choice] = text

    def opening(self) -> Sequence[Reply]:
        """Nothing: a text has no role."""
        return []

    async def pieces(self, arrived: Arrived) -> Sequence[Reply]:
        """Text, log-probabilities, and why it ended; the echo with the first event."""
        number, event = arrived
        text = event.text
        is_first, self._begun[number] = not self._begun[number], True
        logprobs = await self._logprobs(number, event.prompt_logprobs if is_first else (), event.logprobs)
        if is_first:
            text = self._echoes[number] + text
        finish = finish_of(event) if event.finish is not None else None
        if not text and finish is None and not (logprobs and logprobs.tokens):
            return []
        return [self._reply([replies.TextChoice(index=number, text=text, logprobs=logprobs, finish_reason=finish)])]

    def closing(self) -> Sequence[Reply]:
        """The counts of tokens, if asked for."""
        if not self._body.includes_usage:
            return []
        reply = self._reply([])
        reply.usage = self._answering.usage()
        return [reply]

    async def whole(self, answers: Sequence[Whole]) -> Reply:
        """All texts at once."""
        choices = [
            replies.TextChoice(
                index=number, text=self._echoes[number] + one.text, finish_reason=one.finish,
                logprobs=await self._logprobs(number, one.prompt_logprobs, one.logprobs),
            )
            for number, one in enumerate(answers)
        ]  # fmt: skip
        reply = self._reply(choices)
        reply.usage = self._answering.usage()
        return reply

    def _reply(self, choices: Sequence[replies.TextChoice]) -> replies.Completion:
        reply = replies.Completion(object="text_completion", choices=list(choices), **self._answering.head())
        if self._body.includes_usage:
            reply.usage = None
        return reply

    async def _logprobs(
        self, number: int, prompt: Sequence[TokenLogprob | None], answer: Sequence[TokenLogprob]
    ) -> replies.TextLogprobs | None:
        """Log-probabilities of the prompt's tokens, where it is echoed, and of the answer's."""
        if self._body.logprobs is None:
            return None
        ids = self._answering.prompts[number // self._answering.n].ids[: len(prompt)]
        tokens = [*prompt, *answer]
        await self._texts.learn(tokens, ids)
        names = [*ids, *(one.id for one in answer)]
        return replies.TextLogprobs(
            tokens=[self._texts.text_of(id_) for id_ in names],
            token_logprobs=[one.logprob if one else None for one in tokens],
            top_logprobs=[self._top(one) if one else None for one in tokens],
            text_offset=[self._offsets[number].before(self._texts.bytes_of(id_)) for id_ in names],
        )

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """By text, best first; the token itself is always among them. Of two with one text the likelier counts."""
        found: dict[str, float] = {}
        for id_, logprob in (*one.top, (one.id, one.logprob)):
            text = self._texts.text_of(id_)
            found[text] = max(logprob, found.get(text, logprob))
        return found


class Offsets:
    """Places of tokens in a text, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def before(self, token: bytes) -> int:
        """Characters before this token, which is the next one."""
        place = self._characters
        self._characters += len(self._decoder.decode(token))
        return place
