"""Conversations that were written as one text, back to their turns.

Two kinds are read, where the text is nothing but turns. A chat template writes markup around each turn: ChatML, Llama 3,
Gemma, Phi and Zephyr, Llama 2 and Mistral. Older data sets name the speaker: `Human: … Assistant: …` (HH-RLHF) and
`### Human: … ### Assistant: …` (Guanaco). The template of the base then writes the turns anew, so that special tokens are
special and answers can be found.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

Turns = list[tuple[str, str]]
"""(role, text) of each turn."""

_ROLES: Final = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "model": "assistant",
    "tool": "tool", "ipython": "tool", "Human": "user", "User": "user", "Assistant": "assistant",
}  # fmt: skip
_BEGIN: Final = r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*"
_LOOKS: Final = re.compile(
    _BEGIN + r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|<\|(?:system|user|assistant)\|>"
    r"|Human:|### ?(?:Human|User):)"
)
_TURNS: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<\|im_start\|>(?P<role>\w+)\n(?P<text>.*?)<\|im_end\|>\s*",
        r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n(?P<text>.*?)<\|eot_id\|>\s*",
        r"<start_of_turn>(?P<role>\w+)\n(?P<text>.*?)<end_of_turn>\s*",
        r"<\|(?P<role>system|user|assistant)\|>\n(?P<text>.*?)(?:<\|end\|>|</s>|<\|endoftext\|>)\s*",
    )
)
"""One turn of each markup in which every turn names its role."""
_PAIR: Final = re.compile(
    r"(?:<s>)?\s*\[INST\] ?(?:<<SYS>>\n(?P<system>.*?)\n<</SYS>>\n\n)?(?P<prompt>.*?) ?\[/INST\] ?(?P<answer>.*?) ?</s>\s*",
    re.DOTALL,
)
_ENDS: Final = (
    ("<|im_start|>", ("<|im_end|>",)),
    ("<|start_header_id|>", ("<|eot_id|>",)),
    ("<start_of_turn>", ("<end_of_turn>",)),
    ("[INST]", ("</s>",)),
    ("<|user|>", ("<|end|>", "<|endoftext|>", "</s>")),
)
"""(a mark before a turn, the marks that may end it) of each markup."""
_SPEAKERS: Final = (re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"), re.compile(r"\s*### ?(Human|User|Assistant):"))
"""The names before the turns of texts without other markup."""


def looks_rendered(text: str) -> bool:
    """Whether the text begins as a conversation written as one text begins."""
    return _LOOKS.match(text) is not None


def turns_of(text: str) -> Turns | None:
    """The turns of a text that is nothing but turns and has an answer among them; None for any other text."""
    begin = re.match(_BEGIN, text) if looks_rendered(text) else None
    if begin is None:
        return None
    in_markup = (turns for turn in _TURNS if (turns := _in_turns(turn, text, begin.end())))
    spoken = (turns for names in _SPEAKERS if (turns := _spoken(names, text)))
    found = _in_pairs(text) or next(in_markup, None) or next(spoken, None)
    return found if found and any(role == "assistant" for role, _ in found) else None


def turns_of_pair(prompt: object, answer: str) -> Turns | None:
    """The turns of a prompt and its answer that were cut from one text, the answer being the last one."""
    if not isinstance(prompt, str) or not looks_rendered(prompt):
        return None
    end = _end_of(prompt)  # a completion need not hold the end of its turn
    found = turns_of(prompt + answer) or (turns_of(prompt + answer + end) if end else None)
    return found if found and found[-1][0] == "assistant" else None


def lacks_end(text: str) -> str | None:
    """The mark that is missing at the end of a conversation, where its last turn is not ended; else None."""
    end = _end_of(text)
    return end if end and turns_of(text) is None and turns_of(text + end) is not None else None


def _end_of(text: str) -> str | None:
    """The mark that ends an answer of this markup; None for a text without one."""
    return next((end for begin, ends in _ENDS if begin in text for end in ends if end in text or end == ends[-1]), None)


def _in_turns(turn: re.Pattern[str], text: str, at: int) -> Turns | None:
    turns = []
    while at < len(text):
        one = turn.match(text, at)
        if one is None or one["role"] not in _ROLES or looks_rendered(one["text"]):
            return None
        turns.append((_ROLES[one["role"]], one["text"]))
        at = one.end()
    return turns


def _in_pairs(text: str) -> Turns | None:
    turns: Turns = []
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return None
        turns += [("system", pair["system"])] if pair["system"] is not None else []
        turns += [("user", pair["prompt"]), ("assistant", pair["answer"])]
        at = pair.end()
    return turns


def _spoken(names: re.Pattern[str], text: str) -> Turns | None:
    """The turns behind such names; None unless both sides speak in turn, the user first, and every turn has text."""
    before, *parts = names.split(text)
    turns = [(_ROLES[name], part.strip()) for name, part in zip(parts[::2], parts[1::2], strict=True)]
    in_turn = all(one[0] != other[0] for one, other in pairwise(turns))
    fits = not before.strip() and turns and turns[0][0] == "user" and in_turn and all(part for _, part in turns)
    return turns if fits else None
