"""The rank that an adapter uses, and a smaller form of it."""

from __future__ import annotations

import shlex
from statistics import median
from typing import TYPE_CHECKING

from inlay.runs.reporter import bytes_shown

if TYPE_CHECKING:
    from inlay.workflows.adapter_library.ranks import ModuleSpectrum, RankEvidence
    from inlay.workflows.adapter_library.shrink import Shrunk


def rank_text(found: RankEvidence, ref: str, page: str | None) -> str:
    """A line for each kind of module, the truncation curve, and what follows from it; `ref` is what the user named it by."""
    from inlay.workflows.adapter_library.ranks import ENERGIES, advice, place_of

    lines = [f"{found.name}: rank {found.rank} on {len(found.modules)} modules; median of the modules of a kind", ""]
    shares = "".join(f"{f'rank {share:.0%}':>10}" for share in ENERGIES)
    lines.append(f"{'module':<16}{'number':>7}{'‖ΔW‖':>10}{'stable rank':>13}{shares}")
    for kind in dict.fromkeys(place_of(one.module)[1] for one in found.modules):
        lines.append(_kind_line(kind, [one for one in found.modules if place_of(one.module)[1] == kind]))
    if found.curve:
        lines += ["", f"held-out loss on {found.rows} rows of {found.data}, every module cut to a rank"]
        lines.append(f"{'rank':>4}{'left out':>10}{'loss':>9}")
        lines += [f"{one.rank:>4}{one.error:>10.1%}{one.kept.other:>9.4f}  {one.kept.text()}" for one in found.curve]
    lines += ["", advice(found)]
    if page is not None:
        lines.append(f"page: {page}")
    rank = found.recommended
    if rank is not None and rank < found.rank:
        lines.append(f"Next: inlay adapters shrink {shlex.quote(ref)} --name NAME")
    return "\n".join(lines)


def _kind_line(kind: str, modules: list[ModuleSpectrum]) -> str:
    ranks = zip(*(one.energy_ranks for one in modules), strict=True)
    shown = "".join(f"{median(each):>10g}" for each in ranks)
    norm, stable = median(one.norm for one in modules), median(one.stable_rank for one in modules)
    return f"{kind:<16}{len(modules):>7}{norm:>10.3g}{stable:>13.1f}{shown}"


def shrunk_text(found: Shrunk, ref: str) -> str:
    """The smaller adapter, what it keeps, and the next command; `ref` is what the user named the larger one by."""
    entry, card = found.entry, found.entry.card
    less = f"{found.parameters_before:,} → {card.parameters:,} parameters, {bytes_shown(card.bytes)}"
    by = {"weights": "nearest in its weights", "activations": "nearest in what it adds to outputs"}
    lines = [
        f"{entry.ref} {'is' if found.is_new else 'already holds'} {found.name} at the size of rank {found.rank}",
        f"  {less}; ranks {found.ranks[0]} to {found.ranks[1]}, {by[found.form]}",
        f"  relative error {found.error:.1e} in the weights",
    ]
    if found.modules_left_out:
        lines.append(f"  {found.modules_left_out} modules have no rank left and are left out")
    if found.kept is not None:
        where = "" if found.kept.share is None else f" on {found.kept.rows} rows"
        apart = f"; activations were measured on {found.calibration_rows} others" if found.calibration_rows else ""
        lines.append(f"  {found.kept.text()}{where}{apart}")
    if found.other_form is not None:
        other = next(form for form in by if form != found.form)
        lines.append(f"  {by[other]}, it {found.other_form.text()}")
    lines += [f"  {note}" for note in found.notes]
    return "\n".join([*lines, f"Next: inlay compare {shlex.quote(ref)} {shlex.quote(entry.ref)}"])
