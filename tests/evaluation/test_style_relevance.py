"""Style and relevance: what they say of answers, and that they say nothing where they cannot tell shuffled rows apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay.data.encoding.encoder import Encoder
from inlay.data.example_tasks import find_example_task
from inlay.evaluation.style_relevance import relevance, style, text_embeddings
from inlay.evaluation.summary import style_relevance_text
from inlay.models.base import find_base, load_tokenizer


def pairs(domain: str, count: int) -> tuple[list[str], list[str]]:
    """(questions, answers) of a built-in task."""
    rows = find_example_task(domain).read()[1][:count]
    return [r.prompt[-1].content for r in rows], [r.messages[len(r.prompt)].content for r in rows]


def mean(statistics: np.ndarray) -> float:
    return float(statistics[:, 0].mean())


def test_style_knows_how_the_references_are_written_whatever_they_say() -> None:
    questions, references = pairs("customer_support", 60)
    moved = references[1:] + references[:1]
    found = style(references, [references, moved, questions, [""] * 60], seed=0)
    assert found.separates
    own, other_content, other_voice, silent = map(mean, found.sides)
    assert own == pytest.approx(0.5)
    assert other_content == pytest.approx(0.5, abs=0.1)
    assert other_voice < 0.05
    assert silent < 0.05
    text = style_relevance_text(found)
    assert text.startswith("style score (references = 0.5): base 0.50, adapter 0.5")
    assert "it separates references from shuffled text (AUC 0." in text


def test_style_is_not_shown_where_the_order_of_words_does_not_matter() -> None:
    found = style(pairs("ticket_labels", 60)[1], [], seed=0)
    assert not found.separates
    assert "style is not shown" in style_relevance_text(found)


def vectors(count: int, shared: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Questions and answers that have so much of their meaning in common, at the second of three depths."""
    draw = np.random.default_rng(seed)
    asked, said = draw.normal(3, 1, (2, count, 3, 16))
    said[:, 1] = shared * asked[:, 1] + (1 - shared) * said[:, 1]
    return asked, said


def test_relevance_is_whether_an_answer_belongs_to_its_question_at_the_depth_that_knows_it() -> None:
    asked, said = vectors(60, 0.7)
    found = relevance(asked, said, [said, np.roll(said, 1, axis=0), np.zeros_like(said)], seed=0)
    assert found.separates
    own, of_another, silent = map(mean, found.sides)
    assert own == pytest.approx(0.5)
    assert of_another < 0.1
    assert silent == 0


def test_relevance_finds_nothing_where_there_is_nothing() -> None:
    shown = [relevance(*vectors(60, 0.0, seed), [], seed).separates for seed in range(40)]
    assert sum(shown) == 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_a_text_has_the_meaning_that_the_base_alone_gives_it_in_any_batch(tiny_base: Path) -> None:
    from peft import LoraConfig, get_peft_model

    encoder = Encoder(load_tokenizer(find_base(str(tiny_base))))
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32).eval()
    texts = ["Hello", "", "Where is my parcel? " * 90, "Thanks."]
    given = {"batch_size": 4, "device": "cpu", "dtype": None}
    alone = text_embeddings(model, encoder, texts, **given)
    assert alone.shape == (4, 3, 32)
    assert not alone[1].any()
    for n in (0, 2, 3):
        by_itself = torch.tensor(text_embeddings(model, encoder, [texts[n]], **given)[0])
        torch.testing.assert_close(by_itself, torch.tensor(alone[n]), rtol=1e-5, atol=1e-6)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    assert np.array_equal(text_embeddings(adapted, encoder, texts, **given), alone)
