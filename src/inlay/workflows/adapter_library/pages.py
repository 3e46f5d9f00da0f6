"""HTML pages of adapters: the ranks that one uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from inlay.reports.charts import Line, heat_map, lines
from inlay.reports.html import Html, facts, note, page, section, table
from inlay.workflows.adapter_library.ranks import ENERGIES, ModuleSpectrum, RankEvidence, advice

_LARGEST_MAP = 400
"""Rows of a heat map."""


def rank_page(evidence: RankEvidence) -> str:
    """The complete file: advice, truncation curve, singular values, ranks by layer, and a table of all modules."""
    about = facts([("adapter", evidence.name), ("rank", str(evidence.rank)), ("in short", advice(evidence))])
    parts = [about, *_curve(evidence), *_singular_values(evidence), *_by_layer(evidence), _modules(evidence)]
    return page(f"Ranks of {evidence.name}", *parts)


def _curve(evidence: RankEvidence) -> list[Html]:
    if not evidence.curve:
        return []
    loss = [(float(one.rank), one.kept.other) for one in reversed(evidence.curve)]
    base = [(x, evidence.curve[0].kept.base) for x, _ in loss]
    body = [
        [str(one.rank), f"{one.error:.2%}", f"{one.kept.other:.4f}", one.kept.text()] for one in evidence.curve
    ]  # fmt: skip
    drawn = lines([Line("adapter", loss), Line("base", base, "base")], "rank of every module", "loss")
    return [
        section(
            "Held-out loss at lower ranks", drawn, table(["rank", "‖left out‖ / ‖ΔW‖", "loss", ""], body, [0, 1, 2]),
            note(f"{evidence.rows} rows of {evidence.data}. Dashed: the base."),
        )
    ]  # fmt: skip


def _singular_values(evidence: RankEvidence) -> list[Html]:
    drawn = [
        Line(one.module, [(float(n), value) for n, value in enumerate(one.sigma, 1)], "quiet")
        for one in evidence.modules
        if one.sigma
    ]
    if not drawn:
        return []
    return [section("Singular values", lines(drawn, "number", "σ"), note("One line a module."))]


def _by_layer(evidence: RankEvidence) -> list[Html]:
    values = {one.module: float(one.energy_ranks[0]) for one in evidence.modules}
    drawn = layer_map(evidence.modules, values, "{:g}".format, low=0.0)
    return [section(f"Rank that keeps {ENERGIES[0]:.0%} of ‖ΔW‖², by layer", drawn)] if drawn else []


def layer_map(
    modules: Iterable[ModuleSpectrum], values: Mapping[str, float], show: Callable[[float], str],
    low: float | None = None, high: float | None = None,
) -> Html | None:  # fmt: skip
    """Values of modules as a map of layers and kinds of modules; None where no module is in a numbered layer."""
    placed = {
        (one.layer, one.kind): values[one.module] for one in modules if one.layer is not None and one.module in values
    }
    layers = sorted({layer for layer, _ in placed if layer is not None})[:_LARGEST_MAP]
    kinds = list(dict.fromkeys(kind for _, kind in sorted(placed, key=lambda place: place[1])))
    if not placed:
        return None
    named = {(str(layer), kind): value for (layer, kind), value in placed.items()}
    return heat_map([str(one) for one in layers], kinds, named, show, low, high)


def _modules(evidence: RankEvidence) -> Html:
    head = ["module", "rank", "‖ΔW‖", "stable rank", *(f"{share:.0%}" for share in ENERGIES)]
    body = [
        [one.module, str(one.rank), f"{one.norm:.4g}", f"{one.stable_rank:.1f}", *map(str, one.energy_ranks)]
        for one in evidence.modules
    ]
    return section("Modules", table(head, body, range(1, len(head)), roomy=[3, 5]))
