"""A chat template's own refusal of a conversation: the turn that it refuses, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from inlay.data.types import Message, Source
from inlay.errors import DataError

_ABOUT_IDS: Final = re.compile(r"\bids?\b", re.IGNORECASE)
_ABOUT_NINE: Final = re.compile(r"\b(9|nine)\b", re.IGNORECASE)


class RefusedConversationError(DataError):
    """A conversation that the chat template refuses, with the template's reason."""

    def __init__(self, source: Source, reason: str, count: int) -> None:
        """`count`: number of turns that were rendered."""
        super().__init__(f"{source}: the chat template refuses this conversation: {reason}")
        self.source, self.reason, self.count = source, reason, count


def explained(
    refusal: RefusedConversationError, messages: Sequence[Message], refuses: Callable[[int], str | None]
) -> DataError:
    """The refusal with the first turn at which the template gives its reason, and what to change there.

    `refuses` has the reason that the template gives for the first so many turns, or None.
    """
    turn = next((n for n in range(1, refusal.count) if refuses(n) == refusal.reason), refusal.count)
    way = _way_out(messages[:turn], refusal.reason)
    return DataError(
        f"{refusal.source}: the chat template refuses turn {turn} ({messages[turn - 1].role}): {refusal.reason.rstrip('.')}. "
        f"{way}, or use another template (model.chat_template)."
    )


def _way_out(turns: Sequence[Message], reason: str) -> str:
    """The change of the last of these turns that lets the template take it."""
    turn, before = turns[-1], turns[-2] if len(turns) > 1 else None
    if (turn.tool_calls or turn.role == "tool") and _ABOUT_IDS.search(reason):
        form = " of nine letters and digits" if _ABOUT_NINE.search(reason) else ""
        written = "Write the call as tool_calls of the turn, and give" if turn.written else "Give"
        return f'{written} each call an "id"{form}, and the tool turn that answers it the same "tool_call_id"'
    if turn.role == "system":
        return f"Write the text of the system turn {'into the first' if before is None else 'into the next'} user turn"
    if turn.role == "assistant" and not any(one.role == "user" for one in turns):
        return "Put the user turn that it answers before it, or take this greeting out"
    if before and before.role == turn.role:
        return f"Join it with turn {len(turns) - 1}, which has the same role"
    if turn.role == "tool" or turn.tool_calls:
        return "Calls and tool turns need a template that takes them in this order: change the turn"
    return "Change the turn"
