"""The one encoder: training, evaluation and generation get their ids here.

A conversation is rendered by its chat template and cut at the starts and ends of the assistant turns; each piece is
tokenized by itself. Trained spans are whole pieces, so no text is ever searched, no token straddles a boundary,
and the ids of a served prompt are the first ids of the training row by construction.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Final

import numpy as np

from inlay.config.sections.data import DataConfig
from inlay.data.encoding.reasoning_prefix import continues, parted
from inlay.data.encoding.refusals import RefusedConversationError
from inlay.data.encoding.rendering import MARK, RenderedConversation, Template
from inlay.data.encoding.special_token_escaping import EscapingTokenizer
from inlay.data.encoding.special_tokens import SpecialTokens, make_end_special, refuse_lost_answer, refuse_lost_prompt
from inlay.data.encoding.template_kwargs import Switch, head_of, switches_read, with_switches
from inlay.data.encoding.word_cache import AtOnce, Tokenized
from inlay.data.types import Example, Message, Source, Switches, Tool, ToolCall
from inlay.errors import DataError, ModelError

CODE_VERSION = 10
"""Raised when some row is read or encoded otherwise than before; part of the cache keys."""

QUESTION_ANSWER = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}Answer: {{ message.content }}{{ eos_token }}\n"
    "{% elif message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'tool' %}Result: {{ message.content }}\n"
    "{% else %}Question: {{ message.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""The template of a base that has none; after `{{ bos_token }}` where the tokenizer adds one."""

BATCH: Final = 256
"""Rows that are tokenized at once."""
_AHEAD = 6  # batches that may wait for their ids: enough to keep every core busy while rows are read and rendered
_MOST_TEMPLATES: Final = 64  # with switches of rows
_PROMPT, _TEMPLATE = Source("prompt", 1), Source("chat template", 1)


@dataclass(frozen=True, slots=True)
class TokenizedSequence:
    """One training sequence: token ids, and the loss weight of predicting each; 0 is not trained."""

    input_ids: np.ndarray  # (L,) int32
    weights: np.ndarray  # (L,) float32
    source: Source
    altered: tuple[str, ...] = ()
    """Alterations of the trained turns by the template, in words; not kept in a TokenSet."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    pieces: tuple[str, ...]
    weights: tuple[float, ...]
    """The weight of each piece's tokens, up to the end of turn."""
    lacks_end: bool
    """The last piece needs the end-of-sequence token after it."""
    lacks_bos: bool
    altered: tuple[str, ...] = ()


_Numbered = tuple[int, Source, _Sequence]
"""(position of the example in its batch, its source, one of its sequences)."""


class Encoder:
    """Conversations to ids for one tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: Any,
        template_file: str | None = None,
        special_tokens: str = "refuse",
        roles: Collection[str] = ("assistant",),
        template_kwargs: Mapping[str, Switch] | None = None,
        rows: int | None = None,
    ) -> None:
        """`template_file` is the file of the chat template, if it did not come with the tokenizer. `special_tokens` and
        `template_kwargs` are the settings of that name. Turns of `roles` may be trained. `rows` is the number of ids that
        the base knows, where that is known.

        Raises: ModelError for a tokenizer without an end, ConfigError for a switch that the template does not read.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "tokenizer: it names no end-of-sequence token, so an answer could never end. "
                "Set eos_token in the base's tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        self._template_file = template_file
        self._roles = frozenset({"assistant", *roles})
        self.eos_id = int(tokenizer.eos_token_id)
        has_beyond = rows is not None and max(tokenizer.get_vocab().values()) >= rows
        self.rows_known = rows if has_beyond else None
        """Number of ids that the base knows, where the tokenizer has more; else None."""
        padding = tokenizer.pad_token_id
        # padding is masked and may be any id that has a row
        self.pad_id = int(self.eos_id if padding is None or self._has_no_row(padding) else padding)
        self._bos = _added_bos(tokenizer)
        if not tokenizer.chat_template:
            tokenizer.chat_template = ("{{ bos_token }}" if self._bos else "") + QUESTION_ANSWER
        tokenizer.chat_template = with_switches(tokenizer.chat_template, template_kwargs or {})
        make_end_special(tokenizer)
        self._special = SpecialTokens(tokenizer, escapes=special_tokens == "escape")
        self._tokenize = EscapingTokenizer(tokenizer.backend_tokenizer, self._special.strings)
        self._template = Template(tokenizer, self._special)
        self._switched: dict[Switches, Template] = {}
        self.stop_ids = self._find_stop_ids()
        self.written_end = self._find_written_end()
        """The end that the template writes behind an answer, where that is text and no token; usually empty."""

    @classmethod
    def of(cls, tokenizer: Any, data: DataConfig, template_file: str | None = None, rows: int | None = None) -> Encoder:
        """The encoder of a run with these settings, for a base that knows `rows` ids."""
        roles, switches = data.weights_of_roles, data.template_kwargs
        return cls(tokenizer, template_file, data.special_tokens, roles, switches, rows)

    @property
    def own_template(self) -> bool:
        """Whether the chat template is inlay's own, as the base has none."""
        template = self.tokenizer.chat_template
        return isinstance(template, str) and template.endswith(QUESTION_ANSWER)

    @property
    def template_name(self) -> str:
        """The origin of the chat template, for people."""
        if self._template_file:
            return self._template_file
        return "question-answer (inlay's own; the base has none)" if self.own_template else "the tokenizer's own"

    @property
    def template_summary(self) -> str:
        """The origin of the chat template, and the switches that it reads, for people."""
        read = switches_read(self.tokenizer.chat_template)
        return f"{self.template_name}; reads {', '.join(read)} (data.template_kwargs)" if read else self.template_name

    @property
    def template_hash(self) -> str:
        """Hex digest of the chat template in use."""
        return hashlib.sha256(json.dumps(self.tokenizer.chat_template, sort_keys=True).encode()).hexdigest()

    @property
    def tokenizer_hash(self) -> str:
        """Hex digest of everything besides the chat template that decides the ids."""
        named: list[Any] = [self.eos_id, self._bos, sorted(self._special.ids), self.tokenizer.special_tokens_map]
        named += ["escape"] if self._special.escapes else []
        named += [sorted(self._roles)] if len(self._roles) > 1 else []
        whole = self.tokenizer.backend_tokenizer.to_str() + json.dumps(named, sort_keys=True, default=str)
        return hashlib.sha256(whole.encode()).hexdigest()

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = (), switches: Switches = ()) -> list[int]:
        """The ids that generation starts from: the conversation and the opening of an assistant turn.

        `switches` are those that the conversation's row sets for the chat template.

        Raises: DataError for text that the tokenizer would read as a special token (unless it is escaped), for a
        conversation that the template refuses or shortens, and for a token that the base does not know.
        """
        ids = self._prompt(messages, tools, switches)
        self._require_rows(ids, _PROMPT)
        return ids

    def _prompt(self, messages: Sequence[Message], tools: Sequence[Tool], switches: Switches) -> list[int]:
        messages, tools = self._special.without(messages, tools, _PROMPT)
        if _is_document(messages):
            return [*self._bos, *self._tokenize([messages[0].content], [True])[0].tolist()]
        conversation = RenderedConversation(self._template_with(switches, _PROMPT), messages, tools, _PROMPT)
        messages = conversation.messages
        try:
            text = conversation.prompt(len(messages))
        except RefusedConversationError as refusal:
            raise conversation.explained(refusal) from None
        refuse_lost_prompt(text, messages, tools, _PROMPT)
        pieces = _cut(text, conversation.boundaries(text, len(messages), self._roles))
        ids = self._tokenize(pieces, [k == 0 for k in range(len(pieces))])
        return [i for piece in ids for i in piece.tolist()]

    def answer_with_calls(self, calls: Sequence[ToolCall], tools: Sequence[Tool]) -> str | None:
        """The text of an answer that makes these calls, without special tokens; None where the template shows none."""
        messages = [Message("user", "a"), Message("assistant", "", 0.0, tuple(calls))]
        conversation = RenderedConversation(self._template, messages, tools, _TEMPLATE)
        try:
            prompt, whole = conversation.prompt(1), conversation.rendered(2)
            answer = whole[len(prompt) :] if whole.startswith(prompt) else conversation.continuation(1)
        except DataError:
            return None
        for string in self._special.strings:
            answer = answer.replace(string, "")
        return answer

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens and without an end that the template writes as text."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return text.removesuffix(self.written_end).strip() if self.written_end else text

    def piece(self, id: int) -> str:  # noqa: A002
        """The text of one token. A part of a character, or a leading space, is as the vocabulary has it."""
        text, raw = str(self.tokenizer.decode([id])), str(self.tokenizer.convert_ids_to_tokens(id))
        return raw.replace("\u2581", " ") if raw.startswith("\u2581") else raw if "\ufffd" in text else text

    def stretch(self, ids: Sequence[int], start: int, end: int) -> str:
        """The text of the ids from `start` to `end`, as it follows the ids before."""

        def decoded(some: Sequence[int]) -> str:
            return str(self.tokenizer.decode(some, clean_up_tokenization_spaces=False))

        if start == 0:
            return decoded(ids[:end])
        before, whole = decoded(ids[start - 1 : start]), decoded(ids[start - 1 : end])  # a first token may lose a space
        return whole[len(before) :] if whole.startswith(before) else decoded(ids[start:end])

    def examples(self, examples: Iterable[Example], *, beside: bool = True) -> Iterator[tuple[int, TokenizedSequence]]:
        """(position of the example, training sequence), usually one a row; one a trained turn where the template rewrites
        earlier turns. `beside` as in `batches`."""
        first = 0
        for rows, sequences in self.batches(examples, beside=beside):
            yield from ((first + n, tokens) for n, tokens in sequences)
            first += rows

    def batches(
        self, examples: Iterable[Example], *, beside: bool = True
    ) -> Iterator[tuple[int, list[tuple[int, TokenizedSequence]]]]:
        """(number of rows, their sequences), batch by batch; each sequence with the position of its row in the batch.

        With `beside`, new words are tokenized while the next rows are read; without, at once.
        """
        rows = iter(examples)
        waiting: deque[tuple[int, list[_Numbered], Tokenized]] = deque()
        # tokenizing happens outside of Python: of two threads one hands over texts and ids while the other works
        with ThreadPoolExecutor(2) if beside else AtOnce() as pool:
            while batch := list(islice(rows, BATCH)):
                sequences = [(n, e.source, s) for n, e in enumerate(batch) for s in self._sequences(e)]
                texts = [piece for _, _, s in sequences for piece in s.pieces]
                starts = [k == 0 for _, _, s in sequences for k in range(len(s.pieces))]
                waiting.append((len(batch), sequences, self._tokenize.begin(texts, starts, pool)))
                if len(waiting) > _AHEAD:
                    yield self._assembled(*waiting.popleft())
            while waiting:
                yield self._assembled(*waiting.popleft())

    def _assembled(
        self, rows: int, sequences: list[_Numbered], tokenized: Tokenized
    ) -> tuple[int, list[tuple[int, TokenizedSequence]]]:
        ids = iter(tokenized())
        return rows, [(n, self._assemble(s, [next(ids) for _ in s.pieces], source)) for n, source, s in sequences]

    def _sequences(self, example: Example) -> list[_Sequence]:
        source = example.source
        messages, tools = self._special.without(example.messages, example.tools, source)
        if _is_document(messages):
            return [_Sequence((messages[0].content,), (messages[0].weight,), True, True)]
        template = self._template_with(example.switches, source) if example.switches else self._template
        conversation = RenderedConversation(template, messages, tools, source)
        messages = conversation.messages
        remaining = [n for n, m in enumerate(messages) if m.weight > 0]
        found = []
        while answers := [n for n in remaining if messages[n].role == "assistant"]:
            try:
                sequence, done = self._sequence_ending_at(answers[-1], remaining, conversation, template)
            except RefusedConversationError as refusal:
                raise conversation.explained(refusal) from None
            found.append(sequence)
            remaining = [n for n in remaining if n not in done]
        if remaining:
            n, role = remaining[0], messages[remaining[0]].role
            raise DataError(
                f"{source}: the chat template moves or merges turn {n + 1} ({role}), so its beginning and end are unknown "
                f"and it cannot be trained. Leave {role} out of data.role_weights, or use another template."
            )
        return found[::-1]

    def _sequence_ending_at(
        self, last: int, wanted: Sequence[int], conversation: RenderedConversation, template: Template
    ) -> tuple[_Sequence, set[int]]:
        """(the sequence that ends with the answer at `last`, the wanted turns that it trains)."""
        prompt, whole = conversation.prompt(last), conversation.rendered(last + 1)
        answer = whole[len(prompt) :]
        opens = template.opens_thought
        if not whole.startswith(prompt) or (opens and conversation.lacks_thought(last, answer)):
            answer = conversation.continuation(last)
        refuse_lost_prompt(prompt, conversation.messages[:last], conversation.tools, conversation.source)
        boundaries = conversation.boundaries(prompt, last, self._roles)
        cuts = [*_cut(prompt, boundaries), answer]
        weights = [0.0] * len(cuts)
        weights[-1] = conversation.messages[last].weight
        done = {last}
        for k, (turn, _, _) in enumerate(boundaries):
            # an answer without an end is a sequence of its own, so that eos follows; one without its thought, too
            answers, text = conversation.messages[turn].role == "assistant", cuts[2 * k + 1]
            if turn not in wanted:
                continue
            if not answers or (self._special.closing(text) and not (opens and conversation.lacks_thought(turn, text))):
                weights[2 * k + 1] = conversation.messages[turn].weight
                done.add(turn)
        trained = [(turn, cuts[2 * k + 1], cuts[2 * k]) for k, (turn, _, _) in enumerate(boundaries) if turn in done]
        trained.append((last, answer, cuts[-2]))
        for turn, text, before in trained:
            message = conversation.messages[turn]
            refuse_lost_answer(before, text, turn, message, conversation.source, lambda: template.way_to_think)
        lacks_end = self._special.closing(answer) is None
        altered = tuple(
            [words for turn, text, _ in trained if (words := _altered(text, turn, conversation.messages[turn]))]
        )
        return _Sequence(tuple(cuts), tuple(weights), lacks_end, False, altered), done

    def _template_with(self, switches: Switches, source: Source) -> Template:
        """The chat template with these switches. Raises: DataError for one that is on and that it does not read."""
        if switches not in self._switched:
            read = switches_read(self.tokenizer.chat_template)
            if lost := [name for name, value in switches if name not in read and value is not False]:
                reads = f"It reads {', '.join(read)}." if read else "It reads none."
                raise DataError(
                    f"{source}: the row sets the switch {lost[0]!r}, and the chat template reads no switch of that name. "
                    f"{reads} Take it out of the row, or use another template (model.chat_template)."
                )
            if len(self._switched) >= _MOST_TEMPLATES:
                self._switched = {}
            known = [(name, value) for name, value in switches if name in read]
            self._switched[switches] = (
                Template(self.tokenizer, self._special, head_of(known)) if known else self._template
            )
        return self._switched[switches]

    def _assemble(self, sequence: _Sequence, ids: list[np.ndarray], source: Source) -> TokenizedSequence:
        parts, spans, length = list(ids), [], 0
        if sequence.lacks_bos:
            parts.insert(0, np.array(self._bos, np.int32))
            length = len(self._bos)
        for weight, piece_ids in zip(sequence.weights, ids, strict=True):
            if weight > 0:
                spans.append((length, length + self._special.end_of_turn(piece_ids), weight))
            length += len(piece_ids)
        if sequence.lacks_end:
            parts.append(np.array([self.eos_id], np.int32))
            spans.append((length, length + 1, sequence.weights[-1]))
            length += 1
        weights = np.zeros(length, np.float32)
        for start, end, weight in spans:
            weights[start:end] = weight
        weights[0] = 0.0  # nothing comes before it to predict it from
        whole = np.concatenate(parts)
        if self.rows_known is not None:
            self._require_rows(whole, source)
        return TokenizedSequence(whole, weights, source, sequence.altered)

    def _has_no_row(self, id: int) -> bool:  # noqa: A002
        return self.rows_known is not None and id >= self.rows_known

    def _require_rows(self, ids: Sequence[int] | np.ndarray, source: Source) -> None:
        """Raises: DataError for an id that the base does not know."""
        if self.rows_known is None or not self._has_no_row(largest := int(max(ids, default=0))):
            return
        token = str(self.tokenizer.convert_ids_to_tokens(largest))
        raise DataError(
            f"{source}: holds the token {token!r} with the id {largest}, but the base knows only {self.rows_known} ids. It was "
            "added to the tokenizer and not to the base: take it out of the tokenizer, or out of the text."
        )

    def _find_stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the end-of-sequence token and the template's own ends of turn."""
        call: ToolCall = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {}}}
        tool: Tool = {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": {"type": "object"}},
        }
        found = {self.eos_id}
        for answer, tools in ((Message("assistant", "b"), []), (Message("assistant", "", 0.0, (call,)), [tool])):
            conversation = RenderedConversation(self._template, [Message("user", "a"), answer], tools, _TEMPLATE)
            if (text := conversation.try_rendered(2)) and (closing := self._special.closing(text)):
                found.add(int(self.tokenizer.convert_tokens_to_ids(closing)))
        return frozenset(found)

    def _find_written_end(self) -> str:
        """The end that the template writes behind an answer, where that is text and no token; usually empty."""
        text = RenderedConversation(
            self._template, [Message("user", "a"), Message("assistant", MARK)], [], _TEMPLATE
        ).try_rendered(2)
        end = text.partition(MARK)[2].strip() if text else ""
        return "" if self._special.closing(end) else end


def _is_document(messages: Sequence[Message]) -> bool:
    return len(messages) == 1 and messages[0].role == "text"


def _added_bos(tokenizer: Any) -> list[int]:
    """The BOS that the tokenizer puts before plain text, or nothing."""
    bos = tokenizer.bos_token_id
    return [int(bos)] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _altered(text: str, n: int, message: Message) -> str:
    """The difference between a template's rendering of turn `n` (from 0) and its text, in words; empty for none."""
    content = message.content
    if content in text or continues(content, text):
        return ""
    if content.strip() in text:
        ends = [where for where, part in (("before", content[:1]), ("after", content[-1:])) if part.isspace()]
        return f"white space {' and '.join(ends)} turn {n + 1} is not trained as written"
    thought, rest = parted(content)
    if thought and rest.strip() in text:
        return f"the thought of turn {n + 1} is written otherwise"
    return f"turn {n + 1} is written otherwise"


def _cut(text: str, boundaries: Sequence[tuple[int, int, int]]) -> list[str]:
    """The text between and inside the boundaries, in order: outside, inside, outside, …"""
    if not boundaries:
        return [text]
    points = [0, *(p for _, start, end in boundaries for p in (start, end)), len(text)]
    return [text[a:b] for a, b in pairwise(points)]
