"""The adapter library: the list, one version, and the proofs of versions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import ConfigError
from inlay.evaluation.summary import p_shown
from inlay.runs.reporter import bytes_shown, figure_shown, interval_shown
from inlay.typed_json import JsonObject

if TYPE_CHECKING:
    from inlay.workflows.adapter_library.add import Added
    from inlay.workflows.adapter_library.compose import Composed
    from inlay.workflows.adapter_library.export import Exported
    from inlay.workflows.adapter_library.fit import Fit
    from inlay.workflows.adapter_library.merge import MergedModel

_LEAST = {"adapter": 12, "tags": 6, "task": 6, "base": 8, "verdict": 6}
"""Columns that may be cut, down to these widths."""


def list_text(rows: list[JsonObject], width: int, *, is_all: bool) -> str:
    """A table of the versions, no wider than `width`."""
    if not rows:
        return "the library is empty\nNext: inlay adapters add RUN --name NAME" if is_all else "no such adapter"
    table = [["adapter", "tags", "task", "base", "rank", "size", "verdict"], *map(_cells, rows)]
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        spare = {n: widths[n] - _LEAST.get(title, widths[n]) for n, title in enumerate(table[0])}
        widest = max(spare, key=lambda n: spare[n])
        if spare[widest] <= 0:
            break
        widths[widest] -= 1
    return "\n".join(_line(row, widths) for row in table)


def _cells(row: JsonObject) -> list[str]:
    name = f"{row['name']}:{row['version']}"
    if "damaged" in row:
        return [name, "", "", "", "", "", "damaged"]
    rank = "–" if row["rank"] is None else str(row["rank"])
    verdict = row["verdict"] or row["operation"] or "not measured"
    cells = [
        name,
        " ".join(row["tags"]),
        row["task"] or "",
        base_shown(row["base"]),
        rank,
        bytes_shown(row["bytes"]),
        verdict,
    ]
    return [printable(cell) for cell in cells]


def _line(row: list[str], widths: list[int]) -> str:
    cut = [cell if len(cell) <= size else f"{cell[: size - 1]}…" for cell, size in zip(row, widths, strict=True)]
    numbers = (4, 5)
    return "  ".join(
        cell.rjust(size) if n in numbers else cell.ljust(size)
        for n, (cell, size) in enumerate(zip(cut, widths, strict=True))
    ).rstrip()


def base_shown(base: str) -> str:
    """The name of a base without the folder or owner that it lies in."""
    return base if base.startswith("builtin:") else Path(base).name


def show_text(found: JsonObject) -> str:
    """One line a fact, then the history."""
    card = found["card"]
    tags = f"  ({', '.join(found['tags'])})" if found["tags"] else ""
    lines = [printable(f"{found['name']}:{found['version']}{tags}"), f"  {printable(found['folder'])}"]
    lines += [f"  {name:<12} {printable(str(text))}" for name, text in _facts(card) if text not in (None, "")]
    lines += ["history"]
    for line in found["history"]:
        if "damaged" in line:
            lines.append(f"  {printable(line['damaged'])}")
            continue
        more = "".join(f" {line[key]}" for key in ("tag",) if key in line)
        moved = f", which was on version {line['moved_from']}" if "moved_from" in line else ""
        lines.append(printable(f"  {line['at']}  {line['action']}{more}{moved}  {line['by']}"))
    return "\n".join(lines)


def _facts(card: JsonObject) -> list[tuple[str, Any]]:
    kept, rank = card.get("verdict"), card.get("rank")
    proofs, goldens = card.get("proofs"), card.get("goldens")
    parents = ", ".join(f"{one['weight']:g} of {one['name']}" for one in card.get("parents", []))
    run = card.get("run")
    return [
        ("task", card.get("task")),
        ("licence", card.get("licence")),
        ("note", card.get("note")),
        ("base", f"{card['base_model']}, {card['base_digest'][:12]}, {card['dtype']}"
                 + (f" {card['quantization']}" if card["quantization"] != "none" else "")),
        ("adapter", f"{card['method']}{f' of rank {rank}' if rank else ''} on {card['modules']} modules, "
                    f"{card['parameters']:,} parameters, {bytes_shown(card['bytes'])}"),
        ("verdict", kept and _verdict(kept)),
        ("from", _origin(card, run, parents)),
        ("proofs", proofs and (f"failed: {', '.join(proofs['failed'])}" if proofs["failed"] else f"{proofs['held']} held")),
        ("goldens", goldens and f"{goldens['count']} answers, computed on {goldens['computed_on']}"),
        ("created", card["created"][:19]),
        ("identity", card["identity"]),
    ]  # fmt: skip


def _verdict(kept: JsonObject) -> str:
    interval = "" if "low" not in kept else f" [{figure_shown(kept['low'], '+')}, {figure_shown(kept['high'], '+')}]"
    change = f"{kept['base']:.4f} → {kept['adapter']:.4f}: {figure_shown(kept['difference'], '+')}"
    return f"{kept['verdict']} by held-out {kept['metric']}: {change}{interval}"


def _origin(card: JsonObject, run: str | None, parents: str) -> str:
    trained = f"run {run}" + (f", step {card['step']}" if "step" in card else "") if run else ""
    if card.get("operation") == "imported":
        return "imported; base named by the user; what it was trained on is not known" + (
            f"; it names {trained}" if run else ""
        )
    return f"{card['operation']}: {parents}" if card.get("operation") else trained


def added_text(added: Added, source: str) -> str:
    """The entry, and the next command."""
    entry = added.entry
    tags = f", tagged {', '.join(entry.tags)}" if entry.tags else ""
    done = f"{source} is {entry.ref}{tags}" if added.is_new else f"{entry.ref} already holds {source}{tags}"
    notes = [f"  {note}" for note in added.notes]
    ref = shlex.quote(f"{entry.name}:{entry.tags[0]}" if entry.tags else entry.ref)
    return "\n".join([done, *notes, f'Next: inlay generate "…" --run {ref}', f"      inlay adapters show {ref}"])


def weights_of(parts: list[str]) -> dict[str, float | None]:
    """The weight of each `NAME=WEIGHT`; None for a name alone. Raises: ConfigError for a weight that is no number."""
    weights: dict[str, float | None] = {}
    for part in parts:
        name, equals, number = part.rpartition("=") if "=" in part else (part, "", "")
        try:
            weight = float(number) if equals else None
        except ValueError:
            raise ConfigError(f"{part}: the weight {number!r} is no number. Write {name}=0.7.") from None
        if name in weights:
            raise ConfigError(f"{name}: is named twice. Name it once, with the sum of its weights.")
        weights[name] = weight
    return weights


def composed_text(composed: Composed) -> str:
    """The sum, its rank, size and error, the fit, and the next command."""
    entry, card = composed.entry, composed.entry.card
    terms = " ".join(f"{weight:+.4g}·{name}" for name, weight in composed.weights.items()).removeprefix("+")
    if composed.fit is not None and composed.fit.blocks.count > 1:
        terms = f"{', '.join(composed.weights)} with weights by blocks of layers"
    kind = "the exact sum" if composed.lossy is None else f"{composed.lossy}, which is no sum,"
    error = "exact" if composed.error == 0 else f"relative error {composed.error:.1e}"
    lines = [
        f"{entry.ref} {'is' if composed.is_new else 'already holds'} {kind} of {terms}",
        f"  {card.modules} modules, rank {composed.rank_before} → {card.rank}, "
        f"{bytes_shown(composed.bytes_before)} → {bytes_shown(card.bytes)}, {error}",
        *(f"  {note}" for note in composed.notes),
        *([] if composed.fit is None else _fit_lines(composed.fit)),
        "  not measured: the verdicts of its parts do not carry over",
    ]
    names = " ".join(shlex.quote(name) for name in composed.weights)
    return "\n".join([*lines, f"Next: inlay compare base {names} {shlex.quote(entry.ref)} --data ROWS"])


def _fit_lines(fit: Fit) -> list[str]:
    count = fit.blocks.count
    lines = [
        f"  block {block + 1} of {count}: " + " ".join(f"{row[block]:+.4g}·{name}" for name, row in fit.weights.items())
        for block in range(count if count > 1 else 0)
    ]
    lines += [f"  weights fitted on {fit.fitted_rows} rows; judged on {fit.judged_rows} others, by loss against"]
    width = max(len(name) for name in fit.rivals)
    for name, one in fit.rivals.items():
        p = fit.adjusted_p[name]
        verdict = f"{fit.verdict(name)} ({one.reason if p is None else f'p {p_shown(p)}, Holm'})"
        lines.append(f"    {name:<{width}}  {interval_shown(one, '{:+.4f}'.format)}  {verdict}")
    return lines


def check_text(found: list[JsonObject]) -> str:
    """A line for each proof, under the name of its version."""
    words = {True: "pass", False: "FAIL", None: "?   "}
    lines = []
    for one in found:
        lines.append(one["adapter"])
        lines += [
            f"  {words[proof['passed']]}  {proof['name']:<10}  {printable(proof['found'])}" for proof in one["proofs"]
        ]
    held = sum(one["passed"] for one in found)
    return "\n".join([*lines, f"{held} of {len(found)} hold"])


def printable(text: str) -> str:
    """The text without control characters: a card may come from a stranger."""
    return "".join(one if one.isprintable() else "�" for one in text)


def merged_text(merged: MergedModel, first: str) -> str:
    """The parts, the cost of rounding, the outcome of the check, and the next command, with `first` as the user wrote it."""
    terms = " ".join(f"{weight:+.4g}·{name}" for name, weight in merged.parts).removeprefix("+").removeprefix("1·")
    lines = [
        f"{merged.folder}: a complete model ({merged.bytes / 1e6:,.0f} MB, dtype {merged.dtype}): {terms}, merged into {merged.onto}"
    ]
    if merged.in_memory:
        lines.append(f"merged in memory: the base's files do not hold {merged.in_memory} as one tensor")
    elif merged.rounding is not None and merged.rounding.change2:
        name, worst = merged.rounding.worst_name.removesuffix(".weight"), merged.rounding.worst
        most = f", at most {worst:.2%} ({name}) of one tensor" if worst else ""
        lines.append(f"rounding  {merged.rounding.relative:.2%} of the change{most}")
    if merged.untied:
        lines.append(
            "the embedding and the head, which the base shares, are two tensors now (tie_word_embeddings false)"
        )
    if (found := merged.agreement) is not None:
        lines.append(
            f"logits    off by at most {found.largest:.2g}, {found.relative:.1%} of what the adapter changes; KL {found.kl:.1e} nats; "
            f"same next token for {found.same_choice:.1%} of {found.tokens}"
        )
    if merged.losses:
        lines.append("loss      " + "   ".join(f"{name} {loss:.4f}" for name, loss in merged.losses.items()))
    if merged.kept is not None:
        lines.append(f"check     {merged.kept.text()}, on {merged.kept.rows} rows of {merged.checked_on}")
    if merged.unchecked:
        lines.append(f"not compared with the unmerged form: {merged.unchecked}")
    lines.append(f"Next: inlay compare {shlex.quote(first)} {shlex.quote(str(merged.folder))}")
    return "\n".join(lines)


def require_plain_merge(is_check: bool, as_trained: bool, dtype: str, with_rows: bool) -> None:
    """Raises: ConfigError for an option of an adapter's export, where a merged model is wanted."""
    given = {"--check": is_check, "--as-trained": as_trained, "--dtype": dtype != "float32", "--with-rows": with_rows}
    if name := next((name for name, is_given in given.items() if is_given), None):
        raise ConfigError(
            f"{name}: has no effect on --to folder. Options of a merged model: inlay adapters merge --help"
        )


def exported_text(exported: Exported) -> str:
    """The limits, one a line; of an export also its size, its error and the commands that run it."""
    marks = {True: "pass", False: "FAIL", None: "?   "}
    width = max(len(limit.name) for limit in exported.limits)
    limits = [f"  {marks[limit.passed]}  {limit.name:<{width}}  {limit.found}" for limit in exported.limits]
    back = exported.read_back
    if exported.folder is None or back is None:
        verdict = "fits" if exported.fits else "does not fit"
        return "\n".join([f"{exported.name} as {exported.to}: {verdict}", *limits])
    error = "equal" if back.error == 0 else f"at most {back.error:.1e} off"
    what = f"{back.modules} tensors" if exported.rank is None else f"the changes of {back.modules} modules"
    shape = "" if exported.rank is None else f", rank {exported.rank}, {exported.dtype}"
    lines = [
        f"{exported.folder}: {exported.name} as {exported.to} ({bytes_shown(exported.bytes)}{shape})",
        f"  read back: {what}, {error}; {exported.goldens} golden answers beside them",
        *(line for line, limit in zip(limits, exported.limits, strict=True) if limit.passed is not True),
    ]
    first, *others = exported.commands
    return "\n".join([*lines, f"Next: {first}", *(f"      {command}" for command in others)])
