"""Answers that match a grammar: the tokens that may come next, by llguidance (extra `serve`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np

from inlay.errors import DataError, UserError

MASK_LIMITS: Final = {"step_lexer_fuel": 200_000, "step_max_items": 50_000}
"""Work for the tokens of one step, so that no grammar holds up other answers for more than some 20 ms."""


class Grammars:
    """Grammars as rules for answers by one tokenizer: `Grammars(tokenizer, ends)(grammar)` is the rule of one answer."""

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        """`ends` are the ids that end a turn: `Encoder.stop_ids`. Raises: UserError where llguidance is not installed."""
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise UserError('grammars: need llguidance: pip install "inlay[serve]"') from error
        self._library = llguidance
        self._limits = llguidance.LLParserLimits(**MASK_LIMITS, verbose_errors=False)
        self._theirs, self._ends = tokenizer, sorted(ends)
        self._tokenizer: Any = None

    def __call__(self, grammar: str) -> GrammarConstraint:
        """The rule of a new answer. The first call takes up to a second or two, by the size of the vocabulary.

        Raises: DataError for what is no grammar.
        """
        if self._tokenizer is None:
            self._tokenizer = self._library.hf.from_tokenizer(self._theirs, eos_token=self._ends)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise DataError(f"grammar: {matcher.get_error()}")
        return GrammarConstraint(matcher, self._tokenizer.vocab_size)


class GrammarConstraint:
    """A grammar and the tokens of one answer so far; a `Constraint` of `inlay.generation.choice`."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        """`matcher` is an `LLMatcher` at its start."""
        self._matcher, self._vocabulary = matcher, vocabulary

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def allowed(self) -> np.ndarray:
        """(V,) bool: the tokens that may come next, ends of turn among them; none where the grammar takes too much work."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return np.zeros(self._vocabulary, bool)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(bool)

    def advance(self, id: int) -> None:  # noqa: A002
        """Takes in the token that was chosen."""
        self._matcher.consume_token(id)
