"""Near duplicates: the estimate against the true similarity, and what is made of the pairs."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.config.sections.data import DataConfig, TrainFile
from inlay.data.checks.minhash import SHINGLE, SIZE, near_pairs, signatures
from inlay.data.checks.near import numbers_in
from inlay.data.checks.report import DataReport, check_files
from parts import write_rows

_random = random.Random(0)
WORDS = ["".join(_random.choices("abcdefghijklmnopqrst", k=_random.randint(2, 9))) for _ in range(3000)]


def sentence(words: int = 40) -> str:
    return " ".join(_random.choices(WORDS, k=words))


def changed(text: str, words: int) -> str:
    """The text with so many of its words replaced."""
    parts = text.split()
    for at in _random.sample(range(len(parts)), words):
        parts[at] = _random.choice(WORDS)
    return " ".join(parts)


def similarity(a: str, b: str) -> float:
    """The true Jaccard index."""
    one, other = ({t[i : i + SHINGLE] for i in range(len(t) - SHINGLE + 1)} for t in (a, b))
    return len(one & other) / len(one | other)


def test_the_estimate_is_that_of_the_true_similarity_within_its_error() -> None:
    pairs = [(t, changed(t, n)) for n in (0, 1, 2, 4, 8, 16) for t in [sentence() for _ in range(80)]]
    signed = signatures([text for pair in pairs for text in pair])
    estimate = (signed[::2] == signed[1::2]).mean(axis=1)
    true = np.array([similarity(*pair) for pair in pairs])
    error = np.sqrt(true * (1 - true) / SIZE)
    assert abs((estimate - true).mean()) < 0.01
    assert (np.abs(estimate - true) <= 4.5 * error + 1e-9).all()


def test_pairs_that_are_clearly_alike_are_found_and_clearly_unlike_are_not() -> None:
    texts = [sentence() for _ in range(400)]
    alike, unlike = [changed(t, 2) for t in texts[:200]], [changed(t, 14) for t in texts[200:]]
    pairs, estimate = near_pairs(signatures(texts + alike + unlike), 0.8)
    found = {(int(i), int(j)) for i, j in pairs}
    sure = {(i, 400 + i) for i in range(200) if similarity(texts[i], alike[i]) > 0.87}
    assert len(sure) > 50
    assert sure <= found
    assert not [pair for pair in found if pair[1] >= 600]
    assert (estimate >= 0.8).all()


def test_many_rows_alike_are_each_paired_without_all_pairs() -> None:
    text = sentence()
    pairs, _ = near_pairs(signatures([text] * 3000), 0.8)
    assert {int(j) for _, j in pairs} == set(range(1, 3000))
    assert len(pairs) < 2 * 3000


def test_many_rows_that_are_a_little_alike_are_searched_in_the_memory_of_their_signatures() -> None:
    made = np.random.default_rng(0).integers(0, 3, (10_000, SIZE), dtype=np.uint32)  # a third alike, met in every band
    tracemalloc.start()
    pairs, _ = near_pairs(made, 0.8)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not len(pairs)
    assert peak_bytes < 1.5 * made.nbytes


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=8))
def test_a_signature_depends_on_its_own_text_only(texts: list[str]) -> None:
    together = signatures(texts)
    assert together.shape == (len(texts), SIZE)
    for text, row in zip(texts, together, strict=True):
        assert (signatures([text])[0] == row).all()


def report(path: Path, rows: list[str], held_out: list[str] | None = None, eval_fraction: float = 0.2) -> DataReport:
    train = write_rows(path / "a.jsonl", [{"question": q, "answer": f"answer to {q}"} for q in rows])
    other = held_out and str(
        write_rows(path / "b.jsonl", [{"question": q, "answer": f"answer to {q}"} for q in held_out])
    )
    return check_files(
        [TrainFile(path=str(train))], DataConfig(train="-", eval=other or None, eval_fraction=eval_fraction)
    )


def test_near_duplicates_are_shown_in_pairs_with_both_texts(tmp_path: Path) -> None:
    rows = [sentence(25) for _ in range(20)]
    rows.append(changed(rows[4], 1))
    (finding,) = report(tmp_path, rows, [sentence(25)]).findings
    (place,) = finding.places
    assert (finding.kind, place.source.line, place.other and place.other.line) == ("near-duplicate", 21, 5)
    assert "% alike" in place.shown
    assert place.other_shown[:20] in rows[4]


def test_a_held_out_row_that_is_nearly_a_training_row_is_found(tmp_path: Path) -> None:
    rows = [sentence(25) for _ in range(20)]
    (finding,) = report(tmp_path, rows, [sentence(25), changed(rows[9], 1)]).findings
    assert finding.kind == "near-leaked-row"
    assert finding.places[0].where == f"{tmp_path}/b.jsonl:2 and {tmp_path}/a.jsonl:10"


def test_without_held_out_rows_those_that_train_would_hold_out_are_compared(tmp_path: Path) -> None:
    rows = [sentence(25) for _ in range(40)]
    found = report(tmp_path, rows + [changed(row, 1) for row in rows], eval_fraction=0.5).findings
    counts = {finding.kind: finding.count for finding in found}
    assert counts.keys() == {"near-duplicate", "near-leaked-row"}
    assert sum(counts.values()) == 40


def test_rows_with_other_numbers_are_not_near_duplicates(tmp_path: Path) -> None:
    text = sentence(40)
    assert report(tmp_path, [f"{text} on day {n}" for n in range(30)]).findings == ()


@given(st.text(st.sampled_from("a1 2.-\n0９x"), max_size=20))
def test_the_numbers_of_a_plain_text_are_those_that_any_other_text_has(text: str) -> None:
    assert numbers_in(text) == numbers_in(f"é{text}")
