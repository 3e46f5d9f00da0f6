"""Rows as well-known data sets and programs write them that no format reads: what they are, and how to rewrite them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from inlay.data.types import Row
from inlay.typed_json import JsonObject

_MESSAGES: Final = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


def _is_squad(value: JsonObject) -> bool:
    answers = value.get("answers")
    return "question" in value and isinstance(answers, dict) and isinstance(answers.get("text"), list)


def _is_list(value: JsonObject, name: str) -> bool:
    return isinstance(value.get(name), list)


def _is_label_studio(value: JsonObject) -> bool:
    return isinstance(value.get("data"), dict) and (_is_list(value, "annotations") or _is_list(value, "completions"))


SHAPES: Final[tuple[tuple[Callable[[JsonObject], Any], str], ...]] = (
    (
        _is_squad,
        "a row as SQuAD writes it: 'answers' holds several texts and where they stand. Write the first one as a text, and "
        'leave out rows without one: {"instruction": question, "input": context, "output": answers["text"][0]}',
    ),
    (
        lambda value: _is_list(value, "paragraphs") or _is_list(value, "qas"),
        "a text with its questions, as SQuAD's own files nest them. Write a row for each question that has an answer: "
        '{"instruction": qa["question"], "input": paragraph["context"], "output": qa["answers"][0]["text"]}, for every qa of '
        'paragraph["qas"] and every paragraph of data[…]["paragraphs"]',
    ),
    (
        lambda value: "question" in value and _is_list(value, "answers"),
        "a question with several answers in 'answers'. Write the one to train on as a text: "
        '{"question": question, "answer": answers[0]}',
    ),
    (
        _is_label_studio,
        "a task as Label Studio exports it. Write a text with its label for each: 'text' from data.text, 'label' from "
        "annotations[].result[].value.choices, and leave out tasks without annotations or with several answers",
    ),
    (
        lambda value: isinstance(value.get("mapping"), dict),
        "a conversation as ChatGPT exports it: 'mapping' is a tree of turns, with a branch for every new try. Go from "
        f"'current_node' up through 'parent', and write that branch as {_MESSAGES}",
    ),
    (
        lambda value: isinstance(value.get("body"), dict) and {"custom_id", "method", "url"} & value.keys(),
        "a request of a batch API, which holds no answer. Take body.messages, add choices[0].message of the response with "
        f"the same custom_id, and write both as {_MESSAGES}",
    ),
    (
        lambda value: isinstance(value.get("response"), dict) and {"custom_id", "request"} & value.keys(),
        "a response of an API. Take the messages of its request, add choices[0].message of the response, and write both as "
        f"{_MESSAGES}",
    ),
    (
        lambda value: {"response_0", "response_1"} <= value.keys(),
        "two answers to a prompt, 'response_0' and 'response_1'; other fields say which is better. Write the better one as "
        '\'chosen\': {"prompt": prompt, "chosen": better, "rejected": other}',
    ),
    (
        lambda value: _is_list(value, "completions") or _is_list(value, "responses"),
        "several answers to one prompt in a list. Write the one to train on as a text: "
        '{"prompt": prompt, "completion": best}, or a row for each of several good ones',
    ),
)
"""(whether a row is of this shape, what it is and what to do)."""
ANSWERS: Final = (
    "A list of answers, as LLaMA-Factory's older preference rows have them, the better one first. Write "
    '{"prompt": …, "chosen": output[0], "rejected": output[1]}, or keep the one to train on as a text.'
)
"""The way out where a list stands in the place of the answer."""


def described(row: Row) -> str | None:
    """A description of the row and how to rewrite it, where it is of a known shape; else None."""
    return next((words for fits, words in SHAPES if fits(row.value)), None)
