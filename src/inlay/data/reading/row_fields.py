"""Fields of a row that its format does not read: a note, or something that must not be lost silently.

A format that is named leaves such a field out knowingly; one that was found from the fields does not. `KINDS` is the
table, and the page on data is written from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from inlay.data.reading.settings_to_type import columns_to_type, format_to_type
from inlay.data.reading.strict_json import listed, shown
from inlay.data.reading.turn_fields import THOUGHTS
from inlay.data.types import Row
from inlay.errors import DataError

SYSTEMS: Final = ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction")
"""The system turn beside the other turns, in every format but `text`."""
# fmt: off
TEXT_NOTES: Final = frozenset({
    "id", "uid", "uuid", "idx", "index", "source", "src", "url", "uri", "file", "path", "title", "name",
    "author", "date", "time", "timestamp", "created", "lang", "language", "license", "licence", "meta",
    "metadata", "split", "subset", "section", "chapter", "page", "domain", "dataset",
})
# fmt: on
"""Fields allowed beside `text` in a file of plain documents; any other could be a label or an answer."""
NOTES: Final = TEXT_NOTES | {
    "prompt_id", "question_id", "example_id", "custom_id", "task_id", "conversation_id", "session_id", "user_id",
    "version", "hash", "created_at", "updated_at", "model", "schemaVersion", "parallel_tool_calls",
}  # fmt: skip
"""Fields without anything to learn from."""
SWITCHES: Final = ("chat_template_kwargs", "enable_thinking")
"""Fields with switches of the chat template, in every format but `text`."""
GREETING: Final = "the greeting in the first turn"
"""The name of an assistant turn before all others, among the parts of a row that have no effect."""
UNANSWERED: Final = "the turns after the last answer"
"""The name of a question at the end of a conversation, among the parts of a row that have no effect."""
COSTS: Final = {
    **dict.fromkeys(("rejected", "rejected_response", "rejected_messages", "rejected_output"), "not learned from"),
    **dict.fromkeys(("score", "reward", "rating", "score_chosen", "score_rejected"), "rows of every score count the same"),
    GREETING: "read and not trained, as it answers nothing",
    UNANSWERED: "not read, as no answer follows them",
}  # fmt: skip
"""The cost of leaving a field out, where the model loses more than its text."""
PARTS: Final = (GREETING, UNANSWERED)
"""Parts of a row that have no effect and are no fields."""
TURNS: Final = frozenset({"messages", "conversations", "contents", "chosen", "preferred_output"})
_NO: Final[tuple[Any, ...]] = (None, "", [], {})
_BAD: Final = (
    "bad", "poor", "low", "negative", "down", "thumbs_down", "thumbs down", "thumbs-down", "thumbsdown", "👎", "dislike",
    "disliked", "downvote", "wrong", "incorrect", "reject", "rejected", "unacceptable", "fail", "failed",
)  # fmt: skip
CONTEXTS: Final = (
    "context", "contexts", "passage", "passages", "document", "article", "paragraph", "background", "evidence", "knowledge",
    "support", "body", "story",
)  # fmt: skip
"""Usual names of a column with what a question is about."""
SPLITS: Final = ("split", "set", "subset", "partition", "fold", "data_split", "dataset_split")
"""Columns that may say which rows are for training and which for testing."""
RATINGS: Final = ("rating", "ratings", "stars", "star_rating")
"""Columns that rate the answers of a file on one scale."""
_GOOD, _BEST = 4, 10  # a rating from which a scale is one of quality, and the best of any
BY_FILE: Final = frozenset({*SPLITS, *RATINGS})
"""Columns of which the meaning shows over the rows of a file."""
_FALSE, _TRUE = ("false", "0", "-1", "no", "bad", "undesirable"), ("true", "1", "yes", "good")


def is_empty(value: object) -> bool:
    """Whether a field has no value that could be lost."""
    return value in _NO or (isinstance(value, str) and not value.strip())


def _says(value: object, *words: str) -> bool:
    """Whether a value is one of the words, however it is written."""
    return isinstance(value, bool | int | float | str) and str(value).strip().lower().removesuffix(".0") in words


def _is_not_one(value: object) -> bool:
    return not _says(value, "1", "true")


@dataclass(frozen=True, slots=True)
class Kind:
    """Fields of one meaning, and the refusal of rows that have one."""

    names: tuple[str, ...]
    harms: Callable[[Any], bool]
    """Whether leaving out this value would train something else than intended."""
    why: str
    """The harm, as a clause."""
    way: str
    """The way out, as a sentence."""
    when: str = "anything in it"
    """The values that harm, for the page on data."""
    always: bool = False
    """Also where the format was named."""
    beside_turns: bool = True
    """Also in rows whose turns stand in a list."""


_LETTERS: Final = re.compile(r"(option|choice|ending|opt?|ans|sol)?[_ ]?([A-Ea-e1-5])")
_JUDGED: Final = "rows are judged good or bad, and training on this one would teach what is bad"
_KEEP: Final = "Keep the rows that are judged good"
_INTO: Final = "Take it in ({columns})"
_ANYTHING: Final = lambda _: True  # noqa: E731  a value that is there at all

KINDS: Final = (
    Kind(
        ("image", "images", "image_path", "image_url", "video", "videos", "audio", "audios"), _ANYTHING,
        "the model would not see or hear it, and learn to answer without it", "Remove the row, or the field where the "
        "text needs none", always=True,
    ),
    Kind(
        ("label", "kto_tag", "desirable", "is_desirable", "accepted", "correct", "is_correct", "is_good", "good",
         "preferred", "is_preferred"),
        lambda value: _says(value, *_FALSE), _JUDGED, _KEEP, when="false, 0, -1, no, bad or undesirable",
    ),
    Kind(
        ("quality", "feedback", "vote", "thumbs", "thumb", "reaction", "verdict", "judgement", "judgment"),
        lambda value: _says(value, *_FALSE, *_BAD), _JUDGED, _KEEP, when="false, 0, bad, low, thumbs_down and their like",
    ),
    Kind(("rejected", "is_rejected", "is_bad", "bad"), lambda value: _says(value, *_TRUE), _JUDGED, _KEEP,
         when="true, 1, yes or good"),
    Kind(
        ("score", "reward", "rating"),
        lambda value: (isinstance(value, bool | int | float) and value <= 0) or _says(value, *_BAD), _JUDGED, _KEEP,
        when="0 or less, bad, thumbs_down and their like",
    ),
    Kind(
        ("weight", "sample_weight", "example_weight", "loss_weight", "loss_mask"), _is_not_one,
        "it could be how much the row counts, and every row would count the same",
        "Write it as the weight of the row's turns (messages), or remove the field where it is none",
        when="anything but 1",
    ),
    Kind(("train", "training", "trainable", "loss"), lambda value: _says(value, "false"),
         "the row is marked as not to be trained", "Remove the row", when="false"),
    Kind(("mask",), lambda value: not _says(value, "user", "human", "prompt", "system"),
         "it says which turns are not trained", "Write train: false into those turns",
         when="anything but user"),
    Kind(
        ("documents",), _ANYTHING, "the answer would be learned without the text it is about",
        "Write it into the question",
    ),
    Kind(
        (*CONTEXTS, "input", "instruction"), _ANYTHING,
        "the model would not see it beside the question", _INTO, beside_turns=False,
    ),
    Kind(
        ("options", "choices"), _ANYTHING, "the model would not see the choices", "Write them into the question as the model "
        'is to read them, each on a line of its own ("A. first"), and the answer as it shall write it', beside_turns=False,
    ),
    Kind(("history",), _ANYTHING, "the model would not see the turns before the question",
         "Write the turns as messages"),
    Kind(("tools", "functions"), _ANYTHING, "the model would not be shown the tools", "Write the row as messages"),
    Kind(
        (*THOUGHTS, "think", "chain_of_thought", "cot"), _ANYTHING,
        "it could be the reasoning before the answer, which would not be trained",
        "Write it as reasoning_content of the answer's turn (messages)",
    ),
)  # fmt: skip
_BY_NAME: Final = {name: kind for kind in KINDS for name in kind.names}


def unread(
    row: Row, format_name: str, known: Collection[str], pair: tuple[str, str], *, strict: bool
) -> tuple[str, ...]:
    """The fields of the row that are not `known`, where something stands in them.

    `pair`: the fields of question and answer. With `strict` a field that must not be lost is refused. Without, the format
    was named, and only fields that no text model can read are refused.

    Raises:
        DataError: one of them carries meaning.
    """
    extra = [name for name in row.value if name not in known and not is_empty(row.value[name])]
    turns = any(isinstance(row.value.get(name), list | dict) for name in TURNS)
    for name in extra:
        kind, value = _BY_NAME.get(name) or _BY_NAME.get(name.lower()), row.value[name]
        if kind and (strict or kind.always) and (kind.beside_turns or not turns) and kind.harms(value):
            columns = columns_to_type({"instruction": pair[0], "input": name, "output": pair[1]})
            way = kind.way.format(columns=columns)
            _refuse(row, name, kind.why, way, None if kind.always else format_name)
    if strict and len(extra) > 1 and not turns and (letters := _lettered(extra)):
        _refuse(row, letters[0], f"the model would not see the choices {', '.join(letters)}",
                "Write them into the question", format_name)  # fmt: skip
    return tuple(extra)


def _refuse(row: Row, name: str, why: str, way: str, format_name: str | None) -> NoReturn:
    out = f", or leave the field out by naming the format ({format_to_type(format_name)})" if format_name else ""
    raise DataError(f"{row.source}: field {name!r} is {shown(row.value[name])}: {why}. {way}{out}.")


def _lettered(names: Iterable[str]) -> list[str]:
    """The fields that are two or more choices of one question: A, B, C, or option_1, option_2."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if found := _LETTERS.fullmatch(name):
            groups.setdefault(found[1] or "", []).append(name)
    return next((group for group in groups.values() if len(group) > 1), [])


class OneSplit:
    """Refuses rows for training and for testing in one file, and rows rated low beside rows rated high."""

    _TRAIN, _TEST = (
        ("train", "training"),
        ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "heldout", "held_out"),
    )

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._lowest: dict[str, tuple[float, Row]] = {}
        self._highest: dict[str, float] = {}

    def see(self, row: Row, format_name: str) -> None:
        """Looks at one row. Raises: DataError for the first row of the other split."""
        for name in SPLITS:
            if name in row.value:
                self._see(row, name, format_name)

        for name in RATINGS:
            if name in row.value:
                self._rate(row, name, format_name)

    def _rate(self, row: Row, name: str, format_name: str) -> None:
        try:
            rating = float(row.value[name])
        except (TypeError, ValueError):
            return
        low = self._lowest[name] = min(self._lowest.get(name, (rating, row)), (rating, row), key=lambda one: one[0])
        high = self._highest[name] = max(self._highest.get(name, rating), rating)
        if _GOOD <= high <= _BEST and low[0] <= high / 2:
            _refuse(low[1], name, f"other rows are rated {high:g}, and training on this one would teach what is bad",
                    "Keep the rows that are rated high", format_name)  # fmt: skip

    def _see(self, row: Row, name: str, format_name: str) -> None:
        value = str(row.value[name]).strip().lower()
        kind = "train" if value in self._TRAIN else "test" if value in self._TEST else ""
        if kind and kind != self._first.setdefault(name, kind):
            raise DataError(
                f"{row.source}: field {name!r} is {shown(row.value[name])}, while rows before are of the other kind, and "
                "both would be trained on. Write the rows to train on and those to hold out into two files (data.train, "
                f"data.eval), or take all together by naming the format ({format_to_type(format_name)})."
            )


def cost(name: str) -> str:
    """The cost of a field having no effect, as a clause."""
    return COSTS.get(name, "the model never sees it")


def summary(names: Collection[str]) -> str:
    """Fields that are not read, and the cost of that, in a few words."""
    costs = {cost(name) for name in names if name not in NOTES}
    return listed(names) + (f" ({'; '.join(sorted(costs))})" if costs else "")


def table() -> list[tuple[tuple[str, ...], str]]:
    """(fields of a row that are not of its format, what inlay does with them), for the page on data."""
    rows: list[tuple[tuple[str, ...], str]] = [
        (SYSTEMS, "the system turn, in every format but `text`; refused where the turns have another one"),
        (
            SWITCHES,
            "switches of the chat template for this row, in every format but `text`; refused where the template reads "
            "no such switch, unless it is off",
        ),
    ]
    for kind in KINDS:
        where = "" if kind.beside_turns else ", where the row is no list of turns"
        rows.append(
            (kind.names, f"{kind.when}{where}: {'always refused' if kind.always else 'refused'}, as {kind.why}")
        )
    costs = {why: tuple([name for name, cost in COSTS.items() if cost == why]) for why in COSTS.values()}
    return [
        *rows,
        (
            ("A", "B", "option_1", "option_2"),
            "two or more choices like these: refused, as the model would not see them",
        ),
        (RATINGS, "low ratings in a file whose best is 4 to 10: a rating up to half of the best is refused"),
        (SPLITS, "rows for training and for testing in one file: refused, as both would be trained on"),
        *((names, f"named as ignored: {why}") for why, names in costs.items() if names[0] not in PARTS),
        (tuple(sorted(NOTES)), "named as ignored: nothing to learn from"),
        ((), "named as ignored: the model never sees it"),
    ]


def markdown(rows: Iterable[tuple[Iterable[str], str]], of: str) -> str:
    """A table of fields as the page on data has it."""
    lines = [f"| field of a {of} | what inlay does |", "|---|---|"]
    for names, does in rows:
        lines.append(f"| {', '.join(f'`{name}`' for name in names) or 'any other'} | {does} |")
    return "\n".join(lines) + "\n"
