"""Conversations that a chat template has written already, back to their turns.

Read are texts that are nothing but turns in one well-known markup: ChatML, Llama 3, Gemma, Phi and Zephyr, Llama 2 and
Mistral. The template of the base then writes them anew, so that special tokens are special and answers can be found.
"""

from __future__ import annotations

import re
from typing import Final

_ROLES: Final = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "model": "assistant",
    "tool": "tool", "ipython": "tool",
}  # fmt: skip
_BEGIN: Final = r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*"
_LOOKS: Final = re.compile(
    _BEGIN + r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|<\|(?:system|user|assistant)\|>)"
)
_TURNS: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<\|im_start\|>(?P<role>\w+)\n(?P<said>.*?)<\|im_end\|>\s*",
        r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n(?P<said>.*?)<\|eot_id\|>\s*",
        r"<start_of_turn>(?P<role>\w+)\n(?P<said>.*?)<end_of_turn>\s*",
        r"<\|(?P<role>system|user|assistant)\|>\n(?P<said>.*?)(?:<\|end\|>|</s>|<\|endoftext\|>)\s*",
    )
)
"""One turn of each markup in which every turn names its role."""
_PAIR: Final = re.compile(
    r"(?:<s>)?\s*\[INST\] ?(?:<<SYS>>\n(?P<system>.*?)\n<</SYS>>\n\n)?(?P<asked>.*?) ?\[/INST\] ?(?P<said>.*?) ?</s>\s*",
    re.DOTALL,
)


def looks_rendered(text: str) -> bool:
    """Whether the text begins as a chat template begins a conversation."""
    return _LOOKS.match(text) is not None


def turns_of(text: str) -> list[tuple[str, str]] | None:
    """(role, what is said) of every turn, where the text is nothing but turns and one of them is an answer."""
    begin = re.match(_BEGIN, text) if looks_rendered(text) else None
    if begin is None:
        return None
    found = _in_pairs(text) or next((turns for turn in _TURNS if (turns := _in_turns(turn, text, begin.end()))), None)
    return found if found and any(role == "assistant" for role, _ in found) else None


def _in_turns(turn: re.Pattern[str], text: str, at: int) -> list[tuple[str, str]] | None:
    turns = []
    while at < len(text):
        one = turn.match(text, at)
        if one is None or one["role"] not in _ROLES or looks_rendered(one["said"]):
            return None
        turns.append((_ROLES[one["role"]], one["said"]))
        at = one.end()
    return turns


def _in_pairs(text: str) -> list[tuple[str, str]] | None:
    turns: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return None
        turns += [("system", pair["system"])] if pair["system"] is not None else []
        turns += [("user", pair["asked"]), ("assistant", pair["said"])]
        at = pair.end()
    return turns
