"""`test_fuzz.py` for long, and what it came to as a page.

python tests/data/fuzz.py [--examples 20000] [--page docs/numbers/fuzz.md]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MARK = "<!-- written by make fuzz -->\n"


class Outcomes:
    """What pytest tells of each test."""

    def __init__(self) -> None:
        self.tests: list[tuple[str, float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
            last = str(report.longrepr).strip().splitlines()[-1:] if report.failed else ["none"]
            self.tests.append((name, report.duration, last[0] if last else "failed"))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--examples", type=int, default=int(os.environ.get("INLAY_FUZZ", "20000")))
    options.add_argument("--page", type=Path, help="write the table into this page")
    given = options.parse_args()
    if given.page and not given.page.is_file():
        options.error(f"{given.page}: no such page")  # now, not after an hour
    os.environ["INLAY_FUZZ"] = str(given.examples)
    sys.path.insert(0, str(HERE.parent))  # when called as a script
    outcomes = Outcomes()
    code = int(pytest.main(["-q", "-n", "0", str(HERE / "test_fuzz.py")], plugins=[outcomes]))
    if given.page and outcomes.tests:
        before = given.page.read_text(encoding="utf-8").partition(MARK)[0]
        given.page.write_text(f"{before}{MARK}\n{summary(outcomes, given.examples)}", encoding="utf-8")
    return code


def summary(outcomes: Outcomes, examples: int) -> str:
    """The command, and one line a test."""
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    lines = [f"| {name} | {examples:,} | {s:.0f} | {found} |" for name, s, found in outcomes.tests]
    return (
        f"`python tests/data/fuzz.py --examples {examples}`, commit {commit}, one core, peak memory {peak:.0f} MB:\n\n"
        "| what was generated | examples | seconds | findings |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
