"""Differences by group: rows of one length, source or label, each group compared by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inlay.evaluation.bootstrap import paired_bootstrap
from inlay.evaluation.metrics import Array, Metric, normalise
from inlay.evaluation.score import EvalSet
from inlay.evaluation.task_metrics import labels_of
from inlay.evaluation.verdict import Difference

_MOST_GROUPS = 20
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the rows, compared by themselves."""

    by: str
    """The common property: prompt length, answer length, source or label."""
    name: str
    n: int
    differences: dict[str, Difference]


Pairs = Mapping[str, tuple[Array, Array, Metric]]
"""By metric the statistics of both sides over all rows, NaN where a row is not scored."""


def groups(rows: EvalSet, pairs: Pairs, *, resamples: int, seed: int) -> tuple[Group, ...]:
    """Every group of at least two rows. Groupings with one group, or too many, are left out."""
    found: list[Group] = []
    for by, names in _groupings(rows):
        members: defaultdict[str, list[int]] = defaultdict(list)
        for n, name in enumerate(names):
            if name is not None:
                members[name].append(n)
        if not 2 <= len(members) <= _MOST_GROUPS:
            continue
        for name in sorted(members, key=_place):
            compared = _compared(members[name], pairs, min(resamples, _RESAMPLES), seed)
            if compared:
                found.append(Group(by, name, len(members[name]), compared))
    return tuple(found)


def _compared(members: Sequence[int], pairs: Pairs, resamples: int, seed: int) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for name, (base, adapter, metric) in pairs.items():
        scored = [n for n in members if np.isfinite(base[n]).all()]
        if len(scored) >= 2:
            found[name] = paired_bootstrap(base[scored], adapter[scored], metric, resamples=resamples, seed=seed)
    return found


def _groupings(rows: EvalSet) -> Iterable[tuple[str, list[str | None]]]:
    """(property, group of each row)."""
    count = len(rows.examples)
    lengths = [len(rows.prompt_ids[n]) if n in rows.prompt_ids else None for n in range(count)]
    trained = np.zeros(count, dtype=int)
    for i, n in enumerate(rows.tokens.examples):
        trained[n] += int((rows.tokens.row(i).weights > 0).sum())
    yield "prompt length", _thirds(lengths)
    yield "answer length", _thirds([int(size) or None for size in trained])
    yield "source", [Path(example.source.file).name for example in rows.examples]
    labels = labels_of([rows.references[n] for n in rows.prompt_ids])
    if labels:
        yield "label", [normalise(rows.references[n]) if n in rows.prompt_ids else None for n in range(count)]


def _thirds(sizes: Sequence[int | None]) -> list[str | None]:
    """Third of the sizes that each is in, named by the tokens it spans."""
    known = sorted(size for size in sizes if size is not None)
    if not known:
        return [None] * len(sizes)
    limits = sorted({known[len(known) * k // 3 - 1] for k in (1, 2, 3)})
    names: dict[int, str] = {}
    for place, limit in enumerate(limits):
        inside = [s for s in known if s <= limit and (place == 0 or s > limits[place - 1])]
        names |= dict.fromkeys(inside, f"{inside[0]} to {limit} tokens" if inside[0] < limit else f"{limit} tokens")
    return [None if size is None else names[size] for size in sizes]


def _place(name: str) -> tuple[int, str]:
    """Lengths from short to long, other names by the alphabet."""
    first = name.split(" ", 1)[0]
    return (int(first), "") if name.endswith(" tokens") and first.isdigit() else (0, name)
