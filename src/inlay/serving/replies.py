"""The bodies that the server gives, in OpenAI's forms; `inlay` in them says which adapter answered, and how to repeat it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

TextFinish = Literal["stop", "length"]
ChatFinish = Literal["stop", "length", "tool_calls"]


class Reply(BaseModel):
    """Written with the fields that were set."""

    model_config = ConfigDict(extra="forbid")

    def written(self) -> bytes:
        """As JSON."""
        return self.model_dump_json(exclude_unset=True).encode()


class AnsweredBy(Reply):
    """The adapter that answered, and the seed."""

    adapter: str | None
    """NAME:VERSION; null for the base."""
    identity: str | None
    """Digest of its weights, tokenizer and template."""
    seed: int
    """With it and the same request the answer comes again."""


class CachedTokens(Reply):
    """Tokens of the prompt that were not computed again."""

    cached_tokens: int


class Usage(Reply):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class LikelyToken(Reply):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(LikelyToken):
    """The same, with the most likely ones in its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(Reply):
    """Log-probabilities of an answer's tokens."""

    content: list[ChatToken]
    refusal: None


class CallFunction(Reply):
    """The function of a call, its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallReply(Reply):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CallFunction


class ReplyMessage(Reply):
    """An answer's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallReply] = []


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class OpenAIReply(Reply):
    """The fields that all answers of the OpenAI routes have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    inlay: AnsweredBy


class ChatCompletion(OpenAIReply):
    """Answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Reply):
    """A piece of a call's function."""

    name: str = ""
    arguments: str = ""


class ToolCallDelta(Reply):
    """A piece of a call."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class Delta(Reply):
    """A piece of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallDelta] = []


class ChunkChoice(Reply):
    """A piece of one answer, with its end in the last."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish | None


class ChatChunk(OpenAIReply):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: Usage | None = None


class TextLogprobs(Reply):
    """Log-probabilities of a text's tokens; null for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Reply):
    """One text, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: TextFinish | None


class Completion(OpenAIReply):
    """Texts that go on from prompts, or one event of their stream."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage | None = None


class Generated(Reply):
    """Answer of POST /generate."""

    response: str
    adapter: str | None
    """NAME:VERSION; null for the base."""
    tokens: int
    """Of the answer."""
    finish: TextFinish
    seed: int


class ServedModel(Reply):
    """The facts of a listed model."""

    kind: Literal["base", "adapter", "alias"]
    ref: str | None
    identity: str | None
    context_length: int
    note: str


class ListedModel(Reply):
    """One model that a token may use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["inlay"]
    inlay: ServedModel


class ModelList(Reply):
    """All of them."""

    object: Literal["list"]
    data: list[ListedModel]


class Health(Reply):
    """Whether the server lives, and what its engine does."""

    status: Literal["loading", "ready", "draining", "failed"]
    why: str
    running: int
    waiting: int
    figures: dict[str, float]


class ErrorDetail(Reply):
    """The reason of an error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Reply):
    """The body of every error."""

    error: ErrorDetail
