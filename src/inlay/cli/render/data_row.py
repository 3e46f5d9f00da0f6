"""A row as training sees it: trained tokens in colour, or between brackets."""

from __future__ import annotations

from collections.abc import Iterator

from inlay.data.show_row import Landing, ShownRow, ShownSequence
from inlay.errors import count_shown

_KEPT = "\n\u200c\u200d"
"""Characters that are not printable and still belong to the text: joiners of letters and of emoji."""
_LONG_TEXT, _ENDS_TEXT = 100_000, 2_000
"""Characters above which of a stretch of text only the ends are shown, and how many of each."""
_LONG_STRETCH, _ENDS = 4_000, 200
"""Tokens above which of a stretch only the ends are listed, and how many of each."""
_TRAINED, _READ, _OFF = "\033[1;32m", "\033[2m", "\033[0m"


def row_text(row: ShownRow, coloured: bool) -> str:
    """The row's fate, then each of its sequences: the text, and a line for each token."""
    lines = [f"{row.source}: format {row.format}, {row.side}"]
    if any(sequence.landings for sequence in row.sequences):
        lines.append(row.micro_batch_note)
    for n, sequence in enumerate(row.sequences, 1):
        lines += ["", *_head(sequence, f"sequence {n} of {len(row.sequences)}"), "", _running(sequence, coloured), ""]
        lines += _table(sequence, coloured)
    return "\n".join(lines)


def _head(sequence: ShownSequence, name: str) -> Iterator[str]:
    weights = sequence.tokens.weights
    cut = f", {sequence.cut} more are cut by data.max_length" if sequence.cut else ""
    tokens = count_shown(len(weights), "token")
    yield f"{name}: {tokens}{cut}, {int((weights > 0).sum())} trained, weight {float(weights.sum()):g}"
    yield from (f"  {one}" for one in sequence.altered)
    yield from (f"  {_landing(one)}" for one in sequence.landings)


def _landing(one: Landing) -> str:
    return (
        f"epoch {one.epoch}: step {one.step} ({count_shown(one.rows, 'row')}), "
        f"micro batch {one.micro_batch} of {one.micro_batches} "
        f"({count_shown(one.beside, 'row')} padded to {count_shown(one.padded_to, 'token')})"
    )


def _running(sequence: ShownSequence, coloured: bool) -> str:
    """The text as it stands, the trained stretches marked."""
    marked = []
    for weight, text in sequence.spans:
        if len(text) > _LONG_TEXT:
            text = f"{text[:_ENDS_TEXT]}\n… {len(text) - 2 * _ENDS_TEXT:,} characters …\n{text[-_ENDS_TEXT:]}"
        visible = "".join(c if c.isprintable() or c in _KEPT else repr(c)[1:-1] for c in text)
        if coloured:
            colour = _TRAINED if weight > 0 else _READ
            marked.append("\n".join(f"{colour}{line}{_OFF}" for line in visible.split("\n")))
        else:
            marked.append(f"⟦{visible}⟧" if weight > 0 else visible)
    return "".join(marked)


def _table(sequence: ShownSequence, coloured: bool) -> Iterator[str]:
    yield f"{'place':>6}  {'id':>7}  {'label':>7}  {'weight':>7}  token"
    t, labels = sequence.tokens, sequence.labels
    for start, end in sequence.stretches:
        is_long = end - start > _LONG_STRETCH
        shown = [*range(start, start + _ENDS), *range(end - _ENDS, end)] if is_long else range(start, end)
        for n in shown:
            if is_long and n == end - _ENDS:
                yield f"     … {end - start - 2 * _ENDS:,} tokens; all of them: --json"
            weight = float(t.weights[n])
            line = f"{n:>6}  {int(t.input_ids[n]):>7}  {int(labels[n]):>7}  {weight:>7g}  {sequence.pieces[n]!r}"
            yield f"{_TRAINED if weight > 0 else _READ}{line}{_OFF}" if coloured else line
