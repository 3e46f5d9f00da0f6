"""Tests of aliases on live traffic: shown, begun and stopped through the files of a library, with a server running or without.

`library` is its folder; by default that of INLAY_LIBRARY, else `library` beside `folder`, which holds the runs. A running server of
the library takes over within a second what was changed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from inlay.adapters.names import library_at
from inlay.errors import UserError, unknown_name

if TYPE_CHECKING:
    from inlay.serving.live_events import Event
    from inlay.serving.live_test import LiveReport, LiveTest


def show_tests(
    alias: str | None = None, *, library: str | Path | None = None, folder: str = "results"
) -> list[LiveReport]:
    """The test of one alias, or of all: counts, intervals, outcome, and what the outcome assumes. Raises: UserError."""
    tests = _tests(library_at(library, folder).path, alias)
    return [test.report() for name, test in tests.items() if alias in (None, name)]


def start_test(
    alias: str,
    weights: Mapping[str, float] | None = None,
    *,
    library: str | Path | None = None,
    folder: str = "results",
) -> LiveReport:
    """The test of an alias, begun again with nothing counted; or, of one that runs, with other percentages for its arms.

    Raises: UserError for a test that runs where no weights are given, for unknown arms, for weights that do not sum to 100.
    """
    from inlay.serving.live_test import started_anew

    path = library_at(library, folder).path
    return _changed(path, alias, started_anew(_tests(path, alias)[alias], weights))


def stop_test(
    alias: str, *, keep: str | None = None, library: str | Path | None = None, folder: str = "results"
) -> LiveReport:
    """The test of an alias, ended. From now on all users get the arm `keep`; without one they keep theirs. Raises: UserError."""
    from inlay.serving.live_test import stopped

    path = library_at(library, folder).path
    return _changed(path, alias, stopped(_tests(path, alias)[alias], keep))


def _tests(path: Path, alias: str | None) -> dict[str, LiveTest]:
    """The tests of a library. Raises: UserError where the alias has none."""
    from inlay.serving.live_test import stored_tests

    found = stored_tests(path)
    if alias is not None and alias not in found:
        known = unknown_name("alias", alias, found) if found else f"unknown alias {alias!r}."
        raise UserError(f"{path}: {known} Its test begins when a server is started with it, and that library.")
    return found


def _changed(path: Path, alias: str, event: Event) -> LiveReport:
    from inlay.serving.live_events import EVENTS, line_of
    from inlay.serving.live_test import stored_tests
    from inlay.serving.shared_log import SharedLog

    SharedLog(path / EVENTS).append(line_of(event))
    return stored_tests(path)[alias].report()
