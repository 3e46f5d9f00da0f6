"""HTML pages of adapters: the ranks that one uses, and two beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from inlay.adapters.differences import WeightDifference
from inlay.evaluation.compare import Comparison
from inlay.reports.charts import Line, heat_map, lines
from inlay.reports.html import Html, badge, facts, note, page, section, table
from inlay.runs.reporter import change_shown, signed
from inlay.workflows.adapter_library.difference import NOT_BEHAVIOUR, AdapterDifference, Fact
from inlay.workflows.adapter_library.ranks import ENERGIES, RankEvidence, advice, place_of

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
    drawn = layer_map(values, "{:g}".format, low=0.0)
    return [section(f"Rank that keeps {ENERGIES[0]:.0%} of ‖ΔW‖², by layer", drawn)] if drawn else []


def layer_map(
    values: Mapping[str, float], show: Callable[[float], str], low: float | None = None, high: float | None = None
) -> Html | None:
    """Values of modules as a map of layers and kinds of modules; None where no module is in a numbered layer."""
    placed = {place_of(module): value for module, value in values.items()}
    layers = sorted({layer for layer, _ in placed if layer is not None})[:_LARGEST_MAP]
    if not layers:
        return None
    named = {(str(layer), kind): value for (layer, kind), value in placed.items()}
    return heat_map([str(one) for one in layers], sorted({kind for _, kind in placed}), named, show, low, high)


def _modules(evidence: RankEvidence) -> Html:
    head = ["module", "rank", "‖ΔW‖", "stable rank", *(f"{share:.0%}" for share in ENERGIES)]
    body = [
        [one.module, str(one.rank), f"{one.norm:.4g}", f"{one.stable_rank:.1f}", *map(str, one.energy_ranks)]
        for one in evidence.modules
    ]
    return section("Modules", table(head, body, range(1, len(head)), roomy=[3, 5]))


def difference_page(found: AdapterDifference) -> str:
    """The complete file: facts, settings that differ, weights by layer, behaviour, and what `compare` found."""
    title = f"{found.a} and {found.b}"
    reasons = [note(reason) for reason in found.reasons]
    parts = [_facts_of_both("Facts", found, found.facts), _facts_of_both("Settings that differ", found, found.settings)]
    if found.weights is not None:
        parts += _weights(found, found.weights)
    if found.behaviour is not None:
        one = found.behaviour
        about = facts(
            [
                ("KL", f"{one.kl:.4g} nats a token, of {found.b} from {found.a}, on the answers of {found.a}"),
                ("same first choice", f"{one.same_choice:.1%} of {one.tokens} tokens"),
                ("same answer", f"{one.equal_answers} of {one.prompts} prompts"),
            ]
        )
        parts.append(section("Behaviour on the golden prompts", about))
    if found.comparison is not None:
        parts.append(_compared(found, found.comparison))
    return page(title, *reasons, *(part for part in parts if part))


def _facts_of_both(title: str, found: AdapterDifference, listed: Iterable[Fact]) -> Html | str:
    body = [[one.name, one.a, one.b, badge("differs", "warning") if one.differs else ""] for one in listed]
    return section(title, table(["", found.a, found.b, ""], body)) if body else ""


def _weights(found: AdapterDifference, weights: WeightDifference) -> list[Html]:
    cosine = "none: one changes nothing" if weights.cosine is None else f"{weights.cosine:.4f}"
    about = facts(
        [
            (f"‖ΔW‖ of {found.a}", f"{weights.norm_a:.4g}"), (f"‖ΔW‖ of {found.b}", f"{weights.norm_b:.4g}"),
            ("distance", f"{weights.distance:.4g}"), ("cosine", cosine),
        ]
    )  # fmt: skip
    parts = [section("Weights", about, note(NOT_BEHAVIOUR))]
    cosines = {one.module: one.cosine for one in weights.modules if one.cosine is not None}
    distances = {one.module: one.distance for one in weights.modules}
    angles = {one.module: one.angle_degrees for one in weights.modules if one.angle_degrees is not None}
    for title, drawn in (
        ("Cosine by layer", layer_map(cosines, "{:.2f}".format, -1.0, 1.0)),
        ("Distance by layer", layer_map(distances, "{:.3g}".format, 0.0)),
        ("Largest principal angle by layer", layer_map(angles, "{:.0f}°".format, 0.0, 90.0)),
    ):
        if drawn is not None:
            parts.append(section(title, drawn))
    body = [
        [one.module, f"{one.norm_a:.3g}", f"{one.norm_b:.3g}", "" if one.cosine is None else f"{one.cosine:.3f}",
         f"{one.distance:.3g}", "" if one.angle_degrees is None else f"{one.angle_degrees:.1f}°"]
        for one in weights.modules
    ]  # fmt: skip
    head = ["module", f"‖ΔW‖ {found.a}", f"‖ΔW‖ {found.b}", "cosine", "distance", "largest angle"]
    angles_note = note("Angle: between the directions of output that the two write to in a module.")
    return [*parts, section("Modules", table(head, body, range(1, len(head)), roomy=[5]), angles_note)]


def _compared(found: AdapterDifference, comparison: Comparison) -> Html:
    body = [
        [name, f"{one.base:.4g}", f"{one.other:.4g}", change_shown(one, signed), one.verdict]
        for name, one in comparison.metrics.items()
    ]
    about = note(f"{comparison.n} rows; {found.b} against {found.a}.")
    return section("Answers on held-out rows", table(["", found.a, found.b, "change", "verdict"], body), about)
