"""Tokenizers of the base and of adapters in the engine child, where each answer ends and becomes text by its own."""

from __future__ import annotations

from inlay.adapters.reference import Reference
from inlay.data.encoding.encoder import Encoder
from inlay.generation.constraint import GrammarConstraint, Grammars
from inlay.generation.request import Ask
from inlay.generation.text import AnswerText, Detokenizer
from inlay.serving.opening import opened
from inlay.tasks.opened_base import OpenedBase


class Tokenizers:
    """Ends of turns and texts of answers, by the tokenizer and template of the base or of an adapter."""

    def __init__(self, base: OpenedBase) -> None:
        self._base = base.encoder, Detokenizer(base.tokenizer)
        self._own: dict[str, tuple[Encoder, Detokenizer]] = {}
        self._grammars: dict[str | None, Grammars] = {}

    def add(self, digest: str, named: Reference) -> None:
        """Opens those of an adapter, where they are others than the base's."""
        own = self._base[0]
        card = named.entry.card if named.entry is not None else None
        if card is None or (card.tokenizer_hash, card.chat_template_hash) != (own.tokenizer_hash, own.template_hash):
            encoder = opened(named).encoder
            self._own[digest] = encoder, Detokenizer(encoder.tokenizer)

    def remove(self, digest: str) -> None:
        """Forgets those of an adapter."""
        self._own.pop(digest, None)
        self._grammars.pop(digest, None)

    def text(self, ask: Ask) -> AnswerText:
        """The text of an answer, token by token."""
        return self._of(ask.adapter)[1].answer(ask.sampling.stop)

    def rule(self, ask: Ask) -> GrammarConstraint:
        """The grammar of an answer, token by token. Raises: DataError for what is no grammar."""
        assert ask.grammar is not None
        digest = ask.adapter if ask.adapter in self._own else None
        if digest not in self._grammars:
            encoder = self._of(digest)[0]
            self._grammars[digest] = Grammars(encoder.tokenizer, encoder.stop_ids)
        return self._grammars[digest](ask.grammar)

    def stop_ids(self, digest: str | None) -> frozenset[int]:
        """Ids that end an answer of an adapter, or of the base."""
        return self._of(digest)[0].stop_ids

    def _of(self, digest: str | None) -> tuple[Encoder, Detokenizer]:
        return self._own.get(digest, self._base) if digest is not None else self._base
