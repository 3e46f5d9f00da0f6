"""Whether to fine-tune, to retrieve, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inlay.adapters.names import as_config
from inlay.api.training import train
from inlay.config.load import ConfigLike
from inlay.config.measuring import assigned
from inlay.errors import ConfigError
from inlay.evaluation.costs import Prices
from inlay.runs.folder import Run, RunLike
from inlay.runs.reporter import PlainReporter, Reporter
from inlay.training.process import require_alone
from inlay.workflows.advise.advise import Advice, Terms
from inlay.workflows.advise.advise import advise as advised


def advise(
    config: ConfigLike | None = None,
    *,
    run: RunLike = None,
    settings: Sequence[str] = (),
    documents: str | Path | None = None,
    quick: bool = False,
    max_rows: int | None = None,
    prompt_tokens: int = 1024,
    passages: int = 4,
    requests: int = 100_000,
    cost: float | None = None,
    watts: float | None = None,
    utilisation: float | None = None,
    reporter: Reporter | None = None,
    folder: str = "results",
) -> Advice:
    """The cheapest good way to answer: base, base with examples or passages, adapter, or adapter with passages.

    Each is measured on the same held-out rows with prompts of at most `prompt_tokens`. Of those that no other was shown
    to beat, the cheapest over so many `requests` is recommended. Passages are training rows, or come from the text
    files under `documents`. The adapter is that of `run`, else one is trained by `config`. `settings` are `key=value`
    texts of the section eval that override those of the run. `quick` gives a rule of thumb from the rows alone. `cost`
    is the price of an hour of this machine, `watts` its power, `utilisation` the share of the paid time in which it
    serves. Raises: ConfigError, DataError, RunError; as `train` where it trains.
    """
    require_alone("advise")
    reporter = reporter or PlainReporter()
    over = assigned(settings, "advise --run") if run is not None else {}
    if settings and run is None:
        raise ConfigError("advise: settings are for a run that is there. Put them into the config that trains one.")
    terms = Terms(prompt_tokens, passages, requests, Prices(cost, watts, utilisation))
    return advised(
        None if config is None else as_config(config), run if isinstance(run, Run) or run is None else str(run),
        None if documents is None else Path(documents), quick, terms, lambda found: train(found, reporter=reporter),
        reporter, folder, max_rows, over,
    )  # fmt: skip
