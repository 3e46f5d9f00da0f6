"""Fields of a turn beside role and content: weights, thoughts, ids, and notes.

A field of a turn is read, or is a note that nothing needs, or is refused by name.
"""

from __future__ import annotations

import math
from typing import Any, Final

from inlay.data.reading.values import refuse_field, text
from inlay.data.types import Row
from inlay.errors import DataError, nearest
from inlay.typed_json import JsonObject

WEIGHTS: Final = ("weight", "loss_weight", "loss_scale")
"""Fields with the weight of each token of a turn."""
SWITCHES: Final = ("loss", "train", "training", "loss_mask")
"""Fields that train a turn (true or 1) or mask it (false or 0)."""
THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking", "thought")
"""Fields with the reasoning before an answer."""
# fmt: off
NOTES: Final = frozenset({
    "id", "uid", "uuid", "index", "idx", "turn", "turn_id", "turn_index", "message_id", "msg_id", "parent_id",
    "timestamp", "time", "date", "created", "created_at", "create_time", "updated_at", "model", "model_name",
    "provider", "source", "lang", "language", "meta", "metadata", "annotations", "usage", "tokens", "token_count",
    "num_tokens", "n_tokens", "finish_reason", "stop_reason", "logprobs", "object", "system_fingerprint",
})
# fmt: on
"""Fields of a turn that change nothing in what is trained."""
READ: Final = frozenset({
    "role", "content", "from", "value", "parts", "name", "tool_calls", "function_call", "tool_call_id",
    *WEIGHTS, *SWITCHES, *THOUGHTS,
})  # fmt: skip
KNOWN: Final = READ | NOTES
_NO: Final[tuple[Any, ...]] = (None, "", [], {})


_OTHER_STYLE: Final = {
    "content": ("from", "value", "parts"),
    "value": ("role", "content", "parts"),
    "parts": ("from", "value", "content"),
}


def refuse_unknown(row: Row, where: str, turn: JsonObject, text_field: str) -> None:
    """Raises: DataError for a field with something in it that is neither read nor a note.

    `text_field`: the field of the turn's text."""
    for key, value in turn.items():
        if (key in KNOWN and key not in _OTHER_STYLE[text_field]) or value in _NO:
            continue
        guess = nearest(key, READ)
        hint = f" Did you mean {guess!r}?" if guess else ""
        refuse_field(
            row,
            f"{where}.{key}",
            value,
            f"inlay does not read this field of a turn, so it would be lost.{hint} Read are "
            f"{', '.join(sorted(READ - {'from', 'value', 'role', 'content', 'parts'}))}. Take it out, or write it as one of these.",
        )


def weight(row: Row, where: str, turn: JsonObject, role: str, *, trained: bool) -> float:
    """The weight of a turn: its own, else that of its role where turns like it are `trained`, times that of its role.

    Raises:
        DataError: a weight that is none, two that differ, or one of a role that is not trained.
    """
    given = {name: turn[name] for name in (*WEIGHTS, *SWITCHES) if turn.get(name) is not None}
    of_role = row.role_weights.get(role, 0.0)
    if not given:
        return of_role if trained else 0.0
    own = {name: _number(row, f"{where}.{name}", value, name) for name, value in given.items()}
    masks = [name for name, value in own.items() if not value]
    counted = [value for name, value in own.items() if name in WEIGHTS]
    if (masks and len(masks) < len(own)) or len(set(counted)) > 1:
        weights = ", ".join(f"{name} {value:g}" for name, value in own.items())
        raise DataError(f"{row.source}: field {where!r} has weights that contradict each other ({weights}). Keep one.")
    value = 0.0 if masks else counted[0] if counted else 1.0
    if value and not of_role:
        trained_on = " and ".join(name for name, weight in row.role_weights.items() if weight)
        refuse_field(
            row,
            f"{where}.{next(iter(given))}",
            next(iter(given.values())),
            f"Only {trained_on} turns are trained on; set data.role_weights.{role}, or weight 0.",
        )
    return value * of_role


def _number(row: Row, field: str, value: object, name: str) -> float:
    if name in SWITCHES:
        if isinstance(value, bool | int | float) and value in (0, 1):
            return float(value)
        refuse_field(row, field, value, "It must be true or 1 to train on the turn, false or 0 to mask it.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse_field(row, field, value, "It must be a number, 0 to mask the turn or above 0 to train on it.")
    if not 0 <= value < math.inf or value > 1e6:
        refuse_field(row, field, value, "It must be a finite number from 0 to 1e6; 0 masks the turn.")
    return float(value)


def thought(row: Row, where: str, turn: JsonObject, role: str) -> tuple[str, str]:
    """(the reasoning before an answer, the name of its field); empty where there is none."""
    given = {name: turn[name] for name in THOUGHTS if turn.get(name) is not None}
    given_texts = {name: text(row, f"{where}.{name}", value, may_be_empty=True) for name, value in given.items()}
    texts = {name: value for name, value in given_texts.items() if value.strip()}
    if not texts:
        return "", ""
    name, value = next(iter(texts.items()))
    if role != "assistant":
        refuse_field(row, f"{where}.{name}", value, f"Only an assistant turn has a thought, not {role!r}.")
    if len(set(texts.values())) > 1:
        raise DataError(f"{row.source}: field {where!r} has thoughts that differ ({', '.join(texts)}). Keep one.")
    return value, name


def tool_call_id(row: Row, where: str, turn: JsonObject, role: str) -> str | None:
    """The id of the call that a tool's answer is for."""
    value = turn.get("tool_call_id")
    if value is None or value == "":
        return None
    if role != "tool":
        refuse_field(row, f"{where}.tool_call_id", value, f"Only a tool turn answers a call, not {role!r}.")
    return text(row, f"{where}.tool_call_id", value)


def table() -> list[tuple[tuple[str, ...], str]]:
    """(fields of a turn, what inlay does with them), for the page on data."""
    return [
        (("role", "content", "from", "value", "parts"), "the speaker and the text"),
        (WEIGHTS, "each token of the turn counts so much; 0 masks it"),
        (SWITCHES, "false or 0 masks the turn, true or 1 trains it; refused where two of these contradict each other"),
        (THOUGHTS, "given to the chat template under the name that it shows, and trained; refused where it shows none"),
        (("tool_calls", "function_call"), "the calls of an answer, which the template writes"),
        (("tool_call_id",), "given to the template, of a tool's turn"),
        (("name",), "given to the template"),
        (tuple(sorted(NOTES)), "ignored: nothing to learn from"),
        ((), "refused by name, if there is something in it"),
    ]
