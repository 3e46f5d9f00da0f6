"""The way out of a plateau, as steps and learning rates: back to an earlier checkpoint, a tenth of the rate until the
plateau's step is behind, and up again. Pure functions, so that a resumed run plans the same.
"""

from __future__ import annotations

BACK = 100
"""Steps to go back; half the way to the plateau where that is less."""
LOWERED = 0.1
"""Factor on the learning rate until the plateau's step is behind."""
_MARGIN = 0.1  # of the stretch that was gone back: so far past the plateau it stays low, and so long it rises


def branch_step(plateau: int, save_every: int) -> int:
    """The step of the checkpoint that an escape from a plateau at that step starts from; 0 is before the first."""
    return (plateau - min(BACK, (plateau + 1) // 2)) // save_every * save_every


def end_step(plateau: int, save_every: int) -> int:
    """The step at which the learning rate is what it would have been."""
    return plateau + 2 * _margin(branch_step(plateau, save_every), plateau)


def branch_steps_to_keep(step: int, save_every: int, eval_every: int) -> set[int]:
    """Steps up to this one from which a plateau that is found now or later would be escaped."""
    places: set[int] = set()
    found = -(-step // eval_every) * eval_every
    while (place := branch_step(found, save_every)) <= step:
        places.add(place)
        found += eval_every
    return places


def factors(start: int, plateau: int, last: int) -> dict[str, dict[int, float]]:
    """`train.learning_rate_factors` of the two other ways from `start` to `last`, by name."""
    margin = _margin(start, plateau)
    low = {start + 1: LOWERED, plateau + margin: LOWERED, plateau + 2 * margin: 1.0}
    return {"escape": low, "decay": {start + 1: 1.0, last: 1 / (last - start)}}


def _margin(start: int, plateau: int) -> int:
    return max(1, round(_MARGIN * (plateau - start)))
