"""The section serve: limits of the HTTP server. A command line may set any; a config of a run has none of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    """After SIGTERM, running answers may go on for so long."""
    cache_tokens: PositiveInt | None = None
    """Tokens whose keys and values are kept, of answers being computed and of prompts seen before. By default as many as
    `max_rows` answers of half the context need, in at most half of the free memory."""
    skip_others: bool = False
    """With `--adapters all`: leaves out adapters of other bases. Otherwise they are an error."""
