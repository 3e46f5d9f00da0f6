"""The section serve: limits of the HTTP server, and what computes behind it. A command line may set any; a config of a run has none of them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from inlay.config.sections.base import PositiveInt, Settings

Seconds = Annotated[float, Field(gt=0)]


class ServeConfig(Settings):
    """Limits of `inlay serve`."""

    max_adapters: PositiveInt = 32
    """Different adapters that answers being computed at one time may use; others wait for their turn."""
    max_rows: PositiveInt = 32
    """Answers that are computed at one time; others wait."""
    max_requests: PositiveInt = 512
    """Answers that are computed or wait; one more gets 429."""
    max_wait_s: Seconds = 30.0
    """A request that would wait longer gets 429 at once."""
    requests_per_minute: PositiveInt | None = None
    """Requests of one token; null sets no limit."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens of the prompts and answers of one token; null sets no limit."""
    live_requests: PositiveInt | None = None
    """Requests of one token that are being answered at one time; null sets no limit."""
    origins: list[str] = Field(default_factory=list)
    """Origins of web pages whose scripts may ask from a browser, such as `https://example.org`."""
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    """After SIGTERM, running answers may go on for so long."""
    cache_tokens: PositiveInt | None = None
    """Tokens whose keys and values are kept, of answers being computed and of prompts seen before. By default as many as
    `max_rows` answers of half the context need, in at most half of the free memory."""
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the adapters' A and B in memory. In bfloat16 a token reads half as much of them; they are rounded to 8 bits."""
    skip_others: bool = False
    """With `--adapters all`: leaves out adapters of other bases. Otherwise they are an error."""
    aliases: str = ""
    """File of aliases: names that share users out to several models, and test which is better."""
    router: str = ""
    """Router that `inlay route fit` wrote: the model `auto` chooses the adapter by the query."""
    backend: Literal["own", "vllm"] = "own"
    """What computes: inlay itself, or vLLM in an environment of its own."""
    vllm_python: str = ""
    """Interpreter of the environment with vLLM, with which `vllm serve` is started."""
    vllm_servers: list[str] = Field(default_factory=list)
    """Addresses of vLLM servers that run already, in place of one that is started; INLAY_VLLM_KEY has their key."""
    vllm_folder: str = ""
    """Folder that adapters are written to for vLLM. Servers elsewhere must see it under the same path; by default a temporary
    one."""
    vllm_arguments: list[str] = Field(default_factory=list)
    """More arguments for the `vllm serve` that is started, such as `--dtype` and `float32`."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        names = ("vllm_python", "vllm_servers", "vllm_folder", "vllm_arguments")
        given = [name for name in names if getattr(self, name)]
        if self.backend == "own" and given:
            raise ValueError(f"serve.{given[0]}: has no effect without serve.backend=vllm")
        if self.backend == "vllm" and bool(self.vllm_python) == bool(self.vllm_servers):
            raise ValueError("serve.backend: vllm needs serve.vllm_python or serve.vllm_servers, one of both")
        return self
