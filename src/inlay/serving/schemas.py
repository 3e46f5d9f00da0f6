"""The bodies that the server takes: every field with its limits. A field that is not here is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from inlay.generation.request import Sampling
from inlay.serving.names import LONGEST_NAME
from inlay.typed_json import JsonObject

LARGEST_MAX_TOKENS: Final = 1_000_000
"""The context is the real limit; this one keeps numbers in bounds."""
DEFAULT_MAX_TOKENS: Final = 1024
"""Longest answer where the request names none and the context has room."""
MOST_PROMPTS: Final = 128
_SEED: Final = 2**63 - 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Key = Annotated[str, StringConstraints(max_length=512)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def _wrong(field: str, message: str) -> PydanticCustomError:
    """An error of a field in its relation to others."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "field": field})


class Body(BaseModel):
    """Closed to unknown fields; a number is not a string, and true is not a number. null stands for the default."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SamplingFields(Body):
    """The fields that choose tokens, in every route."""

    temperature: Temperature | None = Field(None, description="0 is greedy; default 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Sample from the fewest tokens with this probability in sum; default 1."
    )
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(
        None, description="Sample from the k most likely tokens; 0 and -1 from all (default)."
    )
    min_p: Probability | None = Field(None, description="Least probability, as a share of the most likely token's.")
    seed: Annotated[int, Field(ge=-_SEED - 1, le=_SEED)] | None = Field(
        None,
        description="The same seed gives the same answer, whatever else runs; drawn and reported where none is given.",
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="Strings that end the answer; at most 16 of 256 characters."
    )
    presence_penalty: Penalty | None = Field(None, description="Taken off the logit of tokens that the answer has.")
    frequency_penalty: Penalty | None = Field(None, description="The same for each time that it has them.")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        None, description="Above 1, tokens of prompt and answer become less likely; default 1."
    )
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = Field(
        None, description="Added to the logits of token ids; at most 1,024."
    )
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST_MAX_TOKENS)] | None = Field(
        None, description="No end of turn before so many tokens."
    )
    ignore_eos: bool | None = Field(None, description="Goes on to max_tokens whatever the model says; for benchmarks.")

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise PydanticCustomError("invalid_value", "keys are token ids, as digits")
        return value

    def sampling(
        self, seed: int, max_new_tokens: int, *, temperature: float = 1.0, logprobs: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> Sampling:  # fmt: skip
        """The settings for the loop; `temperature` where the request names none, `stop` beside its own strings."""
        own = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=tuple((int(key), bias) for key, bias in (self.logit_bias or {}).items()),
            stop=tuple(dict.fromkeys((*own, *stop))),
            seed=seed,
            min_new_tokens=min(self.min_tokens or 0, max_new_tokens),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


class StreamOptions(Body):
    """Additions to a stream."""

    include_usage: bool | None = Field(None, description="A last chunk with the counts of tokens.")


class OpenAIFields(SamplingFields):
    """Fields of both OpenAI routes."""

    model: Name = Field(description="Name of a served adapter, NAME:TAG, NAME:VERSION, an alias, or the base's id.")
    stream: bool | None = Field(None, description="Chunks as they come, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="include_usage; only with stream.")
    n: Annotated[int, Field(ge=1, le=8)] | None = Field(None, description="So many answers; at most 8.")
    user: Key | None = Field(None, description="Key of A/B tests; otherwise without effect.")
    safety_identifier: Key | None = Field(None, description="Key of A/B tests; otherwise without effect.")
    metadata: Annotated[dict[Key, Key], Field(max_length=16)] | None = Field(
        None, description="Accepted, without effect."
    )

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "needs stream: true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Body):
    """One part of a message. Parts are joined as they are; other kinds than text are refused."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(max_length=1024)]


class CalledFunction(Body):
    """The function of a call, its arguments as JSON text."""

    name: Name
    arguments: str


class Call(Body):
    """One call of an assistant's turn."""

    id: Key
    type: Literal["function"] = "function"
    function: CalledFunction


class Turn(Body):
    """One message of a conversation."""

    role: str
    content: Content | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    def for_template(self) -> JsonObject:
        """The message for the engine; `developer` is today's word for `system`."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class SystemTurn(Turn):
    """Instructions that stand before the conversation."""

    role: Literal["system", "developer"]
    content: Content


class UserTurn(Turn):
    """A user's message."""

    role: Literal["user"]
    content: Content


class AssistantTurn(Turn):
    """An answer, with the calls that it made."""

    role: Literal["assistant"]
    tool_calls: Annotated[list[Call], Field(min_length=1, max_length=128)] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[JsonObject], Field(max_length=0)] | None = None
    """These four stand, empty, in a message that came from a client library and goes back."""

    @model_validator(mode="after")
    def _with_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise _wrong("content", "is required without tool_calls")
        return self

    def for_template(self) -> JsonObject:
        """The message with its calls, their arguments as JSON text."""
        turn = super().for_template()
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return turn


class ToolTurn(Turn):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Key

    def for_template(self) -> JsonObject:
        """The message with the id of its call."""
        return super().for_template() | {"tool_call_id": self.tool_call_id}


ChatMessage = Annotated[SystemTurn | UserTurn | AssistantTurn | ToolTurn, Field(discriminator="role")]


class Function(Body):
    """A tool's name, its use, and the JSON schema of its arguments."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolField(Body):
    """One tool that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function by its name."""

    name: Name


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A JSON schema that the answer must match."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise _wrong("json_schema", "the type json_schema needs it, and no other has it")
        return self


class ChatRequest(OpenAIFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)] = Field(
        description="The conversation; parts of text are joined. Roles as the template has them."
    )
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST_MAX_TOKENS)] | None = Field(
        None, description="Longest answer; default 1,024, or what the context has room for."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST_MAX_TOKENS)] | None = Field(
        None, description="Today's name of max_tokens."
    )
    logprobs: bool | None = Field(None, description="Log-probability of each token of the answer.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="And of so many of the most likely tokens beside it; needs logprobs."
    )
    response_format: ResponseFormat | None = Field(None, description="text, json_object, or json_schema with a schema.")
    tools: Annotated[list[ToolField], Field(max_length=128)] | None = Field(
        None, description="Functions that the model may call, where its template shows calls."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="none, auto (default), required, or one function by name."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    chat_template_kwargs: Annotated[dict[Key, bool], Field(max_length=16)] | None = Field(
        None, description="Switches that the template reads, such as enable_thinking; true or false."
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs", "needs logprobs: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise _wrong("max_tokens", "is another name of max_completion_tokens; give one of them")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise _wrong("tool_choice", "needs tools")
        return self


Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_PROMPTS)]
)


class CompletionRequest(OpenAIFields):
    """Body of POST /v1/completions."""

    prompt: Prompt = Field(description="A text, token ids, or up to 128 of either; no chat template is applied.")
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST_MAX_TOKENS)] | None = Field(
        None,
        description="Longest answer; 0 with echo only reads the prompt. Default 1,024, or what the context has room for.",
    )
    echo: bool | None = Field(
        None, description="The prompt before its answer, with its log-probabilities if asked for."
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Log-probability of each token, and of so many of the most likely ones."
    )

    @model_validator(mode="after")
    def _something_to_answer(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise _wrong("max_tokens", "0 needs echo: true")
        if len(self.prompts) * (self.n or 1) > MOST_PROMPTS:
            raise _wrong("n", f"at most {MOST_PROMPTS} answers in one request (prompts times n)")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or ids."""
        value: Any = self.prompt
        return list(value) if isinstance(value, list) and not isinstance(value[0], int) else [value]


class GenerateRequest(SamplingFields):
    """Body of POST /generate."""

    prompt: Annotated[str, StringConstraints(min_length=1)] = Field(
        description="A turn of the user where the model has a chat template; text to go on with otherwise."
    )
    adapter: Name | None = Field(None, description="Name as `model` takes it; none: the base.")
    max_length: Annotated[int, Field(ge=1, le=LARGEST_MAX_TOKENS)] | None = Field(
        None, description="Longest prompt and answer together, in tokens; default 200."
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=LARGEST_MAX_TOKENS)] | None = Field(
        None, description="Longest answer; in place of max_length."
    )
    raw: bool | None = Field(None, description="The prompt as it is, without the chat template.")
    return_full_text: bool | None = Field(None, description="The response begins with the prompt.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_length is not None and self.max_new_tokens is not None:
            raise _wrong("max_length", "excludes max_new_tokens; give one of them")
        return self
