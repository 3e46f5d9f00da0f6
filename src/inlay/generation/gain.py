"""One adapter on one module of the base, as the server computes it.

Shapes: I inputs and O outputs of the module, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gain:
    """`y = g ⊙ (W (h ⊙ x) + bias) + B A x + b`, with the weight and the bias of the base's own module. All in float32.

    LoRA has A and B, with the scale in B. DoRA is g and B by constants of the base's weights; IA3 is g or h; a trained
    bias is b. A part that is None changes nothing.
    """

    A_RI: Tensor | None = None
    B_OR: Tensor | None = None
    g_O: Tensor | None = None
    h_I: Tensor | None = None
    b_O: Tensor | None = None
    is_embedding: bool = False
    """Whether the input is ids: I is the number of words then, and A x a column of A."""

    @property
    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """A, B, g, h and b."""
        return self.A_RI, self.B_OR, self.g_O, self.h_I, self.b_O

    @property
    def rank(self) -> int:
        """R, 0 without A and B."""
        return 0 if self.A_RI is None else len(self.A_RI)
