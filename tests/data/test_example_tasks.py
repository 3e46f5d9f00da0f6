"""The example tasks are varied, whole, and do not leak their held-out rows."""

from __future__ import annotations

import re

import pytest

from inlay.data import Example, example_tasks
from inlay.data.splits import prompt_key

WANTED = {
    "customer_support": (400, 100),
    "financial_guidance": (400, 100),
    "python_code": (400, 100),
    "ticket_labels": (300, 100),
    "summaries": (300, 100),
}


def words(example: Example) -> frozenset[str]:
    asked = " ".join(m.content for m in example.messages if m.role == "user")
    return frozenset(re.findall(r"[a-z0-9]+", asked.lower()))


def test_every_example_task_is_there() -> None:
    assert set(example_tasks()) == set(WANTED)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_an_example_task_has_enough_rows_and_each_is_its_own(name: str) -> None:
    train, heldout = example_tasks()[name].read()
    assert len(train) >= WANTED[name][0]
    assert len(heldout) >= WANTED[name][1]
    every = [prompt_key(e).hex() + e.messages[-1].content for e in (*train, *heldout)]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_no_held_out_question_is_a_training_question_in_almost_the_same_words(name: str) -> None:
    train, heldout = example_tasks()[name].read()
    known = [words(e) for e in train]
    for example in heldout:
        asked = words(example)
        closest = max(len(asked & other) / len(asked | other) for other in known)
        assert closest <= 0.8, (example.source, closest)
