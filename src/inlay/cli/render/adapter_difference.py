"""Two adapters beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.cli.render.adapters import printable
from inlay.cli.render.comparison import comparisons_text

if TYPE_CHECKING:
    from inlay.workflows.adapter_library.difference import AdapterDifference


def difference_text(found: AdapterDifference, page: str | None, columns: int) -> str:
    """Facts that differ, weights, behaviour, and the comparison."""
    from inlay.workflows.adapter_library.difference import NOT_BEHAVIOUR

    lines = [f"{found.a} and {found.b}", ""]
    differing = [one for one in (*found.facts, *found.settings) if one.differs]
    width = max((len(one.name) for one in differing), default=0)
    lines += [f"{one.name:<{width}}  {printable(one.a) or '–'}  |  {printable(one.b) or '–'}" for one in differing]
    lines += [] if differing else ["no fact and no setting differs"]
    if found.weights is not None:
        w = found.weights
        cosine = "–" if w.cosine is None else f"{w.cosine:.4f}"
        lines += ["", f"weights    ‖ΔW‖ {w.norm_a:.4g} and {w.norm_b:.4g}, distance {w.distance:.4g}, cosine {cosine}"]
        lines.append(NOT_BEHAVIOUR)
    if found.behaviour is not None:
        b = found.behaviour
        lines += [
            "",
            f"behaviour  KL {b.kl:.4g} nats a token, same first choice at {b.same_choice:.1%} of {b.tokens} tokens, same "
            f"answer to {b.equal_answers} of {b.prompts} golden prompts",
        ]
    lines += [f"\n{reason}" for reason in found.reasons]
    if found.comparison is not None:
        lines += ["", comparisons_text(found.comparison, columns)]
    if page is not None:
        lines.append(f"page: {page}")
    return "\n".join(lines)
