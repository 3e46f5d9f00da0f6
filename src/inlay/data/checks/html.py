"""The report of `data check` as one HTML file."""

from __future__ import annotations

from collections import Counter

from inlay.data.checks.findings import SEVERITIES, Finding, Place
from inlay.data.checks.lengths import LengthFacts
from inlay.data.checks.report import DataReport
from inlay.data.checks.survey import FileFacts
from inlay.errors import count_shown
from inlay.reports.charts import histogram
from inlay.reports.html import Html, Item, badge, facts, filtered, joined, note, page, section, table, tag

_OPEN = 5  # places shown without a click


def check_page(report: DataReport) -> str:
    """The whole page."""
    counts = {severity: report.count(severity) for severity in SEVERITIES}
    badges = [badge(count_shown(n, word), word) for word, n in counts.items() if n]
    summary = [joined(f"{count_shown(report.rows, 'row')}  ", *_spaced(badges or [badge("nothing was found", "good")]))]
    return page("Data check", tag("p", summary), _findings(report), *_lengths(report), *map(_file, report.files))


def _spaced(parts: list[Html]) -> list[str]:
    return [piece for part in parts for piece in (part, " ")]


def _findings(report: DataReport) -> Html:
    kinds = [severity for severity in SEVERITIES if report.count(severity)]
    if not kinds:
        return section("Findings", note("Nothing was found."))
    return section("Findings", filtered(kinds, (Item(f.severity, _finding(f)) for f in report.findings)))


def _finding(finding: Finding) -> Html:
    head = tag("h3", badge(finding.severity, finding.severity), f" {finding.title}: {finding.count:,}")
    first, rest = finding.places[:_OPEN], finding.places[_OPEN:]
    more = finding.count - len(finding.places)
    shown = [_place(place) for place in first]
    if rest:
        more_places = f"{len(rest)} more" + (f" of {finding.count - len(first):,}" if more else "")
        shown.append(tag("details", tag("summary", more_places), (_place(place) for place in rest)))
    return joined(head, shown, note("Fix: ", finding.fix))


def _place(place: Place) -> Html:
    lines = [tag("span", place.where, class_="place")]
    lines += [joined(tag("br"), text) for text in (place.shown, place.other_shown) if text]
    return tag("p", lines)


def _lengths(report: DataReport) -> list[Html]:
    found = report.lengths
    if not len(found.lengths):
        return []
    percentiles = found.percentiles()
    counts, edges = found.histogram()
    marks = [(f"p{p}", float(percentiles[p])) for p in (50, 90, 99)]
    about = (
        f"In {found.unit}{f' of {report.model}' if report.model else ''}, of {count_shown(len(found.lengths), 'row')}; "
    )
    about += f"the last bar holds all longer ones. {found.total:,} in all, {found.total_trained:,} trained "
    about += f"({found.trained_share:.1%})."
    shown = [note(about), histogram(counts, edges, marks, found.unit)]
    shown.append(table([f"p{p}" for p in percentiles], [[f"{v:,}" for v in percentiles.values()]], range(9)))
    parts = [section("Lengths", shown)]
    if found.max_lengths:
        parts.append(section("What a max_length would cost", _limits(found)))
    advice = facts((advice.about, advice.text) for advice in report.advice)
    return [*parts, section("Rules of thumb", note("Heuristics: use them to decide what to try first."), advice)]


def _limits(found: LengthFacts) -> Html:
    total, rows = max(1, found.total_trained), len(found.lengths)
    body = [
        [
            f"{m.max_length:,}",
            f"{m.longer:,} ({m.longer / rows:.1%})",
            f"{m.lost_by_drop:,} ({m.lost_by_drop / total:.1%})",
            f"{m.lost_by_cut:,} ({m.lost_by_cut / total:.1%})",
        ]
        for m in found.max_lengths
    ]
    return table(["max_length", "longer rows", "trained tokens lost by drop", "by cut"], body, range(4))


def _file(found: FileFacts) -> Html:
    pairs = [("format", f"{found.format} ({found.why})" if found.why else found.format)]
    unusable = f", {found.faulty:,} that cannot be used" if found.faulty else ""
    pairs += [("rows", f"{found.rows:,}{unusable}")]
    if found.rows:
        pairs += [("roles", _counted(found.roles)), ("scripts (rows)", _counted(found.scripts))]
        pairs += [("turns a row", _counted(Counter({str(n): c for n, c in sorted(found.turns.items())})))]
        pairs += [("characters", _counted(found.characters))]
    return section(found.file + (" (held out)" if found.held_out else ""), facts(pairs))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(12))
