"""From a data file to the ids that are trained and held out, with an account of every row on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inlay.config.settings import DataConfig
from inlay.data.checks.quick import QuickCheck, quick_check
from inlay.data.encode import Encoder
from inlay.data.read import read_examples
from inlay.data.splits import by_content, draw, leaked
from inlay.data.tokens import TokenSet, encode
from inlay.data.types import Example
from inlay.errors import DataCheckError, DataError

_SAMPLE = 4


@dataclass(frozen=True, slots=True)
class Lengths:
    """What `max_length` did to one set of sequences."""

    kept: int
    cut: int
    dropped: int
    untrainable: int
    """Of the dropped: cut to where nothing trained was left."""
    trained_tokens_lost: int

    @property
    def total(self) -> int:
        return self.kept + self.dropped


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Everything that training and comparison need of the data."""

    train: TokenSet
    train_sample: tuple[Example, ...]
    """The examples behind a few rows of `train` that were not cut."""
    heldout: TokenSet
    heldout_examples: tuple[Example, ...]
    """The examples behind `heldout`, each once, in its order."""
    heldout_available: int
    """Held-out examples before `data.max_length` and `eval.max_rows` were applied."""
    heldout_fitting: int
    """Those that `data.max_length` left; more than `eval.max_rows` of them are drawn from."""
    leaked: int
    """Held-out examples that ask what a training row asks; 0 where the split is by content."""
    check: QuickCheck | None
    """What the check before training found; None where it is off."""
    rows: int
    format: str
    format_reason: str
    max_length: int
    max_length_reason: str
    train_lengths: Lengths
    heldout_lengths: Lengths
    data_hash: str

    @property
    def trained_share(self) -> float:
        """Share of the training tokens that count in the loss."""
        return self.train.trained_tokens() / max(1, len(self.train.input_ids))


def prepare(config: DataConfig, encoder: Encoder, context_length: int, max_rows: int, seed: int) -> PreparedData:
    """Raises: DataError for a row that cannot be used, DataCheckError for data that would not train as meant."""
    _use_threads(config.workers)
    read = read_examples(config.train, config.format, config.columns)
    other = read_examples(config.eval, config.format, config.columns) if config.eval else None
    check = None if config.check == "off" else quick_check(read.examples, other.examples if other else ())
    if check and config.check == "refuse":
        check.refuse_errors(config.train)
    tokens = encode(read.examples, encoder, _key(read.hash, read.format, config), config.cache)
    if other is None:
        train_rows, heldout_rows = _split(read.examples, config)
        train, heldout = _of_examples(tokens, train_rows), _of_examples(tokens, heldout_rows)
        heldout_examples: Sequence[Example] = read.examples
    else:
        train = tokens
        heldout = encode(other.examples, encoder, _key(other.hash, other.format, config), config.cache)
        heldout_examples = other.examples
    max_length, reason = _max_length(config, train, context_length)
    train, train_lengths = apply_max_length(train, max_length, config.overlong)
    available = len(np.unique(heldout.examples))
    heldout, heldout_lengths = apply_max_length(heldout, max_length, config.overlong)
    limit = f"{max_length} tokens ({reason})"
    _require_enough(config, config.train, "training", train_lengths, limit)
    _require_enough(config, config.eval or config.train, "held-out", heldout_lengths, limit)
    if len(train) == 0:
        raise DataCheckError(f"{config.train}: no training rows are left at data.max_length {max_length}.")
    if len(heldout) == 0:
        raise DataError(f"{config.eval or config.train}: no held-out rows are left to measure with. Add rows.")
    fitting = np.unique(heldout.examples)
    chosen = fitting[draw(len(fitting), max_rows, seed)]
    drawn = _of_examples(heldout, chosen)
    drawn_examples = tuple(heldout_examples[int(n)] for n in chosen)
    return PreparedData(
        train=train,
        train_sample=_sample(train, read.examples, max_length),
        heldout=drawn,
        heldout_examples=drawn_examples,
        heldout_available=available,
        heldout_fitting=len(fitting),
        check=check,
        leaked=leaked(read.examples, drawn_examples) if config.eval else 0,
        rows=len(read.examples),
        format=read.format,
        format_reason=read.why,
        max_length=max_length,
        max_length_reason=reason,
        train_lengths=train_lengths,
        heldout_lengths=heldout_lengths,
        data_hash=read.hash,
    )


def _sample(train: TokenSet, examples: Sequence[Example], max_length: int) -> tuple[Example, ...]:
    whole = [int(train.examples[i]) for i in np.flatnonzero(train.lengths < max_length)]
    return tuple(examples[n] for n in dict.fromkeys(whole[:: max(1, len(whole) // _SAMPLE)][:_SAMPLE]))


def _use_threads(workers: int) -> None:
    # the tokenizers library reads these when it first works in parallel
    if workers:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(workers)


def _key(file_hash: str, format_name: str, config: DataConfig) -> str:
    return json.dumps([file_hash, format_name, sorted(config.columns.items())])


def _split(examples: Sequence[Example], config: DataConfig) -> tuple[list[int], list[int]]:
    train, heldout = by_content(examples, config.eval_fraction)
    if not train or not heldout:
        raise DataError(
            f"{config.train}: {len(examples)} rows cannot be split into training and held-out rows "
            f"(data.eval_fraction {config.eval_fraction}). Add rows with other prompts, or give data.eval a file."
        )
    return train, heldout


def _of_examples(tokens: TokenSet, wanted: Sequence[int] | np.ndarray) -> TokenSet:
    """The sequences of the named examples, in the order they are in."""
    return tokens.take(np.flatnonzero(np.isin(tokens.examples, np.asarray(wanted, np.int64))))


def _max_length(config: DataConfig, train: TokenSet, context_length: int) -> tuple[int, str]:
    if config.max_length != "auto":
        if config.max_length > context_length:
            raise DataError(
                f"data.max_length: {config.max_length} is longer than the base's context of {context_length} tokens."
            )
        return config.max_length, "as set"
    percentile = int(np.percentile(train.lengths, 99, method="higher"))
    if percentile <= context_length:
        return max(8, percentile), f"99th percentile of {len(train)} sequences"
    return context_length, f"the base's context; the 99th percentile is {percentile}"


def apply_max_length(tokens: TokenSet, max_length: int, overlong: str) -> tuple[TokenSet, Lengths]:
    """The sequences that fit, with those that do not dropped or cut, and an account. Raises: DataError on `error`."""
    too_long = tokens.lengths > max_length
    if overlong == "error" and too_long.any():
        first = int(np.flatnonzero(too_long)[0])
        raise DataError(
            f"{tokens.sources[first]}: {tokens.lengths[first]} tokens, longer than data.max_length {max_length} "
            f"({int(too_long.sum())} rows in all). Raise it, or set data.overlong to drop or cut."
        )
    before = tokens.trained_tokens()
    if overlong == "cut":
        kept = tokens.take(range(len(tokens)), limit=max_length)
        # the first token is never predicted, so a weight there trains nothing
        trained = np.array([bool((kept.row(i).weights[1:] > 0).any()) for i in range(len(kept))], bool)
    else:
        kept, trained = tokens, ~too_long
    result = kept.take(np.flatnonzero(trained)) if not trained.all() else kept
    cut = int((too_long & trained).sum()) if overlong == "cut" else 0
    untrainable = int((~trained).sum()) if overlong == "cut" else 0
    lost = before - result.trained_tokens()
    return result, Lengths(len(result), cut, len(tokens) - len(result), untrainable, lost)


def _require_enough(config: DataConfig, path: str, kind: str, lengths: Lengths, limit: str) -> None:
    lost = lengths.dropped + lengths.cut
    if lengths.total and lost / lengths.total > config.max_lost_share:
        raise DataCheckError(
            f"{path}: {lost} of {lengths.total} {kind} rows are longer than {limit}; "
            f"{lengths.trained_tokens_lost} trained tokens would be lost. Raise data.max_length, shorten the rows, "
            f"or allow it with --set data.max_lost_share={min(1.0, round(lost / lengths.total + 0.01, 2))}."
        )
